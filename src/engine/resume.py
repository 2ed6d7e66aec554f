"""Points from which a run can go on to the same end, and the orderly stop after a signal."""

import os
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from src.config.resume import is_extended
from src.engine import signals
from src.engine.callbacks import log_row
from src.engine.checkpoint import commit_mark
from src.engine.run import Run
from src.modules.base import BaseModule
from src.tracking.files import read_rows, replacing
from src.tracking.local import LocalLogger
from src.tracking.wandb import WandbTracker

KEPT = 2
"""Points: the newest, and one should that be damaged."""
AGREEMENT_PERIOD = 8
"""Batches between two agreements of several processes on whether to save or to stop."""


class ResumePoints(Callback):
    """Saves ``step-<batches done>.ckpt`` and lets ``last.ckpt`` name the newest; stops the run after a signal.

    A save waits until the next batch is about to start: by then the last one has been logged, validated and counted,
    and the stored counters are turned back by that one batch. Saves fall between optimizer steps and never on a
    validation inside an epoch, where Lightning cannot be brought to the same state again. A signal during a validation
    therefore waits for its end. Must be the first callback, so that the others have not acted on the new batch yet.

    Lightning itself stores weights, optimizers, schedules, loops and the other callbacks. A point adds what it forgets:
    the sums of the metrics on every process, the metrics that callbacks follow, the length of ``metrics.jsonl`` and
    whether training had ended. Random states are not needed: each batch's seed follows from its position.

    Args:
        run: The run whose points these are. ``checkpoint`` in its configuration says when there are more than one an
            epoch: after so many optimizer steps, and when so much time has passed since the last.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.folder = run, run.checkpoints
        self.every_n_steps = run.cfg["checkpoint"]["every_n_steps"]
        self.every_minutes = run.cfg["checkpoint"]["every_minutes"]
        self._saved_at, self._saved_time, self._validated_at = 0, time.monotonic(), 0
        self._saving = self._ended = False
        self._due, self._signum = False, 0
        self._restored: dict[str, Any] = {}
        self._cut_short: dict[str, Any] = {}  # what a point holds where training ended inside an epoch

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Starts over, if the run died before its first point."""
        if stage == "fit" and self.run.resumed is not None and self.run.point is None:
            cut_back(trainer, 0)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Cuts the log back to the point."""
        if trainer.state.fn == "fit":
            # Found out here, it is the same on every process, and the next time too if this one is killed.
            extends = is_extended(checkpoint["config"], self.run.cfg)
            self._restored = checkpoint["point"] | ({"ended": False} if extends else {})
            cut_back(trainer, self._restored["log_size"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores what Lightning has not."""
        self._saved_at, self._saved_time = trainer.fit_loop.total_batch_idx + 1, time.monotonic()
        if self._restored:
            assert isinstance(pl_module, BaseModule)
            # As many processes as before: each its own sums. Else they are dealt out, which the totals do not feel.
            for sums in self._restored["train_sums"][trainer.global_rank :: trainer.world_size]:
                pl_module.epoch_metrics("train").merge(sums)
            trainer.callback_metrics.update(self._restored["callback_metrics"])
            trainer.should_stop = self._restored["ended"]
            trainer.fit_loop._restarting = False  # for the rest of the epoch, it would leave out a plateau's step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Saves if it is time to, then stops if a signal has come."""
        signum, late = self._agreed(trainer, batch_idx)
        done = trainer.fit_loop.total_batch_idx
        every = self.every_n_steps
        by_count = every is not None and done % (every * trainer.accumulate_grad_batches) == 0
        # What is due stays due until a batch comes before which a save is possible.
        self._signum = self._signum or signum
        self._due = self._due or bool(signum or late or by_count or batch_idx == 0)
        if self._due and self._can_save(trainer, batch_idx):
            self._due = False
            if done != self._saved_at:
                self._save(trainer, done, noted=batch_idx == 0 or self._signum != 0)
            if self._signum:
                raise signals.Interrupted(self._signum)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes before which batch it was."""
        self._validated_at = trainer.fit_loop.total_batch_idx + 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes it on the timeline; an end inside the epoch is one that can be gone on from as if there were none."""
        self.run.note("epoch", epoch=trainer.current_epoch, step=trainer.global_step)
        if trainer.fit_loop.epoch_loop.batch_progress.current.ready < trainer.num_training_batches:
            self._cut_short = self._content(trainer, pl_module)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Stops if a signal has come."""
        signum, _ = self._agreed(trainer, batch_idx)
        if signum:
            raise signals.Interrupted(signum)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the end of training."""
        self._save(trainer, trainer.fit_loop.total_batch_idx + 1, noted=True, ended=True)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the config and, to a point, what it needs; turns "a batch is ready" back to "those before are done"."""
        checkpoint["config"] = self.run.cfg
        if not self._saving:
            return
        checkpoint["point"] = {**(self._cut_short or self._content(trainer, pl_module)), "ended": self._ended}
        fit_loop = checkpoint["loops"]["fit_loop"]
        batches, epochs = fit_loop["epoch_loop.batch_progress"], fit_loop["epoch_progress"]
        if self._cut_short:
            for count in ("total", "current"):
                epochs[count]["processed"] = epochs[count]["completed"] = epochs[count]["ready"] - 1
        if self._ended:
            return
        batches["is_last_batch"] = False
        for count in ("total", "current"):
            batches[count]["ready"] -= 1
            if batches["current"]["completed"] == 0:  # the epoch has not begun either
                epochs[count]["ready"] = epochs[count]["started"] = epochs[count]["processed"]

    def _content(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        assert isinstance(pl_module, BaseModule)
        return {
            "train_sums": gather(trainer, pl_module.epoch_metrics("train").sums()),
            "callback_metrics": {name: value.cpu() for name, value in trainer.callback_metrics.items()},
            "log_size": sum(logger.size() for logger in trainer.loggers if isinstance(logger, LocalLogger)),
        }

    def _agreed(self, trainer: Trainer, batch_idx: int) -> tuple[int, bool]:
        """The signal that has come to any process, 0 if none, and whether a save is overdue on any."""
        signum = signals.received()
        late = self.every_minutes is not None and time.monotonic() - self._saved_time >= 60 * self.every_minutes
        if trainer.world_size == 1:
            return signum, late
        if batch_idx % AGREEMENT_PERIOD:
            return 0, False
        mine = torch.tensor([signum, int(late)], device=trainer.strategy.root_device)
        first, second = trainer.strategy.reduce(mine, reduce_op="max").tolist()
        return first, bool(second)

    def _can_save(self, trainer: Trainer, batch_idx: int) -> bool:
        if batch_idx % trainer.accumulate_grad_batches:
            return False  # gradients are in no checkpoint
        # Lightning would take the batch after a validation for one that has been counted.
        return batch_idx == 0 or trainer.fit_loop.total_batch_idx != self._validated_at

    def _save(self, trainer: Trainer, done: int, noted: bool, ended: bool = False) -> None:
        path, began = self.folder / f"step-{done:09d}.ckpt", time.perf_counter()
        self._saving, self._ended = True, ended
        try:
            trainer.save_checkpoint(path)  # on every process: it synchronises them
        finally:
            self._saving = False
        self._saved_at, self._saved_time = done, time.monotonic()
        if noted:  # one every few steps would be thousands
            self.run.note("checkpoint", step=trainer.global_step, path=f"checkpoints/{path.name}")
        if trainer.is_global_zero:
            link(path, self.folder / "last.ckpt")
            for old in sorted(self.folder.glob("step-*.ckpt"))[:-KEPT]:
                trainer.strategy.checkpoint_io.remove_checkpoint(old)
        log_row(trainer, {"perf/checkpoint_seconds": time.perf_counter() - began})


def link(path: Path, alias: Path) -> None:
    """Makes `alias` another name of a committed checkpoint, without a moment in which there is none."""
    for source, target in ((path, alias), (commit_mark(path), commit_mark(alias))):
        with replacing(target) as temporary:
            temporary.unlink(missing_ok=True)
            os.link(source, temporary)


def gather(trainer: Trainer, value: Any) -> list[Any]:
    """The values of all processes by rank; on other ranks than 0, which write no checkpoint, nothing."""
    if trainer.world_size == 1:
        return [value]
    values = [None] * trainer.world_size if trainer.is_global_zero else None
    torch.distributed.gather_object(value, values)
    return values or []


def cut_back(trainer: Trainer, size: int) -> None:
    """Cuts the log back to what a point knows, and sees to it that W&B has that too, but nothing twice."""
    for logger in trainer.loggers if trainer.is_global_zero else []:
        if isinstance(logger, LocalLogger):
            logger.truncate(size)
            rows = read_rows(logger.run_dir)
        elif isinstance(logger, WandbTracker):
            logger.catch_up(rows)
