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

    def __init__(self, collection: MetricCollection, block: int = 64) -> None:
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

    def flush(self) -> None:
        """Updates the collection with what is pending.

        Raises:
            NonFiniteLossError: A pending loss is not finite. Its argument is how many steps ago that was.
        """
        if not self.pending:
            return
        preds, target, losses = zip(*self.pending, strict=True)
        self.pending.clear()
        loss = torch.stack(losses)
        finite = torch.isfinite(loss)
        if not finite.all():
            raise NonFiniteLossError(len(losses) - 1 - int(finite.long().argmin()))
        self.loss.update(loss, torch.tensor([len(t) for t in target], device=loss.device))
        self.collection.update(torch.cat(preds), torch.cat(target))

    def compute(self) -> dict[str, Tensor]:
        """The metrics over all processes; clears them for the next epoch."""
        self.flush()
        values = {"loss": self.loss.compute(), **self.collection.compute()}
        self.loss.reset()
        self.collection.reset()
        return values
