"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 32x32 colour photographs."""

import hashlib
import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torchvision import datasets  # type: ignore[import-untyped]
from torchvision.datasets.utils import download_and_extract_archive  # type: ignore[import-untyped]

from src.config import ConfigError
from src.data.base import require_int
from src.data.download import downloading, prepare_command
from src.data.images import ImageDataModule, TensorSplit, tensor_split
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

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


class CIFAR10DataModule(ImageDataModule):
    """CIFAR-10 in torchvision's layout, `<root>/cifar-10-batches-py`, or the binary version beside it.

    Validation is cut from the 50,000 training images; the 10,000 test images are only tested on. The files of the
    Python version are pickles: they are read only where their MD5 sums are the published ones, and then by a reader
    that knows arrays and nothing else.

    Args:
        root: Folder of the data sets.
        batch_size: Samples per training step over all processes.
        val_size: Validation samples.
        split_seed: Which training samples become validation samples.
        crop_padding: Training images are cropped at random after zero padding of so many pixels a side; 0: not.
        flip: Whether half of the training images are mirrored.
        seed: The run's seed.
        **rest: See `ImageDataModule`; on the device, the whole set takes 184 MB.
    """

    name = "cifar10"
    class_names: Sequence[str] = (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    )  # fmt: skip
    source: ClassVar[type[Any]] = datasets.CIFAR10  # which files there are, their MD5 sums and address
    binary_folder: ClassVar[str] = "cifar-10-batches-bin"
    label_bytes: ClassVar[int] = 1  # of a record of the binary version; the last one is the class

    def __init__(
        self,
        root: str,
        batch_size: int,
        val_size: int,
        split_seed: int,
        seed: int,
        crop_padding: int = 4,
        flip: bool = True,
        **rest: Any,
    ) -> None:
        super().__init__(batch_size, split_seed, seed, **rest)
        self.root = Path(root)
        self.val_size = require_int("data.val_size", val_size, minimum=1)
        self.crop_and_flip = RandomCropFlip(require_int("data.crop_padding", crop_padding, minimum=0), flip)

    def augment(self, x_BCHW: Tensor) -> Tensor:
        """Crops and flips."""
        return super().augment(self.crop_and_flip(x_BCHW))

    @property
    def folder(self) -> Path:
        """Where the files are: of the Python version, unless only the binary one is whole."""
        python, binary = self.root / self.source.base_folder, self.root / self.binary_folder
        return binary if self._missing(python) and not self._missing(binary) else python

    def prepare_data(self) -> None:
        """Checks that the files are there. Training never downloads: only src.prepare calls `download`.

        Raises:
            ConfigError: If a file is missing; it names the folder, the files and the command.
        """
        if missing := self._missing(self.folder):
            raise ConfigError(
                f"{self.source.__name__} is not there: {self.folder} lacks {', '.join(missing)}\n"
                f"    needed there, or in {self.root / self.binary_folder} as .bin\n"
                f"    to download: {prepare_command(self.name, self.root)}"
            )

    def load(self) -> dict[str, TensorSplit]:
        """Reads and checks the files."""
        self.prepare_data()
        train, test = self._read(self.source.train_list), self._read(self.source.test_list)
        return {**self.hold_out(*train, val=self.val_size), "test": tensor_split(*test)}

    def download(self) -> None:
        """Fetches torchvision's archive if files are missing or not what was published, one process at a time.

        Raises:
            ConfigError: If that fails; it says why.
        """
        way_out = f"put the files there yourself, or unpack {self.source.filename} in {self.root}"
        if not self._is_sound():
            with downloading(self.source.__name__, self.root, self.folder, way_out):
                if not self._is_sound():  # another process may have been faster
                    archive = self.source.filename
                    download_and_extract_archive(self.source.url, self.root, filename=archive, md5=self.source.tgz_md5)

    def _is_sound(self) -> bool:
        try:
            self.load()
        except ConfigError:
            return False
        return True

    def _missing(self, folder: Path) -> list[str]:
        suffix = ".bin" if folder.name == self.binary_folder else ""
        names = [f"{name}{suffix}" for name, _ in (*self.source.train_list, *self.source.test_list)]
        try:
            return [name for name in names if not (folder / name).is_file()]
        except OSError as error:
            raise ConfigError(f"data.root={self.root}: {folder} cannot be read: {error.strerror}") from error

    def _read(self, files: Sequence[tuple[str, str]]) -> Arrays:
        folder, parts = self.folder, []
        for name, md5 in files:
            if folder.name == self.binary_folder:
                parts.append(self._read_binary(folder / f"{name}.bin"))
            else:
                parts.append(self._read_python(folder / name, md5))
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return images.reshape(-1, *SHAPE), labels.astype(np.int64)

    def _read_python(self, path: Path, md5: str) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        raw = self._read_bytes(path)
        found = hashlib.md5(raw, usedforsecurity=False).hexdigest()
        if found != md5:
            raise ConfigError(
                f"{path} is not the published file, or damaged: its MD5 sum is {found}, not {md5}\n"
                f"    to fetch it again: {prepare_command(self.name, self.root)}"
            )
        content = ArrayUnpickler(io.BytesIO(raw), encoding="latin1").load()
        return content["data"], np.array(content["labels" if "labels" in content else "fine_labels"])

    def _read_binary(self, path: Path) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        raw, record = self._read_bytes(path), self.label_bytes + PIXELS
        if not raw or len(raw) % record:
            raise ConfigError(f"{path}: {len(raw)} bytes are no whole number of records of {record}")
        records = np.frombuffer(raw, np.uint8).reshape(-1, record)
        labels = records[:, self.label_bytes - 1]
        if (highest := int(labels.max())) >= len(self.class_names):
            raise ConfigError(f"{path}: label {highest} is not one of 0 to {len(self.class_names) - 1}")
        return records[:, self.label_bytes :], labels

    def _read_bytes(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


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
