"""Metrics of one split over one epoch, cheap enough for steps of a millisecond."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.utilities import dim_zero_cat

CALIBRATION_BINS = 15
BLOCK = 256
"""Steps between two updates of the metrics."""


class NonFiniteLossError(ArithmeticError):
    """The loss became NaN or infinite; training on would only spoil the weights further."""


class SampleCount(Metric):
    """How many samples there were, over all processes; exact in every precision."""

    full_state_update = False
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, count: int) -> None:
        """Adds so many."""
        self.total += count

    def compute(self) -> Tensor:
        """Returns the number."""
        return self.total


class SampleTable(Metric):
    """A row of float32 numbers for each sample, in the order of the split whatever the number of processes.

    A subclass says in `numbers` what is worth to be known of a sample.

    Args:
        columns: Numbers of a sample; its position in the split, exact up to 16.7 million, comes before them.
    """

    rows: list[Tensor]

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns = columns
        self.add_state("rows", [], dist_reduce_fx="cat")

    def numbers(self, preds: Tensor, target: Tensor) -> Tensor:
        """Returns the numbers ``[B, columns]`` of some samples."""
        raise NotImplementedError

    def update(self, preds: Tensor, target: Tensor, index: Tensor) -> None:
        """Takes predictions, targets and positions ``[B]`` of some samples."""
        rows = torch.cat([index[:, None], self.numbers(preds.float(), target)], dim=1)
        # Flat, because torchmetrics gathers a flat empty tensor from a process that had no samples.
        self.rows.append(rows.float().flatten())

    def compute(self) -> Any:
        """Returns the rows ``[N, 1 + columns]`` on the CPU."""
        rows = dim_zero_cat(self.rows).view(-1, 1 + self.columns).cpu()
        return rows[rows[:, 0].argsort()]


class EpochMetrics(nn.Module):
    """Metrics of torchmetrics that are fed step by step, updated in blocks and reduced once an epoch.

    An update costs a small network as much as its forward pass, so the steps' outputs are kept on the device and
    handed over together. The mean loss and the number of samples ("count") belong to every collection.

    Args:
        metrics: By name. Each is given what it names among ``preds``, ``target`` and ``index``, the samples' positions.
    """

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        super().__init__()
        loss = MeanMetric(nan_strategy="error")  # "disable" also ignores the weights
        self.collection = MetricCollection({"loss": loss, "count": SampleCount()})
        self.collection.add_metrics(dict(metrics))
        self.pending: list[list[Tensor]] = []

    def add(self, preds: Tensor, target: Tensor, loss: Tensor, index: Tensor) -> bool:
        """Takes the outputs of one step: predictions and targets ``[B, ...]``, the mean loss, positions ``[B]``.

        Returns:
            Whether it is time to `flush`.
        """
        if len(target):  # a process can stand without samples in the last batch of an evaluation
            self.pending.append([preds.detach(), target, loss.detach(), index])
        return len(self.pending) >= BLOCK

    def sums(self) -> dict[str, Any]:
        """All that has come in since the last `compute`, as plain values and CPU tensors."""
        return {
            "states": {
                name: {key: _moved(state, "cpu") for key, state in metric.metric_state.items()}
                for name, metric in self.collection.items()
                if metric.update_called
            },
            "pending": [_moved(step, "cpu") for step in self.pending],
        }

    def merge(self, sums: Mapping[str, Any]) -> None:
        """Adds what `sums` returned, before the first step: the metrics come out as if nothing had lain between."""
        metrics = dict(self.collection.items())
        device = metrics["loss"].device
        for name, states in sums["states"].items():
            metrics[name].merge_state({key: _moved(state, device) for key, state in states.items()})
        self.pending += [_moved(step, device) for step in sums["pending"]]

    def steps_since_non_finite(self) -> int | None:
        """How many steps ago a pending loss was not finite; None if all are."""
        if not self.pending:
            return None
        finite = torch.isfinite(torch.stack([loss for _, _, loss, _ in self.pending]))
        return None if finite.all() else len(finite) - 1 - int(finite.long().argmin())

    def flush(self) -> None:
        """Updates the metrics with what is pending, losses that are finite."""
        if not self.pending:
            return
        preds, target, losses, index = zip(*self.pending, strict=True)
        self.pending.clear()
        if target[0].is_floating_point():  # a missing value is NaN and has no part in its batch's mean
            weights = torch.stack([(~values.isnan()).sum() for values in target])
        else:
            weights = torch.tensor([len(values) for values in target], device=losses[0].device)
        self.collection.update(
            preds=torch.cat(preds),
            target=torch.cat(target),
            index=torch.cat(index),
            value=torch.stack(losses),
            weight=weights,
            count=sum(map(len, target)),
        )

    def compute(self) -> dict[str, Tensor]:
        """The metrics and the number of samples ("count") over all processes; clears them for the next epoch."""
        self.flush()
        values = self.collection.compute()
        self.collection.reset()
        return values


def _moved(state: Any, device: torch.device | str) -> Any:
    return [part.to(device) for part in state] if isinstance(state, list) else state.detach().to(device)
