"""Crystal graphs: built once in parallel, kept in one file, gathered a whole batch at a time."""

import hashlib
import logging
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from src.config import ConfigError
from src.data.base import Batch, cores
from src.structures.neighbors import GraphSettings
from src.structures.reading import Crystal, Reader, read_crystals, start_worker

FORMAT = 2  # of the cache; to be raised when the same input gives other graphs
CHUNK = 32  # structures that a worker takes at once
SERIAL = 8 * CHUNK  # up to here a process of its own costs more than it saves

KINDS = {"z": np.uint8, "degree": np.uint16, "source": np.int32, "distance": np.float32}
"""What the arrays of a `Crystal` are kept as."""

Arrays = dict[str, NDArray[Any]]

note = rank_zero_only(logging.getLogger(__name__).warning)
"""Tells the person, on one process."""


class GraphSplit(Dataset[Batch]):
    """Crystals as concatenated tensors.

    Edges are kept atom by atom, so that their targets follow from the number of edges of each atom.

    Args:
        names: Of the crystals.
        z_N: uint8 atomic numbers.
        degree_N: uint16 number of edges that lead to each atom.
        source_E: int32 atom at the other end of each edge, counted within its crystal.
        distance_E: float32 length of each edge in angstrom.
        num_nodes_S: int64 atoms of each crystal.
        y: [S, T] float32 targets, NaN where one is missing; or [S] int64 classes.
    """

    def __init__(
        self,
        names: Sequence[str],
        z_N: Tensor,
        degree_N: Tensor,
        source_E: Tensor,
        distance_E: Tensor,
        num_nodes_S: Tensor,
        y: Tensor,
    ) -> None:
        assert len(y) == len(names) == len(num_nodes_S) and len(degree_N) == len(z_N)
        self.z_N, self.degree_N, self.source_E, self.distance_E = z_N.long(), degree_N.long(), source_E, distance_E
        self.num_nodes_S, self.y, self.names = num_nodes_S, y, list(names)
        ends_S = num_nodes_S.cumsum(0)
        edges_before_N = torch.cat([torch.zeros(1, dtype=torch.int64), self.degree_N.cumsum(0)])
        self.first_node_S = ends_S - num_nodes_S
        self.first_edge_S = edges_before_N[self.first_node_S]
        self.num_edges_S = edges_before_N[ends_S] - self.first_edge_S

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: Tensor) -> Batch:
        """Gathers a whole batch: one graph whose parts are the crystals, as PyTorch Geometric collates them."""
        num_nodes, num_edges = self.num_nodes_S.index_select(0, index), self.num_edges_S.index_select(0, index)
        node, edge = self._nodes(index), self._edges(index)
        shift_B = num_nodes.cumsum(0) - num_nodes  # where each crystal begins in the batch
        shift_E = shift_B.repeat_interleave(num_edges, output_size=len(edge))
        degree = self.degree_N.index_select(0, node)
        target = torch.arange(len(node)).repeat_interleave(degree, output_size=len(edge))
        x = {
            "z": self.z_N.index_select(0, node),
            "edge_index": torch.stack([self.source_E.index_select(0, edge) + shift_E, target]),
            "distance": self.distance_E.index_select(0, edge),
            "num_nodes": num_nodes,
        }
        return Batch(x, self.y.index_select(0, index), index)

    def select(self, index: Tensor) -> "GraphSplit":
        """Returns a copy of some of the crystals."""
        node, edge = self._nodes(index), self._edges(index)
        of_nodes, of_edges = (self.z_N[node], self.degree_N[node]), (self.source_E[edge], self.distance_E[edge])
        names = [self.names[position] for position in index.tolist()]
        return GraphSplit(names, *of_nodes, *of_edges, self.num_nodes_S[index], self.y[index])

    def _nodes(self, index: Tensor) -> Tensor:
        return _ranges(self.first_node_S.index_select(0, index), self.num_nodes_S.index_select(0, index))

    def _edges(self, index: Tensor) -> Tensor:
        return _ranges(self.first_edge_S.index_select(0, index), self.num_edges_S.index_select(0, index))


def _ranges(first_B: Tensor, length_B: Tensor) -> Tensor:
    """Returns first, first + 1, ..., first + length - 1 of each, one after the other."""
    ends_B = length_B.cumsum(0)
    total = int(ends_B[-1]) if len(ends_B) else 0
    return torch.arange(total) + (first_B - ends_B + length_B).repeat_interleave(length_B, output_size=total)


