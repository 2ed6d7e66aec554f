"""What the tests share: a clean environment, the real command line, and runs in a folder of their own."""

import csv
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from src.config import ConfigError
from tests.cluster import MISSING, slurm

ROOT = Path(__file__).parents[1]
QUICK = ["logger=none", "trainer=cpu", "pictures=false"]
"""Overrides for tests of something else than trackers, devices and what a run draws at its end."""

Train = Callable[..., dict[str, float]]
Folders = Callable[[], list[Path]]
Command = Callable[..., subprocess.CompletedProcess[str]]
"""What the fixtures `train`, `run_folders` and `command` are."""

os.environ["OMP_NUM_THREADS"] = "1"  # two test processes on two cores: more threads only get in each other's way


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees the person's own W&B account, folders or job."""
    for name in list(os.environ):
        if name.startswith(("WANDB_", "SLURM_", "HYDRA_")) or name in ("RUNS_DIR", "DATA_ROOT", "PL_GLOBAL_SEED"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RUNS_DIR", str(tmp_path / "runs"))


@pytest.fixture
def command() -> Command:
    """Runs ``python -m MODULE ARGUMENTS`` in a process of its own, from the repository's root."""

    def run(module: str, *arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=cwd,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """A real Slurm of two nodes: what its clients need in their environment."""
    if MISSING:
        pytest.skip(f"no Slurm on this machine (apt-get install slurm-wlm munge): {', '.join(MISSING)}")
    # munged wants a socket that everybody can reach, and pytest's folders are closed to others.
    with tempfile.TemporaryDirectory() as name, slurm(Path(name), cpus=4) as environment:
        # Node names do not resolve here, so the first node's address is given.
        yield {**environment, "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def train() -> Train:
    """Trains in this process through the door that the command line uses."""
    import torch

    from src.train import main

    torch.set_num_threads(1)
    return lambda *overrides: main([*QUICK, *overrides])


@pytest.fixture
def run_folders(tmp_path: Path) -> Folders:
    """The run folders of this test, oldest first."""
    return lambda: sorted((tmp_path / "runs").glob("*/*"))


@pytest.fixture
def few_warnings() -> Iterator[None]:
    """Silences what Lightning says of loaders that are meant as they are; runs silence it themselves."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers")  # they would slow it down
        warnings.filterwarnings("ignore", ".*treespec, LeafSpec")  # of Lightning's own
        warnings.filterwarnings("ignore", ".*your dataloader is not resumable")  # it is, by position
        yield


def status(folder: Path) -> dict[str, Any]:
    """What the run says of itself."""
    value: dict[str, Any] = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    return value


def metric_rows(folder: Path) -> list[dict[str, Any]]:
    """What the run has logged."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def read_csv(path: Path) -> list[list[str]]:
    """The cells of a table; names of files may hold any bytes."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.reader(file))


def refusal_of(call: Callable[..., object], *arguments: Any, **keywords: Any) -> str:
    """What the person is told of the mistake that a call ends with."""
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **keywords)
    return str(caught.value)
