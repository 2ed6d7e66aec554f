"""Tiny data sets in the true on-disk formats, with something to learn in them."""

import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


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
