"""A Slurm job that is taken away: whether a signal means that, and how the job comes back. No torch is imported."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

from src.config import ConfigError
from src.config.resume import slurm_job
from src.engine.signals import Interrupted


class SlurmError(RuntimeError):
    """Slurm cannot be asked, or has refused."""


def global_rank() -> int:
    """This process's number in the run, as torchrun, Slurm or Lightning's launcher set it."""
    names = ("RANK", *(["SLURM_PROCID"] if os.environ.get("SLURM_NTASKS", "1") != "1" else []), "LOCAL_RANK")
    return int(next((os.environ[name] for name in names if name in os.environ), 0))


def is_preemption(signum: int) -> bool:
    """Whether a job is to go on later: SIGUSR1 says so, and SIGTERM to a job that nobody has cancelled."""
    job = slurm_job()
    if signum != signal.SIGTERM or job is None:
        return signum == signal.SIGUSR1
    try:
        facts = describe(job)
    except SlurmError:
        return False
    is_at_limit = facts["Reason"] == "TimeLimit"  # it has the seconds of KillWait left
    return facts["BatchFlag"] == "1" and (facts["JobState"] == "RUNNING" or is_at_limit or is_requeued(facts))


@contextlib.contextmanager
def requeued() -> Iterator[None]:
    """Puts the job back into Slurm's queue when a preemption has ended the block; the first process does."""
    try:
        yield
    except Interrupted as interrupted:
        job = slurm_job()
        if job is not None and global_rank() == 0 and is_preemption(interrupted.signum):
            try:
                requeue(job)
            except SlurmError as error:
                print(f"Slurm job {job} is not requeued: {error}", flush=True)
        raise


def requeue(job: str) -> None:
    """Puts a job back into the queue, unless Slurm has done so itself.

    Raises:
        SlurmError: That cannot be done.
    """
    facts = describe(job)
    if is_requeued(facts):
        return
    if facts["BatchFlag"] == "0":
        raise SlurmError("sbatch has not submitted it")
    if facts["Requeue"] == "0":  # Slurm would obey an administrator
        raise SlurmError("it was submitted without --requeue")
    print(f"Slurm job {job} goes back into the queue", flush=True)  # first: Slurm ends this process
    scontrol("requeue", job)


def is_requeued(facts: Mapping[str, str]) -> bool:
    """Whether the job has been put back since it started."""
    return int(facts["Restarts"]) > int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def describe(job: str) -> dict[str, str]:
    """What Slurm says of a job, by its own names.

    Raises:
        SlurmError: It says nothing.
    """
    pairs = (word.partition("=") for word in scontrol("show", "job", "--oneliner", job).split())
    return {name: value for name, _, value in pairs}


def scontrol(*words: str) -> str:
    """What `scontrol` prints.

    Raises:
        SlurmError: It is not there, does not answer, or refuses.
    """
    try:
        done = subprocess.run(["scontrol", *words], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlurmError(str(error)) from error
    if done.returncode:
        raise SlurmError(" ".join((done.stderr or done.stdout).split()))
    return done.stdout


def check_tasks(trainer: Mapping[str, Any]) -> None:
    """Compares the tasks of a Slurm job with the processes that `trainer` asks for.

    Raises:
        ConfigError: They differ, or srun has not started them.
    """
    if slurm_job() is None or "SLURM_NTASKS" not in os.environ:
        return
    tasks, nodes = int(os.environ["SLURM_NTASKS"]), int(os.environ.get("SLURM_NNODES", "1"))
    if tasks > 1 and "SLURM_STEP_ID" not in os.environ:
        raise ConfigError(f"this Slurm job has {tasks} tasks, and only srun starts them: srun python -m src.train ...")
    num_nodes, per_node = trainer.get("num_nodes") or 1, tasks // nodes
    devices = count_devices(trainer) or per_node
    is_counted = tasks == 1 or "SLURM_NTASKS_PER_NODE" in os.environ  # Lightning takes no --ntasks
    if (nodes, tasks) != (num_nodes, devices * num_nodes) or not is_counted:
        raise ConfigError(
            f"trainer.devices={devices} on trainer.num_nodes={num_nodes} takes {devices * num_nodes} tasks, one for each "
            f"device, and this Slurm job has --ntasks={tasks} on --nodes={nodes}: write "
            f"#SBATCH --nodes={num_nodes} --ntasks-per-node={devices}, or trainer.devices={per_node} "
            f"trainer.num_nodes={nodes}"
        )


def count_devices(trainer: Mapping[str, Any]) -> int | None:
    """How many devices of a machine `trainer` asks for; None: all that there are."""
    match trainer.get("devices", "auto"):
        case list(numbers):
            return len(numbers)
        case str(text) if "," in text:
            return len(text.strip(",").split(","))
        case "auto" | -1 | "-1":
            return 1 if trainer.get("accelerator") == "cpu" else None
        case number:
            return int(number)
