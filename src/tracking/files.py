"""The files of a run folder; reading them needs no torch."""

import contextlib
import json
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any


class AppendOnlyFile:
    """A file that grows by whole lines, each in the operating system's hands when `append` returns.

    It stays open between lines: on a network drive, opening it for each would cost more than a training step.

    Args:
        path: The file; the first `append` makes it.
        header: Written first into an empty file.
    """

    def __init__(self, path: Path, header: str = "") -> None:
        self.path, self.header = path, header
        self._file: FileIO | None = None

    def append(self, lines: str) -> None:
        """Writes the lines, all or none: what a full disk took of them is cut off again before the error rises."""
        if self._file is None:
            self._file = FileIO(self.path, "a")
        size = self._file.seek(0, os.SEEK_END)
        data = (lines if size else self.header + lines).encode()
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                self._file.truncate(size)
            raise

    def close(self) -> None:
        """Closes the file until the next `append`."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read_rows(run_dir: str | Path) -> list[dict[str, float | None]]:
    """Returns the rows of ``metrics.jsonl`` by step, those of one step merged: the later value wins.

    "step" is None in what was logged without one. A last line without its end, left by a crash, is not a row.
    """
    path = Path(run_dir) / "metrics.jsonl"
    merged: dict[int | None, dict[str, float | None]] = {}
    if path.exists():
        complete, _, _ = path.read_bytes().rpartition(b"\n")
        for row in map(json.loads, complete.splitlines()):
            numbers = {name: float(value) if isinstance(value, str) else value for name, value in row.items()}
            merged.setdefault(row["step"], {}).update(numbers)
    return [merged[step] for step in sorted(merged, key=lambda step: -1 if step is None else step)]


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Another name beside `path`, for a file that takes its place once the block has come to its end."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file that is never seen half-written.

    On a full disk there may be no room for the second copy; the file is then written over in place, because a status
    that still says "running" would be worse.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    try:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError:
        path.write_text(text, encoding="utf-8")
