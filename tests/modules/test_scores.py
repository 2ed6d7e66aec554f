"""What the test part collects of a classifier, against torchmetrics' own metrics."""

import pytest
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassCalibrationError
from torchmetrics.functional.classification import multiclass_precision_recall_curve

from src.modules.classification import Predictions, ScoreHistogram


def data(classes: int, samples: int = 200, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits that know something of the classes, which are drawn from all but the last."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(classes - 1, (samples,), generator=generator)
    return 2 * torch.randn(samples, classes, generator=generator) + 3 * torch.eye(classes)[target], target


def test_rows_are_in_the_order_of_the_split() -> None:
    logits, target = torch.tensor([[0.0, 3.0], [1.0, 0.0], [0.0, 0.5]]), torch.tensor([1, 1, 0])
    metric = Predictions(columns=5)
    for order in ([2], [0, 1]):
        metric.update(logits[order], target[order], index=torch.tensor(order))
    probability = logits.softmax(1)
    expected = [
        [number, -float(probability[number, true].log()), predicted, true, *confidence_and_probability]
        for number, true, predicted, confidence_and_probability in (
            (0, 1, 1, [float(probability[0, 1])] * 2),
            (1, 1, 0, probability[1].tolist()),
            (2, 0, 1, probability[2].tolist()[::-1]),
        )
    ]
    torch.testing.assert_close(metric.compute()["samples"], torch.tensor(expected))


@pytest.mark.parametrize("classes", [2, 5, 1000])
def test_ece_is_that_of_torchmetrics(classes: int) -> None:
    logits, target = data(classes)
    logits[:20] = 40 * torch.eye(classes)[target[:20]]  # so sure that the confidence is 1
    logits[20:25] = 40 * torch.eye(classes)[-1]
    metric, reference = Predictions(columns=5), MulticlassCalibrationError(classes, n_bins=15, norm="l1")
    for rows in torch.arange(200).split(64):
        metric.update(logits[rows], target[rows], index=rows)
        reference.update(logits[rows].softmax(1), target[rows])
    assert float(metric.compute()["ece"]) == pytest.approx(float(reference.compute()), rel=1e-6) != 0


@pytest.mark.parametrize("classes", [2, 7, 100])
def test_sums_are_torchmetrics_binned_curves(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.modules.classification.CHUNK", 16 * classes)
    (logits, target), metric = data(classes), ScoreHistogram(classes)
    for rows in torch.arange(200).split(70):
        metric.update(logits[rows], target[rows])
    counts = metric.compute()
    assert counts[0].sum(1).tolist() == [200] * classes
    assert torch.equal(counts[1].sum(1), target.bincount(minlength=classes))
    everywhere, own = counts.flip(2).cumsum(2).flip(2)[:, :, 1:]  # the first bin is below all thresholds
    precision, recall, _ = multiclass_precision_recall_curve(
        logits.softmax(1), target, classes, thresholds=torch.linspace(-16, 16, 257).sigmoid(), validate_args=False
    )
    there = target.bincount(minlength=classes) > 0
    torch.testing.assert_close((own / own[:, :1])[there], recall[there, :-1])
    some = everywhere > 0
    torch.testing.assert_close((own / everywhere)[some], precision[:, :-1][some])


def test_certainty_and_half_precision() -> None:
    """Probabilities of 0 and 1 are in the last bins, whatever the precision of the logits."""
    logits, target = torch.tensor([[100.0, -100.0], [-100.0, 100.0]]), torch.tensor([0, 0])
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        scores, samples = ScoreHistogram(2), Predictions(columns=5)
        scores.update(logits.to(dtype), target)
        samples.update(logits.to(dtype), target, index=torch.arange(2))
        assert scores.compute()[..., [0, -1]].tolist() == [[[1, 1], [1, 1]], [[1, 1], [0, 0]]]
        rows = samples.compute()["samples"]
        assert rows.dtype == torch.float32
        assert rows.tolist() == [[0, 0, 0, 0, 1, 1], [1, 200, 1, 0, 1, 0]]
