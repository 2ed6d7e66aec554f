"""What every data set shares: batches, loaders, facts."""

import hashlib
import random
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from src.config import ConfigError
from src.data.sampler import EvalSampler, TrainSampler, derive_seed
from src.data.split import stratified_split
from src.data.transforms import Normalize, channel_statistics


class Batch:
    """Some samples of a split. A plain class with slots, because one is made every step.

    Args:
        x: [B, ...] model input.
        y: [B] target.
        index: [B] int64 position of each sample in its split.
    """

    __slots__ = ("index", "x", "y")

    def __init__(self, x: Tensor, y: Tensor, index: Tensor) -> None:
        self.x, self.y, self.index = x, y, index

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """Returns the batch on `device`: itself when it is there."""
        if self.x.device == device:
            return self
        tensors = (tensor.to(device, non_blocking=non_blocking) for tensor in (self.x, self.y, self.index))
        return type(self)(*tensors)

    def pin_memory(self) -> Self:
        """Returns a copy in page-locked memory, from which a GPU reads without waiting."""
        return type(self)(self.x.pin_memory(), self.y.pin_memory(), self.index.pin_memory())


class Split(Protocol):
    """One part of a data set, read a batch at a time."""

    def __len__(self) -> int:
        """Returns the number of samples."""

    def __getitem__(self, index: Tensor) -> Any:
        """Returns the batch of the samples at the positions `index` ([B] int64)."""


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

    def __getitem__(self, index: Tensor) -> Batch:
        """Gathers a whole batch at once; `x[index]` takes seventeen times as long."""
        return Batch(self.x_NCHW.index_select(0, index), self.y_N.index_select(0, index), index)


class DataModule(LightningDataModule):
    """Base of every data set: samplers, loaders and facts. A subclass states its `name` and reads its files in `load`.

    Args:
        batch_size: Samples per training step over all processes.
        seed: The run's seed, for the order of the training samples.

    Attributes:
        splits: "train", "val" and "test", after `setup`.
        facts: What the model, the dashboard and a checkpoint must know of the data, as plain values; after `setup`.
    """

    def __init__(self, batch_size: int, seed: int) -> None:
        super().__init__()
        self.batch_size = require_int("data.batch_size", batch_size, minimum=1)
        self.seed = seed
        self.splits: Mapping[str, Any] = {}
        self.facts: dict[str, Any] = {}

    @property
    def folder(self) -> Path | None:
        """Where the files are; None where they come with a package."""
        return None

    def download(self) -> None:
        """Fetches what is missing from the network when src.prepare asks; nothing, unless a subclass knows where."""

    def load(self) -> Mapping[str, Split]:
        """Reads the data set from disk.

        Raises:
            ConfigError: If files are missing or broken; it names them and the way out.
        """
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Returns the facts of the loaded splits."""
        raise NotImplementedError

    def adopt(self, facts: Mapping[str, Any]) -> None:
        """Prepares inputs as they were for a trained model, whatever these splits would suggest.

        Raises:
            ConfigError: If the model was trained for something else than this data.
        """
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Loads all splits at the first call."""
        if not self.splits:
            self.splits = self.load()
            self.facts = self.describe()

    def batches_per_epoch(self, world_size: int) -> int:
        """Returns the training steps of an epoch.

        Raises:
            ConfigError: If `batch_size` does not suit the data or the number of processes.
        """
        return len(TrainSampler(len(self.splits["train"]), self.batch_size, self.seed, 0, world_size))

    def train_dataloader(self) -> DataLoader[Any]:
        """Returns shuffled whole batches, from the position on that Lightning's restored loops are at."""
        sampler = TrainSampler(len(self.splits["train"]), self.batch_size, self.seed, *self._rank_and_world_size())
        if self.trainer is not None:
            fit: Any = self.trainer.fit_loop  # restored by now: the loops are the only record of the position
            # "processed", not "completed": a checkpoint may be saved while the last callbacks of a step are running.
            done = fit.epoch_loop.batch_progress.current.processed if fit.restarting else 0
            sampler.resume_at(fit.epoch_progress.current.processed, done)
        return self._loader("train", sampler)

    def val_dataloader(self) -> DataLoader[Any]:
        """Returns the validation part in order, unpadded."""
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Returns the test part in order, unpadded."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Returns the test part in order, unpadded."""
        return self._eval_loader("test")

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Seeds every generator from the position alone, so that a resumed run draws what it would have drawn."""
        if self.trainer is not None and self.trainer.training:
            device = self.trainer.strategy.root_device
            done = self.trainer.fit_loop.total_batch_idx + 1
            seed = derive_seed(self.seed, "step", self.trainer.global_rank, done)
            torch.default_generator.manual_seed(seed)  # torch.manual_seed asks every backend: a tenth of a small step
            if device.type == "cuda":
                torch.cuda.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Moves a batch without waiting for the copy, which Lightning does for bare tensors only."""
        return batch.to(device, non_blocking=device.type == "cuda")

    def _eval_loader(self, split: str) -> DataLoader[Any]:
        return self._loader(split, EvalSampler(len(self.splits[split]), self.batch_size, *self._rank_and_world_size()))

    def _loader(self, split: str, sampler: Sampler[Tensor]) -> DataLoader[Any]:
        return DataLoader(
            self.splits[split],
            batch_size=None,
            sampler=sampler,
            collate_fn=_identity,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            generator=torch.Generator(),  # each iter() draws a number: not from the global generator
        )

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)


