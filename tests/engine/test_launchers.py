"""The launchers of several nodes: srun on a real Slurm, and torchrun on two nodes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster import free_ports
from tests.conftest import QUICK, ROOT, Command, Train, status

OVERRIDES = [*QUICK, "data.val_size=205", "data.test_size=3795", "trainer.max_epochs=2", "trainer.strategy=ddp"]
pytestmark = pytest.mark.slow


def test_a_finished_run_is_extended_by_lightning_s_own_launcher(command: Command, tmp_path: Path) -> None:
    """Its second process reads the configuration when the first has changed it already."""
    first = command("src.train", *OVERRIDES[:-2], "trainer=ddp_sim", "trainer.max_epochs=1")
    assert first.returncode == 0, first.stderr
    (folder,) = (tmp_path / "runs").glob("*/*")
    longer = command("src.train", f"resume={folder}", "trainer.max_epochs=2")
    assert longer.returncode == 0, longer.stderr
    assert "epoch 2/2" in longer.stdout and status(folder)["epoch"] == 1


@pytest.mark.parametrize(("nodes", "tasks"), [(1, 2), (2, 1)])
def test_srun_makes_one_run(nodes: int, tasks: int, cluster: dict[str, str], train: Train, tmp_path: Path) -> None:
    expected = train(*OVERRIDES[2:-1], f"runs_dir={tmp_path / 'one'}")
    command = ["timeout", "200", "srun", f"--nodes={nodes}", f"--ntasks-per-node={tasks}", "--kill-on-bad-exit"]
    done = subprocess.run(
        [
            *command,
            sys.executable,
            "-m",
            "src.train",
            *OVERRIDES,
            f"trainer.num_nodes={nodes}",
            f"trainer.devices={tasks}",
        ],
        cwd=ROOT,
        env={**os.environ, **cluster, "MASTER_PORT": str(free_ports(1)[0])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (tmp_path / "runs/mnist_linear").glob("[!.]*")
    assert folder.name.startswith("slurm-")
    assert done.stdout.count("run folder: ") == done.stdout.count("epoch 2/2") == 1
    assert status(folder)["metrics"] == pytest.approx({k: expected[k] for k in status(folder)["metrics"]}, rel=1e-5)


def test_torchrun_on_two_nodes_makes_one_run(train: Train, tmp_path: Path) -> None:
    expected = train(*OVERRIDES[2:-1], f"runs_dir={tmp_path / 'one'}")
    port = free_ports(1)[0]
    nodes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"),
                *(f"--node-rank={rank}", "--master-addr=127.0.0.1", f"--master-port={port}"),
                *("-m", "src.train", *OVERRIDES, "trainer.num_nodes=2", "trainer.devices=1"),
            ],
            cwd=ROOT,
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    prints = [node.communicate(timeout=200)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "".join(prints)
    (folder,) = (tmp_path / "runs").glob("*/*")
    assert "".join(prints).count("run folder: ") == 1
    assert status(folder)["metrics"] == pytest.approx({k: expected[k] for k in status(folder)["metrics"]}, rel=1e-5)