@dataclass(frozen=True)
class Catalogue:
    """The structures of a data set, listed but not read.

    Args:
        what: For messages: the file or the folder.
        reader: Makes the structure of a key, in a worker process.
        keys: One for each structure.
        names: Of the structures.
        places: Where each is said to be, for messages.
        targets: Names of the targets.
        content: Hash of all that the structures and their targets depend on.
    """

    what: str
    reader: Reader
    keys: Sequence[Any]
    names: Sequence[str]
    places: Sequence[str]
    targets: Sequence[str]
    content: str

    def key(self, settings: GraphSettings) -> str:
        """Returns what tells its graphs from others: a pure function of content and settings."""
        return hashlib.sha256(repr((FORMAT, self.content, list(self.targets), settings)).encode()).hexdigest()


def load_graphs(catalogue: Catalogue, settings: GraphSettings, folder: Path | None) -> tuple[GraphSplit, Arrays]:
    """Reads the graphs from the cache in `folder`, or builds them and puts them there.

    Returns:
        All crystals that can be used; and their `formulas` and `digests`, and the names of those that are `bad` with
        the `reasons`.

    Raises:
        ConfigError: The cache cannot be written.
    """
    build = partial(build_arrays, catalogue, settings)
    arrays = build() if folder is None else cached(folder / f"graphs-{catalogue.key(settings)[:16]}.npz", build)
    tensors = (torch.from_numpy(arrays[name]) for name in (*KINDS, "num_nodes", "y"))
    return GraphSplit(arrays["names"].tolist(), *tensors), arrays


def cached(path: Path, build: Callable[[], Arrays]) -> Arrays:
    """Returns the arrays of a file; where it is missing or damaged, they are built, by one process at a time.

    Raises:
        ConfigError: The file cannot be written.
    """
    if (arrays := _read(path)) is not None:
        return arrays
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if (arrays := _read(path)) is None:
                _write(path, arrays := build())
    except OSError as error:
        raise ConfigError(
            f"the graphs cannot be kept in {path.parent}: {error}; data.cache_dir names another"
        ) from error
    return arrays


def _read(path: Path) -> Arrays | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
        return None


def _write(path: Path, arrays: Arrays) -> None:
    temporary = path.with_suffix(".tmp")  # always the same name: what a killed process has left is overwritten
    with open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def build_arrays(catalogue: Catalogue, settings: GraphSettings) -> Arrays:
    """Reads all structures and builds their graphs."""
    note(f"{catalogue.what}: {len(catalogue.keys):,} crystals to read, once")
    crystals, names, bad, reasons = [], [], [], []
    seen: dict[str, tuple[str, list[float]]] = {}
    for name, place, crystal in zip(catalogue.names, catalogue.places, _crystals(catalogue, settings), strict=True):
        if isinstance(crystal, Crystal):
            twin, y_T = seen.setdefault(crystal.digest, (name, crystal.y))
            if np.array_equal(y_T, crystal.y, equal_nan=True):
                crystals.append(crystal)
                names.append(name)
                continue
            crystal = f"it is the same structure as {twin}, with other targets: {crystal.y}, not {y_T}"
        bad.append(name)
        reasons.append(f"{place}: {crystal}")
    formulas, digests = ([getattr(crystal, name) for crystal in crystals] for name in ("formula", "digest"))
    texts = {"names": names, "formulas": formulas, "digests": digests, "bad": bad, "reasons": reasons}
    return {
        **{
            name: np.concatenate([np.empty(0, kind), *(getattr(crystal, name) for crystal in crystals)])
            for name, kind in KINDS.items()
        },
        "num_nodes": np.array([len(crystal.z) for crystal in crystals], np.int64),
        "y": np.array([crystal.y for crystal in crystals], np.float32).reshape(len(crystals), len(catalogue.targets)),
        **{name: np.array(values, np.str_) for name, values in texts.items()},
    }


def _crystals(catalogue: Catalogue, settings: GraphSettings) -> Iterator[Crystal | str]:
    """Reads the structures in order, on all cores where that pays."""
    keys = catalogue.keys
    chunks = [keys[start : start + CHUNK] for start in range(0, len(keys), CHUNK)]
    read = partial(read_crystals, catalogue.reader, catalogue.targets, settings)
    with tqdm(total=len(keys), desc=catalogue.what, unit=" crystals", disable=None) as bar:
        for part in map(read, chunks) if len(keys) <= SERIAL else _parallel(read, chunks):
            bar.update(len(part))
            yield from part


def _parallel(read: Callable[[Any], list[Crystal | str]], chunks: Sequence[Any]) -> Iterator[list[Crystal | str]]:
    # Not forked: this process may have threads, a GPU and W&B's sockets.
    pool = ProcessPoolExecutor(min(cores(), len(chunks)), get_context("spawn"), start_worker)
    try:
        with _empty_main():
            parts = pool.map(read, chunks)  # starts the processes
        yield from parts
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _empty_main() -> Iterator[None]:
    """Hides the main module, which a spawned process imports: a script without a guard would start again in each."""
    main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
