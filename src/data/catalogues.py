"""Which crystals there are: in the folder of the CGCNN code, extended XYZ, ASE's database, bare CIF files."""

import csv
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import Any

import ase.db

from src.config import ConfigError
from src.config.errors import hint
from src.data.graphs import Catalogue, note
from src.structures.reading import UNREADABLE, Reader, known_values, read_cif, read_frame, read_row

TABLE = "id_prop.csv"
XYZ = (".extxyz", ".xyz")
SINGLE = (*XYZ, ".db")
LAYOUTS = f"a folder with {TABLE} and CIF files, or one file *.extxyz, *.xyz or *.db"


def open_catalogue(path: Path, targets: Sequence[str] | None) -> Catalogue:
    """Lists the crystals of a data set.

    Args:
        path: A folder or a file, of one of the `LAYOUTS`.
        targets: Names of the targets; None: all columns of the table.

    Raises:
        ConfigError: There is no such data set, or it cannot be listed.
    """
    if (path / TABLE).is_file():
        return _cgcnn_folder(path, targets)
    files = sorted(file for file in path.glob("*") if file.suffix in SINGLE) if path.is_dir() else [path]
    if len(files) != 1 or not files[0].is_file() or files[0].suffix not in SINGLE:
        there = "several" if len(files) > 1 else "none" if path.exists() else "no such file or folder"
        raise ConfigError(f"crystals in {path}: {there}; it must be {LAYOUTS}")
    return _xyz_file(files[0], targets) if files[0].suffix in XYZ else _database(files[0], targets)


def cif_files(path: Path) -> Catalogue | None:
    """Lists a CIF file, or those of a folder or of a pattern, without targets; None where there are none."""
    files = path.glob("*.cif") if path.is_dir() else [path] if path.exists() else path.parent.glob(path.name)
    names = sorted(file.stem for file in files if file.suffix == ".cif" and not file.name.startswith("."))
    reader = partial(read_cif, path if path.is_dir() else path.parent)
    places = [f"{name}.cif" for name in names]
    return Catalogue(str(path), reader, [(name, {}, None) for name in names], names, places, (), "") if names else None


def _cgcnn_folder(folder: Path, targets: Sequence[str] | None) -> Catalogue:
    """The layout of Xie & Grossman's code: a row for each `<id>.cif`, the id first and then its targets."""
    table = folder / TABLE
    try:
        text = table.read_text(encoding="utf-8-sig")
        lines = csv.reader(text.splitlines())
        rows = [(lines.line_num, [cell.strip() for cell in row]) for row in lines if "".join(row).strip()]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{table} cannot be read: {error}") from error
    columns = _header(folder, rows[0][1]) if rows else []
    if columns:
        note(f"{table}: row {rows.pop(0)[0]} is taken as a header, the targets are called {', '.join(columns)}")
    if not rows:
        raise ConfigError(f"{table} has no rows")
    columns = columns or list(targets or _numbered(len(rows[0][1]) - 1))
    targets = columns if targets is None else targets
    if len({*columns}) < len(columns):
        raise ConfigError(f"{table}: two columns have the same name: {', '.join(columns)}")
    for target in targets:
        if target not in columns:
            raise ConfigError(f"data.targets: {table} has no column {target}{hint(target, columns)}")
    keys, seen = [], dict[str, int]()
    for row, (name, *cells) in rows:
        problem = None
        if len(cells) != len(columns):
            problem = f"it has {1 + len(cells)} columns, not {1 + len(columns)} (id, {', '.join(columns)})"
        elif not name or Path(name).name != name:
            problem = "its id is no file name"
        elif seen.setdefault(name, row) != row:
            problem = f"the id stands in row {seen[name]} already"
        keys.append((name, dict(zip(columns, cells, strict=False)), problem))
    names, places = [key[0] for key in keys], [f"row {row}" for row, _ in rows]
    content = _hash(text.encode(), *(_bytes(folder / f"{name}.cif") for name, _, problem in keys if not problem))
    return Catalogue(str(folder), partial(read_cif, folder), keys, names, places, targets, content)


def _header(folder: Path, first: Sequence[str]) -> list[str]:
    """The names of the targets, if the first row is none of a crystal: only text, and no file of that id."""
    for cell in first[1:]:
        with suppress(ValueError):
            float(cell or "nan")
            return []
    with suppress(OSError):  # of a name that is too long
        if (folder / f"{first[0]}.cif").is_file():
            return []
    return list(first[1:])


def _numbered(count: int) -> list[str]:
    return ["target"] if count < 2 else [f"target_{number}" for number in range(1, count + 1)]


def _xyz_file(path: Path, targets: Sequence[str] | None) -> Catalogue:
    frames, number = [], 0
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                number += 1
                if line.strip():
                    frames.append("".join([line, *islice(file, 1 + int(line))]))
                    number += 1 + int(line)
    except ValueError as error:
        raise ConfigError(f"{path}: line {number} is not the number of atoms of a frame: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    return _of_one_file(path, targets, read_frame, frames, range(len(frames)), "frame")


def _database(path: Path, targets: Sequence[str] | None) -> Catalogue:
    try:
        rows = ase.db.connect(path, type="db").select(include_data=False, columns=["id"])  # type: ignore[no-untyped-call]
        keys = sorted(row.id for row in rows)
    except UNREADABLE as error:
        raise ConfigError(f"{path} is no database of ASE: {error}") from error
    return _of_one_file(path, targets, partial(read_row, path), keys, keys, "row")


def _of_one_file(
    path: Path, targets: Sequence[str] | None, reader: Reader, keys: Sequence[Any], numbers: Sequence[int], unit: str
) -> Catalogue:
    """Crystals that are known by their `numbers`, each of which is a `unit` of the file."""
    if not keys:
        raise ConfigError(f"{path} has no crystals")
    if targets is None:
        there: list[str] = []
        with suppress(*UNREADABLE):
            there = [name for name, value in known_values(reader(keys[0])).items() if isinstance(value, Real)]
        raise ConfigError(
            f"data.targets must say what of {path} is to be learnt; there are {', '.join(there) or 'none'}"
        )
    names, places = [str(number) for number in numbers], [f"{unit} {number}" for number in numbers]
    return Catalogue(str(path), reader, keys, names, places, targets, _hash(_bytes(path)))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError):
        return b""  # said when it is read as a crystal


def _hash(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()
