"""What reaches W&B, read back with its own public reader; servers that fail; and what must never reach the disk."""

import errno
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import wandb
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from src.tracking.dashboard import charts
from src.tracking.figures import log_figure
from src.tracking.plots import loss_curves
from src.tracking.wandb import WandbTracker, summary_of
from src.train import main
from tests.conftest import ROOT, status

SECRETS = {
    "WANDB_API_KEY": "k3y" + "0123456789abcdef" * 3,
    "AWS_SECRET_ACCESS_KEY": "s3cret-aws",
    "SLURM_JWT": "s3cret-slurm",
    "GITHUB_TOKEN": "s3cret-github",
    "HTTPS_PROXY": "http://user:s3cret-proxy@127.0.0.1:9",
    "DATABASE_URL": "postgres://user:s3cret-database@host/name",
}
INFO: Any = {
    "id": "run1",
    "name": "digits, linear",
    "tags": ["baseline", "mnist"],
    "group": "seeds",
    "notes": "first try",
    "config": {"seed": 0, "train": True, "optimizer": {"lr": 0.1}, "monitor": {"metric": "val/acc", "mode": "max"}},
    "facts": {"num_classes": 2, "class_names": ["cat", "dog"]},
    "parameters": 7850,
}

Factory = Callable[..., WandbTracker]


@pytest.fixture
def tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Factory]:
    """Makes trackers in a working folder of their own and closes what a failed test leaves open."""
    made: list[WandbTracker] = []
    monkeypatch.chdir(tmp_path)

    def make(folder: str = "run", **arguments: Any) -> WandbTracker:
        (tmp_path / folder).mkdir(exist_ok=True)
        made.append(WandbTracker(tmp_path / folder, **{"run": INFO, "mode": "offline", **arguments}))
        return made[-1]

    yield make
    for one in made:
        one.finish(1)


