"""Runs of a sweep as Slurm jobs: `sbatch` starts one, `squeue` finds it again, `scancel` ends it."""

import contextlib
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.config import Composed, ConfigError, compose_run
from src.config.resume import TRIAL
from src.config.slurm import SlurmError, ask, describe

READY = 'trap "" USR1; exec "$@"'
"""What a task runs first: a signal that comes before Python catches it would end the task, and the job with it."""

QUEUE_SECONDS = 5.0
"""How long an answer of squeue is good for."""


@dataclass
class Cluster:
    """What a job asks for: a file of `configs/cluster/`.

    Attributes:
        partition: Where it runs.
        account: Who pays.
        time: Its limit, as Slurm writes it; the run saves itself two minutes before and goes back into the queue.
        memory: Of a node.
        gpus: Of a node; null: one for each task, none on the CPU.
        cpus_per_task: Cores of a process.
    """

    partition: str | None = None
    account: str | None = None
    time: str | None = None
    memory: str | None = None
    gpus: str | None = None
    cpus_per_task: int | None = None


def job_script(overrides: Sequence[str], folder: Path, cluster: Mapping[str, Any]) -> str:
    """Writes the script of a run.

    Args:
        overrides: What it is given.
        folder: Its run folder, a grandchild of the study's.
        cluster: What the job asks for.

    Raises:
        ConfigError: The number of processes is not known here.
    """
    trainer = compose_run(overrides).cfg["trainer"]
    devices = trainer.get("devices")
    if not isinstance(devices, int) or devices < 1:
        raise ConfigError(f"trainer.devices={devices}: a Slurm job has a task for each device: write trainer.devices=N")
    is_on_gpus = trainer.get("accelerator") != "cpu"
    options = {
        "job-name": job_name(folder),
        "output": str(folder.with_suffix(".log")).replace("%", "%%"),
        "open-mode": "append",
        "signal": "USR1@120",
        **{name: cluster[name] for name in ("partition", "account", "time")},
        "nodes": trainer.get("num_nodes") or 1,
        "ntasks-per-node": devices,
        "gpus-per-node": cluster["gpus"] or (devices if is_on_gpus else None),
        "cpus-per-task": cluster["cpus_per_task"],
        "mem": cluster["memory"],
    }
    lines = [f"#SBATCH --{name}={shlex.quote(str(value))}" for name, value in options.items() if value is not None]
    cores = f" --cpus-per-task={cluster['cpus_per_task']}" if cluster["cpus_per_task"] else ""  # srun forgets it
    command = shlex.join(["bash", "-c", READY, "task", sys.executable, "-m", "src.train", *overrides])
    lines += ["#SBATCH --requeue", f"export {TRIAL}={folder.name}", f"srun --kill-on-bad-exit=1{cores} {command}"]
    return "\n".join(["#!/bin/bash", *lines, ""])


def first_script(composed: Sequence[Composed], cluster: Mapping[str, Any]) -> str:
    """Returns the script of the first trial, once that of each could be written.

    Raises:
        ConfigError: One cannot.
    """
    folder = Path("STUDY", composed[0].cfg["experiment"] or "none", "000")
    scripts = [job_script(one.overrides, folder, cluster) for one in composed]
    return scripts[1]  # the first holds what all trials have in common


def job_name(folder: Path) -> str:
    """Returns the name of a run's job, by which another start of the sweep finds it: no other study has it."""
    return "/".join(folder.parts[-3:])


class Slurm:
    """The queue of a cluster.

    Args:
        cluster: What the jobs ask for.
    """

    def __init__(self, cluster: Mapping[str, Any]) -> None:
        self.cluster = cluster
        self._jobs: dict[str, str] = {}
        self._asked = -QUEUE_SECONDS

    def launch(self, overrides: Sequence[str], folder: Path, slot: int, n_jobs: int) -> "Job":
        """Submits a run; what it prints is appended to a file of the folder's name and `.log`.

        Raises:
            SlurmError: It is refused.
        """
        script = job_script(overrides, folder, self.cluster)
        folder.with_suffix(".log").touch()
        number = ask("sbatch", "--parsable", "--export=ALL", stdin=script).strip().partition(";")[0]
        self._jobs[job_name(folder)], self._asked = number, time.monotonic()
        return Job(number, job_name(folder), self)

    def find(self, folder: Path) -> "Job | None":
        """Returns the job of a run that waits or runs; None: there is none.

        Raises:
            SlurmError: The queue cannot be read, and there may be one.
        """
        number = self.jobs().get(job_name(folder))
        return Job(number, job_name(folder), self) if number else None

    def jobs(self) -> dict[str, str]:
        """Returns the numbers of the person's jobs that wait or run, by name, as they were some seconds ago.

        Raises:
            SlurmError: It does not answer.
        """
        if time.monotonic() - self._asked > QUEUE_SECONDS:
            lines = ask("squeue", "--me", "--noheader", "--format=%A %j").splitlines()
            self._jobs = {name: number for number, _, name in (line.partition(" ") for line in lines)}
            self._asked = time.monotonic()
        return self._jobs


@dataclass(frozen=True)
class Job:
    """A run in the queue; one that was preempted goes back into it, and is alive."""

    number: str
    name: str
    slurm: Slurm

    def poll(self) -> int | None:
        """Returns its exit code, negative after a signal; None while it waits or runs, or Slurm does not answer."""
        try:
            if self.name in self.slurm.jobs():
                return None
        except SlurmError:
            return None  # a controller that restarts: the jobs go on
        try:
            code, _, signum = describe(self.number)["ExitCode"].partition(":")
        except SlurmError:
            return 1  # forgotten meanwhile
        return -int(signum) or int(code)

    def terminate(self) -> None:
        """Ends it: SIGTERM, and after the cluster's KillWait SIGKILL."""
        with contextlib.suppress(SlurmError):  # it has ended meanwhile, which `poll` tells
            ask("scancel", self.number)
