"""The files of a run folder; reading them needs no torch."""

import contextlib
import json
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

Rows = list[dict[str, float | None]]


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


def complete_lines(text: str) -> list[str]:
    """The lines of a text but for the last one, if a crash has left that without its end."""
    return text.split("\n")[:-1]  # splitlines would also cut at U+2028, which JSON may hold


def read_rows(run_dir: Path) -> Rows:
    """Returns the rows of ``metrics.jsonl``, as `merged_rows`; none if there is no such file."""
    path = run_dir / "metrics.jsonl"
    return merged_rows(path.read_text(encoding="utf-8")) if path.exists() else []


def merged_rows(text: str) -> Rows:
    """Returns the rows of a ``metrics.jsonl`` by step, those of one step merged: the later value wins.

    "step" is None in what was logged without one.
    """
    merged: dict[int | None, dict[str, float | None]] = {}
    for row in map(json.loads, complete_lines(text)):
        numbers = {name: float(value) if isinstance(value, str) else value for name, value in row.items()}
        merged.setdefault(row["step"], {}).update(numbers)
    return [merged[step] for step in sorted(merged, key=lambda step: -1 if step is None else step)]


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Another name beside `path`, for a file that takes its place once the block has come to its end."""
    path = path.resolve()  # not a link to it
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
