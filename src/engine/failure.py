"""One process of several fails: the others end within seconds, and the run tells the first error."""

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import Popen

from src.tracking.files import write_json

POLL_SECONDS = 0.2
GRACE_SECONDS = 1.0
"""For the main thread to notice by itself; in a collective whose peer is gone it may wait for ever."""
HOLD_SECONDS = 3.0
"""A failed process stays this long: once it is gone, Lightning's launcher kills the first one without a word."""


class FailureWatch:
    """Looks for the failure of another process of the run while the main thread trains.

    Args:
        folder: The run folder, where a failing process leaves a note for the others.
        rank: This process.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder, self.rank = folder, rank
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, children: Callable[[], Sequence[Popen[bytes]]], end: Callable[[str], None]) -> None:
        """Begins to watch.

        Args:
            children: The processes that this one has launched.
            end: Called with the reason before this process is ended.
        """
        self._thread = threading.Thread(target=self._watch, args=(children, end), daemon=True, name="failure-watch")
        self._thread.start()

    def stop(self) -> None:
        """Ends the watch."""
        self._stopped.set()

    def clear(self) -> None:
        """Removes the notes of an earlier attempt."""
        for path in self.folder.glob(".failure-*.json"):
            path.unlink()

    def note(self, reason: str) -> None:
        """Leaves a note of this process's failure, unless another failed before it, and time for the others to see."""
        if self.first() is None:
            write_json(self.folder / f".failure-{self.rank}.json", {"rank": self.rank, "reason": reason})
        if self.rank:
            time.sleep(HOLD_SECONDS)

    def report(self, reason: str) -> str:
        """Tells the others of this process's failure, and returns what failed first."""
        if self._thread is None:
            return reason
        self.note(reason)
        return self.first() or reason

    def first(self) -> str | None:
        """What failed first, None if nothing has."""
        notes = sorted(self.folder.glob(".failure-*.json"), key=lambda path: path.stat().st_mtime_ns)
        if not notes:
            return None
        failure = json.loads(notes[0].read_text(encoding="utf-8"))
        mine = failure["rank"] == self.rank
        return str(failure["reason"]) if mine else f"process {failure['rank']} failed: {failure['reason']}"

    def _watch(self, children: Callable[[], Sequence[Popen[bytes]]], end: Callable[[str], None]) -> None:
        while not self._stopped.wait(POLL_SECONDS):
            codes = [child.poll() for child in children()]
            died = [f"process {rank} ended with code {code}" for rank, code in enumerate(codes, 1) if code]
            if reason := self.first() or next(iter(died), None):
                if self._stopped.wait(GRACE_SECONDS):
                    return
                end(reason)
                for child in children():
                    child.kill()
                os._exit(1)
