"""Which photos a folder holds, what their labels are and to which part they go."""

import os
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from src.config import ConfigError
from src.data.folder import Listing, list_photos, shared_content, split_photos
from src.data.photos import DogCatDataModule, ImageFolderDataModule
from tests.conftest import refusal_of


def listed(root: Path, kind: type[ImageFolderDataModule] = ImageFolderDataModule) -> Listing:
    name_of = lambda below: kind.name_of(None, below)  # type: ignore[arg-type]  # noqa: E731
    return list_photos(root, kind.layout, name_of, kind.nameless, kind.class_names)


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def seen(listing: Listing) -> list[tuple[str, str, str | None]]:
    names = [listing.class_names[label] if label >= 0 else None for label in listing.labels]
    return list(zip(listing.paths, listing.parts.tolist(), names, strict=True))


# --- image folders


def test_classes_are_folders_and_everything_is_sorted(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.jpg", "b/10.PNG", "a/deep/er/x.jpeg", "B/y.Jpg", "a/notes.txt", "labels.csv")
    listing = listed(tmp_path)
    assert listing.class_names == ["B", "a", "b"]
    assert seen(listing) == [
        ("B/y.Jpg", "", "B"),
        ("a/deep/er/x.jpeg", "", "a"),
        ("b/10.PNG", "", "b"),
        ("b/2.jpg", "", "b"),
    ]
    assert listing.bad == {}
    assert listing.stamps[:, 0].tolist() == [7, 16, 8, 7]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_parts_are_folders_with_folders_of_classes(tmp_path: Path, val: str) -> None:
    touch(tmp_path, "train/a/1.jpg", "train/b/1.jpg", f"{val}/a/2.jpg", "test/b/3.jpg")
    assert sorted(seen(listed(tmp_path))) == sorted(
        [
            ("train/a/1.jpg", "train", "a"),
            ("train/b/1.jpg", "train", "b"),
            (f"{val}/a/2.jpg", "val", "a"),
            ("test/b/3.jpg", "test", "b"),
        ]
    )


def test_a_test_part_without_classes_is_for_prediction(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/2.jpg")
    assert seen(listed(tmp_path))[0] == ("test/2.jpg", "predict", None)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    touch(tmp_path, "train/1.jpg", "car/1.jpg")
    assert seen(listed(tmp_path)) == [("car/1.jpg", "", "car"), ("train/1.jpg", "", "train")]


def test_photos_that_would_be_lost_are_named(tmp_path: Path) -> None:
    touch(tmp_path / "classes", "a/1.jpg", "b/1.jpg", "stray.jpg", "c/1.heic")
    assert listed(tmp_path / "classes").bad == {"stray.jpg": "lies in no folder that names its class"}
    touch(tmp_path / "parts", "train/a/1.jpg", "train/b/1.jpg", "train/stray.jpg", "more/a/1.jpg")
    assert listed(tmp_path / "parts").bad == {
        "train/stray.jpg": "lies in no folder that names its class",
        "more/a/1.jpg": "lies beside train, which holds a part of the data set",
    }


def test_hidden_files_and_the_litter_of_systems_are_ignored(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "b/1.jpg")
    before = seen(listed(tmp_path))
    touch(
        tmp_path,
        "a/._1.jpg",
        "a/Thumbs.db",
        "a/.DS_Store",
        "a/desktop.ini",
        ".cache/x.jpg",
        "__MACOSX/a/._1.jpg",
        "a/.h/1.jpg",
    )
    assert seen(listed(tmp_path)) == before
    assert listed(tmp_path).bad == {}


# --- cats and dogs


def test_flat_layout_of_kaggle(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "train/dog.123.jpg",
        "train/cat.7.jpg",
        "train/CAT.8.JPG",
        "train/Dog.9.jpg",
        "test1/1.jpg",
        "test1/10.jpg",
    )
    assert seen(listed(tmp_path, DogCatDataModule)) == [
        ("test1/1.jpg", "predict", None),
        ("test1/10.jpg", "predict", None),
        ("train/CAT.8.JPG", "train", "cat"),
        ("train/Dog.9.jpg", "train", "dog"),
        ("train/cat.7.jpg", "train", "cat"),
        ("train/dog.123.jpg", "train", "dog"),
    ]
    assert listed(tmp_path, DogCatDataModule).labels.tolist() == [-1, -1, 0, 1, 0, 1]


@pytest.mark.parametrize("names", [("cat", "dog"), ("Cat", "Dog"), ("cats", "dogs")])
@pytest.mark.parametrize("top", ["", "train/"])
def test_class_folders_of_cats_and_dogs(tmp_path: Path, names: tuple[str, str], top: str) -> None:
    touch(tmp_path, f"{top}{names[0]}/dog-like.jpg", f"{top}{names[1]}/0.jpg")
    assert [name for _, _, name in seen(listed(tmp_path, DogCatDataModule))] == ["cat", "dog"]


def test_flat_layout_without_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "cat.1.jpg", "dog_1.jpg", "cats1.jpg")
    assert [name for _, _, name in seen(listed(tmp_path, DogCatDataModule))] == ["cat", "cat", "dog"]


def test_names_that_are_neither(tmp_path: Path) -> None:
    touch(tmp_path, "train/cat.1.jpg", "train/dog.1.jpg", "train/bird.1.jpg", "train/catalogue.jpg", "train/1.jpg")
    assert listed(tmp_path, DogCatDataModule).bad == dict.fromkeys(
        ["train/1.jpg", "train/bird.1.jpg", "train/catalogue.jpg"], "names neither a cat nor a dog"
    )


def test_a_photo_beside_the_parts_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "train/cat.1.jpg", "train/dog.1.jpg", "sample.jpg", "more/cat.2.jpg")
    assert listed(tmp_path, DogCatDataModule).bad == dict.fromkeys(
        ["sample.jpg", "more/cat.2.jpg"], "lies beside train, which holds a part of the data set"
    )


