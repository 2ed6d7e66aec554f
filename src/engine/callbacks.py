"""What a run writes down of its progress."""

import math
import time
from contextlib import nullcontext
from typing import Any

import psutil
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.profilers import PassThroughProfiler
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from src.engine.run import Run
from src.modules.base import BaseModule, steps_of
from src.tracking.local import LocalLogger


class WaitClock(PassThroughProfiler):
    """A profiler that measures the wait for batches alone: Lightning opens fifty contexts a step, each has a price.

    Attributes:
        waited: Seconds that the loops have waited for their next batch.
    """

    context = nullcontext()

    def __init__(self) -> None:
        super().__init__()
        self.waited = self._began = 0.0

    def profile(self, action_name: str) -> nullcontext[None]:  # type: ignore[override]
        """Returns the same empty context each time."""
        return self.context

    def start(self, action_name: str) -> None:
        """Starts the clock; Lightning calls it before a batch is fetched."""
        self._began = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """Stops the clock."""
        self.waited += time.perf_counter() - self._began


class Reporter(Callback):
    """Logs rows every ``trainer.log_every_n_steps`` and at the end of each epoch, and keeps the status up to date.

    The rows go straight to the loggers: a ``self.log`` in every step would cost a small network half its speed.

    Args:
        run: Whose status is kept.
        best: The callback that knows the best score.
    """

    def __init__(self, run: Run, best: ModelCheckpoint) -> None:
        self.run, self.best = run, best
        self._every, self._due, self._learning_rate, self._gradient_norm = 1, False, 0.0, torch.zeros(())
        self._rows_began = self._epoch_began = self._waited = 0.0
        self._last_row = 0  # how many batches of the epoch were done then

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clocks of an epoch that a resumed run is in the middle of: that epoch does not start again."""
        self._rows_began, self._waited = clocks(trainer)
        self._epoch_began = self._rows_began
        self._last_row = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        steps = steps_of(trainer, int(trainer.num_training_batches))
        self._every = min(trainer.log_every_n_steps, steps) or 1  # type: ignore[attr-defined]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clocks, and notes the best score so far: its callback is the last to act on an epoch's end."""
        self.run.update(epoch=trainer.current_epoch, step=trainer.global_step, best=self.best_score())
        self.on_train_start(trainer, pl_module)
        self._last_row = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Notes the learning rate that the batch is trained with; when it ends, the schedule has moved on."""
        done = batch_idx + 1
        steps = done % trainer.accumulate_grad_batches == 0 or done == trainer.num_training_batches
        self._due = steps and steps_of(trainer, done) % self._every == 0
        if self._due:
            self._learning_rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Measures the gradient that the optimizer is about to get, before it is clipped."""
        if self._due:
            self._gradient_norm = gradient_norm(trainer, optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the step's loss, learning rate and gradient, how fast the last steps were and how long they waited."""
        if not self._due:
            return
        assert isinstance(pl_module, BaseModule)
        pl_module.check_finite("train")
        batches, self._last_row = batch_idx + 1 - self._last_row, batch_idx + 1
        loss = outputs["loss"].detach() * trainer.accumulate_grad_batches  # Lightning has divided it
        row = {
            "epoch": trainer.current_epoch,
            "train/loss_step": float(trainer.strategy.reduce(loss, reduce_op="mean")),
            "train/lr": self._learning_rate,
            "train/grad_norm": float(self._gradient_norm),
        }
        now, waited = clocks(trainer)
        row["perf/samples_per_second"] = len(batch) * batches * trainer.world_size / (now - self._rows_began)
        if not math.isnan(waited):
            row["perf/data_wait_share"] = (waited - self._waited) / (now - self._rows_began)
        log_row(trainer, row)
        self._rows_began, self._waited = now, waited

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the epoch's cost and exports ``metrics.csv``."""
        row = {
            "perf/epoch_seconds": time.perf_counter() - self._epoch_began,
            "perf/memory_mb": psutil.Process().memory_info().rss / 1e6,
        }
        if (device := trainer.strategy.root_device).type == "cuda":
            row["perf/gpu_memory_mb"] = torch.cuda.max_memory_allocated(device) / 1e6  # the most that tensors have held
        log_row(trainer, row)
        for logger in trainer.loggers:
            if isinstance(logger, LocalLogger):
                logger.export_csv()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the best score of the run."""
        self.run.update(step=trainer.global_step, best=self.best_score())

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Notes the best score so far."""
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


def clocks(trainer: Trainer) -> tuple[float, float]:
    """The time, and how much of it was a wait for batches, in seconds; NaN where the config asks for a profiler."""
    return time.perf_counter(), getattr(trainer.profiler, "waited", math.nan)  # type: ignore[attr-defined]


def gradient_norm(trainer: Trainer, optimizer: Optimizer) -> Tensor:
    """The Euclidean norm of all gradients together, over the parts that FSDP's processes hold, as a scalar.

    To be called by all processes, before the optimizer's step.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    norm = torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
        norm = norm / scaler.get_scale()  # fused optimizers take fp16's scale off themselves
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def log_row(trainer: Trainer, row: dict[str, float]) -> None:
    """Gives a row to every logger, at the step that Lightning gives its own rows: the last one, counted from 0."""
    for logger in trainer.loggers:
        logger.log_metrics(row, max(trainer.global_step - 1, 0))
