"""The files that a run's numbers are kept in: grown line by line, or replaced as a whole. Reads them without torch."""

import contextlib
import csv
import io
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


class AppendOnlyFile:
    """A file that grows by whole lines, each in the operating system's hands when `append` returns.

    The descriptor stays open between lines: opening the file for each would double the cost of a row.

    Args:
        path: the file; opened, and created if missing, by the first `append`.
        header: written first into an empty file.
    """

    def __init__(self, path: Path, header: bytes = b"") -> None:
        self.path = path
        self.header = header
        self._fd: int | None = None

    def append(self, lines: str) -> None:
        """Write `lines`, all of it or none: what a full disk took of it is cut off again before the error rises."""
        fd = self._open()
        size = os.fstat(fd).st_size
        try:
            _write_all(fd, lines.encode() if size else self.header + lines.encode())
        except OSError:
            with contextlib.suppress(OSError):  # the first error is the one to tell; `_cut_torn_line` comes again
                os.ftruncate(fd, size)
            raise

    def size(self) -> int:
        """Bytes in the file, 0 where there is none."""
        return self.path.stat().st_size if self.path.exists() else 0

    def truncate(self, size: int) -> None:
        """Cut back to `size` bytes.

        Raises:
            ValueError: the file is shorter than that.
        """
        if (present := self.size()) < size:
            raise ValueError(f"{self.path} has {present} bytes, but the checkpoint was saved after {size}")
        if present > size:
            os.truncate(self.path, size)

    def close(self) -> None:
        """Close the descriptor; `append` opens it again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self) -> int:
        if self._fd is None:
            self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            _cut_torn_line(self._fd)
        return self._fd


def read_rows(run_dir: str | Path) -> list[dict[str, float | None]]:
    """Rows of `metrics.jsonl` by step, those of one step merged (the later value wins); empty where there is no file.

    "step" is None in a row that was logged without one. A last line without its end, left by a crash, is not a row.
    """
    path = Path(run_dir) / "metrics.jsonl"
    merged: dict[int | None, dict[str, float | None]] = {}
    if path.exists():
        lines, _, _ = path.read_bytes().rpartition(b"\n")
        for line in lines.splitlines():
            row = {name: _number(value) for name, value in json.loads(line).items()}
            merged.setdefault(row["step"], {}).update(row)  # type: ignore[arg-type]
    return [merged[step] for step in sorted(merged, key=lambda step: -1 if step is None else step)]


def replace_file(path: Path, content: bytes) -> None:
    """Replace `path` atomically: a reader, or a kill, sees the old content or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def plain_number(value: Any) -> int | float | str:
    """A number, or a tensor of one element, as JSON can hold it: "NaN", "Infinity", "-Infinity" are strings."""
    if isinstance(value, int):
        return int(value)
    number = float(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, str) else value


def csv_lines(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV text; None is an empty field."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    return plain_number(value) if isinstance(value, float) else value


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _cut_torn_line(fd: int) -> None:
    """Drop a last line without its end, or the next row would be glued to it."""
    end = size = os.fstat(fd).st_size
    while end and os.pread(fd, 1, end - 1) != b"\n":
        end -= 1
    if end < size:
        os.ftruncate(fd, end)
