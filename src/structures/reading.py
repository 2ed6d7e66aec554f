"""From a crystal in a file to arrays, or to the reason why not. Workers import this: it must stay free of torch."""

import hashlib
import io
import math
import os
import re
import signal
import sqlite3
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, NamedTuple, cast

import ase.db
import ase.io
import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray

from src.structures.neighbors import GraphSettings, Neighbors, nearest_neighbors

MAX_Z = 100  # the table of elements ends with fermium, as that of CGCNN does
MIN_DISTANCE = 0.5  # angstrom: H2 has 0.74; what is nearer is one atom listed twice
MIN_VOLUME = 0.1  # cubic angstrom an atom
MIN_HEIGHT, MAX_SIDE = 0.01, 1000.0  # angstrom; flatter cells take long to search, in longer ones vesin crashes
DIGEST_DECIMALS = 5  # of angstrom

Reader = Callable[[Any], Atoms]
"""Makes the crystal of a key, its targets in `info` or in its calculator; reader and key travel to the workers."""

UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, AssertionError, RuntimeError, StopIteration, OSError,
              ArithmeticError, SyntaxError, sqlite3.Error)  # fmt: skip
"""What ASE raises on a file that is not what its name says."""


class BadStructureError(ValueError):
    """Why a crystal cannot be used, in words for the person."""


class Crystal(NamedTuple):
    """The graph of one crystal, its targets, and what tells it from others.

    Attributes:
        z: [N] atomic numbers.
        degree: [N] edges that lead to each atom.
        source: [E] the neighbour that each edge comes from, atom by atom.
        distance: [E] length of each edge in angstrom.
        y: [T] targets; NaN where one is missing.
        formula: Reduced, in the order of the atomic numbers, as "AlNi3".
        digest: Of elements, cell and positions.
    """

    z: NDArray[np.uint8]
    degree: NDArray[np.uint16]
    source: NDArray[np.int32]
    distance: NDArray[np.float32]
    y: list[float]
    formula: str
    digest: str


def start_worker() -> None:
    """Makes a worker leave Ctrl-C to its parent and end when that is killed, instead of waiting for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def read_crystals(
    reader: Reader, targets: Sequence[str], settings: GraphSettings, keys: Sequence[Any]
) -> list[Crystal | str]:
    """Returns the crystal of each key, or the reason why it cannot be used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what ASE thinks of a space group
        return [_crystal_or_reason(reader, targets, settings, key) for key in keys]


def _crystal_or_reason(reader: Reader, targets: Sequence[str], settings: GraphSettings, key: Any) -> Crystal | str:
    try:
        atoms = reader(key)
    except BadStructureError as error:
        return str(error)
    except UNREADABLE as error:
        return f"it cannot be read ({' '.join(f'{type(error).__name__}: {error}'.split()).rstrip(': ')})"
    try:  # apart from the reading: an error of our own is not the file's
        return to_crystal(atoms, targets, settings)
    except BadStructureError as error:
        return str(error)


def to_crystal(atoms: Atoms, targets: Sequence[str], settings: GraphSettings) -> Crystal:
    """Checks a crystal and builds its graph.

    Raises:
        BadStructureError: Nothing can be learnt from it.
    """
    y_T = _targets(atoms, targets)
    _check_atoms(atoms)
    neighbors = nearest_neighbors(atoms.positions, atoms.cell.array, settings)
    _check_neighbors(neighbors, settings)
    return Crystal(
        atoms.numbers.astype(np.uint8),
        neighbors.degree.astype(np.uint16),
        neighbors.source.astype(np.int32),
        neighbors.distance.astype(np.float32),
        y_T,
        reduced_formula(atoms.numbers),
        _digest(atoms),
    )


def reduced_formula(z_N: NDArray[Any]) -> str:
    """Returns the formula of some atoms, in the order of the atomic numbers, as "AlNi3"."""
    z, counts = np.unique(z_N, return_counts=True)
    counts //= np.gcd.reduce(counts)
    symbols = [chemical_symbols[element] for element in z]
    return "".join(f"{symbol}{n if n > 1 else ''}" for symbol, n in zip(symbols, counts, strict=True))


def _targets(atoms: Atoms, names: Sequence[str]) -> list[float]:
    """The targets; of several some may be missing, but not all."""
    known = known_values(atoms)
    y_T = [_number(name, known.get(name, "")) for name in names]
    if names and all(map(math.isnan, y_T)):
        raise BadStructureError(f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} missing (empty or nan)")
    return y_T


def known_values(atoms: Atoms) -> dict[str, Any]:
    """Returns what can be a target: what the file says of a crystal as a whole."""
    return {**(atoms.calc.results if atoms.calc else {}), **atoms.info}


