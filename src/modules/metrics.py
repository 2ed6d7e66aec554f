"""Metrics of one split over one epoch, cheap enough for steps of a millisecond."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.utilities import dim_zero_cat

CALIBRATION_BINS = 15


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
    """A torchmetrics collection that is fed step by step, updated in blocks and reduced once an epoch.

    An update costs a small network as much as its forward pass, so the steps' outputs are kept on the device and
    handed over together. The mean loss belongs to every collection.

    Args:
        collection: Metrics that take ``preds`` and ``target``, and ``index`` where they want to know which samples.
        block: Updates after this many steps.
    """

    def __init__(self, collection: MetricCollection, block: int = 256) -> None:
        super().__init__()
        self.collection = collection.clone()
        self.loss = MeanMetric(nan_strategy="error")  # "disable" also ignores the weights
        self.count = SampleCount()
        self.block = block
        self.pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self.indices: list[Tensor] = []

    def add(self, preds: Tensor, target: Tensor, loss: Tensor, index: Tensor | None = None) -> None:
        """Takes the outputs of one step: predictions and targets ``[B, ...]``, the mean loss, positions ``[B]``."""
        if len(target):  # a process can stand without samples in the last batch of an evaluation
            self.pending.append((preds.detach(), target, loss.detach()))
            if index is not None:
                self.indices.append(index)
            if len(self.pending) >= self.block:
                self.flush()

    def sums(self) -> dict[str, Any]:
        """All that has come in since the last `compute`, as plain values and CPU tensors."""
        metrics = {"loss": self.loss, "count": self.count, **dict(self.collection.items())}
        return {
            "states": {
                name: {key: _on_cpu(state) for key, state in metric.metric_state.items()}
                for name, metric in metrics.items()
                if metric.update_called
            },
            "pending": [[_on_cpu(tensor) for tensor in step] for step in self.pending],
        }

    def merge(self, sums: Mapping[str, Any]) -> None:
        """Adds what `sums` returned, before the first step: the metrics come out as if nothing had lain between."""
        metrics = {"loss": self.loss, "count": self.count, **dict(self.collection.items())}
        for name, states in sums["states"].items():
            metrics[name].merge_state({key: _moved(state, metrics[name].device) for key, state in states.items()})
        for preds, target, loss in sums["pending"]:
            self.pending.append(tuple(tensor.to(self.loss.device) for tensor in (preds, target, loss)))

    def check_finite(self) -> None:
        """Looks at the pending losses.

        Raises:
            NonFiniteLossError: One is not finite. The error's argument is how many steps ago that was.
        """
        if self.pending:
            finite = torch.isfinite(torch.stack([loss for _, _, loss in self.pending]))
            if not finite.all():
                raise NonFiniteLossError(len(finite) - 1 - int(finite.long().argmin()))

    def flush(self) -> None:
        """Updates the collection with what is pending.

        Raises:
            NonFiniteLossError: See `check_finite`.
        """
        if not self.pending:
            return
        self.check_finite()
        preds, target, losses = zip(*self.pending, strict=True)
        self.pending.clear()
        sizes = torch.tensor([len(values) for values in target], device=losses[0].device)
        weights = sizes
        if target[0].is_floating_point():  # a missing value is NaN and has no part in its batch's mean
            weights = torch.stack([(~values.isnan()).sum() for values in target])
        self.loss.update(torch.stack(losses), weights)
        self.count.update(sum(map(len, target)))
        index = {"index": torch.cat(self.indices)} if self.indices else {}
        self.indices.clear()
        self.collection.update(torch.cat(preds), torch.cat(target), **index)

    def compute(self) -> dict[str, Tensor]:
        """The metrics and the number of samples ("count") over all processes; clears them for the next epoch."""
        self.flush()
        values = {"loss": self.loss.compute(), "count": self.count.compute(), **self.collection.compute()}
        for metric in (self.loss, self.count, self.collection):
            metric.reset()
        return values


def _on_cpu(state: Any) -> Any:
    return _moved(state, torch.device("cpu"))


def _moved(state: Any, device: torch.device) -> Any:
    return [part.to(device) for part in state] if isinstance(state, list) else state.detach().to(device)
