"""What the LightningModules share: building net, optimizer and schedule, one step, metrics once an epoch."""

import inspect
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torchmetrics import Metric

from src.config import build, resolve_target
from src.modules.metrics import EpochMetrics, NonFiniteLossError
from src.modules.optimization import build_optimizer, build_scheduler

SPLITS = ("train", "val", "test")


class Batch(Protocol):
    """What a module needs of a batch: the net's input, the target, and which samples and how many there are."""

    x: Any
    y: Tensor
    index: Tensor

    def __len__(self) -> int: ...


class BaseModule(LightningModule):
    """Net, optimizer and metrics of one task; a task adds its loss and its metrics.

    Hyper-parameters are plain values only, so that a checkpoint loads without unpickling anything, and the net, the
    optimizer and the schedule are built from them here.

    Args:
        net: ``_target_`` and arguments of the network; what the data determines (`facts`) is filled in.
        facts: What the data knows and the net needs: ``input_shape``, ``num_classes``, ...
        optimizer: ``_target_`` and arguments of the optimizer, and its ``param_groups``.
        scheduler: ``_target_`` and arguments of the schedule; empty for a constant learning rate.
        monitor: ``metric`` and ``mode``, for schedules that follow a metric.
    """

    net: nn.Module
    metric_names: ClassVar[tuple[str, ...]] = ("loss",)
    higher_is_better: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        net: Mapping[str, Any],
        facts: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        scheduler: Mapping[str, Any],
        monitor: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        accepted = inspect.signature(resolve_target(net["_target_"], nn.Module)).parameters
        self.net = build(net, nn.Module, **{name: value for name, value in facts.items() if name in accepted})
        self.metrics = nn.ModuleDict({f"{split}_metrics": EpochMetrics(self.build_metrics(split)) for split in SPLITS})
        self.tables: dict[str, dict[str, Tensor]] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes the running hook's name forty times a step; torch's own assignment first looks whether the
        # name is a parameter, a buffer or a module.
        if name in self.__dict__ and (value is None or type(value) is str):
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def build_metrics(self, split: str) -> dict[str, Metric]:
        """The task's metrics besides the loss. What is not a scalar is kept in ``tables`` instead of being logged."""
        raise NotImplementedError

    def mix(self, x: Any, y: Tensor) -> tuple[Any, Tensor]:
        """What is trained on in place of a batch's inputs and targets; a task may combine samples."""
        return x, y

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean loss of a batch."""
        raise NotImplementedError

    def forward(self, x: Any) -> Tensor:
        """Returns the net's output."""
        output: Tensor = self.net(x)
        return output

    def step(self, batch: Batch, split: str) -> Tensor:
        """One batch of any split: the loss, and the outputs to the split's metrics."""
        x, target = self.mix(batch.x, batch.y) if split == "train" else (batch.x, batch.y)
        output = self(x)
        loss = self.loss(output, target)
        metrics = self.epoch_metrics(split)
        if metrics.add(output, batch.y, loss, batch.index):
            self.check_finite(split)
            metrics.flush()
        return loss

    def training_step(self, batch: Batch) -> Tensor:  # noqa: D102
        return self.step(batch, "train")

    # Lightning would work it out anew in every step (PEP 362).
    training_step.__signature__ = inspect.signature(training_step)  # type: ignore[attr-defined]

    def validation_step(self, batch: Batch) -> None:  # noqa: D102
        self.step(batch, "val")

    def test_step(self, batch: Batch) -> None:  # noqa: D102
        self.step(batch, "test")

    def predict_step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the samples' positions and the outputs."""
        return batch.index, self(batch.x)

    def on_train_epoch_end(self) -> None:  # noqa: D102
        self.log_epoch("train")

    def on_validation_epoch_end(self) -> None:  # noqa: D102
        self.log_epoch("val")

    def on_test_epoch_end(self) -> None:  # noqa: D102
        self.log_epoch("test")

    def epoch_metrics(self, split: str) -> EpochMetrics:
        """The metrics of one split."""
        metrics = self.metrics[f"{split}_metrics"]
        assert isinstance(metrics, EpochMetrics)
        return metrics

    def log_epoch(self, split: str) -> None:
        """Reduces the split's metrics over the epoch and all processes, once, and logs them.

        Raises:
            NonFiniteLossError: See `check_finite`.
        """
        self.check_finite(split)
        values = self.epoch_metrics(split).compute()
        count = int(values.pop("count"))
        if (expected := self._expected_samples(split)) is not None:
            assert count == expected, f"{split}: {count} samples were measured, there are {expected}"
        scalars = {f"{split}/{name}": value for name, value in values.items() if value.ndim == 0}
        self.tables[split] = {name: value.cpu() for name, value in values.items() if value.ndim > 0}
        self.log_dict(scalars, batch_size=1)  # the values are means over the epoch already

    def _expected_samples(self, split: str) -> int | None:
        """How many samples an evaluation must have seen; None where batches are left out, or in training."""
        datamodule = getattr(self.trainer, "datamodule", None)
        limit = {"val": self.trainer.limit_val_batches, "test": self.trainer.limit_test_batches}.get(split)
        all_of_it = isinstance(limit, float) and limit == 1.0  # 1 is one batch
        return len(datamodule.splits[split]) if datamodule is not None and all_of_it else None

    def check_finite(self, split: str) -> None:
        """Looks at the losses that have not been looked at yet.

        Raises:
            NonFiniteLossError: A loss was not finite; the message names the split and, in a run, the step.
        """
        ago = self.epoch_metrics(split).steps_since_non_finite()
        if ago is None:
            return
        batch = self.trainer.fit_loop.total_batch_idx - (ago if split == "train" else 0)
        if batch < 0:  # an evaluation alone
            raise NonFiniteLossError(f"the {split} loss is not finite")
        step = step_number(self.trainer, batch)
        raise NonFiniteLossError(
            f"the {split} loss is not finite at step {step} (epoch {self.current_epoch}); "
            "a smaller optimizer.lr or trainer.gradient_clip_val=1.0 is the usual remedy"
        )

    def build_optimization(self, trainer: Trainer, batches: int) -> tuple[Optimizer, LRScheduler | None]:
        """The optimizer and the schedule of a run.

        Args:
            trainer: Says how long the run is.
            batches: Of the training part.

        Raises:
            ConfigError: The schedule does not fit the run.
        """
        optimizer = build_optimizer(self.net, self.hparams["optimizer"])
        scheduler = build_scheduler(
            self.hparams["scheduler"],
            optimizer,
            max_epochs=trainer.max_epochs or -1,
            max_steps=trainer.max_steps,
            steps_per_epoch=math.ceil(limited(batches, trainer.limit_train_batches) / trainer.accumulate_grad_batches),
            mode=self.hparams["monitor"]["mode"],
        )
        return optimizer, scheduler

    def configure_model(self) -> None:
        """Splits every block of the net over the processes, if the strategy is one that splits (FSDP2)."""
        if self.device_mesh is None or isinstance(self.net, FSDPModule):
            return
        mesh = self.device_mesh["data_parallel"]
        self.net.to(memory_format=torch.contiguous_format)  # channels-last filters cannot be split
        for child in self.net.children():
            for block in child.children() if isinstance(child, nn.Sequential | nn.ModuleList) else [child]:
                if next(block.parameters(), None) is not None:
                    fully_shard(block, mesh=mesh)
        fully_shard(self.net, mesh=mesh)

    def configure_optimizers(self) -> Any:  # noqa: D102
        trainer = self.trainer
        # Not trainer.estimated_stepping_batches: it sets the loaders up before a resumed position has been restored.
        batches = trainer.datamodule.batches_per_epoch(trainer.world_size)  # type: ignore[attr-defined]
        optimizer, scheduler = self.build_optimization(trainer, batches)
        if scheduler is None:
            return optimizer
        metric = self.hparams["monitor"]["metric"]
        waits = isinstance(scheduler, ReduceLROnPlateau) and metric.startswith("val/")
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": scheduler,
                "interval": self.hparams["scheduler"]["interval"],
                "monitor": metric,
                "frequency": trainer.check_val_every_n_epoch or 1 if waits else 1,  # there is no new value in between
            },
        }


def steps_of(trainer: Trainer, batches: int) -> int:
    """How many optimizer steps so many batches of an epoch take: its last ones step even where they are fewer."""
    return math.ceil(batches / trainer.accumulate_grad_batches)


def step_number(trainer: Trainer, batch: int) -> int:
    """The optimizer step that a batch is part of, both counted from 0 over the whole run."""
    whole, inside = divmod(batch, int(trainer.num_training_batches))
    return whole * steps_of(trainer, int(trainer.num_training_batches)) + inside // trainer.accumulate_grad_batches


def limited(batches: int, limit: int | float) -> int:
    """How many batches remain under Lightning's ``limit_..._batches``: a count, or a share if it is a float."""
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)
