"""Tiny data sets in the true on-disk formats, with something to learn in them."""

import gzip
import hashlib
import io
import os
import pickle
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision import datasets  # type: ignore[import-untyped]

CIFAR = {"cifar10": (datasets.CIFAR10, "cifar-10-batches-bin"), "cifar100": (datasets.CIFAR100, "cifar-100-binary")}


def write_mnist(
    root: Path, name: str = "MNIST", train: int = 64, test: int = 32, gz: bool = False, seed: int = 0
) -> Path:
    """Writes `<root>/<name>/raw` as torchvision lays it out and returns that folder; classes take turns."""
    folder = root / name / "raw"
    rng = np.random.default_rng(seed)
    for part, count in (("train", train), ("t10k", test)):
        labels = rng.permutation(np.arange(count) % 10).astype(np.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte", digit_images(labels, rng), gz)
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels, gz)
    return folder


def digit_images(labels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Returns [N, 28, 28] noise with a bright square whose place is the class: linearly separable."""
    images = rng.integers(0, 60, (len(labels), 28, 28), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = 7 * (int(label) // 4), 7 * (int(label) % 4)
        image[row : row + 7, column : column + 7] += 150
    return images


def write_idx(path: Path, array: NDArray[np.uint8], gz: bool = False) -> Path:
    """Writes an IDX file of unsigned bytes (as `path`.gz when packed) and returns its path."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    content = header + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    if gz:
        path, content = path.with_name(f"{path.name}.gz"), gzip.compress(content, mtime=0)
    path.write_bytes(content)
    return path


def write_cifar(
    root: Path, name: str = "cifar10", train: int = 100, test: int = 30, binary: bool = False, seed: int = 0
) -> dict[str, list[list[str]]]:
    """Writes `<root>/cifar-10-batches-py`, or another version, and returns torchvision's lists with the new MD5 sums.

    Classes take turns and have a colour each: something that is left of an image after cropping and mirroring.
    """
    source, binary_folder = CIFAR[name]
    folder = root / (binary_folder if binary else source.base_folder)
    folder.mkdir(parents=True, exist_ok=True)
    classes, rng = 100 if name == "cifar100" else 10, np.random.default_rng(seed)
    lists: dict[str, list[list[str]]] = {}
    for part, count in (("train_list", train), ("test_list", test)):
        files = [file for file, _ in getattr(source, part)]
        lists[part] = []
        for number, file in enumerate(files):
            labels = rng.permutation(np.arange(number, count, len(files)) % classes).astype(np.uint8)
            images = colour_images(labels, rng)
            content = cifar_records(images, labels, name) if binary else cifar_pickle(images, labels, name)
            (folder / f"{file}.bin" if binary else folder / file).write_bytes(content)
            lists[part].append([file, hashlib.md5(content).hexdigest()])
    return lists


def colour_images(labels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Returns [N, 3072] noise around the colour of the class: channel by channel, row by row, as CIFAR's files."""
    colours = np.stack([labels % 5 * 40, labels // 5 % 5 * 40, labels // 25 * 40], axis=1)
    noise = rng.integers(0, 56, (len(labels), 3, 1024))
    return (colours[:, :, None] + noise).reshape(len(labels), -1).astype(np.uint8)


def cifar_records(images: NDArray[np.uint8], labels: NDArray[np.uint8], name: str) -> bytes:
    """Returns records of the label (CIFAR-100: of the coarse class first) and the pixels."""
    heads = [labels // 5, labels] if name == "cifar100" else [labels]
    return np.concatenate([*(head[:, None] for head in heads), images], axis=1).astype(np.uint8).tobytes()


def cifar_pickle(images: NDArray[np.uint8], labels: NDArray[np.uint8], name: str) -> bytes:
    """Returns what Python 2 and NumPy 1 wrote: a dictionary with `data` and the labels, strings as bytes."""
    key = b"fine_labels" if name == "cifar100" else b"labels"
    return python2_pickle({b"data": images, key: labels.tolist(), b"batch_label": b"a batch"})


def python2_pickle(value: Any) -> bytes:
    """Returns a pickle of protocol 2 in which bytes are strings of Python 2."""
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


class Python2Pickler(pickle._Pickler):  # type: ignore[misc,name-defined]
    """Writes bytes as Python 2 wrote its `str`."""

    def save_bytes(self, value: bytes) -> None:
        self.write(b"T" + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch: ClassVar[dict[type, Any]] = {**pickle._Pickler.dispatch, bytes: save_bytes}  # type: ignore[attr-defined]


class Hostile:
    """Something that pickle would run on loading: it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


def write_photo(path: Path, label: int, seed: int = 0, size: tuple[int, int] = (44, 36)) -> Path:
    """Writes a photo (of the format of the suffix) of noise in which the channel `label` is bright."""
    pixels = np.random.default_rng((label, seed)).integers(0, 90, (size[1], size[0], 3), dtype=np.uint8)
    pixels[..., label] += 150
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_image_folder(root: Path, count: int = 20, classes: tuple[str, ...] = ("ant", "bee", "cow")) -> Path:
    """Writes `<root>/<class>/<number>.jpg`, every fourth as PNG, and returns `root`."""
    for label, name in enumerate(classes):
        for number in range(count):
            write_photo(root / name / f"{number}{'.png' if number % 4 == 0 else '.jpg'}", label, number)
    return root


def write_dogcat(root: Path, count: int = 30, unlabelled: int = 3) -> Path:
    """Writes `<root>/train/cat.0.jpg`, `dog.0.jpg`, ... and `<root>/test1/1.jpg`, ..., as Kaggle does."""
    for number in range(count):
        write_photo(root / "train" / f"cat.{number}.jpg", 0, number)
        write_photo(root / "train" / f"dog.{number}.jpg", 1, number)
    for number in range(unlabelled):
        write_photo(root / "test1" / f"{number + 1}.jpg", number % 2, 1000 + number)
    return root
