"""Folders of photos: an image folder of any classes, and the cats and dogs of Kaggle."""

import hashlib
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import Dataset

from src.config import ConfigError
from src.data.base import Batch, first_ten
from src.data.folder import list_photos, shared_content, split_photos
from src.data.images import ImageDataModule
from src.data.photo_transforms import center_crop, color_jitter, random_resized_crop
from src.data.split import cross_validation
from src.data.store import Store, StreamedImages, open_store

MB = 1_000_000


class PhotoSplit(Dataset[Batch]):
    """Some photos of a store.

    Args:
        store: All photos.
        positions_N: Which of them, int64.
        y_N: Their labels, int64.
    """

    def __init__(self, store: Store, positions_N: Tensor, y_N: Tensor) -> None:
        self.images, self.positions_N, self.y_N = store.images, positions_N, y_N

    def __len__(self) -> int:
        return len(self.y_N)

    def __getitem__(self, index: Tensor) -> Batch:
        """Gathers a whole batch."""
        positions = self.positions_N.index_select(0, index)
        return Batch(self.images.gather(positions), self.y_N.index_select(0, index), index)


class ImageFolderDataModule(ImageDataModule):
    """Photos in one folder a class, `<root>/<class>/...`, or `<root>/train/<class>/...` with `val` and `test` beside.

    Every file is checked and decoded once, to a store of squares (`src/data/store.py`). Training sees random crops,
    mirrored and with other colours, evaluation the middle. A part without a folder is cut off the training part.

    Args:
        root: The folder.
        image_size: Pixels of a side of what the model sees.
        store_size: Pixels of a side of what is stored, and cropped from.
        val_size: Validation photos, if they are cut off: a number, or below 1 a share.
        test_size: Test photos, likewise.
        on_bad: Whether a file that is no photo is an error, or left out.
        sampler: How training samples are drawn: each once an epoch, or weighted so that each class comes equally often.
        crop_scale: Smallest share of the area that a training crop has.
        flip: Whether half of the training crops are mirrored.
        jitter: How much their brightness, contrast and saturation change, 0 for not at all.
        cache_dir: Where the store goes; None: to `<root>/.cache`.
        memory_budget_mb: A store up to this size is read into memory; a larger one stays on the disk.
        disk_budget_mb: Up to this size there is a store; beyond, the files are decoded each time.
        num_workers: Processes that then decode.
        **rest: See `DataModule`.

    Attributes:
        store: All photos, after `setup`.
        paths: Theirs, relative to `folder`, after `setup`.
    """

    name = "image_folder"
    decisive: Sequence[str] = (*ImageDataModule.decisive, "store_size")
    class_names: Sequence[str] = ()
    layout: ClassVar[str] = "<class>/*.jpg, or train/<class>/*.jpg with val and test beside train"
    nameless: ClassVar[str] = "lies in no folder that names its class"
    folder: Path
    store: Store
    paths: Sequence[str]

    def __init__(
        self,
        root: str,
        image_size: int,
        store_size: int,
        val_size: float,
        test_size: float,
        on_bad: Literal["error", "skip"],
        sampler: Literal["shuffle", "weighted"],
        crop_scale: float,
        flip: bool,
        jitter: float,
        cache_dir: str | None,
        memory_budget_mb: float,
        disk_budget_mb: float,
        num_workers: int,
        **rest: Any,
    ) -> None:
        super().__init__(on_device=False, **rest)
        if store_size < image_size:
            raise ConfigError(f"data.store_size={store_size} must not be below data.image_size={image_size}")
        self.folder = Path(root).expanduser()
        self.image_size, self.store_size = image_size, store_size
        self.sizes = {"val": val_size, "test": test_size}
        self.on_bad, self.sampler, self.workers = on_bad, sampler, num_workers
        self.crop_scale, self.flip, self.jitter, self.cache_dir = crop_scale, flip, jitter, cache_dir
        self.memory_budget, self.disk_budget = int(memory_budget_mb * MB), int(disk_budget_mb * MB)

    def num_workers(self, split: str) -> int:
        """Returns the processes that decode photos of a split: none where they are stored."""
        return self.workers if isinstance(getattr(self.splits[split], "images", None), StreamedImages) else 0

    @property
    def cache(self) -> Path:
        """Where the store is."""
        if self.cache_dir is None:
            return self.folder / ".cache"
        origin = hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()[:8]
        return Path(self.cache_dir).expanduser() / f"{self.name}-{origin}"

    def name_of(self, below: Sequence[str]) -> str | None:
        """Returns the class of a file, from its folders and name below the folder of its part."""
        return below[0] if len(below) > 1 else None

    def load(self) -> dict[str, PhotoSplit]:
        """Lists the folder, opens or builds its store, and splits it.

        Raises:
            ConfigError: If there are bad files that are not to be left out, or no splits can be made of the others.
        """
        listing = list_photos(self.folder, self.layout, self.name_of, self.nameless, type(self).class_names)
        self.class_names, self.paths = listing.class_names, listing.paths
        self.store = open_store(listing, self.store_size, self.cache, self.memory_budget, self.disk_budget)
        faults = {listing.paths[position]: fault for position, fault in self.store.faults.items()}
        self.bad_files = sorted({**listing.bad, **faults}.items())
        if self.bad_files and self.on_bad == "error":
            lines = first_ten([f"{path} {fault}" for path, fault in self.bad_files])
            number = len(self.bad_files)
            raise ConfigError(
                f"{self.folder}: {number} {'files' if number > 1 else 'file'} cannot be used; "
                f"data.on_bad=skip goes on without{lines}"
            )
        good = np.ones(len(listing.paths), np.bool_)
        good[list(self.store.faults)] = False
        digests, seed = self.store.digests, self.split_seed
        parts = split_photos(listing, good, digests, self.sizes, seed)
        parts = cross_validation(parts, self.folds, seed, digests, listing.labels, self.class_names)
        if leaks := shared_content(parts, digests, listing.paths):
            lines = first_ten([f"{one} = {other}" for one, other in leaks])
            rank_zero_warn(f"{self.folder}: the same content lies in two parts, {len(leaks)} times{lines}")
        return {
            part: PhotoSplit(self.store, torch.from_numpy(chosen), torch.from_numpy(listing.labels[chosen]))
            for part, chosen in parts.items()
            if part != "predict" or len(chosen)
        }

    def describe_sample(self, split: str, position: int) -> dict[str, str]:
        """Returns the photo's path, relative to the folder."""
        path = self.paths[self.splits[split].positions_N[position]]
        return {"id": os.fsencode(path).decode(errors="replace")}  # a name need not be text

    def statistics(self) -> tuple[list[float], list[float]]:
        """Returns mean and deviation of each channel of the training photos as they are stored, exactly.

        Without a training part, as for an evaluation only, they are those of all photos.
        """
        moments = self.store.moments
        if len(self.splits["train"]):
            moments = moments[self.splits["train"].positions_N.numpy()]
        count = len(moments) * self.store_size**2
        sums, squares = moments.sum(0).tolist()
        mean = [total / (255 * count) for total in sums]
        std = [
            math.sqrt(count * square - total**2) / (255 * count) for total, square in zip(sums, squares, strict=True)
        ]
        return mean, std

    def input_shape(self) -> list[int]:
        """Returns the shape of what the model sees of a sample."""
        return [3, self.image_size, self.image_size]

    def fingerprint(self) -> str:
        """Returns a checksum of the content of all files, their labels and their parts."""
        digest = hashlib.sha256(str(self.store_size).encode())
        for split, part in self.splits.items():
            digest.update(f"{split}{len(part)}".encode())
            digest.update(self.store.digests[part.positions_N.numpy()].tobytes())
            digest.update(part.y_N.numpy().tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Returns the facts."""
        return super().describe() | {"store_size": self.store_size, "num_bad_files": len(self.bad_files)}

    def sample_weights(self) -> Tensor | None:
        """Returns weights [N] with which every class of the training part comes equally often."""
        if self.sampler == "shuffle":
            return None
        y_N = self.splits["train"].y_N
        return 1 / torch.bincount(y_N).double()[y_N]

    def augment(self, x_BCHW: Tensor) -> Tensor:
        """Crops, mirrors and colours each image of a training batch on its own."""
        x_BCHW = random_resized_crop(x_BCHW, self.image_size, self.crop_scale, self.flip)
        return color_jitter(x_BCHW, self.jitter, self.normalize) if self.jitter else self.normalize(x_BCHW)

    def transform(self, x: Tensor, training: bool) -> Tensor:
        """Outside of training keeps the middle; the rest as of all images."""
        return super().transform(x if training else center_crop(x, self.facts["input_shape"][-1]), training)


class DogCatDataModule(ImageFolderDataModule):
    """Cats (0) and dogs (1), as of Kaggle's competition "Dogs vs. Cats" (2013) or in folders of these names.

    The label stands in the file's name (`cat.7.jpg`) or that of its folder, in upper or lower case. `<root>` or
    `<root>/dogcat` holds the photos, or `train`, `val` and `test`; `test1`, which Kaggle has not labelled, is for
    prediction. Arguments as of an image folder.
    """

    name = "dogcat"
    class_names = ("cat", "dog")
    layout = "train/cat.0.jpg, train/dog.0.jpg ... as of https://www.kaggle.com/c/dogs-vs-cats, or folders cat and dog"
    nameless = "names neither a cat nor a dog"

    def __init__(self, root: str, **rest: Any) -> None:
        super().__init__(root, **rest)
        if (self.folder / self.name).is_dir():
            self.folder /= self.name

    def name_of(self, below: Sequence[str]) -> str | None:
        """Returns the class that a folder, or else the file names."""
        match = re.match(r"(cat|dog)s?(?![a-z])", below[0], re.IGNORECASE)
        return match[1].lower() if match else None
