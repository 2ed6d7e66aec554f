"""Pictures to predict: a file, a folder or a pattern, prepared as a model saw its own in evaluation."""

import glob
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from src.config import ConfigError
from src.data.base import Batch, Inputs, cores
from src.data.decode import BadPhotoError, decode
from src.data.folder import find_photos


@dataclass(frozen=True)
class PictureSplit(Dataset[Batch]):
    """Picture files, decoded a batch at a time; a batch lacks those that cannot be used.

    They become what the data set of the model made of its own: squares of `store_size`, of which the middle is kept;
    without such a fact, squares of the size that the model takes. A model of one channel sees them in grey.

    Args:
        root: The folder.
        paths: Relative to it.
        faults: What is wrong with some of them, by path.
        facts: Those of the model.
        problems: Filled with why a picture cannot be used, by position.
    """

    root: Path
    paths: Sequence[str]
    faults: Mapping[str, str]
    facts: Mapping[str, Any]
    problems: dict[int, str]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Tensor) -> Batch:
        """Decodes a batch, in threads: the decoders let go of Python's lock."""
        with ThreadPoolExecutor(cores()) as threads:
            read = zip(index.tolist(), threads.map(self._read, index.tolist()), strict=True)
            pictures = [(position, pixels) for position, pixels in read if pixels is not None]
        channels, *size = self.facts["input_shape"]
        x_BHWC = np.array([pixels for _, pixels in pictures], np.uint8).reshape(-1, *size, channels)
        x_BCHW = torch.from_numpy(x_BHWC).permute(0, 3, 1, 2)
        if "store_size" not in self.facts:  # only stored images are channels last, and convolutions round differently
            x_BCHW = x_BCHW.contiguous()
        positions = torch.tensor([position for position, _ in pictures], dtype=torch.int64)
        return Batch(x_BCHW, torch.zeros(len(pictures)), positions)

    def _read(self, position: int) -> NDArray[np.uint8] | None:
        channels, _, side = self.facts["input_shape"]
        size, path = self.facts.get("store_size", side), self.paths[position]
        try:
            if path in self.faults:
                raise BadPhotoError(self.faults[path])
            if (file := self.root / path).exists() and not file.is_file():  # a pipe would be waited for
                raise BadPhotoError("is no regular file")
            _, square = decode(self.root / path, size)
        except BadPhotoError as error:
            self.problems[position] = str(error)
            return None
        start = (size - side) // 2
        middle = square.crop((start, start, start + side, start + side))
        return np.asarray(middle.convert("L") if channels == 1 else middle)


def read_pictures(path: Path, facts: Mapping[str, Any]) -> Inputs:
    """Lists pictures.

    Args:
        path: A picture, a folder (searched to its end), or a pattern such as `photos/*.jpg`.
        facts: Those of the model; MNIST and its like expect white on black.

    Raises:
        ConfigError: There are none.
    """
    root, faults, problems = Path(), dict[str, str](), dict[int, str]()
    if path.is_file():
        root, paths = path.parent, [path.name]
    elif path.is_dir():
        stamps, faults = find_photos(path)
        root, paths = path, sorted([*stamps, *faults])
    else:
        found = glob.glob(str(path), recursive=True)  # noqa: PTH207 - as in a shell: without hidden files
        paths = sorted(name for name in found if not Path(name).is_dir())
    if not paths:
        raise ConfigError(f"inputs={path}: there are no pictures; an IDX file is given by its own name")
    return Inputs(PictureSplit(root, paths, faults, facts, problems), paths, problems)