def _number(name: str, value: Any) -> float:
    try:
        number = float(value) if value != "" else math.nan
    except (TypeError, ValueError):
        number = math.inf
    if math.isinf(number):
        raise BadStructureError(f"{name} is {value!r}, not a finite number")
    return number


def _check_atoms(atoms: Atoms) -> None:
    if not len(atoms):
        raise BadStructureError("it has no atoms")
    if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
        raise BadStructureError("a coordinate is not a finite number")
    beyond = np.flatnonzero((atoms.numbers < 1) | (atoms.numbers > MAX_Z))
    if len(beyond):
        z = atoms.numbers[beyond[0]]
        symbol = f"{chemical_symbols[z]}, " if 0 <= z < len(chemical_symbols) else ""
        raise BadStructureError(f"atom {beyond[0]} is {symbol}element {z}: the table has 1 to {MAX_Z}")
    if not atoms.cell.any():
        raise BadStructureError("it has no cell")
    if not atoms.pbc.all():
        raise BadStructureError("it is not periodic along all three vectors")
    if (volume := atoms.cell.volume) < MIN_VOLUME * len(atoms):
        raise BadStructureError(f"its cell has a volume of {volume:.3g} cubic angstrom")
    for side in atoms.cell.lengths():
        if not MIN_DISTANCE <= side <= MAX_SIDE:
            raise BadStructureError(f"its cell has a side of {side:.3g} angstrom")
    if (height := 1 / np.linalg.norm(atoms.cell.reciprocal(), axis=1).max()) < MIN_HEIGHT:
        raise BadStructureError(f"its cell is nearly flat: {height:.3g} angstrom high")


def _check_neighbors(neighbors: Neighbors, settings: GraphSettings) -> None:
    isolated = np.flatnonzero(neighbors.degree == 0)
    if len(isolated):
        raise BadStructureError(f"atom {isolated[0]} has no neighbour within {settings.cutoff:g} angstrom")
    edge = neighbors.distance.argmin()
    if (distance := neighbors.distance[edge]) < MIN_DISTANCE:
        pair = sorted((neighbors.source[edge], neighbors.target[edge]))
        raise BadStructureError(f"atoms {pair[0]} and {pair[1]} overlap: they are {distance:.3g} angstrom apart")


def _digest(atoms: Atoms) -> str:
    digest = hashlib.blake2b(atoms.numbers.astype(np.uint8).tobytes(), digest_size=16)
    for array in (atoms.cell.array, atoms.positions):
        digest.update((array.round(DIGEST_DECIMALS) + 0.0).tobytes())  # -0.0 is 0.0
    return digest.hexdigest()


def read_cif(folder: Path, key: tuple[str, Mapping[str, str], str | None]) -> Atoms:
    """Reads `<name>.cif`.

    Args:
        folder: Where the files are.
        key: Name, targets by name, and what is wrong with them already.

    Raises:
        BadStructureError: The file is missing or describes no single crystal; ASE raises much else (`UNREADABLE`).
    """
    name, targets, problem = key
    if problem:
        raise BadStructureError(problem)
    path = folder / f"{name}.cif"
    if not path.is_file():
        raise BadStructureError(f"there is no file {path.name}")
    text = path.read_text(encoding="utf-8", errors="replace")
    if not re.search(r"^data_", text, re.MULTILINE | re.IGNORECASE):  # this and the next ASE refuses without a word
        raise BadStructureError("it is no CIF: no line begins with data_")
    if re.search(r"^_cell_length_[abc]\s+[-+]?0*\.?0*(\(\d+\))?\s*$", text, re.MULTILINE | re.IGNORECASE):
        raise BadStructureError("its cell has a length of 0")
    atoms, *others = cast(list[Atoms], ase.io.read(io.StringIO(text), ":", "cif"))
    if others:
        raise BadStructureError(f"it describes {1 + len(others)} crystals")
    for site, shares in atoms.info.get("occupancy", {}).items():  # ASE takes the most frequent element in silence
        if len(shares) > 1 or any(isinstance(share, float) and share < 1 for share in shares.values()):
            there = ", ".join(f"{element} {share}" for element, share in shares.items())
            raise BadStructureError(f"site {site} is disordered: {there}")
    atoms.info = dict(targets)
    return atoms


def read_frame(key: str) -> Atoms:
    """Reads one frame of an extended XYZ file, given as text."""
    return cast(Atoms, ase.io.read(io.StringIO(key), 0, "extxyz"))


def read_row(path: Path, key: int) -> Atoms:
    """Reads one row of an ASE database, by its id."""
    row = ase.db.connect(path, type="db").get(id=key)  # type: ignore[no-untyped-call]
    atoms: Atoms = row.toatoms()
    atoms.info = dict(row.key_value_pairs)
    return atoms
