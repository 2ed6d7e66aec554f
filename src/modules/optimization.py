"""Optimizer and learning-rate schedule from their sections of the config."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, LRScheduler, ReduceLROnPlateau, SequentialLR

from src.config import ConfigError, build, resolve_target

Node = Mapping[str, Any]


def head_of(net: nn.Module) -> nn.Module:
    """The last layer with parameters of its own: the one that a new task replaces."""
    return [module for module in net.modules() if next(module.parameters(recurse=False), None) is not None][-1]


def parameter_groups(net: nn.Module, node: Node) -> list[dict[str, Any]]:
    """Splits the trainable parameters as ``param_groups`` of the optimizer's section asks.

    ``decay_bias_and_norm: false`` takes weight decay off biases and normalisation layers, which are the parameters of
    less than two dimensions; ``head_lr`` gives the head a learning rate of its own.
    """
    options = node["param_groups"]
    head = set(head_of(net).parameters()) if options["head_lr"] is not None else set()
    groups: dict[str, dict[str, Any]] = {}
    for parameter in (p for p in net.parameters() if p.requires_grad):
        keep_decay = options["decay_bias_and_norm"] or parameter.ndim > 1
        name = f"{'head' if parameter in head else 'body'}{'' if keep_decay else ', no decay'}"
        group = groups.setdefault(name, {"params": [], "name": name})
        group["params"].append(parameter)
        if parameter in head:
            group["lr"] = options["head_lr"]
        if not keep_decay:
            group["weight_decay"] = 0.0
    return list(groups.values())


def build_optimizer(net: nn.Module, node: Node) -> Optimizer:
    """Builds the optimizer over the parameter groups."""
    arguments = {key: value for key, value in node.items() if key != "param_groups"}
    return build(arguments, Optimizer, params=parameter_groups(net, node))


def build_scheduler(
    node: Node, optimizer: Optimizer, *, max_epochs: int, max_steps: int = -1, steps_per_epoch: int, mode: str
) -> LRScheduler | None:
    """Builds the schedule, with what follows from the rest of the run filled in.

    Lengths (``T_max``, ``total_steps``) are counted in the schedule's own interval, without the warm-up; ``max_lr`` is
    the optimizer's learning rate and ``mode`` the monitor's.

    Args:
        node: The scheduler's section; empty for a constant rate.
        optimizer: The optimizer whose rate is set.
        max_epochs: Epochs of the whole run, -1 if unlimited.
        max_steps: Optimizer steps of the whole run, -1 if unlimited; what comes first ends it.
        steps_per_epoch: Optimizer steps in an epoch.
        mode: ``min`` or ``max``, for plateau schedules.

    Raises:
        ConfigError: The schedule needs an end and the run has none, or is over before the warm-up; or the warm-up does
            not suit it.
    """
    if not node:
        return None
    arguments = {key: value for key, value in node.items() if key not in ("interval", "warmup_epochs")}
    scheduler = resolve_target(node["_target_"], LRScheduler)
    by_step = node["interval"] == "step"
    warmup = round(node["warmup_epochs"] * (steps_per_epoch if by_step else 1))
    if not by_step and warmup != node["warmup_epochs"]:
        raise ConfigError(
            f"scheduler.warmup_epochs={node['warmup_epochs']}: with scheduler.interval=epoch these are whole epochs"
        )
    ends = [max_epochs * (steps_per_epoch if by_step else 1)] if max_epochs >= 0 else []
    if max_steps >= 0:
        ends.append(max_steps if by_step else math.ceil(max_steps / steps_per_epoch))
    length = min(ends, default=-1) - warmup
    lengths = {"T_max": length, "total_steps": length}
    known = {**lengths, "max_lr": [group["lr"] for group in optimizer.param_groups], "mode": mode}
    filled = {key: value for key, value in known.items() if key in inspect.signature(scheduler).parameters}
    if lengths.keys() & filled.keys() and length < 1:
        raise ConfigError(
            f"scheduler: {scheduler.__name__} needs to know the run's end and at least one {node['interval']} after the"
            f" warm-up: trainer.max_epochs={max_epochs}, trainer.max_steps={max_steps}, "
            f"scheduler.warmup_epochs={node['warmup_epochs']}"
        )
    if issubclass(scheduler, ReduceLROnPlateau) and (warmup or by_step):
        raise ConfigError(
            "scheduler: a plateau schedule has no warm-up and follows what there is once an epoch: "
            "scheduler.warmup_epochs=0 scheduler.interval=epoch"
        )
    main: LRScheduler = build(arguments, scheduler, optimizer=optimizer, **filled)
    if not warmup:
        return main
    rise = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return SequentialLR(optimizer, [rise, main], milestones=[warmup])
