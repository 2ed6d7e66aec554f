"""Classification into one of K classes."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

from src.config import ConfigError
from src.modules.base import BaseModule


class ClassificationModule(BaseModule):
    """Softmax cross-entropy; accuracy and macro-averaged F1, and the confusion matrix ``[true, predicted]``.

    Args:
        class_weights: Weight of each class in the loss of training; losses of an evaluation are not weighted, so that
            they can be compared. "auto": inverse to the class's share of the training samples, 1 where all are equal.
        base: The arguments of `BaseModule`.
    """

    metric_names = ("loss", "acc", "f1")

    def __init__(self, class_weights: Literal["auto"] | Sequence[float] | None = None, **base: Any) -> None:
        super().__init__(**base)
        weights = balancing_weights(self.hparams["facts"]) if class_weights == "auto" else class_weights
        if weights is not None and len(weights) != (classes := self.hparams["facts"]["num_classes"]):
            raise ConfigError(f"model.class_weights: {len(weights)} weights for {classes} classes")
        self.class_weights: Tensor | None
        self.register_buffer(
            "class_weights", None if weights is None else torch.tensor(weights, dtype=torch.float), persistent=False
        )

    def build_metrics(self) -> MetricCollection:  # noqa: D102
        options: dict[str, Any] = {"num_classes": self.hparams["facts"]["num_classes"], "validate_args": False}
        return MetricCollection(
            {
                "acc": MulticlassAccuracy(average="micro", **options),
                "f1": MulticlassF1Score(average="macro", **options),
                "confusion": MulticlassConfusionMatrix(**options),
            }
        )

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of the logits ``output [B, K]`` with the classes ``target [B]``."""
        return nn.functional.cross_entropy(output, target, weight=self.class_weights if self.training else None)


def balancing_weights(facts: Mapping[str, Any]) -> list[float]:
    """Returns N / (K n_c) for each of K classes, of which n_c of N training samples are."""
    counts = facts["class_counts"]["train"]
    return [sum(counts) / (len(counts) * count) for count in counts]
