"""Training the head alone, and later the whole net."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.optim import Optimizer

from src.engine.checkpoint import read_plain
from src.modules.base import BaseModule
from src.modules.optimization import head_of, parameter_groups

RATES = ("lr", "initial_lr", "max_lr", "min_lr")
"""What an optimizer or a schedule keeps of a group's learning rate."""


class Finetuning(BaseFinetuning):
    """Keeps the backbone (all but the head) as it is, statistics of norms too, for some epochs or for good.

    Lightning's own BackboneFinetuning gives the backbone a learning rate beside the schedule. Here it joins the
    schedule, with the parameter groups that it would have had from the start: at the optimizer's learning rate, while
    ``param_groups.head_lr`` is the head's.

    Args:
        unfreeze_epoch: The first epoch that trains the whole net; None: never.
        point: The checkpoint that the run goes on from.
    """

    def __init__(self, unfreeze_epoch: int | None, point: Path | None = None) -> None:
        super().__init__()
        self.unfreeze_epoch, self.point, self.unfrozen = unfreeze_epoch, point, False

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {**super().state_dict(), "unfrozen": self.unfrozen}

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        """Takes the backbone's parameters out of training, and its norms and dropout into evaluation mode.

        Lightning's own `freeze` would let the norms use the statistics of each batch.
        """
        set_trainable(pl_module, False)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Freezes; what was unfrozen at the point to go on from stays so, before any strategy builds the optimizer."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and self.point and read_plain(self.point)["callbacks"][self.state_key]["unfrozen"]:
            self.unfrozen = True
            set_trainable(pl_module, True)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        """Unfreezes when it is time to: the optimizer and its schedules get the backbone's groups as well."""
        if self.unfrozen or self.unfreeze_epoch is None or epoch < self.unfreeze_epoch:
            return
        self.unfrozen = True
        set_trainable(pl_module, True)
        trainer = pl_module.trainer
        if isinstance(trainer.strategy, DDPStrategy):  # it exchanges gradients of what could be trained at its setup
            trainer.strategy.model = pl_module
            trainer.strategy.configure_ddp()
        schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
        join(optimizer, schedules, parameter_groups(net_of(pl_module), pl_module.hparams["optimizer"]))


def set_trainable(pl_module: LightningModule, trainable: bool) -> None:
    """Switches training of all layers but the head: the gradient of their parameters, and their mode."""
    head = head_of(net_of(pl_module))
    for module in BaseFinetuning.flatten_modules(net_of(pl_module)):
        if module is not head:
            module.train(trainable)
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(trainable)


def join(optimizer: Optimizer, schedules: Sequence[Any], groups: Sequence[dict[str, Any]]) -> None:
    """Adds the parameters that an optimizer does not have yet, at the place in the schedules that the others are at.

    Args:
        optimizer: The optimizer.
        schedules: Its schedules.
        groups: All parameters, as the optimizer would have been given them at the start.
    """
    known = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    first, defaults = dict(optimizer.param_groups[0]), optimizer.defaults
    (rate,) = (group.get("lr", defaults["lr"]) for group in groups if group["name"] == first["name"])
    scheduled = {key: first[key] * defaults["lr"] / rate for key in RATES if key in first}
    for group in groups:
        if parameters := [parameter for parameter in group["params"] if parameter not in known]:
            decay = {"weight_decay": defaults["weight_decay"]} if "weight_decay" in defaults else {}
            optimizer.add_param_group({**first, **decay, **group, **scheduled, "params": parameters})
            for schedule in flattened(schedules):
                if hasattr(schedule, "base_lrs"):  # what most schedules scale; the others read it from the group
                    schedule.base_lrs.append(optimizer.param_groups[-1]["initial_lr"])


def flattened(schedules: Iterable[Any]) -> Iterator[Any]:
    """Yields schedules and those that they are chains of, as a warm-up and what follows it."""
    for schedule in schedules:
        yield schedule
        yield from flattened(getattr(schedule, "_schedulers", ()))


def net_of(pl_module: LightningModule) -> nn.Module:
    """The net of one of this project's modules."""
    assert isinstance(pl_module, BaseModule)
    return pl_module.net
