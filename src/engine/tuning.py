"""Trials before a run: which learning rates train, and how fast each batch size is. Both end the run when they know."""

import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.utilities.exceptions import _TunerExitException

from src.tracking.figures import log_figure
from src.tracking.text import number


class FindLearningRate(LearningRateFinder):
    """The range test of Smith (2017): the learning rate grows from step to step until the loss does.

    Where the loss falls most steeply is a good rate for a run; the picture shows how far that is from where it rises.

    Args:
        min_lr: Of the first step.
        max_lr: Of the last.
        num_steps: How many.
    """

    def __init__(self, min_lr: float = 1e-6, max_lr: float = 10.0, num_steps: int = 100) -> None:
        super().__init__(min_lr, max_lr, num_steps, update_attr=False)

    def lr_find(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Runs the test, draws it and says what it suggests."""
        from src.tracking import plots

        callbacks, trainer.callbacks = trainer.callbacks, []  # type: ignore[attr-defined]  # they serve a run
        super().lr_find(trainer, pl_module)
        trainer.callbacks = callbacks  # type: ignore[attr-defined]
        assert self.optimal_lr is not None
        rates, losses = (self.optimal_lr.results[name] for name in ("lr", "loss"))
        suggestion = self.optimal_lr.suggestion()
        found = "no rate stands out" if suggestion is None else f"optimizer.lr={suggestion:.2g}"
        show(trainer, "learning_rate", plots.trial("learning rate", rates, "training loss", losses, found), found)
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
        from src.tracking import plots

        speeds: dict[int, float] = {}
        share, end = 2, "the training part is not larger"
        while share * trainer.world_size <= len(trainer.datamodule.splits["train"]):  # type: ignore[attr-defined]
            try:
                speeds[share * trainer.world_size] = (
                    share * trainer.world_size / self._seconds(trainer, pl_module, share)
                )
            except torch.OutOfMemoryError:
                end = f"{share * trainer.world_size} do not fit into memory"
                break
            share *= 2
        pl_module.zero_grad()
        best = max(speeds, key=speeds.__getitem__)
        found = f"data.batch_size={best} is the fastest, {number(speeds[best])} samples/s; {end}"
        show(trainer, "batch_size", plots.trial("batch size", [*speeds], "samples/s", [*speeds.values()], found), found)
        raise _TunerExitException

    def _seconds(self, trainer: Trainer, module: LightningModule, share: int) -> float:
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        for repeat in range(self.repeats + 1):
            if repeat == 1:
                began = time.perf_counter()
            batch = datamodule.splits["train"][torch.arange(share)].to(trainer.strategy.root_device)
            batch = datamodule.on_after_batch_transfer(batch, 0)
            with trainer.precision_plugin.train_step_context():
                loss = module.loss(module(batch.x), batch.y)  # type: ignore[operator]
            loss.backward()
            loss.item()  # a GPU has done its work
        return (time.perf_counter() - began) / self.repeats


def show(trainer: Trainer, name: str, figure: Any, found: str) -> None:
    """Saves and logs the picture of a trial, and prints what was found."""
    from src.tracking import plots

    if trainer.is_global_zero:
        path = Path(trainer.default_root_dir) / "plots" / f"{name}.png"
        plots.save_png(figure, path)
        log_figure(trainer.loggers, f"plots/{name}", figure, trainer.global_step)
        print(f"{found}: {path}", flush=True)
