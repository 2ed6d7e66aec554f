"""What a run writes down of its progress."""

import time
from typing import Any

import psutil
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from src.engine.run import Run
from src.modules.base import BaseModule
from src.tracking.local import LocalLogger


class Reporter(Callback):
    """Logs rows every ``trainer.log_every_n_steps`` and at the end of each epoch, and keeps the status up to date.

    The rows go straight to the loggers: a ``self.log`` in every step would cost a small network half its speed.

    Args:
        run: Whose status is kept.
        best: The callback that knows the best score.
        every_n_steps: A row after this many optimizer steps.
    """

    def __init__(self, run: Run, best: ModelCheckpoint, every_n_steps: int) -> None:
        self.run, self.best, self.every_n_steps = run, best, every_n_steps
        self._learning_rate = 0.0
        self._rows_began = self._epoch_began = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clocks of an epoch that a resumed run is in the middle of: that epoch does not start again."""
        self._rows_began = self._epoch_began = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clocks, and notes the best score so far: its callback is the last to act on an epoch's end."""
        self.run.update(epoch=trainer.current_epoch, best=self.best_score())
        self._rows_began = self._epoch_began = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Notes the learning rate that the batch is trained with; when it ends, the schedule has moved on."""
        if self._row_is_due(trainer, batch_idx):
            self._learning_rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the step's loss and learning rate, and how fast the last steps were."""
        if not self._row_is_due(trainer, batch_idx):
            return
        assert isinstance(pl_module, BaseModule)
        pl_module.check_finite("train")
        now = time.perf_counter()
        batches = self.every_n_steps * trainer.accumulate_grad_batches
        log_row(
            trainer,
            {
                "epoch": trainer.current_epoch,
                "train/loss_step": float(trainer.strategy.reduce(outputs["loss"].detach(), reduce_op="mean")),
                "train/lr": self._learning_rate,
                "perf/samples_per_second": len(batch) * batches * trainer.world_size / (now - self._rows_began),
            },
        )
        self._rows_began = now

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the epoch's cost and exports ``metrics.csv``."""
        log_row(
            trainer,
            {
                "perf/epoch_seconds": time.perf_counter() - self._epoch_began,
                "perf/memory_mb": psutil.Process().memory_info().rss / 1e6,
            },
        )
        for logger in trainer.loggers:
            if isinstance(logger, LocalLogger):
                logger.export_csv()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the best score of the run."""
        self.run.update(best=self.best_score())

    def best_score(self) -> dict[str, Any] | None:
        """The monitored metric's best value and where its checkpoint is, None before there is one."""
        if self.best.best_model_score is None:
            return None
        return {
            "metric": self.best.monitor,
            "value": float(self.best.best_model_score),
            "checkpoint": "checkpoints/best.ckpt",
        }

    def _row_is_due(self, trainer: Trainer, batch_idx: int) -> bool:
        return (batch_idx + 1) % (self.every_n_steps * trainer.accumulate_grad_batches) == 0


def log_row(trainer: Trainer, row: dict[str, float]) -> None:
    """Gives a row to every logger, at the step that Lightning gives its own rows: the last one, counted from 0."""
    for logger in trainer.loggers:
        logger.log_metrics(row, max(trainer.global_step - 1, 0))
