"""Folders of photos: which files there are, what they show, and which part of the data set each belongs to."""

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from src.config import ConfigError
from src.data.split import Positions, cut_off

SUFFIXES = {
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff",
    ".webp",
}  # fmt: skip
"""Of files that are meant to be photos, whether they can be decoded or not; any other file is left alone."""

PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test", "test1": "test"}
"""What a folder of this name at the top of a data set holds."""


@dataclass(frozen=True)
class Listing:
    """The photos of a folder, sorted by path.

    Attributes:
        root: The folder.
        paths: [N] relative to it, with `/` between names.
        stamps: [N, 2] size in bytes and time of the last change in nanoseconds.
        parts: [N] "train", "val", "test", "predict" (without label), or "" where the folders do not say.
        labels: [N] class of each photo, -1 without one.
        class_names: In the order of the labels.
        bad: What is wrong with other files, by path.
    """

    root: Path
    paths: list[str]
    stamps: NDArray[np.int64]
    parts: NDArray[np.str_]
    labels: NDArray[np.int64]
    class_names: list[str]
    bad: dict[str, str]


def list_photos(
    root: Path,
    layout: str,
    name_of: Callable[[Sequence[str]], str | None],
    nameless: str,
    class_names: Sequence[str] = (),
) -> Listing:
    """Lists a folder whose top level is `train`, `val` and `test` (see `PARTS`), or has no parts.

    A test part without any label is for prediction. Hidden files are left alone.

    Args:
        root: The folder.
        layout: What it should look like.
        name_of: From a file's folders and name, below the folder of its part, to its class; None where it has none.
        nameless: What is wrong with such a file, as the rest of a sentence.
        class_names: The classes, in the order of their labels; else those that are found, sorted.

    Raises:
        ConfigError: If there is no such folder, or there are no photos in it.
    """
    stamps, bad = find_photos(root)
    if not stamps and not bad:
        fault = f"there are no photos in {root}" if root.is_dir() else f"there is no folder {root}"
        raise ConfigError(f"data.root: {fault}\n    expected: {layout}")
    words = {path: path.split("/") for path in sorted(stamps)}
    labelled = {top for top, *below in words.values() if top.lower() in PARTS and name_of(below)}
    photos: dict[str, tuple[str, str | None]] = {}
    for path, (top, *below) in words.items():
        part = PARTS.get(top.lower()) if labelled else ""
        if part is None:
            bad[path] = f"lies beside {sorted(labelled)[0]}, which holds a part of the data set"
            continue
        name = name_of(below if labelled else [top, *below])
        if name is None and (part != "test" or top in labelled):
            bad[path] = nameless
        else:
            photos[path] = (part if name is not None else "predict", name)
    names = list(class_names) or sorted({name for _, name in photos.values() if name is not None})
    label_of = {None: -1} | {name: label for label, name in enumerate(names)}
    return Listing(
        root,
        list(photos),
        np.array([stamps[path] for path in photos], np.int64),
        np.array([part for part, _ in photos.values()], np.str_),
        np.array([label_of[name] for _, name in photos.values()], np.int64),
        names,
        bad,
    )


def find_photos(root: Path) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Walks a folder: size and time of each photo, and what is wrong with what only looks like one, by path."""
    stamps, bad, inside = {}, {}, root.resolve()

    def unlisted(error: OSError) -> None:
        if root.is_dir():
            bad[os.path.relpath(error.filename, root)] = f"cannot be listed: {error.strerror}"

    for folder, subfolders, files in os.walk(root, onerror=unlisted):
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and name != "__MACOSX"]
        for path in [Path(folder, name) for name in (*subfolders, *files)]:
            is_link, is_folder = path.is_symlink(), path.is_dir()
            if path.name.startswith(".") or not (path.suffix.lower() in SUFFIXES or (is_link and is_folder)):
                continue
            name = path.relative_to(root).as_posix()
            try:
                status = path.stat()
            except OSError as error:
                bad[name] = f"cannot be read: {error.strerror}"
                continue
            if is_link and not path.resolve().is_relative_to(inside):
                bad[name] = "is a link that leads out of the data set"
            elif not stat.S_ISREG(status.st_mode):
                bad[name] = f"is {'a link to ' * is_link}{'a folder' if is_folder else 'no regular file'}"
            else:
                stamps[name] = status.st_size, status.st_mtime_ns
    return stamps, bad


def split_photos(
    listing: Listing, good: NDArray[np.bool_], digests: NDArray[np.uint64], sizes: Mapping[str, float], seed: int
) -> dict[str, Positions]:
    """Returns the positions in the listing of the training, validation, test and prediction part.

    Parts that the folders give stay as they are; the others are cut off the training part, stratified. Files of
    the same content stay on one side of the cut, which may make a part a little larger or smaller than asked.

    Args:
        listing: The photos.
        good: [N] whether each can be used.
        digests: [N] checksum of each one's content.
        sizes: Of each part that is cut off if it is not given: a number of photos, or below 1 a share.
        seed: Which photos are cut off.

    Raises:
        ConfigError: If there are fewer than two classes, or one is missing in the training part, or the sizes do not
            suit the photos. Without a training part, as for an evaluation, classes may be missing.
    """
    names, labels = listing.class_names, listing.labels
    if len(names) < 2 or not good.any():
        shown = ", ".join(names) if good.any() else "none"
        raise ConfigError(f"{listing.root}: there must be photos of two classes at least, and there are of {shown}")
    side = np.where(listing.parts == "", "train", listing.parts)
    side[~good] = ""
    pool = np.flatnonzero(side == "train")

    def require_classes() -> None:
        missing = set(names) - {names[label] for label in np.unique(labels[side == "train"])}
        if missing and len(pool):
            raise ConfigError(f"{listing.root}: no photo of the training part shows {' or '.join(sorted(missing))}")

    require_classes()
    if cut := {part: size for part, size in sizes.items() if len(pool) and part not in side}:
        for part, positions in cut_off(labels[pool], cut, seed, names, "photos").items():
            side[pool[positions]] = part
        _, first, same = np.unique(digests[pool], return_index=True, return_inverse=True)
        side[pool] = side[pool[first]][same]
        require_classes()
    return {part: np.flatnonzero(side == part) for part in ("train", *sizes, "predict")}


def shared_content(
    parts: Mapping[str, Positions], digests: NDArray[np.uint64], paths: Sequence[str]
) -> list[tuple[str, str]]:
    """Returns pairs of files in two different parts whose content is the same."""
    pairs = []
    for one, other in combinations(parts.values(), 2):
        _, here, there = np.intersect1d(digests[one], digests[other], return_indices=True)
        pairs += [(paths[a], paths[b]) for a, b in zip(one[here], other[there], strict=True)]
    return sorted(pairs)
