"""Jobs on a real Slurm: taken away and put back, and the trials of a sweep."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT, status

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SMALL = ["logger=none", "trainer.accelerator=cpu", "data.val_size=200", "data.test_size=3800", "data.batch_size=50"]
SHORT = [*SMALL, "trainer.max_epochs=40", "early_stopping.patience=null", "trainer.log_every_n_steps=3"]
CPU = ["--cpus-per-task=1", "--mem=1G", "--gpus-per-node=0"]


class Client:
    """Slurm's commands in a cluster's environment."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        path = f"{Path(sys.executable).parent}:{environment['PATH']}"
        self.environment, self.folder = {**os.environ, **environment, "PATH": path}, folder

    def __call__(self, *command: str) -> str:
        done = subprocess.run(
            ["timeout", "60", *command], cwd=ROOT, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def sbatch(self, *words: str) -> str:
        return self("sbatch", "--parsable", f"--output={self.folder}/job.log", *words).strip()

    def wait(self, until: Callable[[], object]) -> None:
        deadline = time.monotonic() + 240
        while not until():
            logs = "\n".join(path.read_text() for path in self.folder.rglob("*.log"))
            assert time.monotonic() < deadline, self("squeue") + logs
            time.sleep(0.1)

    def release(self, job: str, restarts: int) -> None:
        """Starts a job that was requeued; Slurm would hold it for two minutes, for its last start to be all gone.

        What tells Slurm late that the last start has ended would end the new one.
        """
        self.wait(
            lambda: re.search(rf"JobState=PENDING .*Restarts={restarts} ", self("scontrol", "-o", "show", "job", job))
        )
        self.wait(lambda: not step_daemons(job) and not self("squeue", "--noheader", "--states=COMPLETING").strip())
        self("scontrol", "update", f"JobId={job}", "StartTime=now")


@pytest.fixture
def client(cluster: dict[str, str], tmp_path: Path) -> Client:
    return Client(cluster, tmp_path)


def step_daemons(job: str) -> list[Path]:
    """Slurm's own processes beside those of a job."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cmdline").read_bytes().startswith(f"slurmstepd: [{job}.".encode()):
                found.append(process)
    return found


def catching(job: str, restarts: int, signum: int) -> int:
    """How many processes of a job's start have a handler of a signal."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes().split(b"\0")
            caught = re.search(r"SigCgt:\s*(\w+)", (process / "status").read_text())
        except OSError:
            continue
        wanted = {f"SLURM_JOB_ID={job}".encode(), b"SLURM_STEP_ID=0"}
        if restarts:
            wanted.add(f"SLURM_RESTART_COUNT={restarts}".encode())
        count += wanted <= {*environment} and caught is not None and bool(int(caught[1], 16) >> signum - 1 & 1)
    return count


def test_preempted_while_it_imports_and_while_it_trains(client: Client, tmp_path: Path) -> None:
    """Two tasks on a node, taken away twice, against the other script's two nodes with one task each, left alone."""
    whole = client.sbatch("--ntasks-per-node=1", *CPU, "scripts/slurm_nodes.sbatch", *SHORT)
    job = client.sbatch("--array=7", "--ntasks-per-node=2", *CPU, "scripts/slurm.sbatch", *SHORT) + "_7"
    runs = tmp_path / "runs/mnist_linear"
    folder, number = runs / f"slurm-{job}", job.removesuffix("_7")

    client.wait(lambda: catching(number, 0, signal.SIGUSR1) == 2)
    client("scancel", "--signal=USR1", job)
    client.release(job, 1)
    assert not folder.exists()

    client.wait(lambda: (folder / "metrics.jsonl").exists() and '"epoch": 3' in (folder / "metrics.jsonl").read_text())
    client("scancel", "--signal=USR1", job)
    client.release(job, 2)
    report = status(folder)
    assert (report["state"], report["reason"], report["exit_code"]) == ("preempted", "stopped by SIGUSR1", 138)

    client.wait(lambda: status(folder)["state"] == "finished" and not client("squeue", "--me", "-h"))
    (resume,) = status(folder)["resumes"]
    assert resume["after"] == "preempted" and resume["point"]
    other = runs / f"slurm-{whole}"
    assert status(other)["resumes"] == []
    assert (folder / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    ours, theirs = (torch.load(path / "checkpoints/last.ckpt", weights_only=True) for path in (folder, other))
    assert ours["global_step"] == theirs["global_step"] == 40 * 20
    assert all(torch.equal(value, theirs["state_dict"][name]) for name, value in ours["state_dict"].items())
    log = (tmp_path / "job.log").read_text()
    assert log.count(f"Slurm job {job} goes back into the queue") == 2
    assert {path.name for path in runs.glob("slurm-*")} == {folder.name, other.name}


def test_preempted_before_the_other_process_is_there(client: Client, tmp_path: Path) -> None:
    """The first waits in the rendezvous; the second has not begun with Python."""
    late = tmp_path / "bin/python"
    late.parent.mkdir()
    late.write_text(f'#!/bin/sh\n[ "$SLURM_PROCID" = 1 ] && sleep 12\nexec {sys.executable} "$@"\n')
    late.chmod(0o755)
    client.environment["PATH"] = f"{late.parent}:{client.environment['PATH']}"
    job = client.sbatch("--ntasks-per-node=2", *CPU, "scripts/slurm.sbatch", *SHORT, "trainer.max_epochs=3")
    folder = tmp_path / f"runs/mnist_linear/slurm-{job}"
    client.wait(lambda: catching(job, 0, signal.SIGUSR1) == 1)
    time.sleep(6)  # by now it has imported torch, and waits
    assert catching(job, 0, signal.SIGUSR1) == 1
    client("scancel", "--signal=USR1", job)
    client.release(job, 1)
    client.wait(lambda: (folder / "status.json").exists() and status(folder)["state"] == "finished")
    assert (tmp_path / "job.log").read_text().count(f"Slurm job {job} goes back into the queue") == 1
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3 * 20


def test_slurm_s_own_signal_before_the_time_limit(client: Client, tmp_path: Path) -> None:
    words = ["--ntasks-per-node=1", *CPU, "--time=1", "--signal=USR1@40", "scripts/slurm.sbatch"]
    job = client.sbatch(*words, *SHORT, "trainer.max_epochs=10000")
    folder = tmp_path / f"runs/mnist_linear/slurm-{job}"
    client.wait(lambda: re.search(r"Restarts=1 ", client("scontrol", "-o", "show", "job", job)))
    client("scancel", job)
    report = status(folder)
    assert (report["state"], report["reason"], report["exit_code"]) == ("preempted", "stopped by SIGUSR1", 138)
    assert f"Slurm job {job} goes back into the queue" in (tmp_path / "job.log").read_text()


def test_a_job_that_somebody_cancels_stays_away(client: Client, tmp_path: Path) -> None:
    job = client.sbatch("--ntasks-per-node=1", *CPU, "scripts/slurm.sbatch", *SHORT, "trainer.max_epochs=10000")
    folder = tmp_path / f"runs/mnist_linear/slurm-{job}"
    client.wait((folder / "metrics.jsonl").exists)
    client("scancel", job)
    client.wait(lambda: not client("squeue", "--me", "-h"))
    assert (status(folder)["state"], status(folder)["reason"]) == ("interrupted", "stopped by SIGTERM")
    assert "goes back" not in (tmp_path / "job.log").read_text()


def test_a_killed_sweep_finds_its_jobs_again(client: Client, tmp_path: Path) -> None:
    words = [*SHORT, "test=false", "optimizer.lr=0.001,0.002", "n_jobs=2", "launcher=slurm", "cluster.memory=1G"]
    words += ["cluster.gpus=1", "cluster.partition=tests"]
    command = [sys.executable, "-m", "src.sweep"]
    sweep = subprocess.Popen([*command, *words], cwd=ROOT, env=client.environment, start_new_session=True)
    queue = ("squeue", "--me", "-h", "--format=%A %b %j")
    client.wait(lambda: len(client(*queue).splitlines()) == 2)
    sweep.kill()
    sweep.wait()
    jobs = client(*queue).splitlines()
    (study,) = (tmp_path / "runs/sweeps").iterdir()
    for name, line in zip(("000", "001"), sorted(jobs), strict=True):
        assert line.endswith(f"gpu:1 {study.name}/mnist_linear/{name}")
    again = subprocess.run([*command, f"resume={study}"], env=client.environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "2 finished" in again.stdout
    for name in ("000", "001"):
        folder = study / "mnist_linear" / name
        assert (status(folder)["state"], status(folder)["resumes"]) == ("finished", [])
        assert (folder.with_suffix(".log")).read_text().count("run folder: ") == 1
    assert int(client.sbatch("--wrap=true")) == max(int(line.split()[0]) for line in jobs) + 1  # no job but the two


def test_gpus_are_seen_by_the_task(client: Client, tmp_path: Path) -> None:
    words = ["launcher=slurm", "dry_run=true", "cluster.gpus=2", "trainer.accelerator=cpu", "cluster.cpus_per_task=3"]
    script = client(sys.executable, "-m", "src.sweep", *words)
    (tmp_path / "job.sbatch").write_text(re.sub(r"\S+ -m src.train.*", "env", script).replace("STUDY", str(tmp_path)))
    (tmp_path / "mnist_linear").mkdir()
    client("sbatch", "--wait", str(tmp_path / "job.sbatch"))
    seen = set((tmp_path / "mnist_linear/000.log").read_text().splitlines())
    assert {"CUDA_VISIBLE_DEVICES=0,1", "SLURM_CPUS_PER_TASK=3", "RESEARCH_TEMPLATE_TRIAL=000"} <= seen
    assert not (tmp_path / "runs").exists()