# --- what cannot be listed


def test_links_may_not_lead_out(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "a/1.jpg", "b/1.jpg")
    touch(tmp_path / "away", "x.jpg", "c/2.jpg")
    (root / "a/out.jpg").symlink_to(tmp_path / "away/x.jpg")
    (root / "a/up.jpg").symlink_to("../../away/x.jpg")
    (root / "c").symlink_to(tmp_path / "away/c")
    (root / "a/in.jpg").symlink_to(root / "b/1.jpg")
    (root / "d").symlink_to(root / "b")
    (root / "a/lost.jpg").symlink_to(root / "nothing")
    (root / "a/loop.jpg").symlink_to("loop.jpg")
    listing = listed(root)
    assert listing.paths == ["a/1.jpg", "a/in.jpg", "b/1.jpg"]
    assert listing.bad == {
        "a/out.jpg": "is a link that leads out of the data set",
        "a/up.jpg": "is a link that leads out of the data set",
        "c": "is a link that leads out of the data set",
        "d": "is a link to a folder",
        "a/lost.jpg": "cannot be read: No such file or directory",
        "a/loop.jpg": "cannot be read: Too many levels of symbolic links",
    }


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    touch(tmp_path / "away", "a/1.jpg", "b/1.jpg")
    (tmp_path / "root").symlink_to(tmp_path / "away")
    assert listed(tmp_path / "root").paths == ["a/1.jpg", "b/1.jpg"]


def test_folders_and_pipes_are_no_photos(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "b/1.jpg")
    (tmp_path / "a/x.jpg").mkdir()
    os.mkfifo(tmp_path / "a/y.jpg")
    assert listed(tmp_path).bad == {"a/x.jpg": "is a folder", "a/y.jpg": "is no regular file"}


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a/1.jpg", "b/1.jpg", "c/1.jpg")
    scandir = os.scandir

    def guarded(path: str) -> Any:
        if Path(path) == tmp_path / "c":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)  # root may list everything
    assert listed(tmp_path).bad == {"c": "cannot be listed: Permission denied"}


@pytest.mark.parametrize("kind", [ImageFolderDataModule, DogCatDataModule])
def test_nothing_there(tmp_path: Path, kind: type[ImageFolderDataModule]) -> None:
    with pytest.raises(ConfigError, match=f"data.root: there is no folder {tmp_path}/no\n    expected: .*jpg"):
        listed(tmp_path / "no", kind)
    touch(tmp_path, "readme.txt")
    with pytest.raises(ConfigError, match=f"data.root: there are no photos in {tmp_path}\n    expected: .*jpg"):
        listed(tmp_path, kind)
    with pytest.raises(ConfigError, match=f"there is no folder {tmp_path}/readme.txt"):
        listed(tmp_path / "readme.txt", kind)


# --- parts