def records(folder: Path) -> list[dict[str, Any]]:
    """Every record of the run in `folder`, by `wandb leet inspect`."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return [json.loads(line) for line in output.splitlines()]


def of_kind(kind: str, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record[kind] for record in found if record["type"] == kind]


def segments(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "wandb").glob("*run-*-*"))


def written(run_dir: Path) -> bytes:
    """The transaction logs of a run, in which values are plain text: cheaper to ask for a value than `records`."""
    return b"".join(path.read_bytes() for segment in segments(run_dir) for path in segment.glob("*.wandb"))


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: value for update in of_kind("summary", found) for name, value in update["update"].items()}


def history(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row["item"].items() if not k.startswith("_")} for row in of_kind("history", found)]


def exit_codes(found: list[dict[str, Any]]) -> list[int]:
    return [record.get("exit_code", 0) for record in of_kind("exit", found)]


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_everything_about_a_run_arrives_and_no_secret_does(
    tracker: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    environment = dict(os.environ)
    logger = tracker()
    for step, (accuracy, loss) in enumerate([(0.5, 0.9), (0.75, float("nan")), (0.625, 0.4)]):
        logger.log_metrics({"val/acc": accuracy, "train/loss": loss, "epoch": step}, step)
    logger.log_metrics({"test/acc": 0.7}, 3)
    log_figure([logger], "plots/curves", loss_curves([{"epoch": 0, "train/loss": 1.0}]), step=3)
    artifact = wandb.Artifact("weights", type="model")
    (tmp_path / "weights.bin").write_bytes(b"weights")
    artifact.add_file(str(tmp_path / "weights.bin"))
    logger.experiment.log_artifact(artifact)
    assert logger.experiment.url is None, "asked for without a word from wandb"
    logger.finish(0)
    printed = capfd.readouterr()

    run_dir = tmp_path / "run"
    (segment,) = segments(run_dir)
    found = records(segment)
    (run,) = of_kind("run", found)
    assert {key: run[key] for key in ("run_id", "display_name", "tags", "run_group", "notes") if key in run} == {
        "run_id": "run1", "display_name": "digits, linear", "tags": ["baseline", "mnist"], "run_group": "seeds",
        "notes": "first try",
    }  # fmt: skip
    assert (run["project"], run["job_type"]) == ("research-template", "train")
    config = {name: value for name, value in run["config"]["update"].items() if name != "_wandb"}
    assert config == {**INFO["config"], "facts": INFO["facts"], "parameters": 7850}

    rows = history(found)
    assert rows[0] == {"val/acc": 0.5, "train/loss": 0.9, "epoch": 0, "trainer/global_step": 0}
    assert rows[1] == {"val/acc": 0.75, "epoch": 1, "trainer/global_step": 1} and rows[3] == {
        "test/acc": 0.7,
        "trainer/global_step": 3,
    }
    best = summary(found)
    assert best["val/acc"] == {"max": 0.75, "last": 0.625}
    assert best["train/loss"] == {"min": 0.4, "last": 0.4}
    assert best["test/acc"] == 0.7 and best["epoch"] == 2
    assert {metric["step_metric"] for metric in of_kind("metric", found)} == {"trainer/global_step"}

    (picture,) = best["plots/curves.filenames"]
    assert (segment / "files" / picture).read_bytes().startswith(b"\x89PNG")
    assert exit_codes(found) == [0]
    assert any(path.read_bytes() == b"weights" for path in (run_dir / "wandb" / "data").rglob("*") if path.is_file())
    assert not (tmp_path / "home").exists(), "something was written to the home folder"

    assert dict(os.environ) == environment
    assert printed.out == (
        "W&B offline (logger.mode=offline); to send this run later: wandb sync run/wandb/offline-run-*\n"
    )
    assert printed.err == ""
    content = {path: path.read_bytes() for path in files(run_dir)}
    assert len(content) > 6
    for secret in ("s3cret", SECRETS["WANDB_API_KEY"]):
        assert [path for path, data in content.items() if secret.encode() in data] == []


def test_rows_survive_a_kill_and_a_resumed_run_joins_them(tracker: Factory, tmp_path: Path) -> None:
    first = tracker()
    for step in range(20):
        first.log_metrics({"a": step + 0.625}, step)
    time.sleep(1.3)  # what another process can read now survives the end of this one
    (segment,) = segments(tmp_path / "run")
    assert all(f"{step}.625".encode() in written(tmp_path / "run") for step in range(20))
    first.finish(1)
    second = tracker()
    second.log_metrics({"a": 20.0}, 20)
    second.finish(143)

    (rest,) = set(segments(tmp_path / "run")) - {segment}
    found = records(rest)
    (run,) = of_kind("run", found)
    assert (run["run_id"], run["resume"]) == ("run1", True)
    assert history(found) == [{"a": 20.0, "trainer/global_step": 20}] and exit_codes(found) == [143]


def test_runs_of_one_process_do_not_mix_even_when_open_at_once(tracker: Factory, tmp_path: Path) -> None:
    one = tracker("one", run={**INFO, "id": "one"})
    two = tracker("two", run={**INFO, "id": "two"})
    one.log_metrics({"a": 1.640625}, 0)
    two.log_metrics({"a": 2.640625}, 0)
    one.finish(0)
    two.log_metrics({"a": 3.640625}, 1)
    two.finish(1)
    values = {name: re.findall(rb"\d\.640625", written(tmp_path / name)) for name in ("one", "two")}
    assert set(values["one"]) == {b"1.640625"} and set(values["two"]) == {b"2.640625", b"3.640625"}


def test_nothing_is_logged_to_a_finished_run(tracker: Factory) -> None:
    logger = tracker()
    logger.log_metrics({"a": 1.0}, 0)
    logger.finish(0)
    logger.finish(1)
    with pytest.raises(RuntimeError, match="run1 is finished"):
        logger.log_metrics({"a": 1.0}, 1)


def test_a_run_that_never_started_leaves_nothing(tracker: Factory, tmp_path: Path) -> None:
    tracker().finish(0)
    assert list((tmp_path / "run").iterdir()) == []


def test_disabled_records_nothing(tracker: Factory, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logger = tracker(mode="disabled")
    logger.log_metrics({"a": 1.0}, 0)
    logger.log_results(TARGETS, tmp_path / "run", 1)
    logger.finish(0)
    assert list((tmp_path / "run").iterdir()) == []
    assert capfd.readouterr().out == "W&B disabled (logger.mode=disabled)\n"


def test_other_ranks_have_no_run(
    tracker: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = tracker(mode="online")  # without credentials: rank 0 is who complains
    logger.log_metrics({"a": 1.0}, 0)
    logger.experiment.log({"a": 1.0})
    logger.log_results(TARGETS, tmp_path / "run", 1)
    logger.finish(0)
    assert list((tmp_path / "run").iterdir()) == [] and capfd.readouterr() == ("", "")


def test_the_end_of_wandbs_own_process_does_not_end_the_training(
    tracker: Factory, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logger = tracker()
    logger.log_metrics({"a": 1.0}, 0)
    for child in psutil.Process().children(recursive=True):
        if child.name().startswith("wandb-core"):
            child.kill()
            child.wait(10)
    for step in range(1, 4):
        logger.log_metrics({"a": 2.0}, step)
    logger.log_results(TARGETS, tmp_path / "run", 4)
    logger.finish(0)
    again = tracker("again", run={**INFO, "id": "again"})
    again.log_metrics({"a": 1.0}, 0)
    again.finish(0)
    said = [line for line in capfd.readouterr().out.splitlines() if "lost" in line]
    assert len(said) == 1 and said[0].startswith("W&B lost (")
    assert len(segments(tmp_path / "again")) == 1


def test_an_unwritable_run_folder_is_an_error(tracker: Factory, tmp_path: Path) -> None:
    logger = tracker()
    (tmp_path / "run" / "wandb").write_text("a file where the folder should be")
    with pytest.raises(FileExistsError):
        logger.log_metrics({"a": 1.0}, 0)


@pytest.mark.parametrize(
    ("metric", "kept"),
    [
        ("val/acc", "max,last"), ("train/acc", "max,last"), ("val/f1", "max,last"), ("val/loss", "min,last"),
        ("train/loss", "min,last"), ("val/mae", "min,last"), ("test/acc", None), ("epoch", None), ("lr", None),
        ("perf/loss", None), ("val/strange", "min,last"), ("val/ece", "min,last"), ("test/ece", None),
        ("train/grad_norm", None), ("perf/data_wait_share", None), ("best/val/acc", None),
    ],
)  # fmt: skip
def test_what_the_summary_keeps(metric: str, kept: str | None) -> None:
    assert summary_of(metric, {"metric": "val/strange", "mode": "min"}) == kept


CLASSES: dict[str, Any] = {
    "task": "classification",
    "split": "test",
    "checkpoint": "checkpoints/best.ckpt",
    "num_samples": 5,
    "metrics": {"test/loss": 0.5, "test/acc": 0.8},
    "class_names": ["cat", "dog", "€ $x$"],
    "confusion": [[0, 0, 3], [1, 1, 1], [1, 0, 1]],
    "classes": [
        {"name": "cat", "support": 3, "precision": 0.75, "recall": 1.0, "f1": 0.857, "auroc": 0.9},
        {"name": "dog", "support": 2, "precision": 1.0, "recall": 0.5, "f1": 0.667, "auroc": 0.9},
        {"name": "€ $x$", "support": 0, "precision": None, "recall": None, "f1": None, "auroc": None},
    ],
    "curves": [
        {"name": "cat", "recall": [0.0, 1.0], "precision": [1.0, 0.75], "fpr": [0.0, 0.5, 1.0], "tpr": [0.0, 1.0, 1.0]},
        {"name": "dog", "recall": [0.0], "precision": [1.0], "fpr": [0.0], "tpr": [0.0]},
    ],
    "calibration": {
        "ece": 0.1,
        "bins": [
            {"lower": 0.0, "upper": 0.5, "count": 0, "confidence": None, "accuracy": None},
            {"lower": 0.5, "upper": 1.0, "count": 5, "confidence": 0.9, "accuracy": 0.8},
        ],
    },
    "worst": [
        {"index": 4, "id": "dog/4.jpg", "true": "dog", "predicted": "cat", "confidence": 0.9, "probability": 0.1,
         "loss": 2.3, "image": "results/worst/00.png", "explanation": "results/worst/00-gradcam.png"},
        {"index": 2, "id": "cat/2.jpg", "true": "cat", "predicted": "cat", "confidence": 0.6, "probability": 0.6,
         "loss": 0.5, "image": "results/worst/01.png", "explanation": None},
    ],
}  # fmt: skip
TARGETS: dict[str, Any] = {
    "task": "regression",
    "split": "test",
    "targets": [
        {"name": "energy", "unit": "eV/atom", "mae": 0.25, "rmse": 0.25, "r2": 0.9, "bias": 0.0},
        {"name": "spins", "unit": "", "mae": None, "rmse": None, "r2": None, "bias": None},
    ],
    "pairs": [[[1.5, 2.0], [1.25, None]], [[-1.0, 1.0], [None, None]], [[0.5, 0.0], [0.75, None]]],
    "thinned": False,
    "worst": [
        {"index": 0, "id": "Cu3Au-17", "formula": "Cu3 Au", "prediction": [1.5, 2.0], "target": [1.25, None],
         "error": 0.25},
    ],
}  # fmt: skip


def with_pictures(folder: Path) -> dict[str, bytes]:
    """Makes the pictures that `CLASSES` speaks of; their content by name."""
    (folder / "results/worst").mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(("00.png", "00-gradcam.png", "01.png")):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / "results/worst" / name)
    return {path.name: path.read_bytes() for path in (folder / "results/worst").iterdir()}


def tables(segment: Path) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """Columns and rows of every table that was logged, by key."""
    found = summary(records(segment))
    paths = {key.removesuffix(".path"): value for key, value in found.items() if key.endswith(".table.json")}
    paths |= {key.removesuffix(".path"): str(v) for key, v in found.items() if str(v).startswith("media/table/")}
    contents = {key: json.loads((segment / "files" / path).read_text()) for key, path in paths.items()}
    return {key: (content["columns"], content["data"]) for key, content in contents.items()}


def presets(found: list[dict[str, Any]]) -> dict[str, tuple[str, dict[str, str]]]:
    """The preset of every chart and the columns that it draws, by key."""
    updates = {key: value for update in of_kind("config", found) for key, value in update["update"].items()}
    return {
        key.removeprefix("_wandb.visualize."): (
            value["panel_config"]["panelDefId"],
            value["panel_config"]["fieldSettings"],
        )
        for key, value in updates.items()
        if key.startswith("_wandb.visualize.")
    }


def artifacts(kind: str, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [artifact for artifact in of_kind("artifact", found) if artifact["type"] == kind]


def contents(artifact: dict[str, Any]) -> dict[str, str]:
    """Where the files of an artifact lie, by their name in it."""
    return {entry["path"]: entry["local_path"] for entry in artifact["manifest"]["contents"]}


def test_a_classifiers_results_are_charts_and_tables(tracker: Factory, tmp_path: Path) -> None:
    logger = tracker()
    pictures = with_pictures(tmp_path / "run")
    logger.log_results(CLASSES, tmp_path / "run", 7)
    logger.finish(0)
    (segment,) = segments(tmp_path / "run")
    found = records(segment)
    assert [row["trainer/global_step"] for row in history(found)] == [7]
    shown = tables(segment)
    assert presets(found) == {
        "results/confusion_matrix": (
            "wandb/confusion_matrix/v1",
            {"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"},
        ),
        "results/precision_recall": ("wandb/area-under-curve/v0", {"x": "recall", "y": "precision", "class": "class"}),
        "results/roc": ("wandb/area-under-curve/v0", {"x": "fpr", "y": "tpr", "class": "class"}),
        "results/calibration": ("wandb/scatter/v0", {"x": "confidence", "y": "accuracy"}),
    }
    assert shown.keys() == {f"{key}_table" for key in presets(found)} | {"results/classes", "results/worst"}
    columns, cells = shown["results/confusion_matrix_table"]
    assert columns == ["Actual", "Predicted", "nPredictions"] and len(cells) == 9
    assert [cell for cell in cells if cell[2]] == [["cat", "cat", 3], ["dog", "cat", 1], ["dog", "dog", 1]]
    assert shown["results/classes"] == (
        ["name", "support", "precision", "recall", "f1", "auroc"],
        [list(row.values()) for row in CLASSES["classes"]],
    )
    assert shown["results/precision_recall_table"] == (
        ["class", "recall", "precision"],
        [["cat", 0, 1], ["cat", 1, 0.75], ["dog", 0, 1]],
    )
    assert shown["results/roc_table"][1] == [["cat", 0, 0], ["cat", 0.5, 1], ["cat", 1, 1], ["dog", 0, 0]]
    assert shown["results/calibration_table"][1] == [[0.5, 1, 5, 0.9, 0.8]]
    (artifact,) = [one for one in artifacts("run_table", found) if "worst" in one["name"]]
    sent = {path: Path(place).read_bytes() for path, place in contents(artifact).items()}
    table = json.loads(sent["results/worst.table.json"])
    worst = table["data"]
    assert table["columns"] == list(CLASSES["worst"][0]) and [row[1:7] for row in worst] == [
        ["dog/4.jpg", "dog", "cat", 0.9, 0.1, 2.3],
        ["cat/2.jpg", "cat", "cat", 0.6, 0.6, 0.5],
    ]
    assert worst[1][8] is None
    shown_pictures = [sent[cell["path"]] for cell in (worst[0][7], worst[0][8], worst[1][7])]
    assert shown_pictures == [pictures[name] for name in ("00.png", "00-gradcam.png", "01.png")]


def test_a_regressions_results_are_charts_and_tables(tracker: Factory, tmp_path: Path) -> None:
    logger = tracker()
    logger.log_results(TARGETS, tmp_path / "run", 7)
    logger.finish(0)
    (segment,) = segments(tmp_path / "run")
    assert presets(records(segment)) == {
        "results/parity/energy": ("wandb/scatter/v0", {"x": "target", "y": "prediction"}),
        "results/residuals/energy": ("wandb/histogram/v0", {"value": "prediction - target"}),
    }  # of the other target there is no value
    assert tables(segment) == {
        "results/targets": (
            ["name", "unit", "mae", "rmse", "r2", "bias"],
            [["energy", "eV/atom", 0.25, 0.25, 0.9, 0], ["spins", "", None, None, None, None]],
        ),
        "results/parity/energy_table": (
            ["target", "prediction", "prediction - target"],
            [[1.25, 1.5, 0.25], [0.75, 0.5, -0.25]],
        ),
        "results/residuals/energy_table": (["prediction - target"], [[0.25], [-0.25]]),
        "results/worst": (
            ["index", "id", "formula", "prediction of energy (eV/atom)", "prediction of spins",
             "target of energy (eV/atom)", "error"],
            [[0, "Cu3Au-17", "Cu3 Au", 1.5, 2, 1.25, 0.25]],
        ),
    }  # fmt: skip


def test_what_is_too_much_to_draw_is_thinned(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(1000)]
    line = [number / 4999 for number in range(5000)]
    curves = [{"name": name, "recall": line, "precision": line, "fpr": line, "tpr": line} for name in names[:10]]
    made = charts(
        {
            **CLASSES, "class_names": names, "confusion": [[0, 0, 9], [1, 0, 2], [7, 999, 3], [2, 0, 2]],
            "classes": [{"name": name, "support": 5} for name in names], "curves": curves,
            "calibration": {"ece": None, "bins": []}, "worst": [],
        },
        tmp_path,
    )  # fmt: skip
    assert made.keys() == {f"results/{key}" for key in ("most_confused", "classes", "precision_recall", "roc")}
    assert made["results/most_confused"].data == [
        ["class 7", "class 999", 3], ["class 1", "class 0", 2], ["class 2", "class 0", 2],
    ]  # fmt: skip
    assert len(made["results/classes"].data) == 1000
    points = made["results/roc"].table.data
    assert len(points) == 10_000
    assert points[0] == ["class 0", 0.0, 0.0] and points[999] == ["class 0", 1.0, 1.0]
    assert {round((b - a) * 4999) for (_, a, _), (_, b, _) in pairwise(points[:1000])} == {5, 6}
    pairs = [[[float(number)], [0.0]] for number in range(10_001)]
    made = charts({**TARGETS, "targets": TARGETS["targets"][:1], "pairs": pairs, "worst": []}, tmp_path)
    assert made.keys() == {"results/targets", "results/parity/energy", "results/residuals/energy"}
    rows = made["results/parity/energy"].table.data
    assert len(rows) == 10_000 and [rows[0][1], rows[-1][1]] == [0.0, 10_000.0]


def test_a_hundred_classes_are_a_matrix(tmp_path: Path) -> None:
    results = {**CLASSES, "class_names": [str(number) for number in range(100)], "confusion": [[99, 0, 1]], "worst": []}
    cells = charts(results, tmp_path)["results/confusion_matrix"].table.data
    assert len(cells) == 10_000 and [cell for cell in cells if cell[2]] == [["99", "0", 1]]


def test_a_resumed_run_repeats_nothing(tracker: Factory, tmp_path: Path) -> None:
    first = tracker()
    figure = loss_curves([{"epoch": 0, "train/loss": 1.0}])
    log_figure([first], "plots/curves", figure, step=7)
    first.log_results(TARGETS, tmp_path / "run", 7)
    first.finish(1)  # as after a failure right after its test
    (segment,) = segments(tmp_path / "run")
    assert [one["name"] for one in artifacts("code", records(segment))] == ["source-research-template"]
    second = tracker()
    second.catch_up([])
    log_figure([second], "plots/curves", figure, step=7)
    second.log_results(TARGETS, tmp_path / "run", 7)
    second.log_metrics({"a": 1.0}, 8)
    second.finish(1)
    (rest,) = set(segments(tmp_path / "run")) - {segment}
    found = records(rest)
    assert of_kind("artifact", found) == [] and history(found) == [{"a": 1.0, "trainer/global_step": 8}]
    third = tracker()  # trained on: these are other results
    third.catch_up([])
    third.log_results(TARGETS, tmp_path / "run", 9)
    third.finish(1)
    (rest,) = set(segments(tmp_path / "run")) - {segment, rest}
    assert tables(rest).keys() == {
        "results/targets", "results/worst", "results/parity/energy_table", "results/residuals/energy_table",
    }  # fmt: skip


def test_the_source_is_recorded_and_nothing_beside_it(
    tracker: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "src"
    (source / "nets").mkdir(parents=True)
    for name in ("train.py", "nets/linear.py", ".env", "key.pem", "data.csv"):
        (source / name).write_text(name)
    (tmp_path / "outside.py").write_text("outside")
    (source / "link.py").symlink_to(tmp_path / "outside.py")
    (source / "linked").symlink_to(tmp_path, target_is_directory=True)
    monkeypatch.setattr("src.tracking.wandb.SOURCE", source)
    logger = tracker(project="a project")
    logger.log_metrics({"a": 1.0}, 0)
    logger.finish(1)
    found = records(segments(tmp_path / "run")[0])
    (artifact,) = artifacts("code", found)
    assert artifact["name"] == "source-a_project"
    assert {path: Path(place).read_text() for path, place in contents(artifact).items()} == {
        "train.py": "train.py",
        "nets/linear.py": "nets/linear.py",
    }
    assert {"_wandb": {"code_path": "source-a_project"}} in [update["update"] for update in of_kind("config", found)]


def test_a_run_leaves_its_checkpoints_with_a_card(
    train: Callable[..., dict[str, float]], tmp_path: Path, run_folders: Callable[[], list[Path]]
) -> None:
    overrides = ["logger=wandb", "logger.mode=offline", "name=first try", "data.val_size=200", "data.test_size=3800"]
    train(*overrides, "test=false", "optimizer.lr=0.2", "trainer.max_epochs=2", "early_stopping.patience=null")
    (folder,) = run_folders()
    report = status(folder)
    (segment,) = segments(folder)
    found = records(segment)
    sources = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*.py")}
    (code,) = artifacts("code", found)
    assert contents(code).keys() == sources
    name = f"checkpoint-{report['run_id']}"
    best, last = artifacts("model", found)
    assert [(one["name"], sorted(one["aliases"])) for one in (best, last)] == [
        (name, ["best", "latest"]),
        (name, ["latest"]),
    ]  # W&B moves "latest" to what comes last
    first = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
    assert json.loads(best["metadata"]) == {
        "experiment": "mnist_linear", "net": "src.nets.linear.LinearClassifier", "parameters": 7850,
        "data": "mnist_subset", "num_samples": {"train": 1000, "val": 200, "test": 3800},
        "val/acc": report["best"]["value"], "epoch": first["epoch"] + 1, "step": first["global_step"],
        "config_digest": report["config_digest"], "class_names": [str(digit) for digit in range(10)],
    }  # fmt: skip
    assert best["description"].splitlines() == [
        "# first try: best checkpoint", "", "- experiment: mnist_linear", "- net: src.nets.linear.LinearClassifier",
        "- parameters: 7850", "- data: mnist_subset", "- num samples: 1,000 train, 200 val, 3,800 test",
        f"- val/acc: {report['best']['value']}", f"- epoch: {first['epoch'] + 1}", f"- step: {first['global_step']}",
        f"- config digest: {report['config_digest']}", "- class names: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9", "",
        "```", f"wandb artifact get research-template/{name}:best --root .",
        "python -m src.predict ckpt=best.ckpt inputs=PATH", "```",
    ]  # fmt: skip
    scores = [row["val/acc"] for row in history(found) if "val/acc" in row]
    assert json.loads(last["metadata"])["val/acc"] == scores[-1] and json.loads(last["metadata"])["epoch"] == 2
    kept = {}
    for artifact, file in ((best, "best.ckpt"), (last, "last.ckpt")):
        ((path, place),) = contents(artifact).items()
        assert path == file and Path(place).samefile(folder / "checkpoints" / file)  # no copy
        kept[place] = Path(place).read_bytes()

    main([f"resume={folder}", "trainer.max_epochs=3"])
    found = records(segments(folder)[1])
    assert artifacts("code", found) == []
    assert [json.loads(one["metadata"])["epoch"] for one in artifacts("model", found)][1] == 3
    assert {place: Path(place).read_bytes() for place in kept} == kept  # what waits for `wandb sync` has not changed


@pytest.mark.parametrize(("exit_code", "arguments"), [(1, {}), (0, {"log_checkpoints": False})])
def test_checkpoints_of_a_failed_run_and_unwanted_ones_stay(
    exit_code: int, arguments: dict[str, Any], tracker: Factory, tmp_path: Path
) -> None:
    logger = tracker(**arguments)
    (tmp_path / "run/checkpoints").mkdir()
    (tmp_path / "run/checkpoints/best.ckpt").write_bytes(b"is not even read")
    logger.log_metrics({"a": 1.0}, 0)
    logger.finish(exit_code)
    assert b"source-research-template" in written(tmp_path / "run")
    assert b"checkpoint-run1" not in written(tmp_path / "run")


def test_a_full_disk_does_not_end_the_run(
    tracker: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("wandb.sdk.artifacts.artifact.shutil.copyfile", full)
    logger = tracker()
    logger.log_metrics({"a": 1.0}, 0)
    logger.log_results(TARGETS, tmp_path / "run", 1)
    logger.log_metrics({"a": 2.0}, 2)
    logger.finish(0)
    said = [line for line in capfd.readouterr().out.splitlines() if "did not take" in line]
    assert said == [
        f"W&B did not take {what}: OSError(28, 'No space left on device')" for what in ("the source", "the results")
    ]
    found = records(segments(tmp_path / "run")[0])
    assert [row["a"] for row in history(found) if "a" in row] == [1.0, 2.0] and exit_codes(found) == [0]


ABANDONED = "HandleAbandonedError()"


class Server(BaseHTTPRequestHandler):
    """As much of W&B's server as a run's start needs; `state` decides how it answers."""

    protocol_version = "HTTP/1.1"
    state = "works"
    released = threading.Event()

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.state == "hangs" and self.command == "POST":
            self.released.wait()  # who waits for the answer waits until the test is over
            return
        content = json.dumps(self.graphql(json.loads(body)) if self.path == "/graphql" else {}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = answer  # noqa: N815

    def graphql(self, query: dict[str, Any]) -> dict[str, Any]:
        names = query.get("variables", {})
        if query.get("operationName") == "RunResumeStatus":
            return {"data": {"model": None}}
        if query.get("operationName") == "UpsertBucket":
            project = {"id": "p", "name": names["project"], "entity": {"id": "e", "name": "somebody"}}
            bucket = {"id": "b", "name": names["name"], "displayName": "shown", "project": project}
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if query.get("operationName") == "CreateRunFiles":
            url = f"http://127.0.0.1:{self.server.server_port}/file"  # type: ignore[attr-defined]
            uploads = [{"name": name, "uploadUrl": url} for name in names["files"]]
            return {"data": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": uploads}}}
        if query.get("operationName") == "CreateArtifact":
            sequence = {"id": "s", "latestArtifact": None}
            artifact = {"id": "a", "state": "COMMITTED", "artifactSequence": sequence}
            return {"data": {"createArtifact": {"artifact": artifact}}}
        viewer = {"id": "v", "entity": "somebody", "username": "somebody", "flags": "{}", "teams": {"edges": []}}
        return {"data": {"serverInfo": {"features": []}, "viewer": viewer, "project": None}}

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(Server, "state", "works")
    monkeypatch.setattr(Server, "released", threading.Event())
    monkeypatch.setenv("WANDB_API_KEY", SECRETS["WANDB_API_KEY"])
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    yield f"http://127.0.0.1:{server.server_port}"
    Server.released.set()
    server.shutdown()
    server.server_close()


def test_online_until_the_server_dies_and_the_end_does_not_wait_for_it(
    server: str, tracker: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("src.tracking.wandb.GRACE", 3.0)
    logger = tracker(mode="auto", init_timeout=10, finish_timeout=0.3)
    logger.log_metrics({"a": 1.640625}, 0)
    monkeypatch.setattr(Server, "state", "hangs")
    logger.log_metrics({"a": 2.640625}, 1)
    logger.finish(0)
    began, ended = capfd.readouterr().out.splitlines()
    assert began == f"W&B online (credentials from WANDB_API_KEY): {server}/somebody/research-template/runs/run1"
    reason = ended.removeprefix("W&B did not take everything (").removesuffix(
        "); to send the rest: wandb sync run/wandb/run-*"
    )  # wandb's own time limit, or, where that is missed, ours
    assert reason in ("TimeoutError('Timed out finishing run.')", ABANDONED)
    assert set(re.findall(rb"\d\.640625", written(tmp_path / "run"))) == {b"1.640625", b"2.640625"}
    key = SECRETS["WANDB_API_KEY"].encode()
    assert [path for path in files(tmp_path / "run") if key in path.read_bytes()] == []


@pytest.mark.parametrize("synced", [False, True])
def test_what_was_logged_offline_is_sent_online_but_once(
    synced: bool, server: str, tracker: Factory, tmp_path: Path
) -> None:
    first = tracker(mode="offline")
    first.log_metrics({"a": 1.640625}, 0)
    first.finish(1)
    (offline,) = segments(tmp_path / "run")
    if synced:
        (log,) = offline.glob("*.wandb")
        log.with_suffix(".wandb.synced").touch()  # as `wandb sync` does
    second = tracker(mode="online", init_timeout=10)
    second.catch_up([{"step": 0, "a": 1.640625}])
    second.log_metrics({"a": 2.640625}, 1)
    second.finish(0)
    (online,) = set(segments(tmp_path / "run")) - {offline}
    assert [row["a"] for row in history(records(online)) if "a" in row] == [1.640625] * (not synced) + [2.640625]


def test_a_background_process_that_hangs_does_not_hold_up_the_end(
    tracker: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("src.tracking.wandb.GRACE", 0.5)
    before = psutil.Process().children()  # one of another test may not be gone yet
    logger = tracker(finish_timeout=0.5)
    logger.log_metrics({"a": 1.640625}, 0)
    time.sleep(1.3)  # by then it is on the disk
    new = [child for child in psutil.Process().children() if child not in before]
    (core,) = (child for child in new if child.name().startswith("wandb-core"))
    core.suspend()
    logger.finish(0)
    assert f"W&B did not take everything ({ABANDONED}); to send" in capfd.readouterr().out
    assert b"1.640625" in written(tmp_path / "run")
    assert not core.is_running() or core.status() == psutil.STATUS_ZOMBIE


def test_a_failed_start_goes_on_offline_with_the_same_run(
    server: str, tracker: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Server, "state", "hangs")
    logger = tracker(mode="online", init_timeout=1)
    logger.log_metrics({"a": 1.0}, 0)
    logger.finish(0)
    printed = capfd.readouterr()
    (said,) = printed.out.splitlines()
    assert printed.err == "" and said.startswith("W&B offline (going online failed: Failed to get resume status")
    assert said.endswith("; to send this run later: wandb sync run/wandb/offline-run-*")
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*-run1"))) == 1
