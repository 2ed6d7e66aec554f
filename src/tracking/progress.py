"""What a person sees while a run goes on: a line an epoch, and on a terminal a bar below it."""

import math
import sys
import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

REFRESH_SECONDS = 0.25
SPLITS = ("train", "val")


class Progress(ProgressBar):
    """One line an epoch with its metrics and time; on a terminal also a bar, drawn at most four times a second.

    Only rank 0 prints. Of the hooks that run for every batch it has the two that move the bar; between two drawings
    they read the clock and no more.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: tqdm[Any] | None = None
        self._next_draw = 0.0
        self._epoch_start = 0.0
        self._line: tuple[int, float] | None = None  # epoch and seconds of the line that is still to be printed

    def enable(self) -> None:
        """Print from here on."""
        self._enabled = True

    def disable(self) -> None:
        """Print nothing from here on."""
        self._enabled = False
        self._close()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line of the epoch before: its training metrics are complete only now."""
        self._print_epoch(trainer)
        self._epoch_start = time.perf_counter()
        self._open(f"epoch {_epoch(trainer.current_epoch, trainer.max_epochs)}", trainer.num_training_batches)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._draw(batch_idx + 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the epoch's time."""
        self._close()
        self._line = (trainer.current_epoch, time.perf_counter() - self._epoch_start)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the last epoch's line."""
        self._print_epoch(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Print the line of a finished epoch and leave the terminal clean for the message."""
        self._close()
        self._print_epoch(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that the test begins."""
        batches = sum(trainer.num_test_batches)
        self.print(f"test on {batches} {'batch' if batches == 1 else 'batches'}")
        self._open("test", batches)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._draw(int(sum(trainer.num_test_batches[:dataloader_idx])) + batch_idx + 1)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the bar."""
        self._close()

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print a line; above the bar where there is one."""
        if not self._enabled:
            return
        text = " ".join(map(str, args))
        if self._bar is not None:
            self._bar.write(text, file=sys.stdout)
        else:
            print(text, flush=True, **kwargs)

    def _open(self, title: str, total: float) -> None:
        if self._enabled and sys.stdout.isatty():
            # mininterval=0: it is drawn when told to, which is when the clock here says so.
            self._bar = tqdm(
                desc=title,
                total=None if math.isinf(total) else int(total),
                unit="batch",
                file=sys.stdout,
                leave=False,
                dynamic_ncols=True,
                mininterval=0,
            )
            self._next_draw = time.perf_counter() + REFRESH_SECONDS

    def _draw(self, done: int) -> None:
        if (now := time.perf_counter()) >= self._next_draw:
            assert self._bar is not None
            self._bar.update(done - self._bar.n)
            self._next_draw = now + REFRESH_SECONDS

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _print_epoch(self, trainer: Trainer) -> None:
        if self._line is not None:
            (epoch, seconds), self._line = self._line, None
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            self.print(epoch_line(epoch, trainer.max_epochs, metrics, seconds))


def epoch_line(epoch: int, max_epochs: int | None, metrics: Mapping[str, float], seconds: float) -> str:
    """`epoch  3/30  train/loss 0.512  val/loss 0.498  val/acc 0.861  0.4 s`, fields as wide in every epoch.

    Args:
        epoch: counted from 0, shown from 1.
        max_epochs: None or -1: no end is known.
        metrics: those of training and validation are shown.
        seconds: of the epoch, its validation included.
    """
    names = sorted((name for name in metrics if _split(name) in SPLITS), key=_reading_order)
    fields = [f"{name} {number(metrics[name]):<8}" for name in names]
    return "  ".join([f"epoch {_epoch(epoch, max_epochs)}", *fields, duration(seconds)])


def results_table(metrics: Mapping[str, float]) -> str:
    """Names and values in two aligned columns, one metric a line; "" for no metric."""
    width = max(map(len, metrics), default=0)
    return "\n".join(f"{name:<{width}}  {number(metrics[name]):>9}" for name in sorted(metrics, key=_reading_order))


def number(value: float) -> str:
    """Four significant digits, or nan, inf; a trailing zero stays, so that columns keep their width."""
    if not math.isfinite(value):
        return str(float(value))
    return f"{value:#.4g}" if 1e-3 <= abs(value) < 1e4 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """`0.4 s`, `12.0 s`, `3:05 min`, `2:03:05 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d} h"


def _epoch(epoch: int, max_epochs: int | None) -> str:
    if max_epochs is None or max_epochs < 0:
        return f"{epoch + 1}"
    return f"{epoch + 1:>{len(str(max_epochs))}}/{max_epochs}"


def _split(name: str) -> str:
    return name.partition("/")[0]


def _reading_order(name: str) -> tuple[int, bool, str]:
    """Training before validation before the rest; in each the loss first."""
    split = _split(name)
    return (SPLITS.index(split) if split in SPLITS else len(SPLITS), not name.endswith("/loss"), name)
