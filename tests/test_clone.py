"""A stranger's first minutes: a clean clone, `make train`, and a second call that starts at once."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow


def test_a_strangers_first_minutes(tmp_path: Path) -> None:
    """One test, because each step stands on the one before: a new environment takes most of a minute."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    clone = tmp_path / "research template"  # a space, as in many a home folder
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)

    first = make(clone, "train", "ARGS=trainer.max_epochs=2 logger.mode=offline")
    assert "installing the locked packages" in first
    assert len(list((clone / "runs/mnist_linear").iterdir())) == 1
    assert "installing" not in make(clone, "train", "ARGS=--help")  # the second call starts at once
    tracked = subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True, check=True)
    assert tracked.stdout == ""  # what a run makes is ignored

    lock, marker = clone / "requirements.lock", clone / ".venv/marker"
    marker.touch()
    lock.write_text(lock.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    assert "installing the locked packages" in make(clone, "venv")
    assert marker.exists()  # stale: brought up to date, not made anew
    assert "installing" not in make(clone, "venv")

    (clone / ".venv/requirements.lock").unlink()
    (clone / ".venv/bin/python").unlink()
    assert "installing the locked packages" in make(clone, "venv")  # half built: made anew
    assert not marker.exists()
    assert "usage: python -m src.train" in make(clone, "train", "ARGS=--help")


def make(clone: Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "RUNS_DIR")}
    done = subprocess.run(["make", *arguments], cwd=clone, env=environment, capture_output=True, text=True, timeout=290)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
