"""Classification into one of K classes."""

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score
from torchvision.transforms import v2  # type: ignore[import-untyped]

from src.modules.base import BaseModule


class ClassificationModule(BaseModule):
    """Softmax cross-entropy; accuracy and macro-averaged F1, and the confusion matrix ``[true, predicted]``.

    What changes images, targets or the loss does so in training alone: losses of an evaluation are plain cross-entropy,
    and accuracy always compares with the true class.

    Args:
        label_smoothing: Share of a target that is spread over all classes (Szegedy et al. 2016).
        mixup: Alpha of MixUp (Zhang et al. 2018); 0: off.
        cutmix: Alpha of CutMix (Yun et al. 2019); 0: off. With both, one is drawn for each batch.
        channels_last: Whether images and filters are laid out with their channels last, which convolutions like.
        base: The arguments of `BaseModule`.
    """

    metric_names = ("loss", "acc", "f1")
    higher_is_better = frozenset({"acc", "f1"})

    def __init__(
        self,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        channels_last: bool = False,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.label_smoothing, self.channels_last = label_smoothing, channels_last
        self.mixing = build_mixing(mixup, cutmix, self.hparams["facts"]["num_classes"])
        if channels_last:
            self.net.to(memory_format=torch.channels_last)

    def build_metrics(self) -> MetricCollection:  # noqa: D102
        options: dict[str, Any] = {"num_classes": self.hparams["facts"]["num_classes"], "validate_args": False}
        return MetricCollection(
            {
                "acc": MulticlassAccuracy(average="micro", **options),
                "f1": MulticlassF1Score(average="macro", **options),
                "confusion": MulticlassConfusionMatrix(**options),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits ``[B, K]``."""
        return super().forward(x.contiguous(memory_format=torch.channels_last) if self.channels_last else x)

    def mix(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mixes the images of a training batch, and their targets to ``[B, K]``, where that is asked for."""
        if self.mixing is None:
            return x, y
        x_BCHW, y_BK = self.mixing(x, y)
        return x_BCHW, y_BK.to(x.dtype)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of the logits ``output [B, K]`` with classes ``[B]`` or their probabilities ``[B, K]``."""
        return nn.functional.cross_entropy(
            output, target, label_smoothing=self.label_smoothing if self.training else 0.0
        )


def build_mixing(mixup: float, cutmix: float, num_classes: int) -> nn.Module | None:
    """Builds torchvision's batch operation, None where both are off."""
    if mixup == cutmix == 0:
        return None
    kinds = [(v2.MixUp, mixup), (v2.CutMix, cutmix)]
    operations = [kind(alpha=alpha, num_classes=num_classes) for kind, alpha in kinds if alpha > 0]
    mixing: nn.Module = v2.RandomChoice(operations)
    return mixing
