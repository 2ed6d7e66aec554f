"""Trials before a run: which learning rates train, and how fast each batch size is. Both end the run when they know."""

import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import _TunerExitException
from torch import Tensor

from src.config import ConfigError
from src.tracking.figures import log_figure
from src.tracking.text import number

SMOOTHING = 0.9
"""Share of the steps before in the mean that stands for the loss of a step."""
DIVERGENCE = 3.0
"""The range test ends when this mean is so many times the least one."""
WINDOW = 10
"""Steps before and after one that tell how the loss falls there: single batches differ by more."""


class FindLearningRate(Callback):
    """The range test of Smith (2017): the learning rate grows from step to step until the loss does.

    Where the loss falls most steeply is a good rate for a run; the picture shows how far that is from where it rises.

    Args:
        min_lr: Of the first step.
        max_lr: Of the last.
        num_steps: How many.
    """

    def __init__(self, min_lr: float = 1e-6, max_lr: float = 10.0, num_steps: int = 200) -> None:
        self.rates = np.geomspace(min_lr, max_lr, num_steps).tolist()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Runs the test, draws it and says what it suggests."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        optimizer, sampler = trainer.optimizers[0], data.train_dataloader().sampler
        base = [group["lr"] / optimizer.param_groups[0]["lr"] for group in optimizer.param_groups]
        losses, mean = list[float](), 0.0
        for step, (rate, positions) in enumerate(zip(self.rates, repeated(sampler), strict=False), 1):
            for group, factor in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = rate * factor
            optimizer.zero_grad()
            mean = SMOOTHING * mean + (1 - SMOOTHING) * take_pass(trainer, pl_module, positions)
            losses.append(mean / (1 - SMOOTHING**step))  # as if the mean had not begun at 0
            if not losses[-1] < DIVERGENCE * min(losses):
                break
            optimizer.step()
        rates = self.rates[: len(losses)]
        found = f"the loss diverged at {rates[-1]:.2g}, too soon to say more; callbacks.find_lr.min_lr=... begins lower"
        if len(losses) > 2 * WINDOW:
            falls = np.subtract(np.log(losses[2 * WINDOW :]), np.log(losses[: -2 * WINDOW]))
            found = f"optimizer.lr={rates[int(falls.argmin()) + WINDOW]:.2g} is where the loss falls most steeply"
        show(trainer, "learning rate", rates, "training loss", losses, found)
        raise _TunerExitException


class FindBatchSize(Callback):
    """Takes forward and backward passes with twice as many samples each time, until memory or the training part ends.

    The weights stay as they are. With several processes each has its share of the batch.

    Args:
        repeats: Timed passes of each size, after one that is not.
    """

    def __init__(self, repeats: int = 3) -> None:
        self.repeats = repeats

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tries the sizes, draws how fast they are and says which is the fastest."""
        speeds: dict[int, float] = {}
        size, end = 2 * trainer.world_size, "the training part is not larger"
        while size <= len(trainer.datamodule.splits["train"]):  # type: ignore[attr-defined]
            try:
                speeds[size] = size / self._seconds(trainer, pl_module, size // trainer.world_size)
            except torch.OutOfMemoryError:
                end = f"{size} do not fit into memory"
                break
            size *= 2
        pl_module.zero_grad()
        if not speeds:
            raise ConfigError(f"data.batch_size: there is no size to choose from: {end}")
        best = max(speeds, key=speeds.__getitem__)
        found = f"data.batch_size={best} is the fastest, {number(speeds[best])} samples/s; {end}"
        show(trainer, "batch size", [*speeds], "samples/s", [*speeds.values()], found)
        raise _TunerExitException

    def _seconds(self, trainer: Trainer, module: LightningModule, share: int) -> float:
        take_pass(trainer, module, torch.arange(share))
        began = time.perf_counter()
        for _ in range(self.repeats):
            take_pass(trainer, module, torch.arange(share))
        return (time.perf_counter() - began) / self.repeats


def repeated(sampler: Any) -> Iterator[Tensor]:
    """The positions of batch after batch, epoch after epoch."""
    for epoch in count():
        sampler.set_epoch(epoch)
        yield from sampler


def take_pass(trainer: Trainer, module: LightningModule, positions: Tensor) -> float:
    """Takes samples forward and backward in the precision of the run, without a scale; returns their loss."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    batch = data.splits["train"][positions].to(trainer.strategy.root_device)
    batch = data.on_after_batch_transfer(batch, 0)
    with trainer.precision_plugin.train_step_context():
        loss: Tensor = module.loss(module(batch.x), batch.y)  # type: ignore[operator]
    loss.backward()  # type: ignore[no-untyped-call]
    # A GPU has done its work then, and all processes go by the same loss.
    return float(trainer.strategy.reduce(loss.detach(), reduce_op="mean"))


def show(trainer: Trainer, what: str, tried: list[Any], unit: str, values: list[float], found: str) -> None:
    """Draws a trial, saves and logs the picture, and prints what was found."""
    from src.tracking import plots

    if trainer.is_global_zero:
        name, figure = what.replace(" ", "_"), plots.trial(what, tried, unit, values, found)
        path = Path(trainer.default_root_dir) / "plots" / f"{name}.png"
        plots.save_png(figure, path)
        log_figure(trainer.loggers, f"plots/{name}", figure, trainer.global_step)
        print(f"{found}: {path}", flush=True)
