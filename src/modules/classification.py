"""Classification into one of K classes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score
from torchmetrics.functional.classification import binary_calibration_error
from torchvision.transforms import v2  # type: ignore[import-untyped]

from src.config import ConfigError
from src.modules.base import BaseModule
from src.modules.metrics import CALIBRATION_BINS, SampleTable

CHUNK = 4_000_000
"""Probabilities that are sorted into bins at a time."""


class ClassificationModule(BaseModule):
    """Softmax cross-entropy; accuracy and macro-averaged F1, and the confusion matrix ``[true, predicted]``.

    Of the test part also the expected calibration error ``ece``, each sample's prediction and the curves' counts.
    What changes images, targets or the loss does so in training alone: losses of an evaluation are plain cross-entropy,
    and accuracy always compares with the true class.

    Args:
        label_smoothing: Share of a target that is spread over all classes (Szegedy et al. 2016).
        mixup: Alpha of MixUp (Zhang et al. 2018); 0: off.
        cutmix: Alpha of CutMix (Yun et al. 2019); 0: off. With both, one is drawn for each batch.
        channels_last: Whether images and filters are laid out with their channels last, which convolutions like.
        class_weights: Weight of each class in the loss of training; losses of an evaluation are not weighted, so that
            they can be compared. "auto": inverse to the class's share of the training samples, 1 where all are equal.
        **base: See `BaseModule`.
    """

    metric_names = ("loss", "acc", "f1")
    higher_is_better = frozenset({"acc", "f1"})

    def __init__(
        self,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        channels_last: bool = False,
        class_weights: Literal["auto"] | Sequence[float] | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        facts = self.hparams["facts"]
        self.label_smoothing, self.channels_last = label_smoothing, channels_last
        self.mixing = build_mixing(mixup, cutmix, facts["num_classes"])
        if channels_last:
            self.net.to(memory_format=torch.channels_last)
        weights = balancing_weights(facts) if class_weights == "auto" else class_weights
        if weights is not None and len(weights) != facts["num_classes"]:
            raise ConfigError(f"model.class_weights: {len(weights)} weights for {facts['num_classes']} classes")
        if weights is not None and not (min(weights) >= 0 and 0 < max(weights) < math.inf):
            raise ConfigError(f"model.class_weights={weights}: no weight may be below 0, and one must be above it")
        self.class_weights: Tensor | None
        self.register_buffer(
            "class_weights", None if weights is None else torch.tensor(weights, dtype=torch.float), persistent=False
        )

    def build_metrics(self, split: str) -> dict[str, Metric]:  # noqa: D102
        classes = self.hparams["facts"]["num_classes"]
        metrics: dict[str, Metric] = {
            "acc": MulticlassAccuracy(classes, average="micro", validate_args=False),
            "f1": MulticlassF1Score(classes, average="macro", validate_args=False),
            "confusion": MulticlassConfusionMatrix(classes, validate_args=False),
        }
        if split == "test":
            metrics |= {"samples": Predictions(columns=5), "scores": ScoreHistogram(classes)}
        return metrics

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
        if not self.training:
            return nn.functional.cross_entropy(output, target)
        return nn.functional.cross_entropy(output, target, self.class_weights, label_smoothing=self.label_smoothing)


class Predictions(SampleTable):
    """Of each sample: loss, predicted class, true class, confidence (the largest probability), that of the true class.

    With them comes ``ece``, the mean distance of confidence and accuracy over `CALIBRATION_BINS` bins of equal width
    (Naeini et al. 2015), as torchmetrics defines it.
    """

    def numbers(self, preds: Tensor, target: Tensor) -> Tensor:  # noqa: D102
        logs_BK = preds.log_softmax(1)
        (confidence, predicted), true = logs_BK.max(1), logs_BK.gather(1, target[:, None])[:, 0]
        return torch.stack([-true, predicted, target, confidence.exp(), true.exp()], dim=1)

    def compute(self) -> dict[str, Tensor]:
        """Returns the rows and the error."""
        rows = super().compute()
        confidence, correct = rows[:, 4].contiguous(), (rows[:, 2] == rows[:, 3]).long()
        return {"samples": rows, "ece": binary_calibration_error(confidence, correct, n_bins=CALIBRATION_BINS)}


class ScoreHistogram(Metric):
    """How the probabilities of each class lie between thresholds: ``[2, K, bins]``, of all samples and of its own.

    The sums over the bins from a threshold on are the predicted and the true positives there, those of torchmetrics'
    binned curves, which would look at all probabilities once for each threshold. The thresholds stand every 1/8 from
    -16 to 16 in log-odds, because probabilities crowd at 0 and 1.

    Args:
        num_classes: K.
    """

    counts: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(2, num_classes, 258, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Takes logits ``[B, K]`` and classes ``[B]``."""
        _, classes, bins = self.counts.shape
        first_K = torch.arange(0, classes * bins, bins, device=preds.device)
        samples = max(CHUNK // classes, 1)
        for logits_BK, true_B in zip(torch.split(preds, samples), torch.split(target, samples), strict=True):
            log_odds_BK = logits_BK.float().softmax(1).logit()
            bin_BK = first_K + (8 * (log_odds_BK + 16) + 1).clamp(0, bins - 1).long()
            for part, chosen in enumerate((bin_BK, bin_BK.gather(1, true_B[:, None]))):
                self.counts[part] += chosen.flatten().bincount(minlength=classes * bins).view(classes, bins)

    def compute(self) -> Tensor:
        """Returns the counts."""
        return self.counts


def build_mixing(mixup: float, cutmix: float, num_classes: int) -> nn.Module | None:
    """Builds torchvision's batch operation, None where both are off."""
    if mixup == cutmix == 0:
        return None
    kinds = [(v2.MixUp, mixup), (v2.CutMix, cutmix)]
    operations = [kind(alpha=alpha, num_classes=num_classes) for kind, alpha in kinds if alpha > 0]
    mixing: nn.Module = v2.RandomChoice(operations)
    return mixing


def balancing_weights(facts: Mapping[str, Any]) -> list[float]:
    """Returns N / (K n_c) for each of K classes, of which n_c of N training samples are.

    Raises:
        ConfigError: There is a class without any.
    """
    counts = facts["class_counts"]["train"]
    if 0 in counts:
        name = facts["class_names"][counts.index(0)]
        raise ConfigError(f"model.class_weights=auto: no training sample is of class {name}; give a list of weights")
    return [sum(counts) / (len(counts) * count) for count in counts]
