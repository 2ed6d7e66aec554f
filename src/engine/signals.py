"""One handler for SIGTERM, SIGINT and Slurm's SIGUSR1, installed before torch is imported.

The handler only sets a flag: whatever runs at that moment (a step, a save, an import) comes to its end, and the
training loop stops at the next batch. A second Ctrl-C stops at once, as a person who presses it twice expects.
"""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

_received: list[int] = []


class Interrupted(SystemExit):
    """A signal ended the run; the exit code is the shell's convention, 128 + the signal's number."""

    def __init__(self, signum: int) -> None:
        self.signum = signal.Signals(signum)
        super().__init__(128 + signum)

    def __str__(self) -> str:
        return f"stopped by {self.signum.name}"


def _note(signum: int, frame: FrameType | None) -> None:
    if signum == signal.SIGINT and signal.SIGINT in _received:
        signal.default_int_handler(signum, frame)
    _received.append(signum)


def received() -> int:
    """The first signal that came, 0 if none has."""
    return _received[0] if _received else 0


def check() -> None:
    """Raises Interrupted if a signal has come."""
    if _received:
        raise Interrupted(_received[0])


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Handles the signals inside the block; afterwards they do what they did before. A block may lie in another."""
    before = {signum: signal.signal(signum, _note) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        _received.clear()
