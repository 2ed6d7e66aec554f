"""The store: every photo of a folder checked and decoded once, into one file of uint8 squares."""

import contextlib
import errno
import hashlib
import os
import shutil
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from src.config import ConfigError
from src.data.base import cores
from src.data.decode import BadPhotoError, decode
from src.data.folder import Listing

CHUNK = 32  # photos that a thread takes at a time
IMAGES, INDEX = "images.u8", "index.npz"


class StoredImages:
    """A file of uint8 images [N, S, S, 3]: read whole, or image by image where it is larger than the budget.

    A larger one is not mapped: mapped pages count as the process's memory, since Linux 6.18 up to 2 MB at a touch, and
    an error of the disk would kill the process. The system's cache keeps what has been read either way.

    Args:
        path: The file.
        size: S.
        budget: Bytes of memory.
    """

    def __init__(self, path: Path, size: int, budget: int) -> None:
        self.shape = (size, size, 3)
        self.x_NHWC: Tensor | None = None
        if path.stat().st_size <= budget:
            # numpy.fromfile asks for huge pages, which Linux at times takes a tenth of a second to find for 50 MB.
            x_P = torch.empty(path.stat().st_size, dtype=torch.uint8)
            with open(path, "rb") as file:
                count = file.readinto(x_P.numpy().data)
            assert count == len(x_P)
            self.x_NHWC = x_P.view(-1, *self.shape)
        else:
            self.file = open(path, "rb", buffering=0)  # noqa: SIM115 - open as long as this object lives

    def gather(self, positions_B: Tensor) -> Tensor:
        """Returns the images [B, 3, S, S] at these positions, channels last in memory."""
        if self.x_NHWC is not None:
            return self.x_NHWC.index_select(0, positions_B).permute(0, 3, 1, 2)
        x_BHWC = np.empty((len(positions_B), *self.shape), np.uint8)
        for x_HWC, position in zip(x_BHWC, positions_B.tolist(), strict=True):
            count = os.preadv(self.file.fileno(), [x_HWC.data], position * x_HWC.nbytes)
            assert count == x_HWC.nbytes
        return torch.from_numpy(x_BHWC).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class StreamedImages:
    """Images decoded from their files each time, to the same bits as those of a store.

    Args:
        root: The data set's folder.
        paths: Relative to it.
        size: S.
    """

    root: Path
    paths: Sequence[str]
    size: int

    def gather(self, positions_B: Tensor) -> Tensor:
        """Returns the images [B, 3, S, S] at these positions, channels last in memory.

        Raises:
            ConfigError: If a file is a photo no more.
        """
        x_BHWC = np.empty((len(positions_B), self.size, self.size, 3), np.uint8)
        for x_HWC, position in zip(x_BHWC, positions_B.tolist(), strict=True):
            try:
                x_HWC[:] = np.asarray(decode(self.root / self.paths[position], self.size)[1])
            except BadPhotoError as error:
                raise ConfigError(f"{self.root / self.paths[position]} {error}") from error
        return torch.from_numpy(x_BHWC).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Store:
    """What one pass over all photos has found.

    Attributes:
        images: Their pixels.
        digests: [N] checksum of each file's content.
        moments: [N, 2, 3] sum of each channel's values, and of their squares.
        faults: What is wrong, by position.
    """

    images: StoredImages | StreamedImages
    digests: NDArray[np.uint64]
    moments: NDArray[np.int64]
    faults: dict[int, str]


