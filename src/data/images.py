"""What the image data sets share: uint8 tensors, normalisation, facts."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from src.config import ConfigError
from src.data.base import Batch, DataModule, Inputs, require_int
from src.data.folder import SUFFIXES
from src.data.idx import read_idx
from src.data.inputs import read_pictures
from src.data.split import cross_validation, cut_off
from src.data.transforms import Normalize, channel_statistics


class TensorSplit(Dataset[Batch]):
    """A part of a data set that lives in memory as one tensor.

    Args:
        x_NCHW: uint8 images.
        y_N: int64 labels.
    """

    def __init__(self, x_NCHW: Tensor, y_N: Tensor) -> None:
        assert len(x_NCHW) == len(y_N)
        self.x_NCHW, self.y_N = x_NCHW, y_N

    def __len__(self) -> int:
        return len(self.y_N)

    def to(self, device: torch.device) -> None:
        """Moves the tensors to a device; batches are gathered there."""
        self.x_NCHW, self.y_N = self.x_NCHW.to(device), self.y_N.to(device)

    def __getitem__(self, index: Tensor) -> Batch:
        """Gathers a whole batch at once; `x[index]` takes seventeen times as long."""
        index = index.to(self.y_N.device, non_blocking=True)
        return Batch(self.x_NCHW.index_select(0, index), self.y_N.index_select(0, index), index)


class ImageDataModule(DataModule):
    """Labelled images that fit in memory, normalised batched on the device.

    A subclass states `name` and `class_names` and reads its files in `load`.

    Args:
        on_device: Whether the splits are kept on the device that trains.
        **rest: See `DataModule`.
    """

    decisive: Sequence[str] = ("class_names", "input_shape")
    class_names: Sequence[str]

    def __init__(self, on_device: bool = False, **rest: Any) -> None:
        super().__init__(**rest)
        self.on_device = on_device

    @cached_property
    def normalize(self) -> Normalize:
        """What `transform` applies."""
        return Normalize(self.facts["mean"], self.facts["std"])

    def hold_out(self, x: NDArray[np.uint8], y_N: NDArray[np.int64], **sizes: int) -> dict[str, TensorSplit]:
        """Cuts parts off labelled images, stratified; "train" is what is left, or what the folds make of it and "val".

        Raises:
            ConfigError: If a size is not a number of samples, nothing is left, or a class has too few for every part.
        """
        for part, size in sizes.items():
            require_int(f"data.{part}_size", size, minimum=1)
        parts = cut_off(y_N, sizes, self.split_seed, self.class_names, "samples")
        parts = cross_validation(parts, self.folds, self.split_seed, np.arange(len(y_N)), y_N, self.class_names)
        return {part: tensor_split(x[i], y_N[i]) for part, i in parts.items()}

    def describe(self) -> dict[str, Any]:
        """Returns the facts; mean and deviation are those of the training part, computed.

        Raises:
            ConfigError: If all pixels of a channel are equal: they cannot be normalised.
        """
        mean, std = self.statistics()
        if 0.0 in std:
            raise ConfigError(f"{self.name}: in the training part all pixels of channel {std.index(0.0)} are equal")
        num_classes = len(self.class_names)
        return {
            **super().describe(),
            "task": "classification",
            "input_shape": self.input_shape(),
            "num_classes": num_classes,
            "class_names": list(self.class_names),
            "mean": mean,
            "std": std,
            "class_counts": {
                split: torch.bincount(part.y_N[part.y_N >= 0], minlength=num_classes).tolist()
                for split, part in self.splits.items()
            },
            "fingerprint": self.fingerprint(),
        }

    def statistics(self) -> tuple[list[float], list[float]]:
        """Returns mean and deviation of each channel of the training part."""
        return channel_statistics(self.splits["train"].x_NCHW)

    def input_shape(self) -> list[int]:
        """Returns the shape of what the model sees of a sample."""
        return list(self.splits["train"].x_NCHW.shape[1:])

    def augment(self, x_BCHW: Tensor) -> Tensor:
        """Normalises the uint8 images of a training batch on the device; a subclass changes them before."""
        return self.normalize(x_BCHW)

    def transform(self, x: Tensor, training: bool) -> Tensor:
        """Normalises the images of a batch, and augments those of a training batch."""
        return self.augment(x) if training else self.normalize(x)

    def _loader(self, split: str, sampler: Sampler[Tensor]) -> DataLoader[Any]:
        if self.on_device and self.trainer is not None:
            self.splits[split].to(self.trainer.strategy.root_device)
        return super()._loader(split, sampler)

    def read_inputs(self, path: Path) -> Inputs:
        """Reads pictures, see `read_pictures`; or an IDX file of any other name, whose bytes go in as they are.

        Raises:
            ConfigError: There are none, or an IDX file is broken or has images of another shape than the model takes.
        """
        self.on_device = False  # pictures come from their files batch by batch
        if not path.is_file() or path.suffix.lower() in SUFFIXES:
            return read_pictures(path, self.facts)
        images = read_idx(path, ndim=3)
        if [1, *images.shape[1:]] != self.facts["input_shape"] or not len(images):
            raise ConfigError(f"inputs={path}: {images.shape}; the model takes images of {self.facts['input_shape']}")
        return Inputs(tensor_split(images, np.full(len(images), -1)), [*map(str, range(len(images)))], {})

    def adopt(self, facts: Mapping[str, Any]) -> None:
        """Normalises with the statistics that a model was trained with.

        Raises:
            ConfigError: If its classes or the shape of its input are others.
        """
        super().adopt(facts)
        self.normalize = Normalize(facts["mean"], facts["std"])

    def fingerprint(self) -> str:
        """Returns a checksum of all images and labels."""
        digest = hashlib.sha256()
        for split, part in self.splits.items():
            digest.update(f"{split}{tuple(part.x_NCHW.shape)}".encode())
            digest.update(part.x_NCHW.numpy().data)
            digest.update(part.y_N.numpy().data)
        return digest.hexdigest()


def tensor_split(x: NDArray[np.uint8], y_N: NDArray[np.int64]) -> TensorSplit:
    """Makes tensors of images, [N, C, H, W] or [N, H, W], and their labels; copies an array only if it is read-only."""
    images, labels = (torch.from_numpy(np.require(array, requirements=("C", "W"))) for array in (x, y_N))
    return TensorSplit(images if images.ndim == 4 else images.unsqueeze(1), labels)
