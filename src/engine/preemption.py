"""A Slurm job that is taken away: whether a signal means that, and how the job comes back. No torch is imported."""

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping

from src.config.slurm import SlurmError, ask, describe, slurm_job
from src.engine.signals import Interrupted


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
    ask("scontrol", "requeue", job)


def is_requeued(facts: Mapping[str, str]) -> bool:
    """Whether the job has been put back since it started."""
    return int(facts["Restarts"]) > int(os.environ.get("SLURM_RESTART_COUNT", "0"))
