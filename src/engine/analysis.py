"""What a test says of the model, class by class and sample by sample: the content of ``results/test.json``."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from src.data.base import DataModule
from src.modules.metrics import CALIBRATION_BINS as BINS
from src.tracking.plots import MEAN

WORST = 16
"""Samples that are shown one by one."""

MOST_CURVES, MOST_PAIRS = 10, 10_000

Floats = NDArray[np.float64]
Tables = Mapping[str, Tensor]
Columns = dict[str, Any]


def analyse(tables: Tables, metrics: Mapping[str, float], datamodule: DataModule) -> dict[str, Any]:
    """Describes a test from what its metrics have kept.

    Args:
        tables: Of the module: ``samples``, and for classification ``confusion`` and ``scores``.
        metrics: Those of the test.
        datamodule: What was tested on.

    Returns:
        Plain values. The worst samples have the largest loss or, in regression, the largest error in standard
        deviations of the training part.
    """
    facts, samples = datamodule.facts, tables["samples"].double().numpy()
    describe = classification if facts["task"] == "classification" else regression
    content, shown, badness = describe(tables, samples[:, 1:], facts)
    content = {"task": facts["task"], "split": "test", "num_samples": len(samples), "metrics": metrics, **content}
    if "calibration" in content:
        content["calibration"]["ece"] = metrics["test/ece"]
    order = np.argsort(-badness, kind="stable")[:WORST]
    worst = rows({"index": samples[:, 0].astype(int)[order], **{name: column[order] for name, column in shown.items()}})
    return plain({**content, "worst": [{**datamodule.describe_sample("test", row["index"]), **row} for row in worst]})


def classification(tables: Tables, samples: Floats, facts: Mapping[str, Any]) -> tuple[Columns, Columns, Floats]:
    """The classes, their curves and the calibration; what is shown of each sample; the losses."""
    names, confusion = np.array(facts["class_names"]), tables["confusion"].numpy()
    (loss, confidence, probability), (predicted, true) = samples.T[[0, 3, 4]], samples.T[1:3].astype(int)
    hits, support, chosen = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    areas, curves = class_curves(tables["scores"].numpy(), names)
    with np.errstate(invalid="ignore"):  # what a class without samples lacks is NaN
        scores = {"precision": hits / chosen, "recall": hits / support, "f1": 2 * hits / (support + chosen)}
    content = {
        "class_names": names,
        "confusion": [[*place, confusion[tuple(place)]] for place in np.argwhere(confusion)],
        "classes": rows({"name": names, "support": support, **scores, **areas}),
        "curves": curves,
        "calibration": {"bins": calibration_bins(confidence, predicted == true)},
    }
    shown = {"true": names[true], "predicted": names[predicted], "confidence": confidence, "probability": probability}
    return content, {**shown, "loss": loss}, loss


def class_curves(scores: NDArray[np.int64], names: NDArray[np.str_]) -> tuple[Columns, list[dict[str, Any]]]:
    """Precision-recall and ROC curves, each class against the others.

    Args:
        scores: ``[2, K, bins]``, see `ScoreHistogram` of the modules.
        names: Of the classes.

    Returns:
        The areas under the curves of each class, NaN where there are no samples of it or of others; and all curves or,
        of more than `MOST_CURVES`, those with the least average precision, and the mean.
    """
    everywhere, own = np.pad(scores[:, :, ::-1], ((0, 0), (0, 0), (1, 0))).cumsum(2)
    with np.errstate(invalid="ignore"):
        recall, fall_out = (counts / counts[:, -1:] for counts in (own, everywhere - own))
        precision = np.where(everywhere, own / everywhere, 1.0)
    lines = {"recall": recall, "precision": precision, "fpr": fall_out, "tpr": recall}
    roc = (np.diff(fall_out) * (recall[:, 1:] + recall[:, :-1]) / 2).sum(1)
    areas = {"average_precision": (np.diff(recall) * precision[:, 1:]).sum(1), "auroc": roc}
    order = np.argsort(areas["average_precision"], kind="stable")
    there = order[np.isfinite(areas["average_precision"] + areas["auroc"])[order]]
    few = len(names) <= MOST_CURVES
    curves = []
    for k in np.sort(there) if few else there[: MOST_CURVES - 1]:
        points = np.append(True, np.diff(everywhere[k]) > 0)
        curve = {name: line[k, points].round(6) for name, line in lines.items()}
        curves.append({"name": names[k], **curve, **{name: area[k] for name, area in areas.items()}})
    if not few and len(there):
        grid = np.linspace(0.01, 1, 100)
        means = {
            "precision": np.mean([precision[k, np.searchsorted(recall[k], grid)] for k in there], axis=0),
            "tpr": np.mean([np.interp(grid, fall_out[k], recall[k]) for k in there], axis=0),
            **{name: area[there].mean() for name, area in areas.items()},
        }
        curves.append({"name": MEAN, "recall": grid, "fpr": grid, **means})
    return areas, curves


def calibration_bins(confidence: Floats, correct: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Mean confidence and accuracy of the predictions in bins of equal width; NaN where there are none.

    The last bin has confidence 1 in it, which torchmetrics' calibration error counts as a bin of its own.
    """
    edges = np.linspace(0, 1, BINS + 1, dtype=np.float32)
    bins = np.minimum(np.searchsorted(edges, confidence, side="right") - 1, BINS - 1)
    count, confidences, hits = (np.bincount(bins, weights, BINS) for weights in (None, confidence, correct))
    with np.errstate(invalid="ignore"):
        means = {"confidence": confidences / count, "accuracy": hits / count}
    return rows({"lower": edges[:-1], "upper": edges[1:], "count": count, **means})


def regression(tables: Tables, samples: Floats, facts: Mapping[str, Any]) -> tuple[Columns, Columns, Floats]:
    """Each target's errors, and the pairs; what is shown of each sample; the samples' largest errors."""
    prediction, target = np.split(samples, 2, axis=1)
    there = ~np.isnan(target)
    count, error = there.sum(0), np.where(there, prediction - target, 0.0)
    squared = np.square(error).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):  # a target that is missing throughout has no errors
        spread = np.where(there, target - np.where(there, target, 0.0).sum(0) / count, 0.0)
        means = {"mae": np.abs(error).sum(0) / count, "rmse": np.sqrt(squared / count), "bias": error.sum(0) / count}
        errors = {**means, "r2": 1 - squared / np.square(spread).sum(0)}
    every = math.ceil(len(samples) / MOST_PAIRS)
    content = {
        "targets": rows({"name": facts["target_names"], "unit": facts["target_units"], **errors}),
        "pairs": np.stack([prediction, target], axis=1)[::every],
        "thinned": every > 1,
    }
    largest = (np.abs(error) / facts["target_std"]).max(1)
    return content, {"prediction": prediction, "target": target, "error": largest}, largest


def rows(columns: Columns) -> list[dict[str, Any]]:
    """Turns a table of columns into one of rows."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def plain(value: dict[str, Any]) -> dict[str, Any]:
    """What strict JSON can say of a value: lists for arrays, null for what is not finite."""
    text = json.dumps(value, default=lambda array: array.tolist())
    content: dict[str, Any] = json.loads(text, parse_constant=lambda not_finite: None)
    return content
