"""Run folders made by hand: what a run leaves, without the run."""

import functools
import json
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from src.config import compose

STATUS = {
    "state": "finished", "reason": None, "exit_code": 0, "experiment": "mnist_linear", "host": socket.gethostname(),
    "pid": os.getpid(), "command": ["python", "-m", "src.train", "seed=1"], "resumes": [], "seconds": 61.0,
}  # fmt: skip
ROWS = [
    {"step": 9, "epoch": 0, "val/acc": 0.5, "val/loss": 1.5, "train/loss": 2.0},
    {"step": 19, "epoch": 1, "val/acc": 0.75, "val/loss": "NaN", "train/loss": 1.0},
    {"step": 29, "epoch": 2, "val/acc": 0.625, "val/loss": 1.25, "train/loss": 0.5},
]


@functools.cache
def composed(*overrides: str) -> dict[str, Any]:
    """The configuration of a run."""
    return compose(["logger=none", *overrides]).cfg


def write_run(folder: Path, overrides: tuple[str, ...] = (), rows: list[Any] | None = None, **status: Any) -> Path:
    """Writes a run of some seconds ago into `folder`: config.yaml, status.json and metrics.jsonl."""
    folder.mkdir(parents=True)
    cfg = composed(*overrides)
    (folder / "config.yaml").write_text(yaml.safe_dump(cfg), encoding="utf-8")
    full = {**STATUS, "name": cfg["name"] or folder.name, "experiment": cfg["experiment"], "metrics": {}, **status}
    full.setdefault("started", "2026-01-31T12:00:00+00:00")
    (folder / "status.json").write_text(json.dumps(full), encoding="utf-8")
    lines = [json.dumps(row) for row in (ROWS if rows is None else rows)]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def write_classification(folder: Path, names: list[str], samples: int = 200) -> None:
    """Writes ``results/`` of a test in which a tenth of the samples goes to the next class."""
    true = np.arange(samples) % len(names)
    predicted = np.where(np.arange(samples) % 10 == 3, (true + 1) % len(names), true)
    cells, counts = np.unique(np.stack([true, predicted], 1), axis=0, return_counts=True)
    line = np.linspace(0, 1, 50).tolist()
    (folder / "results/worst").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, side in (("00", 28), ("00-gradcam", 160)):
        Image.fromarray(random.integers(0, 256, (side, side, 3), np.uint8)).save(folder / f"results/worst/{name}.png")
    content = {
        "task": "classification", "split": "test", "checkpoint": "checkpoints/best.ckpt", "num_samples": samples,
        "metrics": {"test/acc": 0.9}, "class_names": names,
        "confusion": [[*map(int, cell), int(count)] for cell, count in zip(cells, counts, strict=True)],
        "classes": [
            {"name": name, "support": 20, "precision": 0.5, "recall": 0.5, "f1": None if n == 1 else 0.1 * (n % 7),
             "average_precision": None, "auroc": 0.75}
            for n, name in enumerate(names)
        ],
        "curves": [
            {"name": name, "recall": line, "precision": line[::-1], "fpr": line, "tpr": line,
             "average_precision": 0.5, "auroc": 0.625}
            for name in [*names[:9], "macro average"]
        ],
        "calibration": {"ece": 0.1, "bins": [
            {"lower": n / 15, "upper": (n + 1) / 15, "count": n, "confidence": n / 15 if n else None,
             "accuracy": 0.9 * n / 15 if n else None} for n in range(15)
        ]},
        "worst": [{"index": 7, "id": "cat/7.jpg", "true": names[0], "predicted": names[1], "confidence": 0.97,
                   "probability": 0.01, "loss": 4.6, "image": "results/worst/00.png",
                   "explanation": "results/worst/00-gradcam.png"}],
    }  # fmt: skip
    (folder / "results/test.json").write_text(json.dumps(content), encoding="utf-8")


def write_regression(folder: Path, samples: int = 50) -> None:
    """Writes ``results/`` of a test of two targets, one of which some samples lack."""
    target, error = np.random.default_rng(0).normal(size=(2, samples, 2))
    pairs = np.stack([target + 0.1 * error, target], 1).tolist()
    pairs[0][1][1] = None
    names = ("band_gap", "eV"), ("formation_energy", "eV/atom")
    content = {
        "task": "regression", "split": "test", "checkpoint": None, "num_samples": samples, "metrics": {},
        "targets": [{"name": n, "unit": unit, "mae": 0.1, "rmse": 0.2, "r2": 0.5, "bias": 0.1} for n, unit in names],
        "pairs": pairs, "thinned": True,
        "worst": [{"index": 3, "id": "Cu3Au-3", "formula": "Cu3 Au", "prediction": [1.0, 2.0], "target": [0.5, None],
                   "error": 0.5}],
    }  # fmt: skip
    (folder / "results").mkdir()
    (folder / "results/test.json").write_text(json.dumps(content), encoding="utf-8")
