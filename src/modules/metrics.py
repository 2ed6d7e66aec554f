"""Metrics of one split over one epoch, cheap enough for steps of a millisecond."""

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection


class NonFiniteLossError(ArithmeticError):
    """The loss became NaN or infinite; training on would only spoil the weights further."""


class EpochMetrics(nn.Module):
    """A torchmetrics collection that is fed step by step, updated in blocks and reduced once an epoch.

    An update costs a small network as much as its forward pass, so the steps' outputs are kept on the device and
    handed over together. The mean loss belongs to every collection.

    Args:
        collection: Metrics that take ``preds`` and ``target``.
        block: Updates after this many steps.
    """

    def __init__(self, collection: MetricCollection, block: int = 256) -> None:
        super().__init__()
        self.collection = collection.clone()
        self.loss = MeanMetric(nan_strategy="error")  # "disable" also ignores the weights
        self.block = block
        self.pending: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, preds: Tensor, target: Tensor, loss: Tensor) -> None:
        """Takes the outputs of one step: predictions ``[B, ...]``, targets ``[B, ...]`` and the mean loss."""
        if len(target):  # a process can stand without samples in the last batch of an evaluation
            self.pending.append((preds.detach(), target, loss.detach()))
            if len(self.pending) >= self.block:
                self.flush()

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
        if target[0].is_floating_point():  # a missing value is NaN and has no part in its batch's mean
            weights = torch.stack([(~values.isnan()).sum() for values in target])
        else:
            weights = torch.tensor([len(labels) for labels in target], device=losses[0].device)
        self.loss.update(torch.stack(losses), weights)
        self.collection.update(torch.cat(preds), torch.cat(target))

    def compute(self) -> dict[str, Tensor]:
        """The metrics over all processes; clears them for the next epoch."""
        self.flush()
        values = {"loss": self.loss.compute(), **self.collection.compute()}
        self.loss.reset()
        self.collection.reset()
        return values
