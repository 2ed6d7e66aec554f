"""Published sets of images: below one folder, with a test part of their own, and downloaded when that is asked for."""

import http.client
import os
import shlex
import socket
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from src.config import ConfigError
from src.data.images import ImageDataModule, TensorSplit, tensor_split

NETWORK_TIMEOUT = 30.0  # seconds without an answer

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images, and their labels."""


class PublishedDataModule(ImageDataModule):
    """Images in torchvision's layout; validation is cut from the training part, the test part is only tested on.

    Training never downloads: only src.prepare calls `download`. A subclass reads its files in `read` and gets them in
    `fetch`.

    Args:
        root: Folder of the data sets.
        val_size: Validation samples.
        **rest: See `ImageDataModule`.

    Attributes:
        source: The class of torchvision.
        way_out: What can be done without a network.
    """

    source: ClassVar[type[Any]]
    folder: Path
    way_out: str

    def __init__(self, root: str, val_size: int, **rest: Any) -> None:
        super().__init__(**rest)
        self.root, self.val_size = Path(root).expanduser(), val_size

    def read(self) -> tuple[Arrays, Arrays]:
        """Reads and checks the training and the test part.

        Raises:
            ConfigError: If a file is missing or broken; it names the folder, the file and the command.
        """
        raise NotImplementedError

    def fetch(self) -> None:
        """Downloads what is missing or broken."""
        raise NotImplementedError

    def load(self) -> dict[str, TensorSplit]:
        """Reads and checks the files."""
        train, test = self.read()
        return {**self.hold_out(*train, val=self.val_size), "test": tensor_split(*test)}

    def download(self) -> None:
        """Fetches what is missing or broken, in one process at a time.

        Raises:
            ConfigError: If that fails; it says why.
        """
        if self._is_sound():
            return
        name = self.source.__name__
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with FileLock(self.root / f"{name}.lock"):
                timeout = socket.getdefaulttimeout()
                socket.setdefaulttimeout(NETWORK_TIMEOUT)  # torchvision sets no limit
                try:
                    if not self._is_sound():  # another process may have been faster
                        self.fetch()
                finally:
                    socket.setdefaulttimeout(timeout)
        except (RuntimeError, OSError, http.client.HTTPException) as error:
            reason = str(error).strip().replace("\n", "\n    ")
            raise ConfigError(
                f"the download of {name} to {self.folder} failed: {reason}\n    without a network, {self.way_out}"
            ) from error

    def list_folder(self, folder: Path) -> set[str]:
        """Returns the names of the files in a folder; none if it is not there.

        Raises:
            ConfigError: If it cannot be read.
        """
        try:
            return {path.name for path in folder.iterdir() if path.is_file()}
        except FileNotFoundError:
            return set()
        except NotADirectoryError as error:
            culprit = next(path for path in (folder, *folder.parents) if path.exists())
            raise ConfigError(f"data.root={self.root}: {culprit} is a file, not a folder") from error
        except OSError as error:
            raise ConfigError(f"data.root={self.root}: {folder} cannot be read: {error.strerror}") from error

    def check_labels(self, path: Path, labels: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Returns the labels of a file.

        Raises:
            ConfigError: If one is no class.
        """
        wrong = np.flatnonzero(labels >= len(self.class_names))
        if wrong.size:
            highest = len(self.class_names) - 1
            raise ConfigError(f"{path}: label {labels[wrong[0]]} at position {wrong[0]} is not one of 0 to {highest}")
        return labels.astype(np.int64)

    def prepare_command(self) -> str:
        """Returns the command that downloads the set."""
        default = os.environ.get("DATA_ROOT", "data")
        where = "" if self.root == Path(default) else " " + shlex.quote(f"data.root={self.root}")
        return f"python -m src.prepare data={self.name}{where}"

    def _is_sound(self) -> bool:
        try:
            self.read()
        except ConfigError:
            return False
        return True