def open_store(listing: Listing, size: int, cache: Path, memory: int, disk: int) -> Store:
    """Opens the store of just these files; builds it first where there is none.

    One process builds while others wait. A store gets its name when it is complete; those of files that have changed
    are removed.

    Args:
        listing: The photos.
        size: Pixels of a side.
        cache: Folder of the stores.
        memory: Bytes up to which the images are read into memory.
        disk: Bytes up to which they are stored; beyond, the files are only checked, and decoded each time.

    Raises:
        ConfigError: If the store cannot be written.
    """
    needed = len(listing.paths) * size * size * 3
    kept = needed if needed <= disk else 0
    kind = f"stored-{size}" if needed <= disk else f"checked-{size}"
    folder = cache / f"{kind}-{_key(listing)}"
    if not _is_valid(folder, listing, size, kept):
        partial = cache / f"{kind}.partial"
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with FileLock(cache / f"{kind}.lock"):
                if not _is_valid(folder, listing, size, kept):  # it may be by now
                    for old in (*cache.glob(f"{kind}-*"), partial):
                        shutil.rmtree(old, ignore_errors=True)
                    try:
                        _build(listing, size, partial, kept)
                        partial.rename(folder)
                    finally:
                        shutil.rmtree(partial, ignore_errors=True)
        except OSError as error:
            raise ConfigError(
                f"the decoded photos cannot be stored in {cache}: {error.strerror}\n"
                "    data.cache_dir=FOLDER stores them elsewhere"
            ) from error
    images: StoredImages | StreamedImages = StreamedImages(listing.root, listing.paths, size)
    if needed <= disk:
        images = StoredImages(folder / IMAGES, size, memory)
    return Store(images, **_read_index(folder))


def _key(listing: Listing) -> str:
    """What the content of a store depends on, besides the size."""
    digest = hashlib.sha256(f"{PIL.__version__}\n".encode())
    digest.update(os.fsencode("\0".join(listing.paths)))
    digest.update(listing.stamps.tobytes())
    return digest.hexdigest()[:16]


def _read_index(folder: Path) -> dict[str, Any]:
    with np.load(folder / INDEX) as index:
        faults = dict(zip(index["bad"].tolist(), index["faults"].tolist(), strict=True))
        return {"digests": index["digests"], "moments": index["moments"], "faults": faults}


def _is_valid(folder: Path, listing: Listing, size: int, kept: int) -> bool:
    """Whether there is a whole store, and what it calls bad still is: new permissions leave a file's times alone."""
    try:
        faults = _read_index(folder)["faults"]
        if (folder / IMAGES).stat().st_size != kept:
            return False
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):  # there is none, or it is damaged
        return False
    for position in faults:
        with contextlib.suppress(BadPhotoError):
            decode(listing.root / listing.paths[position], size)
            return False
    return True


def _build(listing: Listing, size: int, folder: Path, needed: int) -> None:
    """Checks every file, decoding in threads (the decoders let go of Python's lock); keeps the pixels if asked to."""
    folder.mkdir()
    if needed > (free := shutil.disk_usage(folder).free):
        raise OSError(errno.ENOSPC, f"{needed / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} are free")
    digests = np.zeros(len(listing.paths), np.uint64)
    moments = np.zeros((len(listing.paths), 2, 3), np.int64)
    faults: dict[int, str] = {}
    powers = np.stack([np.arange(256) ** power for power in (1, 2)])

    def read(positions: range) -> int:
        for position in positions:
            try:
                digests[position], image = decode(listing.root / listing.paths[position], size)
            except BadPhotoError as error:
                faults[position] = str(error)
                continue
            moments[position] = powers @ np.array(image.histogram()).reshape(3, 256).T
            pixels = image.tobytes() if needed else b""
            if os.pwrite(file.fileno(), pixels, position * size * size * 3) != len(pixels):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(positions)

    with open(folder / IMAGES, "wb") as file:
        file.truncate(needed)
        chunks = [range(start, min(start + CHUNK, len(digests))) for start in range(0, len(digests), CHUNK)]
        threads = ThreadPoolExecutor(cores())
        try:
            with tqdm(total=len(digests), desc="decoding photos", disable=None, mininterval=0.5) as bar:
                for done in threads.map(read, chunks):
                    bar.update(done)
        finally:
            threads.shutdown(cancel_futures=True)
        os.fsync(file.fileno())
    with open(folder / INDEX, "wb") as file:
        bad = sorted(faults)
        reasons = np.array([faults[position] for position in bad], np.str_)
        np.savez(file, digests=digests, moments=moments, bad=np.array(bad, np.int64), faults=reasons)
        os.fsync(file.fileno())
