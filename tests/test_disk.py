"""Disks that are full and folders that are not ours, for real: these need root, and a mount namespace of their own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import QUICK, ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("setpriv"),
        reason="needs root, unshare and setpriv",
    ),
]


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=240
    )


def train(*overrides: str) -> str:
    return f"{sys.executable} -m src.train {' '.join(QUICK)} {' '.join(overrides)}"


@pytest.mark.parametrize(
    ("size", "overrides"),
    [
        ("96k", ["trainer.max_epochs=3"]),  # full within the first checkpoint
        ("700k", ["trainer.max_epochs=1000", "trainer.log_every_n_steps=1", "early_stopping.patience=null"]),
    ],
)
def test_a_full_disk_is_an_error_and_the_status_says_so(size: str, overrides: list[str], tmp_path: Path) -> None:
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    script = (
        f"mount -t tmpfs -o size={size} tmpfs {disk} && "
        f"{{ {train(f'runs_dir={disk}', *overrides)}; code=$?; cp -r {disk} {kept}; exit $code; }}"
    )
    done = run("unshare", "--mount", "sh", "-c", script)
    assert done.returncode not in (0, 2), done.stdout + done.stderr
    assert "No space left on device" in done.stderr or "cannot write" in done.stderr
    (status,) = kept.glob("*/*/status.json")
    report = json.loads(status.read_text())
    assert (report["state"], report["exit_code"]) == ("failed", 1)
    assert "No space left on device" in report["reason"] or "cannot write" in report["reason"]


def test_a_disk_that_is_full_from_the_start_makes_no_run(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    fill = f"head -c 1M /dev/zero > {disk}/filler 2>/dev/null"
    script = f"mount -t tmpfs -o size=16k tmpfs {disk} && {{ {fill}; {train(f'runs_dir={disk}')}; }}"
    done = run("unshare", "--mount", "sh", "-c", script)
    assert done.returncode == 2
    assert f"error: runs_dir={disk}: no run folder can be made there: [Errno 28] No space left on device" in done.stderr


def test_an_unprivileged_user_without_write_permission(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir(mode=0o755)
    # Another user who may read everything (this interpreter lies under root's home) and write nothing of ours.
    other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    readable = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    done = run(*other, *readable, "sh", "-c", train(f"runs_dir={runs}"), HOME=str(tmp_path / "no-home"))
    assert done.returncode == 2, done.stderr
    assert f"error: runs_dir={runs}: no run folder can be made there: [Errno 13] Permission denied" in done.stderr
    assert list(runs.iterdir()) == []


def test_a_folder_that_becomes_unwritable_stops_the_run(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir(mode=0o777)
    runs.chmod(0o777)
    code = (
        "import os, sys, pathlib, src.engine.trainer as t; from src.train import main; build = t.build_trainer\n"
        "def lock(plan, run):\n    os.chmod(run.checkpoints, 0o555); return build(plan, run)\n"
        "t.build_trainer = lock; main(sys.argv[1:])"
    )
    other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    readable = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    done = run(
        *other, *readable, sys.executable, "-c", code, *QUICK, f"runs_dir={runs}", HOME=str(tmp_path / "no-home")
    )
    assert done.returncode == 1, done.stderr
    assert "PermissionError: [Errno 13] Permission denied" in done.stderr
    (status,) = runs.glob("*/*/status.json")
    report = json.loads(status.read_text())
    assert (report["state"], report["exit_code"]) == ("failed", 1)
    assert "Permission denied" in report["reason"]
