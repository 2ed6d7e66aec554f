"""The Slurm job that a process is in, and the clients that speak with Slurm."""

import os
import subprocess
from collections.abc import Mapping
from typing import Any

from src.config.errors import ConfigError


class SlurmError(ConfigError):
    """Slurm is not there, does not answer, or refuses."""


def slurm_job() -> str | None:
    """The Slurm job of this process, `12` or `12_3` in an array; None elsewhere, and in an interactive shell."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID")
    if job is None or os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{job}_{task}" if task else job


def outer_environment() -> dict[str, str]:
    """Returns the environment without the job that this process is in: what it starts is no task of that job."""
    return {name: value for name, value in os.environ.items() if name == "SLURM_CONF" or not name.startswith("SLURM_")}


def ask(*command: str, stdin: str = "") -> str:
    """Returns what a client of Slurm prints.

    Raises:
        SlurmError: It fails.
    """
    try:
        done = subprocess.run(command, input=stdin, env=outer_environment(), capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlurmError(str(error)) from error
    if done.returncode:
        raise SlurmError(" ".join((done.stderr or done.stdout).split()))
    return done.stdout


def describe(job: str) -> dict[str, str]:
    """Returns what Slurm says of a job, by its own names.

    Raises:
        SlurmError: It says nothing.
    """
    pairs = (word.partition("=") for word in ask("scontrol", "show", "job", "--oneliner", job).split())
    return {name: value for name, _, value in pairs}


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
            f"trainer.devices={devices} trainer.num_nodes={num_nodes} takes {devices * num_nodes} tasks, one for each "
            f"device, and this Slurm job has {tasks} on {nodes} node{'s'[: nodes > 1]}: write #SBATCH "
            f"--nodes={num_nodes} --ntasks-per-node={devices}, or trainer.num_nodes={nodes} trainer.devices={per_node}"
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
