"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 32x32 colour photographs."""

import hashlib
import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor
from torchvision import datasets  # type: ignore[import-untyped]
from torchvision.datasets.utils import download_and_extract_archive  # type: ignore[import-untyped]

from src.config import ConfigError
from src.data.base import require_int
from src.data.download import Arrays, PublishedDataModule
from src.data.idx import read_bytes
from src.data.transforms import RandomCropFlip

SHAPE = (3, 32, 32)  # channels, rows, columns, as the files have them
PIXELS = 3 * 32 * 32

FINE_CLASSES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest",
    "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard",
    "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid",
    "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine", "possum",
    "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper",
    "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone",
    "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf",
    "woman", "worm",
)  # fmt: skip


class CIFAR10DataModule(PublishedDataModule):
    """CIFAR-10 in torchvision's layout, `<root>/cifar-10-batches-py`, or the binary version beside it.

    50,000 training and 10,000 test images. The files of the Python version are pickles: they are read only where their
    MD5 sums are the published ones, and then by a reader that knows arrays and nothing else.

    Args:
        root: Folder of the data sets.
        crop_padding: Training images are cropped at random after zero padding of so many pixels a side; 0: not.
        flip: Whether half of the training images are mirrored.
        **rest: See `PublishedDataModule`; on the device, the whole set takes 184 MB.
    """

    name = "cifar10"
    class_names: Sequence[str] = (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    )  # fmt: skip
    source = datasets.CIFAR10  # which files there are, their MD5 sums and address
    binary_folder: ClassVar[str] = "cifar-10-batches-bin"
    label_bytes: ClassVar[int] = 1  # of a record of the binary version; the last one is the class

    def __init__(self, root: str, crop_padding: int = 4, flip: bool = True, **rest: Any) -> None:
        super().__init__(root, **rest)
        self.crop_and_flip = RandomCropFlip(require_int("data.crop_padding", crop_padding, minimum=0), flip)
        self.folder = self.root / self.source.base_folder
        self.way_out = f"put the files there yourself, or unpack {self.source.filename} in {self.root}"

    def augment(self, x_BCHW: Tensor) -> Tensor:
        """Crops and flips."""
        return super().augment(self.crop_and_flip(x_BCHW))

    def read(self) -> tuple[Arrays, Arrays]:
        """Reads and checks the files of the Python version, or of the binary one if only that is whole.

        Raises:
            ConfigError: If a file is missing or broken; it names the folder, the file and the command.
        """
        python, binary = self.root / self.source.base_folder, self.root / self.binary_folder
        names = [name for name, _ in (*self.source.train_list, *self.source.test_list)]
        missing = [name for name in names if name not in self.list_folder(python)]
        is_binary = bool(missing) and self.list_folder(binary) >= {f"{name}.bin" for name in names}
        self.folder = binary if is_binary else python
        if missing and not is_binary:
            raise ConfigError(
                f"{self.source.__name__} is not there: {python} lacks {', '.join(missing)}\n"
                f"    needed there, or in {binary} as .bin\n"
                f"    to download: {self.prepare_command()}"
            )
        return self._read(self.source.train_list, is_binary), self._read(self.source.test_list, is_binary)

    def fetch(self) -> None:
        """Downloads torchvision's archive, checks and unpacks it."""
        source = self.source
        download_and_extract_archive(source.url, self.root, filename=source.filename, md5=source.tgz_md5)

    def _read(self, files: Sequence[tuple[str, str]], is_binary: bool) -> Arrays:
        parts = [
            self._read_binary(self.folder / f"{name}.bin") if is_binary else self._read_python(self.folder / name, md5)
            for name, md5 in files
        ]
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return images.reshape(-1, *SHAPE), labels

    def _read_python(self, path: Path, md5: str) -> Arrays:
        raw = read_bytes(path)
        found = hashlib.md5(raw, usedforsecurity=False).hexdigest()
        if found != md5:
            raise ConfigError(
                f"{path} is not the published file, or damaged: its MD5 sum is {found}, not {md5}\n"
                f"    to fetch it again: {self.prepare_command()}"
            )
        content = ArrayUnpickler(io.BytesIO(raw), encoding="latin1").load()
        return content["data"], np.array(content["labels" if "labels" in content else "fine_labels"], np.int64)

    def _read_binary(self, path: Path) -> Arrays:
        raw, record = read_bytes(path), self.label_bytes + PIXELS
        if not raw or len(raw) % record:
            raise ConfigError(f"{path}: {len(raw)} bytes are no whole number of records of {record}")
        records = np.frombuffer(raw, np.uint8).reshape(-1, record)
        return records[:, self.label_bytes :], self.check_labels(path, records[:, self.label_bytes - 1])


class CIFAR100DataModule(CIFAR10DataModule):
    """CIFAR-100 with its 100 fine classes: `<root>/cifar-100-python` or `cifar-100-binary`; else as CIFAR-10."""

    name = "cifar100"
    class_names = FINE_CLASSES
    source = datasets.CIFAR100
    binary_folder = "cifar-100-binary"
    label_bytes = 2  # coarse, fine


class ArrayUnpickler(pickle.Unpickler):
    """Reads arrays in plain containers; a pickle that names anything else is refused before that is touched."""

    _RECONSTRUCT = np.empty(0).__reduce__()[0]
    _KNOWN: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,  # as NumPy 1 called it
    }

    def find_class(self, module: str, name: str) -> Any:
        """Returns what the pickle names, if it is one of the few.

        Raises:
            ConfigError: It is not.
        """
        if (module, name) not in self._KNOWN:
            raise ConfigError(f"refused: a pickle that asks for {module}.{name}; reading it could run code")
        return self._KNOWN[module, name]
