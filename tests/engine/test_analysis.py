"""What is written of a test: known cases, many classes, several processes."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional import confusion_matrix
from torchmetrics.functional.classification import multiclass_auroc, multiclass_average_precision

from src.engine.analysis import analyse
from src.modules.classification import Predictions, ScoreHistogram
from src.modules.regression import Pairs
from tests.conftest import QUICK
from tests.engine.test_distributed import prints, ranks, with_samples


def module_of(**facts: Any) -> Any:
    return SimpleNamespace(facts=facts, describe_sample=lambda split, position: {"id": f"{split} {position}"})


def strict(result: dict[str, Any]) -> dict[str, Any]:
    """The result as it is read again; NaN is no JSON."""
    content: dict[str, Any] = json.loads(json.dumps(result, allow_nan=False))
    assert content == result
    return content


def classified(logits: Tensor, target: Tensor, names: list[str]) -> dict[str, Any]:
    classes = len(names)
    samples, scores = Predictions(columns=5), ScoreHistogram(classes)
    samples.update(logits, target, index=torch.arange(len(target)))
    scores.update(logits, target)
    confusion = confusion_matrix(logits, target, "multiclass", num_classes=classes)
    tables = {**samples.compute(), "scores": scores.compute(), "confusion": confusion}
    data = module_of(task="classification", class_names=names)
    return strict(analyse(tables, {"test/ece": float(tables.pop("ece"))}, data))


def test_three_classes_by_hand() -> None:
    """Two cats are right, one is taken for a dog; of two dogs one is; there are no eels, and one was seen."""
    probability = torch.tensor(
        [[0.90, 0.05, 0.05], [0.70, 0.20, 0.10], [0.30, 0.60, 0.10], [0.10, 0.80, 0.10], [0.20, 0.30, 0.50]]
    )
    result = classified(probability.log(), torch.tensor([0, 0, 0, 1, 1]), ["cat", "d$g", "угорь"])
    assert (result["task"], result["split"], result["num_samples"]) == ("classification", "test", 5)
    assert result["confusion"] == [[0, 0, 2], [0, 1, 1], [1, 1, 1], [1, 2, 1]]
    cat, dog, eel = result["classes"]
    # By their probability of "cat": 0.9 yes, 0.7 yes, 0.3 yes, 0.2 no, 0.1 no. Of "dog": 0.8 yes, 0.6 no, 0.3 yes, no.
    assert cat == {
        "name": "cat", "support": 3, "precision": 1.0, "recall": pytest.approx(2 / 3), "f1": pytest.approx(0.8),
        "average_precision": 1.0, "auroc": 1.0,
    }  # fmt: skip
    assert dog == {
        "name": "d$g", "support": 2, "precision": 0.5, "recall": 0.5, "f1": 0.5,
        "average_precision": pytest.approx((1 + 2 / 3) / 2), "auroc": pytest.approx(5 / 6),
    }  # fmt: skip
    assert eel == {
        "name": "угорь", "support": 0, "precision": 0.0, "recall": None, "f1": 0.0, "average_precision": None,
        "auroc": None,
    }  # fmt: skip
    first, second = result["curves"]
    assert (first["name"], second["name"]) == ("cat", "d$g")
    assert second["recall"] == second["tpr"] == [0, 0.5, 0.5, 1, 1, 1]
    assert second["precision"] == [1, 1, 0.5, round(2 / 3, 6), 0.5, 0.4]
    assert second["fpr"] == [0, 0, round(1 / 3, 6), round(1 / 3, 6), round(2 / 3, 6), 1]
    bins = result["calibration"]["bins"]
    assert [one["count"] for one in bins] == [0] * 7 + [1, 0, 1, 1, 0, 1, 1, 0]
    assert (bins[0]["confidence"], bins[0]["accuracy"]) == (None, None)
    assert (bins[7]["accuracy"], bins[7]["confidence"]) == (0.0, pytest.approx(0.5))
    distances = [0.5, 0.6, 0.3, 0.2, 0.1]  # of 0.5 and 0.6 both are wrong
    assert result["calibration"]["ece"] == pytest.approx(sum(distances) / 5)
    assert sum(one["count"] * abs(one["accuracy"] - one["confidence"]) for one in bins if one["count"]) / 5 == (
        pytest.approx(result["calibration"]["ece"])
    )
    assert [entry["index"] for entry in result["worst"]] == [2, 4, 1, 3, 0]
    assert result["worst"][0] == {
        "id": "test 2", "index": 2, "true": "cat", "predicted": "d$g", "confidence": pytest.approx(0.6),
        "probability": pytest.approx(0.3), "loss": pytest.approx(-math.log(0.3)),
    }  # fmt: skip


@pytest.mark.parametrize("classes", [2, 10, 11, 1000])
def test_any_number_of_classes(classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    target = torch.randint(classes, (1500,), generator=generator)
    logits = 2 * torch.randn(1500, classes, generator=generator)
    logits[torch.arange(1500), target] += 4
    result = classified(logits, target, [f"class {number}" for number in range(classes)])
    curves, support = result["curves"], target.bincount(minlength=classes)
    there = support > 0
    for name, exact in (("average_precision", multiclass_average_precision), ("auroc", multiclass_auroc)):
        found = torch.tensor([np.nan if one[name] is None else one[name] for one in result["classes"]])
        expected = exact(logits, target, classes, average=None)
        assert found.isnan().tolist() == (~there).tolist()
        assert float(found[there].mean()) == pytest.approx(float(expected[there].mean()), abs=0.01)
        if classes <= 11:  # with a sample or two of a class, a tie within a bin weighs more
            torch.testing.assert_close(found[there], expected[there], rtol=0, atol=0.02)
    if classes <= 10:
        assert [curve["name"] for curve in curves] == [f"class {number}" for number in range(classes)]
        return
    scores = sorted((one["average_precision"], one["name"]) for one in result["classes"] if one["support"])
    assert [curve["name"] for curve in curves] == [*(name for _, name in scores[:9]), "macro average"]
    assert curves[-1]["average_precision"] == pytest.approx(np.mean([score for score, _ in scores]))
    area = {"average_precision": ("recall", "precision"), "auroc": ("fpr", "tpr")}
    for name, (x, y) in area.items():
        assert np.trapezoid(curves[-1][y], curves[-1][x]) == pytest.approx(curves[-1][name], abs=0.02)
    assert len(result["worst"]) == 16
    losses = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    assert [entry["index"] for entry in result["worst"]] == losses.topk(16).indices.tolist()


def test_one_class_alone_has_no_curves() -> None:
    result = classified(torch.eye(2)[[0, 0, 1]], torch.tensor([0, 0, 0]), ["a", "b"])
    assert result["curves"] == []
    assert [one["auroc"] for one in result["classes"]] == [None, None]


def regressed(prediction: Tensor, target: Tensor, std: list[float]) -> dict[str, Any]:
    names = ["a", "b", "c"][: len(std)]
    samples = Pairs(2 * len(std))
    samples.update(prediction, target, index=torch.arange(len(target)))
    data = module_of(task="regression", target_names=names, target_units=["eV"] * len(std), target_std=std)
    return strict(analyse({"samples": samples.compute()}, {}, data))


def test_regression_by_hand() -> None:
    nan = math.nan
    prediction = torch.tensor([[1.0, 10.0, 0.0], [3.0, 20.0, 0.0], [4.0, 30.0, 0.0]])
    target = torch.tensor([[2.0, 14.0, nan], [3.0, nan, nan], [1.0, 30.0, nan]])
    result = regressed(prediction, target, [1.0, 16.0, 1.0])
    first, second, third = result["targets"]
    assert (first["name"], first["unit"]) == ("a", "eV")
    errors = ["mae", "rmse", "bias", "r2"]
    assert [first[name] for name in errors] == pytest.approx([4 / 3, math.sqrt(10 / 3), 2 / 3, 1 - 10 / 2])
    assert [second[name] for name in errors] == pytest.approx([2, math.sqrt(8), -2, 1 - 16 / 128])
    assert [third[name] for name in errors] == [None] * 4
    assert result["pairs"][1] == [[3.0, 20.0, 0.0], [3.0, None, None]]
    assert result["thinned"] is False
    assert [(one["index"], one["error"]) for one in result["worst"]] == [(2, 3.0), (0, 1.0), (1, 0.0)]
    assert result["worst"][0]["prediction"] == [4.0, 30.0, 0.0]
    assert result["worst"][0]["id"] == "test 2"


def test_pairs_are_thinned_evenly_and_errors_are_not() -> None:
    target = torch.arange(20_001.0)[:, None]
    result = regressed(target + 1, target, [1.0])
    assert [pair[1][0] for pair in result["pairs"]] == list(range(0, 20_001, 3))
    assert result["thinned"] is True
    assert result["num_samples"] == 20_001 and result["targets"][0]["bias"] == 1.0


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {key: leaf for name in value for key, leaf in leaves(value[name], f"{path}/{name}").items()}
    if isinstance(value, list):
        return {key: leaf for n, part in enumerate(value) for key, leaf in leaves(part, f"{path}/{n}").items()}
    return {path: value}


def test_several_processes_write_what_one_does(tmp_path: Path) -> None:
    """Of two processes one has the samples 0 to 2 and 6, of three one has none."""
    written, samples = {}, 7
    for world_size, batch_size in ((1, 6), (2, 6), (3, 12)):
        folder = tmp_path / str(world_size)
        folder.mkdir()
        before: dict[int, Callable[[], None]] = dict.fromkeys(range(world_size), with_samples(samples))
        overrides = [*QUICK, "pictures=true", "train=false", f"data.batch_size={batch_size}", f"runs_dir={folder}"]
        assert ranks(world_size, overrides, folder, before) == [0] * world_size, prints(folder)
        (path,) = folder.glob("*/*/results/test.json")
        written[world_size] = leaves(json.loads(path.read_text(encoding="utf-8")))
        assert len(list(path.parent.glob("worst/*.png"))) == min(16, samples)
    assert written[1]["/num_samples"] == samples and written[1]["/checkpoint"] is None
    numbers = {n: {key: leaf for key, leaf in written[n].items() if isinstance(leaf, float)} for n in written}
    for several in (2, 3):
        assert numbers[several] == pytest.approx(numbers[1], rel=1e-5)
        others = [{key: leaf for key, leaf in written[n].items() if key not in numbers[1]} for n in (1, several)]
        assert others[0] == others[1]