def made(labels: list[int], parts: list[str]) -> Listing:
    paths = [f"{number:03}.jpg" for number in range(len(labels))]
    return Listing(
        Path("root"),
        paths,
        np.zeros((len(labels), 2), np.int64),
        np.array(parts, np.str_),
        np.array(labels),
        ["a", "b"],
        {},
    )


def split(
    listing: Listing, digests: list[int] | None = None, bad: tuple[int, ...] = (), **sizes: float
) -> dict[str, list[int]]:
    good = np.ones(len(listing.paths), np.bool_)
    good[list(bad)] = False
    content = np.arange(len(good), dtype=np.uint64) if digests is None else np.array(digests, np.uint64)
    parts = split_photos(listing, good, content, {"val": 0.2, "test": 5, **sizes}, seed=0)
    return {part: positions.tolist() for part, positions in parts.items()}


def test_cut_off_by_share_and_by_number_stratified_and_seeded() -> None:
    listing = made([0, 0, 0, 1] * 10, [""] * 40)
    parts = split(listing)
    assert [len(parts[part]) for part in ("train", "val", "test", "predict")] == [27, 8, 5, 0]
    assert sorted(chain(*parts.values())) == list(range(40))
    assert listing.labels[parts["val"]].tolist().count(1) == 2
    assert split(listing) == parts
    assert parts["val"] == [3, 6, 9, 12, 18, 22, 23, 29]  # the same on every machine


def test_given_parts_stay_and_only_the_others_are_cut() -> None:
    listing = made([0, 1] * 20, ["train"] * 30 + ["test"] * 8 + ["predict"] * 2)
    parts = split(listing)
    assert (parts["test"], parts["predict"]) == (list(range(30, 38)), [38, 39])
    assert (len(parts["train"]), len(parts["val"])) == (24, 6)


def test_bad_photos_are_in_no_part() -> None:
    parts = split(made([0, 1] * 20, [""] * 40), bad=(0, 7))
    assert sorted(chain(*parts.values())) == [n for n in range(40) if n not in (0, 7)]


def test_copies_stay_together() -> None:
    digests = [n // 4 for n in range(40)]
    parts = split(made([n // 4 % 2 for n in range(40)], [""] * 40), digests)
    sides = [{digests[n] for n in parts[part]} for part in ("train", "val", "test")]
    assert sum(len(side) for side in sides) == 10
    assert sorted(chain(*parts.values())) == list(range(40))


def test_only_a_test_part_is_enough_to_evaluate() -> None:
    parts = split(made([0, 1, 0], ["test"] * 3))
    assert parts == {"train": [], "val": [], "test": [0, 1, 2], "predict": []}


def refusal(labels: list[int], parts: list[str], **sizes: float) -> str:
    return refusal_of(split, made(labels, parts), **sizes)


def test_what_cannot_be_split() -> None:
    assert refusal([1] * 9, [""] * 9) == "root: no photo of the training part shows a"
    assert "none of class 'b', which has 1 of 30" in refusal([0] * 29 + [1], [""] * 30)
    assert refusal([0, 0, 0, 1], ["train"] * 3 + ["val"], test=1) == "root: no photo of the training part shows b"
    assert refusal([0, 1], ["train", "val"], test=1) == "root: no photo of the training part shows b"
    assert (
        refusal([0, 1] * 5, [""] * 10, test=9)
        == "nothing is left to train on: data.val_size=0.2 and data.test_size=9 of 10 photos"
    )


@pytest.mark.parametrize("size", [0.01, 3.7, 1.5])
def test_sizes_that_make_no_sense(size: float) -> None:
    assert refusal([0, 1] * 20, [""] * 40, val=size) == (
        f"data.val_size={size}: must be a number of photos, or below 1 a share of the 40 that is one at least"
    )


def test_one_class_only(tmp_path: Path) -> None:
    listing = listed(touch(tmp_path, "a/1.jpg", "a/2.jpg"))
    with pytest.raises(ConfigError, match=r"there must be photos of two classes at least, and there are of a$"):
        split(listing)
    listing = listed(touch(tmp_path, "b/3.jpg"))
    with pytest.raises(ConfigError, match=r"there must be photos of two classes at least, and there are of none$"):
        split(listing, bad=(0, 1, 2))


def test_content_in_two_parts_is_found() -> None:
    parts = {"train": np.array([0, 1, 2]), "val": np.array([3, 4]), "test": np.array([5])}
    digests = np.array([7, 8, 8, 8, 9, 7], np.uint64)
    assert shared_content(parts, digests, "abcdef") == [("a", "f"), ("b", "d")]
