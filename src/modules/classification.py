"""Classification into one of K classes."""

from typing import Any

from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

from src.modules.base import BaseModule


class ClassificationModule(BaseModule):
    """Softmax cross-entropy; accuracy and macro-averaged F1, and the confusion matrix ``[true, predicted]``."""

    metric_names = ("loss", "acc", "f1")
    higher_is_better = frozenset({"acc", "f1"})

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
        return nn.functional.cross_entropy(output, target)