class TensorDataModule(DataModule):
    """Labelled images that fit in memory, normalised batched on the device.

    A subclass states `name` and `class_names` and reads its files in `load`.

    Args:
        batch_size: Samples per training step over all processes.
        split_seed: Which samples go to which part, where the split is random.
        seed: The run's seed, for the order of the training samples.
    """

    class_names: ClassVar[Sequence[str]]

    def __init__(self, batch_size: int, split_seed: int, seed: int) -> None:
        super().__init__(batch_size, seed)
        self.split_seed = require_int("data.split_seed", split_seed, minimum=0)
        self.splits: Mapping[str, TensorSplit] = {}

    def load(self) -> Mapping[str, TensorSplit]:
        """Reads the data set from disk."""
        raise NotImplementedError

    @cached_property
    def normalize(self) -> Normalize:
        """What `on_after_batch_transfer` applies."""
        return Normalize(self.facts["mean"], self.facts["std"])

    def hold_out(self, x_NHW: NDArray[np.uint8], y_N: NDArray[np.int64], **sizes: int) -> dict[str, TensorSplit]:
        """Cuts parts off labelled images, stratified; "train" is what is left.

        Raises:
            ConfigError: If nothing is left, or a class has too few samples for every part.
        """
        train = len(y_N) - sum(sizes.values())
        if train < 1:
            asked = " and ".join(f"data.{part}_size={size}" for part, size in sizes.items())
            raise ConfigError(f"nothing is left to train on: {asked} of {len(y_N)} samples")
        parts = stratified_split(y_N, [train, *sizes.values()], self.split_seed, self.class_names)
        return {part: tensor_split(x_NHW[i], y_N[i]) for part, i in zip(("train", *sizes), parts, strict=True)}

    def describe(self) -> dict[str, Any]:
        """Returns the facts; mean and deviation are those of the training part, computed.

        Raises:
            ConfigError: If all pixels of a channel are equal: they cannot be normalised.
        """
        mean, std = channel_statistics(self.splits["train"].x_NCHW)
        if 0.0 in std:
            raise ConfigError(f"{self.name}: in the training part all pixels of channel {std.index(0.0)} are equal")
        num_classes = len(self.class_names)
        return {
            "name": self.name,
            "task": "classification",
            "input_shape": list(self.splits["train"].x_NCHW.shape[1:]),
            "num_classes": num_classes,
            "class_names": list(self.class_names),
            "mean": mean,
            "std": std,
            "num_samples": {split: len(part) for split, part in self.splits.items()},
            "class_counts": {
                split: torch.bincount(part.y_N, minlength=num_classes).tolist() for split, part in self.splits.items()
            },
            "batch_size": self.batch_size,
            "split_seed": self.split_seed,
            "fingerprint": self._fingerprint(),
        }

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Normalises a batch where the model will read it, in the precision of the run."""
        batch.x = self.normalize(batch.x)
        if self.trainer is not None:
            batch.x = self.trainer.precision_plugin.convert_input(batch.x)
        return batch

    def adopt(self, facts: Mapping[str, Any]) -> None:
        """Normalises with the statistics that a model was trained with.

        Raises:
            ConfigError: If its classes or the shape of its input are others.
        """
        for name in ("class_names", "input_shape"):
            if facts.get(name) != self.facts[name]:
                raise ConfigError(
                    f"data: the model was trained on {facts.get('name')}, this is {self.name}\n"
                    f"    {name} of the model: {facts.get(name)}\n    {name} of the data: {self.facts[name]}"
                )
        self.normalize = Normalize(facts["mean"], facts["std"])

    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for split, part in self.splits.items():
            digest.update(f"{split}{tuple(part.x_NCHW.shape)}".encode())
            digest.update(part.x_NCHW.numpy().data)
            digest.update(part.y_N.numpy().data)
        return digest.hexdigest()


def tensor_split(x_NHW: NDArray[np.uint8], y_N: NDArray[np.int64]) -> TensorSplit:
    """Makes tensors of one-channel images and their labels; copies an array only if it is read-only."""
    x, y = (torch.from_numpy(np.require(array, requirements=("C", "W"))) for array in (x_NHW, y_N))
    return TensorSplit(x.unsqueeze(1), y)


def require_int(key: str, value: int, minimum: int) -> int:
    """Returns `value` if it is a whole number of at least `minimum`, else raises ConfigError naming `key`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(f"{key}={value}: must be a whole number of at least {minimum}")
    return value


def _identity(batch: Any) -> Any:
    return batch
