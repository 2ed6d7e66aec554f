"""Two ways to train, epoch by epoch in turn, so that whatever else the machine does strikes both."""

import time
from typing import Any, Protocol

from lightning.pytorch import Callback


class Loop(Protocol):
    """A hand-written training loop."""

    def epoch(self) -> float:
        """Trains one epoch and returns the seconds it took."""


class Alternate(Callback):
    """Runs the loop between the epochs of the run; an epoch of the run lasts from the end of one loop to the next."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.seconds: dict[str, list[float]] = {"run": [], "loop": []}
        self._resumed: float | None = None

    def on_train_epoch_start(self, *_: Any) -> None:
        """Takes the run's time, then the loop's."""
        if self._resumed is not None:
            self.seconds["run"].append(time.perf_counter() - self._resumed)
        self.seconds["loop"].append(self.loop.epoch())
        self._resumed = time.perf_counter()
