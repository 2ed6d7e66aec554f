"""Seeded splits: by class, by group, and folds, which heed both."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.config import ConfigError

Positions = NDArray[np.int64]


def stratified_split(
    labels: NDArray[np.int64], sizes: Sequence[int], seed: int, class_names: Sequence[str]
) -> list[NDArray[np.int64]]:
    """Cuts a labelled data set into disjoint parts, each with the same share of every class.

    Shares are rounded by the largest remainder, so that every part has exactly the size asked for.

    Args:
        labels: [N] class of each sample, 0 to len(class_names) - 1.
        sizes: Number of samples of each part; together at most N, what is left belongs to no part.
        seed: Which samples of a class go where.
        class_names: For the messages; their number is the number of classes.

    Returns:
        For each part its positions in `labels`, ascending.

    Raises:
        ConfigError: If there are not enough samples, or a class has too few for every part to get one.
    """
    if sum(sizes) > len(labels):
        raise ConfigError(f"parts of {' + '.join(map(str, sizes))} samples cannot be cut from {len(labels)}")
    rng = np.random.default_rng(seed)
    remaining = [rng.permutation(np.flatnonzero(labels == label)) for label in range(len(class_names))]
    parts = []
    for size in sizes:
        shares = _largest_remainder(np.array([len(positions) for positions in remaining]), size)
        if size and not shares.all():
            label = int(shares.argmin())
            raise ConfigError(
                f"a part of {size} samples gets none of class {class_names[label]!r}, which has "
                f"{np.count_nonzero(labels == label)} of {len(labels)}: choose other sizes, or add samples"
            )
        parts.append(np.sort(np.concatenate([r[:n] for r, n in zip(remaining, shares, strict=True)])))
        remaining = [r[n:] for r, n in zip(remaining, shares, strict=True)]
    return parts


def part_sizes(sizes: Mapping[str, float], total: int, what: str) -> list[int]:
    """Returns how many samples the parts get that are to be cut off.

    Args:
        sizes: Of each part: a number of samples, or below 1 a share.
        total: How many there are.
        what: The samples are, for the message.

    Raises:
        ConfigError: A size is neither, or a share of less than one.
    """
    counts = [round(size * total) if size < 1 else int(size) for size in sizes.values()]
    for (part, size), count in zip(sizes.items(), counts, strict=True):
        if count < 1 or (size > 1 and size != count):
            number = f"a number of {what}, or below 1 a share of the {total} that is one at least"
            raise ConfigError(f"data.{part}_size={size}: must be {number}")
    return counts


def cut_off(
    labels: Positions, sizes: Mapping[str, float], seed: int, class_names: Sequence[str], what: str
) -> dict[str, Positions]:
    """Cuts parts off labelled samples, stratified; "train" is what is left.

    Args:
        labels: [N] class of each sample.
        sizes: Of each part: a number of samples, or below 1 a share.
        seed: Which samples go where.
        class_names: See `stratified_split`.
        what: The samples are, for the message.

    Raises:
        ConfigError: If a size makes no sense, nothing is left, or a class has too few samples for every part.
    """
    counts = part_sizes(sizes, len(labels), what)
    left = len(labels) - sum(counts)
    if left < 1:
        asked = " and ".join(f"data.{part}_size={size}" for part, size in sizes.items())
        raise ConfigError(f"nothing is left to train on: {asked} of {len(labels)} {what}")
    parts = stratified_split(labels, [left, *counts], seed, class_names)
    return dict(zip(("train", *sizes), parts, strict=True))


def group_split(groups: Sequence[str] | NDArray[np.str_], sizes: Sequence[int], seed: int) -> list[NDArray[np.int64]]:
    """Cuts parts off a data set so that no group is in two of them.

    The groups come in random order; each goes to the first part that has room for all of it. A part stays smaller than
    asked for if no group fits any more.

    Args:
        groups: [N] group of each sample.
        sizes: Number of samples of each part.
        seed: Which groups go where.

    Returns:
        The positions of the samples in no part, then those in each part, ascending.
    """
    _, first, group_N, counts = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    part_of, room = np.zeros(len(counts), np.int64), list(sizes)
    for group in np.random.default_rng(seed).permutation(first.argsort()):  # by first appearance: names decide nothing
        part = next((part for part, left in enumerate(room, 1) if counts[group] <= left), 0)
        part_of[group] = part
        if part:
            room[part - 1] -= counts[group]
    return [np.flatnonzero(part_of[group_N] == part) for part in range(len(sizes) + 1)]


def cross_validation(
    parts: Mapping[str, Positions], folds: Mapping[str, int], seed: int, groups: NDArray[Any],
    labels: Positions | None = None, class_names: Sequence[str] = ("",),
) -> dict[str, Positions]:  # fmt: skip
    """Cuts the training and validation part together into folds; one of them becomes the validation part.

    Groups are dealt out in random order, large ones first: each to the fold with the fewest samples of its class, among
    equals to the smallest. So no group is in two folds, and the classes are spread evenly.

    Args:
        parts: Positions of the samples in "train", "val" and others, which stay.
        folds: `num_folds`, and `fold`, the one to validate on; if empty, the parts stay as they are.
        seed: Which groups go where.
        groups: [N] group of each sample of the data set; those of one have the same label.
        labels: [N] class of each sample; None: all are alike.
        class_names: For the message.

    Returns:
        All parts, ascending.

    Raises:
        ConfigError: A class has fewer groups than there are folds.
    """
    if not folds or not len(parts["train"]):  # there is nothing to train on where a model is only evaluated
        return dict(parts)
    pool, num_folds = np.sort(np.concatenate([parts["train"], parts["val"]])), folds["num_folds"]
    _, first, group_N, sizes = np.unique(groups[pool], return_index=True, return_inverse=True, return_counts=True)
    label_G = np.zeros_like(first) if labels is None else labels[pool][first]
    for name, count in zip(class_names, np.bincount(label_G, minlength=len(class_names)), strict=True):
        if count < num_folds:
            whose = f" of class {name!r}" if name else ""
            raise ConfigError(f"data.num_folds={num_folds}: too many for {count} different samples{whose}")
    order = np.random.default_rng(seed).permutation(first.argsort())  # by first appearance: names decide nothing
    order = order[np.argsort(-sizes[order], kind="stable")]
    fold_G, totals, of_class = np.zeros_like(first), [0] * num_folds, [[0] * num_folds for _ in class_names]
    for group, size, label in zip(order.tolist(), sizes[order].tolist(), label_G[order].tolist(), strict=True):
        fold_G[group] = fold = min(zip(of_class[label], totals, range(num_folds), strict=True))[2]
        totals[fold] += size
        of_class[label][fold] += size
    fold_N = fold_G[group_N]
    return {**parts, "train": pool[fold_N != folds["fold"]], "val": pool[fold_N == folds["fold"]]}


def _largest_remainder(counts: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Distributes `size` over classes in proportion to their counts, in integers (so: the same on every machine)."""
    shares, remainders = np.divmod(counts * size, max(counts.sum(), 1))
    largest = np.argsort(-remainders, kind="stable")[: size - shares.sum()]
    shares[largest] += 1
    return shares
