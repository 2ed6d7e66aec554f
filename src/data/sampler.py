"""Which samples a process sees at which step: pure functions of (seed, epoch, rank, world size, offset)."""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from src.config import ConfigError


def derive_seed(*keys: int | str) -> int:
    """Returns a 63-bit seed that depends on the keys alone: the same on every machine and Python version."""
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class TrainSampler(Sampler[Tensor]):
    """Shuffled training batches, whole: each step yields the int64 positions of one process's samples.

    There is one order per (seed, epoch), whatever the number of processes: a permutation, or as many draws with
    replacement. Each process takes its slice of every global batch, and the last incomplete global batch is dropped.

    Args:
        num_samples: Size of the training part.
        batch_size: Samples per step over all processes.
        seed: The run's seed; the epoch is mixed in.
        rank: This process.
        world_size: Number of processes.
        weights_N: How likely each sample is drawn, in any unit; None for a permutation.
        repeats: Whether every epoch has the order of the first.

    Raises:
        ConfigError: If the batch does not divide by the processes, or the training part is smaller than one batch.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        weights_N: Tensor | None = None,
        repeats: bool = False,
    ) -> None:
        _check_batch_size(num_samples, batch_size, world_size)
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.rank, self.world_size, self.weights_N, self.repeats = rank, world_size, weights_N, repeats
        self.epoch = 0
        self._resumed = (0, 0)

    def __len__(self) -> int:
        """Returns the steps of a whole epoch, also when this one starts in the middle: Lightning counts from 0."""
        return self.num_samples // self.batch_size

    def __iter__(self) -> Iterator[Tensor]:
        """Yields [batch_size / world_size] positions per step, from the resumed one on in the resumed epoch."""
        # A generator, so that the epoch is read at the first batch: Lightning sets it after it calls iter().
        # The offset is kept, not used up: a DataLoader with workers calls iter() twice.
        generator = torch.Generator().manual_seed(
            derive_seed(self.seed, "permutation", 0 if self.repeats else self.epoch)
        )
        if self.weights_N is None:
            order = torch.randperm(self.num_samples, generator=generator)
        else:
            order = torch.multinomial(self.weights_N, self.num_samples, replacement=True, generator=generator)
        start = self._resumed[1] if self._resumed[0] == self.epoch else 0
        steps = order[: len(self) * self.batch_size].view(len(self), self.world_size, -1)
        yield from steps[start:, self.rank]

    def set_epoch(self, epoch: int) -> None:
        """Selects the permutation; Lightning calls it as each epoch begins."""
        self.epoch = epoch

    def resume_at(self, epoch: int, batches_done: int) -> None:
        """Goes to `epoch`, whose first `batches_done` steps have been taken already."""
        self.epoch, self._resumed = epoch, (epoch, batches_done)


class EvalSampler(Sampler[Tensor]):
    """Evaluation batches in data-set order, each sample exactly once over all processes: nothing is padded.

    Every process takes ceil(batch_size / world_size) samples a step and yields the same number of steps; its share of
    the last one may be smaller than the others' or empty.

    Args:
        num_samples: Size of the split.
        batch_size: Samples per step over all processes; need not divide by them.
        rank: This process.
        world_size: Number of processes.
    """

    def __init__(self, num_samples: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.num_samples, self.rank, self.world_size = num_samples, rank, world_size
        self.share = -(-batch_size // world_size)

    def __len__(self) -> int:
        """Returns the number of steps, equal on every process."""
        return -(-self.num_samples // (self.share * self.world_size))

    def __iter__(self) -> Iterator[Tensor]:
        """Yields at most ceil(batch_size / world_size) consecutive positions per step."""
        positions = torch.arange(self.num_samples)
        for step in range(len(self)):
            start = (step * self.world_size + self.rank) * self.share
            yield positions[start : start + self.share]


def _check_batch_size(num_samples: int, batch_size: int, world_size: int) -> None:
    given = f"data.batch_size={batch_size}, the batch over all processes,"
    if num_samples < batch_size:
        raise ConfigError(f"{given} is larger than the training part of {num_samples} samples")
    if batch_size % world_size:
        below = batch_size - batch_size % world_size
        near = [str(size) for size in (below, below + world_size) if 0 < size <= num_samples]
        advice = f"the nearest that do are {' and '.join(near)}" if near else "there are fewer samples than processes"
        raise ConfigError(f"{given} does not divide by {world_size} processes: {advice}")
