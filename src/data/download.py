"""Fetching data sets: one process at a time, no endless waiting, one message when it fails."""

import http.client
import os
import shlex
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from src.config import ConfigError

NETWORK_TIMEOUT = 30.0  # seconds without an answer


@contextmanager
def downloading(name: str, root: Path, folder: Path, way_out: str) -> Iterator[None]:
    """Surrounds a download.

    Args:
        name: Of the data set.
        root: Folder of the data sets; it is made, and the lock is in it.
        folder: Where the files go.
        way_out: What can be done without a network.

    Raises:
        ConfigError: If the download fails; it says why.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{name}.lock"), _network_timeout(NETWORK_TIMEOUT):
            yield
    except (RuntimeError, OSError, http.client.HTTPException) as error:
        reason = str(error).strip().replace("\n", "\n    ")
        raise ConfigError(
            f"the download of {name} to {folder} failed: {reason}\n    without a network, {way_out}"
        ) from error


def prepare_command(name: str, root: Path) -> str:
    """Returns the command that downloads a data set."""
    default = os.environ.get("DATA_ROOT", "data")
    where = "" if root == Path(default) else " " + shlex.quote(f"data.root={root}")
    return f"python -m src.prepare data={name}{where}"


@contextmanager
def _network_timeout(seconds: float) -> Iterator[None]:
    """Makes a connection that nobody answers fail instead of hang: torchvision sets no limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
