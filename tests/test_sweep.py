"""Sweeps through the command line, with real runs."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from src.config import compose
from src.config.cli import parse_command_line
from tests.conftest import QUICK, ROOT, Command, status
from tests.forked import fingerprint

SMALL = [*QUICK, "data.val_size=200", "data.test_size=3800", "test=false"]


def clone(folder: Path) -> Path:
    """A copy of the code, which a test may change."""
    for name in ("src", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "local"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def start(cwd: Path, *words: str) -> subprocess.Popen[str]:
    """Starts `python -m WORDS`."""
    return subprocess.Popen(
        [sys.executable, "-m", *words], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def appears(pattern: str, folder: Path, process: subprocess.Popen[str]) -> Path:
    """Waits for a file that matches."""
    while not (found := sorted(folder.glob(pattern))):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    return found[0]


def test_edits_change_nothing_and_a_failure_is_one_trial(tmp_path: Path) -> None:
    """The two trials are handed over by src.train, frozen when they begin; the second one cannot run."""
    copy, runs = clone(tmp_path / "copy"), tmp_path / "runs"
    limits = ["trainer.max_epochs=1", "trainer.limit_train_batches=2"]
    sweep = start(copy, "src.train", "-m", *SMALL, *limits, "data.batch_size=50,5000", "tags=[a b]")
    appears("sweeps/*/journal.log", runs, sweep)
    (copy / "src/train.py").write_text("raise SystemExit('edited')", encoding="utf-8")
    (copy / "configs/model/linear.yaml").write_text("edited: true", encoding="utf-8")
    output = sweep.communicate(timeout=240)[0]
    assert sweep.returncode == 1, output
    (study,) = (runs / "sweeps").iterdir()
    assert study.name.startswith("grid-")
    run = study / "mnist_linear/000"
    assert status(run)["state"] == "finished" and status(run)["config_digest"]
    cfg = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert (cfg["group"], cfg["tags"], cfg["data"]["batch_size"]) == (study.name, ["a b"], 50)
    score = status(run)["best"]["value"]
    assert f"[1/2] trial 0: data.batch_size=50: val/acc {score:.4g}," in output
    assert (
        "[2/2] trial 1: data.batch_size=5000: failed: its process ended with code 2: error: data.batch_size" in output
    )
    assert "1 finished, 1 failed" in output and output.endswith(f"study folder: {study}\n")
    assert "run folder: " in run.with_suffix(".log").read_text(encoding="utf-8")
    assert (study / "trials.csv").is_file() and (study / "plots/history.png").is_file()
    assert yaml.safe_load((study / "base.yaml").read_text(encoding="utf-8"))["model"] == compose([]).cfg["model"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["optimizer.lrr=1,2", "optimizer.lr=1"],
            "optimizer.lrr=1: torch.optim.Adam has no argument lrr; did you mean",
        ),
        (["seed=1,2", "monitor.metric=val/ac"], "monitor.metric=val/ac: no metric of that name; did you mean val/acc?"),
        (["seed=1,1"], "error: seed: 1 is given twice\n"),
        (["seeds=[1,2,1]"], "error: seeds: 1 is given twice\n"),
        (["resume=nowhere"], "is no folder of a sweep"),
        (["resume=nowhere", "seed=1"], "resume=nowhere: a study goes on as it began; only n_trials and n_jobs may"),
    ],
)
def test_mistakes(words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from src.config.cli import run_entry
    from src.sweep import main

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr(sys, "argv", ["sweep", *words])
        run_entry(main)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_study_that_cannot_go_on_says_why(command: Command, tmp_path: Path) -> None:
    study = tmp_path / "study"
    study.mkdir()
    (study / "base.yaml").write_text("{}", encoding="utf-8")
    (study / "sweep.yaml").write_text(f"{{started_in: {tmp_path}/gone}}", encoding="utf-8")
    done = command("src.sweep", f"resume={study}")
    assert done.returncode == 2
    assert f"resume={study}: it began in {tmp_path}/gone, which cannot be entered: No such file" in done.stderr
    (study / "sweep.yaml").write_text("", encoding="utf-8")
    done = command("src.sweep", f"resume={study}")
    assert (done.returncode, done.stderr) == (2, f"error: resume={study}: is no folder of a sweep: it is damaged\n")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kill_and_resume_lose_and_repeat_nothing(command: Command, tmp_path: Path) -> None:
    """The sweep and one of its two runs are killed, the next start is ended by Ctrl-C, the third one gets through."""
    words = [*SMALL, "trainer.max_epochs=30", "data.batch_size=10", "early_stopping.patience=null"]
    sweep = start(ROOT, "src.sweep", *words, "optimizer.lr=1e-3,2e-3,3e-3,4e-3,5e-3", "n_jobs=2")
    study = appears("runs/sweeps/*/mnist_linear/002/checkpoints/step-*.ckpt", tmp_path, sweep).parents[3]
    os.kill(sweep.pid, signal.SIGKILL)
    os.kill(pid_of(study / "mnist_linear/002/status.json"), signal.SIGKILL)
    sweep.communicate()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid_of(path)}").exists() for path in study.glob("mnist_linear/*/status.json")):
        assert time.monotonic() < deadline  # the other one ends by itself
        time.sleep(0.1)
    assert status(study / "mnist_linear/002")["state"] == "running"
    first = status(study / "mnist_linear/000")
    assert first["state"] == "finished"

    again = start(ROOT, "src.sweep", f"resume={study}")
    while not status(study / "mnist_linear/002")["resumes"]:
        assert again.poll() is None, again.communicate()[0]
        time.sleep(0.05)
    going = pid_of(study / "mnist_linear/002/status.json")
    os.kill(going, signal.SIGSTOP)  # it must not come to its end before we have looked
    busy = command("src.sweep", f"resume={study}")
    assert (busy.returncode, busy.stderr) == (2, f"error: {study}: this sweep is still going on\n")
    again.send_signal(signal.SIGINT)
    os.kill(going, signal.SIGCONT)
    output = again.communicate(timeout=120)[0]
    assert again.returncode == 130, output
    assert "stopping: " in output and f"to go on: python -m src.sweep resume={study}" in output

    done = command("src.sweep", f"resume={study}", "n_jobs=1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 finished" in done.stdout
    assert status(study / "mnist_linear/000") == first and not first["resumes"]
    assert status(study / "mnist_linear/002")["resumes"][0]["after"] == "running"
    assert sorted(path.name for path in study.glob("mnist_linear/*/")) == ["000", "001", "002", "003", "004"]
    whole = command("src.train", *words, "optimizer.lr=3e-3", f"runs_dir={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr
    (alone,) = (tmp_path / "whole").glob("*/*")
    assert fingerprint(alone) == fingerprint(study / "mnist_linear/002")


def pid_of(path: Path) -> int:
    """The process of a run that goes on, or the last one that it had."""
    return int(status(path.parent)["pid"])


def test_wandb_agents_start_what_can_be_composed() -> None:
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep: dict[str, Any] = yaml.safe_load((ROOT / "scripts/wandb_sweep.yaml").read_text(encoding="utf-8"))
    values = {"optimizer.lr": 0.00123, "data.batch_size": 256, "scheduler": "one_cycle", "notes": "one text, of words"}
    fixed = {name: given["value"] for name, given in sweep["parameters"].items() if "value" in given}
    assert {*fixed, *values} - {"notes"} == sweep["parameters"].keys()
    arguments = create_sweep_command_args({"args": {k: {"value": v} for k, v in {**fixed, **values}.items()}})
    rendered = []
    for word in create_sweep_command(sweep["command"]):
        rendered += arguments["args_no_hyphens"] if word == "${args_no_hyphens}" else [word]
    assert rendered[1:4] == ["python", "-m", "src.train"]
    cfg = compose(parse_command_line(rendered[4:])).cfg
    assert (cfg["optimizer"]["lr"], cfg["notes"], cfg["test"]) == (0.00123, "one text, of words", False)
    assert cfg["scheduler"]["_target_"].endswith("OneCycleLR")
    assert sweep["metric"] == {"name": cfg["monitor"]["metric"], "goal": "maximize"}
