"""How a run of a trial becomes a process; what starts it elsewhere returns something with the same two methods."""

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

PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Process(Protocol):
    """A trial that has been started."""

    def poll(self) -> int | None:
        """Returns its exit code, negative after a signal; None while it is alive."""

    def terminate(self) -> None:
        """Has it stop cleanly, which may take it some seconds."""


class LocalLauncher:
    """Starts trials on this machine.

    Args:
        n_jobs: Trials at a time, among which cores and GPUs are divided.
    """

    def __init__(self, n_jobs: int) -> None:
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        self.n_jobs, self.threads, self.gpus = n_jobs, max(1, cores // n_jobs), visible_gpus()

    def start(self, overrides: Sequence[str], folder: Path, slot: int) -> Process:
        """Starts a run in a session of its own, so that a Ctrl-C reaches the sweep alone.

        Args:
            overrides: What it is given.
            folder: Its run folder; what it prints is appended to a file of that name and `.log`.
            slot: Which of the trials that run at the same time it is, from 0 on.
        """
        environment = {"OMP_NUM_THREADS": str(self.threads), **os.environ, TRIAL: folder.name}
        if self.n_jobs > 1 and len(self.gpus) > 1:
            share = self.gpus[slot :: self.n_jobs] or [self.gpus[slot % len(self.gpus)]]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(share)
        folder.parent.mkdir(parents=True, exist_ok=True)
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


def _end_with(parent: int) -> None:
    """Has Linux send SIGTERM to this process when its parent is gone, however it died."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)


def visible_gpus() -> list[str]:
    """Returns the GPUs that CUDA_VISIBLE_DEVICES names, or else all of this machine; no torch is asked."""
    if (names := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in names.split(",") if name]
    return [str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]
