"""What a person sees while a run goes on: a line an epoch, and on a terminal a bar below it."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from src.tracking.text import duration, number, reading_order

REFRESH_SECONDS = 0.25


class Progress(ProgressBar):
    """One line an epoch with its metrics and time; on a terminal also a bar, drawn at most four times a second.

    Only rank 0 prints. Of the hooks that run for every batch it has the two that move the bar.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: tqdm[Any] = tqdm(disable=True)
        self._epoch_start = 0.0
        self._line: tuple[int, float] | None = None  # epoch and seconds of the line that is still to be printed
        self._is_validated = False  # since the last line: else what Lightning keeps of `val/` is of an earlier epoch

    def disable(self) -> None:
        """Prints nothing from here on: Lightning calls it on other ranks than 0."""
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Prints a line; above the bar where there is one."""
        if self._enabled:
            tqdm.write(" ".join(map(str, args)), file=sys.stdout)
            sys.stdout.flush()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Goes on with the bar of an epoch that a resumed run is in the middle of: that epoch does not start again."""
        self._epoch_start = time.perf_counter()
        done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        if 0 < done < trainer.num_training_batches:
            self._open_epoch(trainer, done)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the line of the epoch before: its training metrics are complete only now."""
        self._print_epoch(trainer)
        self._epoch_start = time.perf_counter()
        self._open_epoch(trainer)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Moves the bar."""
        self._bar.update()

    on_test_batch_end = on_train_batch_end

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the epoch's time."""
        self._bar.close()
        self._line = (trainer.current_epoch, time.perf_counter() - self._epoch_start)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that there are new values."""
        self._is_validated = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the last epoch's line."""
        self._print_epoch(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Prints the line of a finished epoch and leaves the terminal clean for the message."""
        self._bar.close()
        self._print_epoch(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says that the test begins."""
        batches = sum(trainer.num_test_batches)
        self.print(f"test on {batches} {'batch' if batches == 1 else 'batches'}")
        self._open("test", batches)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Removes the bar."""
        self._bar.close()

    def _open_epoch(self, trainer: Trainer, done: int = 0) -> None:
        self._open(_epoch(trainer.current_epoch, trainer.max_epochs), trainer.num_training_batches, done)

    def _open(self, title: str, batches: float, done: int = 0) -> None:
        self._bar = tqdm(
            desc=title,
            total=batches,
            initial=done,
            unit="batch",
            file=sys.stdout,
            leave=False,
            dynamic_ncols=True,
            mininterval=REFRESH_SECONDS,
            disable=None if self._enabled else True,  # None: where the output is no terminal
        )

    def _print_epoch(self, trainer: Trainer) -> None:
        if self._line is not None:
            (epoch, seconds), self._line = self._line, None
            metrics = {
                name: float(value)
                for name, value in trainer.callback_metrics.items()
                if self._is_validated or not name.startswith("val/")
            }
            self._is_validated = False
            self.print(epoch_line(epoch, trainer.max_epochs, metrics, seconds))


def epoch_line(epoch: int, max_epochs: int | None, metrics: Mapping[str, float], seconds: float) -> str:
    """Returns ``epoch  3/30  train/loss 0.5120  val/loss 0.4980  0.4 s``, fields as wide in every epoch.

    `epoch` is counted from 0, `max_epochs` None or -1 means that no end is known.
    """
    names = sorted((name for name in metrics if name.startswith(("train/", "val/"))), key=reading_order)
    fields = [f"{name} {number(metrics[name]):<8}" for name in names]
    return "  ".join([_epoch(epoch, max_epochs), *fields, duration(seconds)])


def results_table(metrics: Mapping[str, float]) -> str:
    """Returns names and values in two aligned columns, one metric a line."""
    width = max(map(len, metrics), default=0)
    return "\n".join(f"{name:<{width}}  {number(metrics[name]):>9}" for name in sorted(metrics, key=reading_order))


def _epoch(epoch: int, max_epochs: int | None) -> str:
    if max_epochs is None or max_epochs < 0:
        return f"epoch {epoch + 1}"
    return f"epoch {epoch + 1:>{len(str(max_epochs))}}/{max_epochs}"
