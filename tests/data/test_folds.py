"""Cross-validation: folds that are disjoint, whole, spread over the classes, and never touch the test part."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from src.config import ConfigError, build, compose
from src.data.base import DataModule
from src.data.split import cross_validation
from tests.fake_crystals import crystals, write_cgcnn_folder
from tests.fakes import CIFAR, write_cifar, write_image_folder, write_mnist, write_photo

Load = Callable[..., DataModule]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """The data module of overrides, with its data."""
    write_mnist(tmp_path, train=200, test=30)
    for part, files in write_cifar(tmp_path, train=100, test=20).items():
        monkeypatch.setattr(CIFAR["cifar10"][0], part, files)
    photos = write_image_folder(tmp_path / "photos", 20)
    for number in range(4):  # copies
        write_photo(photos / "ant" / f"again{number}.jpg", 0, 1)
    write_cgcnn_folder(tmp_path / "crystals", crystals(24))

    def loader(*overrides: str) -> DataModule:
        cfg = compose([f"data.root={tmp_path}", "data.batch_size=8", *overrides]).cfg
        datamodule = build(cfg["data"], DataModule, seed=cfg["seed"])
        datamodule.setup()
        return datamodule

    return loader


def samples(split: Any) -> list[str]:
    """Something that tells the samples of a part from one another, sorted."""
    if hasattr(split, "positions_N"):
        return sorted(map(str, split.positions_N.tolist()))
    if hasattr(split, "names"):
        return sorted(split.names)
    return sorted(str(hash(x.numpy().tobytes())) for x in split.x_NCHW)


SETS = {
    "mnist": ["data=mnist", "data.val_size=20"],
    "cifar10": ["data=cifar10", "data.val_size=20"],
    "photos": ["data=image_folder", "data.root=ROOT/photos", "data.image_size=8", "data.store_size=8"],
    "crystals": ["experiment=emt_cgcnn", "data=crystals", "data.root=ROOT/crystals"],
    "crystals by formula": [
        "experiment=emt_cgcnn", "data=crystals", "data.root=ROOT/crystals", "data.split=composition",
    ],
    "alloys": ["experiment=emt_cgcnn", "data.num_structures=60"],
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_folds_partition_train_and_val_and_leave_the_test_part(name: str, load: Load, tmp_path: Path) -> None:
    words = [word.replace("ROOT", str(tmp_path)) for word in SETS[name]]
    whole = load(*words)
    plain = whole.splits
    pool = sorted([*samples(plain["train"]), *samples(plain["val"])])
    held_out: list[str] = []
    for fold in range(3):
        datamodule = load(*words, "data.num_folds=3", f"data.fold={fold}")
        splits = datamodule.splits
        assert samples(splits["test"]) == samples(plain["test"])
        assert sorted([*samples(splits["train"]), *samples(splits["val"])]) == pool
        assert (datamodule.facts["num_folds"], datamodule.facts["fold"]) == (3, fold)
        held_out += samples(splits["val"])
        if "crystal" not in name and name != "alloys":
            counts = np.bincount(splits["val"].y_N) * 3 - np.bincount(
                torch.cat([plain[p].y_N for p in ("train", "val")])
            )
            assert np.abs(counts).max() < 3 * (5 if name == "photos" else 1)  # five copies stay together
    assert sorted(held_out) == pool
    assert held_out[-len(splits["val"]) :] == samples(load(*words, "data.num_folds=3", "data.fold=2").splits["val"])
    assert not whole.folds and "fold" not in whole.facts


def test_copies_of_a_photo_are_in_one_fold(load: Load, tmp_path: Path) -> None:
    for fold in range(3):
        words = [word.replace("ROOT", str(tmp_path)) for word in SETS["photos"]]
        photos = load(*words, "data.num_folds=3", f"data.fold={fold}")
        digests = {part: photos.store.digests[split.positions_N] for part, split in photos.splits.items()}  # type: ignore[attr-defined]
        assert not np.intersect1d(digests["train"], digests["val"]).size


def folds(labels: list[int], groups: list[int], num_folds: int, seed: int = 0) -> list[list[int]]:
    parts = {"train": np.arange(1, len(labels)), "val": np.array([0]), "test": np.array([99])}
    names = [f"class {label}" for label in range(max(labels) + 1)]
    found = [
        cross_validation(
            parts, {"num_folds": num_folds, "fold": fold}, seed, np.array(groups), np.array(labels), names
        )["val"].tolist()
        for fold in range(num_folds)
    ]
    return found


def test_groups_stay_whole_sizes_are_even_and_the_seed_decides() -> None:
    labels, groups = [0] * 12 + [1] * 9, [0, 0, 0, 0, *range(1, 9), 20, 20, 20, *range(21, 27)]
    found = folds(labels, groups, 3)
    assert [len(fold) for fold in found] == [7, 7, 7]
    assert sorted(sample for fold in found for sample in fold) == list(range(21))
    for group in (0, 20):
        assert sum(any(groups[i] == group for i in fold) for fold in found) == 1
    assert [sum(labels[i] for i in fold) for fold in found] == [3, 3, 3]
    assert folds(labels, groups, 3) == found != folds(labels, groups, 3, seed=1)


def test_a_class_with_fewer_groups_than_folds() -> None:
    with pytest.raises(ConfigError) as caught:
        folds([0, 0, 0, 1, 1, 1], [0, 1, 2, 3, 3, 4], 3)
    assert str(caught.value) == "data.num_folds=3: too many for 2 different samples of class 'class 1'"
    parts = {"train": np.arange(2), "val": np.arange(2, 3), "test": np.arange(3, 4)}
    with pytest.raises(ConfigError, match=r"data.num_folds=4: too many for 3 different samples$"):
        cross_validation(parts, {"num_folds": 4, "fold": 0}, 0, np.arange(4))


def test_where_there_is_nothing_to_train_on_the_parts_stay() -> None:
    parts = {"train": np.arange(0), "val": np.arange(4), "test": np.arange(4, 6)}
    assert cross_validation(parts, {"num_folds": 2, "fold": 0}, 0, np.arange(6)) == parts


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.num_folds=1"], "data.num_folds=1: must be at least 2, not 1"),
        (["data.num_folds=5", "data.fold=-1"], "data.fold=-1: must be 0 or more, not -1"),
        (["data.num_folds=5", "data.fold=5"], "data.fold=5: the folds are 0 to 4"),
        (["data.fold=1"], "data.fold=1: there are none, as data.num_folds=null"),
        (["data.num_folds=2.5"], "data.num_folds=2.5: expected int or null, got 2.5"),
    ],
)
def test_mistakes(words: list[str], message: str, load: Load) -> None:
    with pytest.raises(ConfigError) as caught:
        load("data=mnist", "data.val_size=20", *words)
    assert str(caught.value) == message
