"""How a run of a trial becomes a process."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from src.config.resume import TRIAL
from src.config.slurm import outer_environment

LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Process(Protocol):
    """A run that has been started."""

    def poll(self) -> int | None:
        """Returns its exit code, negative after a signal; None while it is alive."""

    def terminate(self) -> None:
        """Has it stop cleanly, which may take it some seconds."""


class Launcher(Protocol):
    """Where the runs of a sweep go."""

    def launch(self, overrides: Sequence[str], folder: Path, slot: int, n_jobs: int) -> Process:
        """Starts a run.

        Args:
            overrides: What it is given.
            folder: Its run folder, whose parent is there; what it prints is appended to a file of that name and `.log`.
            slot: Which of the runs at the same time it is, from 0 on.
            n_jobs: How many they are.
        """

    def find(self, folder: Path) -> Process | None:
        """Returns a run that has outlived the sweep which started it; None: there is none, or it is waited for."""


class Local:
    """This machine."""

    def launch(self, overrides: Sequence[str], folder: Path, slot: int, n_jobs: int) -> Process:
        """Starts a run in a session of its own, so that a Ctrl-C reaches the sweep alone; divides cores and GPUs."""
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        # A trial is no task of a Slurm job that the sweep is in.
        environment = {"OMP_NUM_THREADS": str(max(1, cores // n_jobs)), **outer_environment(), TRIAL: folder.name}
        if n_jobs > 1 and len(gpus := visible_gpus()) > 1:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[slot::n_jobs] or [gpus[slot % len(gpus)]])
        with open(folder.with_suffix(".log"), "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "src.train", *overrides],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=partial(_end_with, os.getpid()),
            )

    def find(self, folder: Path) -> Process | None:
        """Returns None: a run has a lock of its folder as long as it lives."""
        return None


def _end_with(parent: int) -> None:
    """Has Linux send SIGTERM to this process when its parent is gone, however it died."""
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)


def visible_gpus() -> list[str]:
    """Returns the GPUs that CUDA_VISIBLE_DEVICES names, or else all of this machine; no torch is asked."""
    every = [str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]
    return os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(every)).split(",")
