"""What every data set shares: batches, loaders, facts."""

import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from src.config import ConfigError
from src.data.sampler import EvalSampler, TrainSampler, derive_seed

Input = Tensor | dict[str, Tensor]


class Batch:
    """Some samples of a split. A plain class with slots, because one is made every step.

    Args:
        x: Model input: a tensor [B, ...], or several by name (a batch of graphs).
        y: [B] target, or [B, T] of several.
        index: [B] int64 position of each sample in its split.
    """

    __slots__ = ("index", "x", "y")

    def __init__(self, x: Input, y: Tensor, index: Tensor) -> None:
        self.x, self.y, self.index = x, y, index

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """Returns the batch on `device`: itself when it is there."""
        if self.y.device == device:
            return self
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Returns a copy in page-locked memory, from which a GPU reads without waiting; itself if it is on one."""
        return self if self.y.device.type != "cpu" else self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        x = {name: change(part) for name, part in self.x.items()} if isinstance(self.x, dict) else change(self.x)
        return type(self)(x, change(self.y), change(self.index))


@dataclass(frozen=True)
class Inputs:
    """Samples to predict.

    Attributes:
        split: Those that may be used, as a part of a data set; their targets mean nothing.
        names: Of all, in the person's order.
        problems: Why a sample cannot be used, by its position in `names`. What is known from the beginning is not in
            the split; a split that reads its samples batch by batch adds what it finds, and leaves that out of a batch.
    """

    split: Any
    names: Sequence[str]
    problems: dict[int, str]

    def check(self) -> None:
        """Raises ConfigError with every problem that is known by now."""
        if self.problems:
            raise ConfigError(*(f"{self.names[position]}: {reason}" for position, reason in self.problems.items()))


class DataModule(LightningDataModule):
    """Base of every data set: samplers, loaders and facts. A subclass states its `name` and reads its files in `load`.

    Args:
        batch_size: Samples per training step over all processes.
        split_seed: Which samples go to which part, where the split is random.
        seed: The run's seed, for the order of the training samples.
        num_folds: Folds of a cross-validation, cut out of the training and validation part together; None: no folds.
        fold: Which of them is the validation part, from 0 on; the others are trained on.

    Attributes:
        folder: Where the files are; None where they come with a package.
        decisive: Names of the facts that a model must share.
        splits: "train", "val" and "test", perhaps "predict", after `setup`.
        folds: `num_folds` and `fold`; empty without a cross-validation.
        facts: What the model, the dashboard and a checkpoint must know of the data, as plain values; after `setup`.
        bad_files: Files that are left out, and why; after `setup`.
        repeats: Whether every epoch has the batches of the first.
    """

    folder: Path | None = None
    decisive: Sequence[str] = ()

    def __init__(
        self, batch_size: int, split_seed: int, seed: int, num_folds: int | None = None, fold: int = 0
    ) -> None:
        super().__init__()
        self.batch_size = require_int("data.batch_size", batch_size, minimum=1)
        self.split_seed = require_int("data.split_seed", split_seed, minimum=0)
        self.seed = seed
        if fold >= (num_folds or 1):
            fault = f"the folds are 0 to {num_folds - 1}" if num_folds else "there are none, as data.num_folds=null"
            raise ConfigError(f"data.fold={fold}: {fault}")
        self.folds = {} if num_folds is None else {"num_folds": num_folds, "fold": fold}
        self.splits: Mapping[str, Any] = {}
        self.facts: dict[str, Any] = {}
        self.bad_files: list[tuple[str, str]] = []
        self.repeats = False

    def download(self) -> None:
        """Fetches what is missing from the network when src.prepare asks; nothing, unless a subclass knows where."""

    def load(self) -> Mapping[str, Dataset[Batch]]:
        """Reads the data set from disk.

        Returns:
            The parts by name. Each has a length and is read a batch at a time: its item at the positions [B] (int64)
            is a `Batch`.

        Raises:
            ConfigError: If files are missing or broken; it names them and the way out.
        """
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Returns the facts of the loaded splits; a subclass adds what else there is to know."""
        return {
            "name": self.name,
            "num_samples": {split: len(part) for split, part in self.splits.items()},
            "batch_size": self.batch_size,
            "split_seed": self.split_seed,
            **self.folds,
        }

    def adopt(self, facts: Mapping[str, Any]) -> None:
        """Prepares inputs as they were for a trained model, whatever these splits would suggest.

        Raises:
            ConfigError: If the model was trained for something else than this data.
        """
        for name in self.decisive:
            theirs, ours = facts.get(name), self.facts.get(name)
            if theirs != ours:
                raise ConfigError(
                    f"data: the model was trained on {facts.get('name')}, this is {self.name}\n"
                    f"    {name} of the model: {_excerpt(theirs, ours)}\n"
                    f"    {name} of the data: {_excerpt(ours, theirs)}"
                )

    def read_inputs(self, path: Path) -> Inputs:
        """Reads samples to predict, prepared as for the model that `facts` was taken from; no data set is loaded.

        Args:
            path: A file or folder of the user's, or a pattern of files.

        Raises:
            ConfigError: There are no samples, or this data set has no way to read any.
        """
        raise ConfigError(f"inputs={path}: {type(self).__name__} has no read_inputs: nothing can be predicted with it")

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
        return len(self._train_sampler(0, world_size))

    def sample_weights(self) -> Tensor | None:
        """Returns weights [N] to draw training samples by; None to draw each once an epoch."""
        return None

    def describe_sample(self, split: str, position: int) -> dict[str, str]:
        """Returns what people know a sample by: its ``id``, and more where a subclass knows more."""
        return {"id": f"{split} {position}"}

    def num_workers(self, split: str) -> int:
        """Returns the processes that read a split; none where a batch is gathered from memory."""
        return 0

    def train_dataloader(self) -> DataLoader[Any]:
        """Returns shuffled whole batches, from the position on that Lightning's restored loops are at."""
        sampler = self._train_sampler(*self._rank_and_world_size())
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
        """Returns the unlabelled samples in order, or the test part where there are none."""
        return self._eval_loader("predict" if "predict" in self.splits else "test")

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Seeds every generator from the position alone, so that a resumed run draws what it would have drawn."""
        if self.trainer is not None and self.trainer.training:
            self.seed_batch(self.trainer.fit_loop.total_batch_idx + 1)
        return batch

    def seed_batch(self, number: int) -> None:
        """Seeds every generator for a training batch, counted from 0 over the whole run."""
        assert self.trainer is not None
        seed = derive_seed(self.seed, "step", self.trainer.global_rank, number)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed asks every backend: a tenth of a small step
        if self.trainer.strategy.root_device.type == "cuda":
            torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Moves a batch without waiting for the copy, which Lightning does for bare tensors only."""
        return batch.to(device, non_blocking=device.type == "cuda")

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Transforms a batch where the model will read it, and puts it in the run's precision."""
        batch.x = self.transform(batch.x, training=self.trainer is not None and bool(self.trainer.training))
        if self.trainer is not None:
            batch.x = self.trainer.precision_plugin.convert_input(batch.x)
        return batch

    def transform(self, x: Any, training: bool) -> Any:
        """Returns what the model sees of the inputs of a batch."""
        return x

    def _train_sampler(self, rank: int, world_size: int) -> TrainSampler:
        samples = len(self.splits["train"])
        weights_N = self.sample_weights()
        return TrainSampler(samples, self.batch_size, self.seed, rank, world_size, weights_N, self.repeats)

    def _eval_loader(self, split: str) -> DataLoader[Any]:
        return self._loader(split, EvalSampler(len(self.splits[split]), self.batch_size, *self._rank_and_world_size()))

    def _loader(self, split: str, sampler: Sampler[Tensor]) -> DataLoader[Any]:
        return DataLoader(
            self.splits[split],
            batch_size=None,
            sampler=sampler,
            num_workers=self.num_workers(split),
            persistent_workers=self.num_workers(split) > 0,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            generator=torch.Generator(),  # each iter() draws a number: not from the global generator
        )

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)


def cores() -> int:
    """Returns how many cores this process may use, which on a cluster are not all of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require_int(key: str, value: int, minimum: int) -> int:
    """Returns `value` if it is a whole number of at least `minimum`, else raises ConfigError naming `key`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
        raise ConfigError(f"{key}={value}: must be a whole number of at least {minimum}")
    return value


def first_ten(lines: Sequence[str]) -> str:
    """Returns up to ten lines, indented, and how many more there are."""
    more = [f"and {len(lines) - 10} more"] if len(lines) > 10 else []
    return "".join(f"\n    {line}" for line in [*lines[:10], *more])


def _excerpt(values: Any, others: Any) -> str:
    """A value or a short list; of a long list ten values, from the first on in which the other one differs."""
    if not isinstance(values, list) or len(values) <= 20:
        return str(values)
    same = [*(one == other for one, other in zip(values, others or (), strict=False)), False]
    start = min(same.index(False), len(values) - 10)
    return f"{values[start : start + 10]} (of {len(values):,}, from number {start + 1} on)"
