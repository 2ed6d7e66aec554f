"""Regression of one target or several, some of which may be missing. Tensor suffixes: B samples, T targets."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric

from src.modules.base import BaseModule
from src.modules.metrics import SampleTable

LOSSES: dict[str, Callable[..., Tensor]] = {
    "l1": functional.l1_loss,
    "mse": functional.mse_loss,
    "huber": functional.huber_loss,
}


class RegressionModule(BaseModule):
    """L1, squared or Huber loss of standardised targets; MAE, RMSE and R2 in the targets' own units.

    The net works on standardised values. Mean and deviation are those of the training part (``facts["target_mean"]``,
    ``facts["target_std"]``); as buffers they travel in the checkpoint. `forward` returns values in the targets' units.
    A missing target is NaN and counts nowhere. Of several targets, ``mae`` is the mean, ``mae_<target>`` that of one.

    Args:
        loss: Per standardised value; Huber turns from squared to linear at one standard deviation.
        **base: See `BaseModule`.
    """

    metric_names = ("loss", "mae", "rmse", "r2")
    higher_is_better = frozenset({"r2"})
    target_mean: Tensor
    target_std: Tensor

    def __init__(self, loss: Literal["l1", "mse", "huber"] = "l1", **base: Any) -> None:
        super().__init__(**base)
        for name in ("target_mean", "target_std"):
            self.register_buffer(name, torch.tensor(self.hparams["facts"][name], dtype=torch.float32))

    def build_metrics(self, split: str) -> dict[str, Metric]:  # noqa: D102
        names, mean, std = (self.hparams["facts"][key] for key in ("target_names", "target_mean", "target_std"))
        errors: dict[str, Metric] = {"errors": RegressionErrors(names, mean, std)}
        return errors | {"samples": Pairs(columns=2 * len(names))} if split == "test" else errors

    def forward(self, x: Any) -> Tensor:
        """Returns the prediction ``[B, T]`` in the targets' units, in at least single precision."""
        return super().forward(x) * self.target_std + self.target_mean

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean over the targets ``[B, T]`` that are there; 0 where none is.

        Raises:
            ValueError: Output and target differ in shape.
        """
        if output.shape != target.shape:
            raise ValueError(f"the net gives {list(output.shape)} values, the targets are {list(target.shape)}")
        there = ~target.isnan()
        error = torch.where(there, (output - target) / self.target_std, 0.0)
        total = LOSSES[self.hparams["loss"]](error, torch.zeros_like(error), reduction="sum")
        return total / there.sum().clamp(min=1)


class RegressionErrors(Metric):
    """MAE, RMSE and R2 of each target, in sums that add up over batches and processes.

    R2 is ``1 - sum (y - p)^2 / sum (y - mean y)^2``; its sums are of values standardised by `mean` and `std`, which
    keeps them accurate where the targets' mean is large against their spread. Of a target without values it is NaN, and
    so is every other error.

    Args:
        names: The targets, T of them.
        mean: About where each target lies.
        std: About how far it spreads.
    """

    full_state_update = False
    mean: Tensor
    std: Tensor
    sums: Tensor

    def __init__(self, names: Sequence[str], mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.names = list(names)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32), persistent=False)
        self.add_state("sums", torch.zeros(5, len(names)), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Takes predictions and targets ``[B, T]``, missing ones NaN."""
        there = ~target.isnan()
        error = torch.where(there, (preds - target) / self.std, 0.0)
        value = torch.where(there, (target - self.mean) / self.std, 0.0)
        self.sums += torch.stack([there, error.abs(), error.square(), value, value.square()]).sum(1)

    def compute(self) -> dict[str, Tensor]:
        """Returns the means over the targets, and the MAE of each where there are several."""
        count, absolute, squared, value, value_squared = self.sums
        mae = absolute / count * self.std
        rmse = (squared / count).sqrt() * self.std
        r2 = 1 - squared / (value_squared - value.square() / count)
        each = {f"mae_{name}": error for name, error in zip(self.names, mae, strict=True)} if len(mae) > 1 else {}
        return {"mae": mae.nanmean(), "rmse": rmse.nanmean(), "r2": r2.nanmean(), **each}


class Pairs(SampleTable):
    """The predictions of each sample and then its targets: two columns for each target."""

    def numbers(self, preds: Tensor, target: Tensor) -> Tensor:  # noqa: D102
        return torch.cat([preds, target], dim=1)
