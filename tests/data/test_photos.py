"""Image folders, cats and dogs: from files to batches, facts and runs."""

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from src.config import ConfigError
from src.data.base import Batch
from src.data.decode import decode
from src.data.photo_transforms import center_crop
from src.data.photos import DogCatDataModule, ImageFolderDataModule
from src.data.store import StreamedImages
from tests.data.test_base import Recorder, SaveAt, trainer
from tests.fakes import write_dogcat, write_image_folder, write_photo

pytestmark = pytest.mark.usefixtures("few_warnings")
SETTINGS: dict[str, Any] = {
    "batch_size": 8, "image_size": 16, "store_size": 20, "val_size": 0.2, "test_size": 0.2, "split_seed": 0,
    "on_bad": "error", "sampler": "shuffle", "crop_scale": 0.5, "flip": True, "jitter": 0.2, "cache_dir": None,
    "memory_budget_mb": 100, "disk_budget_mb": 100, "num_workers": 1, "seed": 3,
}  # fmt: skip
SMALL = ["data.image_size=16", "data.store_size=20", "data.batch_size=16", "model=mlp", "trainer.max_epochs=4"]


def loaded(
    root: Path, kind: type[ImageFolderDataModule] = ImageFolderDataModule, **changes: Any
) -> ImageFolderDataModule:
    datamodule = kind(str(root), **{**SETTINGS, **changes})
    datamodule.setup()
    return datamodule


def paths(datamodule: ImageFolderDataModule, split: str) -> list[str]:
    listing = sorted(path.relative_to(datamodule.folder).as_posix() for path in datamodule.folder.rglob("*.*g"))
    return [listing[position] for position in datamodule.splits[split].positions_N.tolist()]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_image_folder(tmp_path / "photos", 20)


# --- facts and batches


def test_samples_are_known_by_their_paths(root: Path) -> None:
    odd = os.fsdecode(b"ant/\xff.jpg")  # a name that is no text
    (root / "ant/1.jpg").rename(root / odd)
    datamodule, names = loaded(root), []
    for split, part in datamodule.splits.items():
        for position, label in enumerate(part.y_N.tolist()):
            names.append(datamodule.describe_sample(split, position)["id"])
            assert names[-1].partition("/")[0] == datamodule.class_names[label]
    expected = {path.relative_to(root).as_posix() for path in root.glob("*/*g")}
    assert len(names) == 60 and set(names) == expected - {odd} | {"ant/\ufffd.jpg"}


def test_facts(root: Path) -> None:
    datamodule = loaded(root)
    facts = dict(datamodule.facts)
    pixels = (
        np.stack([np.asarray(decode(root / path, 20)[1]) for path in paths(datamodule, "train")]).astype(np.float64)
        / 255
    )
    assert facts.pop("mean") == pytest.approx(pixels.mean((0, 1, 2)).tolist(), rel=1e-12)
    assert facts.pop("std") == pytest.approx(pixels.std((0, 1, 2)).tolist(), rel=1e-12)
    assert len(facts.pop("fingerprint")) == 64
    assert facts == {
        "name": "image_folder",
        "task": "classification",
        "input_shape": [3, 16, 16],
        "num_classes": 3,
        "class_names": ["ant", "bee", "cow"],
        "num_samples": {"train": 36, "val": 12, "test": 12},
        "class_counts": {"train": [12] * 3, "val": [4] * 3, "test": [4] * 3},
        "batch_size": 8,
        "split_seed": 0,
        "store_size": 20,
        "num_bad_files": 0,
    }
    json.dumps(datamodule.facts)


def test_the_fingerprint_is_of_the_content(root: Path) -> None:
    before = loaded(root).facts["fingerprint"]
    for path in root.rglob("*.jpg"):
        os.utime(path, ns=(1, 1))
    assert loaded(root).facts["fingerprint"] == before
    assert loaded(root, split_seed=1).facts["fingerprint"] != before
    write_photo(root / "ant/1.jpg", 0, seed=99)
    assert loaded(root).facts["fingerprint"] != before


def test_evaluation_sees_the_middle_normalised(root: Path) -> None:
    datamodule = loaded(root)
    index = torch.tensor([2, 0])
    batch = datamodule.on_after_batch_transfer(datamodule.splits["val"][index], 0)
    names = [paths(datamodule, "val")[position] for position in index]
    pixels = torch.from_numpy(np.stack([np.asarray(decode(root / name, 20)[1]) for name in names])).permute(0, 3, 1, 2)
    assert isinstance(batch.x, torch.Tensor)
    torch.testing.assert_close(batch.x, datamodule.normalize(center_crop(pixels, 16)))
    assert [["ant", "bee", "cow"][label] for label in batch.y] == [name.split("/")[0] for name in names]


class Images(Recorder):
    """Also writes down what it saw while training."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[torch.Tensor] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        assert isinstance(batch.x, torch.Tensor)
        assert batch.x.shape[1:] == (3, 16, 16)
        self.images.append(batch.x.clone())
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    "changes", [{}, {"memory_budget_mb": 0}, {"disk_budget_mb": 0}, {"disk_budget_mb": 0, "num_workers": 0}]
)
@pytest.mark.parametrize(
    ("hook", "batch_idx", "remaining"), [("on_train_batch_end", 1, 2), ("on_train_epoch_end", -1, 0)]
)
def test_stored_and_streamed_runs_are_equal_and_resume_to_the_last_bit(
    root: Path, tmp_path: Path, changes: dict[str, Any], hook: str, batch_idx: int, remaining: int
) -> None:
    stored, whole, resumed = Images(), Images(), Images()
    trainer().fit(stored, datamodule=loaded(root))
    trainer(SaveAt(tmp_path / "saved.ckpt", hook, batch_idx)).fit(whole, datamodule=loaded(root, **changes))
    assert whole.seen == stored.seen
    assert len(whole.images) == 12
    assert all(torch.equal(one, other) for one, other in zip(whole.images, stored.images, strict=True))
    assert not torch.equal(whole.images[0], whole.images[4])
    trainer().fit(resumed, datamodule=loaded(root, **changes), ckpt_path=tmp_path / "saved.ckpt", weights_only=True)
    assert len(resumed.images) == remaining + 4
    assert all(
        torch.equal(one, other) for one, other in zip(resumed.images, whole.images[-remaining - 4 :], strict=True)
    )


def test_only_streamed_sets_have_workers(root: Path) -> None:
    assert loaded(root).train_dataloader().num_workers == 0
    streamed = loaded(root, disk_budget_mb=0, num_workers=2)
    assert isinstance(streamed.splits["val"].images, StreamedImages)
    assert streamed.val_dataloader().num_workers == 2


# --- cats and dogs


@pytest.mark.parametrize("inner", ["", "dogcat"])
def test_kaggle(tmp_path: Path, inner: str) -> None:
    write_dogcat(tmp_path / inner, 20, unlabelled=3)
    datamodule = loaded(tmp_path, DogCatDataModule)
    assert datamodule.facts["class_names"] == ["cat", "dog"]
    assert datamodule.facts["class_counts"] == {"train": [12, 12], "val": [4, 4], "test": [4, 4], "predict": [0, 0]}
    for split in ("train", "val", "test"):
        labels = [int("dog." in path) for path in paths(datamodule, split)]
        assert datamodule.splits[split].y_N.tolist() == labels
    (batch,) = datamodule.predict_dataloader()
    assert batch.index.tolist() == [0, 1, 2]
    assert paths(datamodule, "predict") == ["test1/1.jpg", "test1/2.jpg", "test1/3.jpg"]


def test_without_unlabelled_photos_the_test_part_is_predicted(tmp_path: Path) -> None:
    datamodule = loaded(write_dogcat(tmp_path, 20, unlabelled=0), DogCatDataModule)
    assert sum(len(batch) for batch in datamodule.predict_dataloader()) == 8


# --- imbalance


def test_the_weighted_sampler_draws_every_class_equally_often(root: Path) -> None:
    for number in range(4, 20):
        for path in (root / "ant").glob(f"{number}.*"):
            path.unlink()
    datamodule = loaded(root, sampler="weighted", val_size=11, test_size=0.25, batch_size=10)
    counts = datamodule.facts["class_counts"]["train"]
    assert counts[0] * 4 < counts[1]
    drawn = torch.zeros(3)
    for epoch in range(60):
        loader = datamodule.train_dataloader()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        drawn += torch.bincount(torch.cat([batch.y for batch in loader]), minlength=3)
    assert drawn.sum() == 60 * 20
    assert drawn.min() > 350


# --- content in two parts, bad files


def test_a_leak_in_given_parts_is_reported(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        write_image_folder(tmp_path / part, 12)  # the same photos three times
    with pytest.warns(
        UserWarning, match="the same content lies in two parts, 108 times\n    train/ant/0.png = test/ant/0.png\n"
    ):
        loaded(tmp_path)


def test_copies_do_not_leak_through_our_split(root: Path) -> None:
    for path in list(root.rglob("*.jpg")):
        path.with_name(f"copy-{path.name}").write_bytes(path.read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        datamodule = loaded(root)
    assert sum(datamodule.facts["num_samples"].values()) == 105


def spoil(root: Path) -> dict[str, str]:
    (root / "ant/empty.jpg").touch()
    whole = write_photo(root / "ant/cut.jpg", 0, size=(90, 90))
    whole.write_bytes(whole.read_bytes()[:1000])
    (root / "bee/text.jpg").write_text("not found")
    (root / "bee/folder.jpg").mkdir()
    (root / "cow/out.jpg").symlink_to("/etc/hostname")
    Image.new("1", (12_000, 9_000)).save(root / "cow/bomb.png")
    write_photo(root / "cow/fine.JPG", 2, seed=50)
    (root / "cow/._0.jpg").write_bytes(b"\0")
    (root / "cow/Thumbs.db").write_bytes(b"\0")
    return {
        "ant/cut.jpg": "is broken: ",
        "ant/empty.jpg": "is empty",
        "bee/folder.jpg": "is a folder",
        "bee/text.jpg": "is no image of a known format",
        "cow/bomb.png": "has 12000 x 9000 pixels, more than 100,000,000",
        "cow/out.jpg": "is a link that leads out of the data set",
    }


def test_bad_files_are_an_error_that_names_them(root: Path) -> None:
    expected = spoil(root)
    for number in range(6):
        (root / f"cow/z{number}.jpg").touch()
    with pytest.raises(ConfigError) as caught:
        loaded(root)
    first, *lines = str(caught.value).splitlines()
    assert first == f"{root}: 12 files cannot be used; data.on_bad=skip goes on without"
    assert len(lines) == 11
    for line, (path, reason) in zip(lines, expected.items(), strict=False):
        assert line.startswith(f"    {path} {reason}")
    assert lines[-1] == "    and 2 more"


def test_bad_files_can_be_skipped(
    root: Path, train: Callable[..., Any], run_folders: Callable[[], list[Path]], capsys: Any
) -> None:
    expected = spoil(root)
    train("data=image_folder", f"data.root={root}", "data.on_bad=skip", *SMALL, "trainer.max_epochs=1")
    (run,) = run_folders()
    lines = (run / "bad_files.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split("\t")[0] for line in lines] == list(expected)
    assert all(line.split("\t")[1].startswith(reason) for line, reason in zip(lines, expected.values(), strict=True))
    assert f"bad files, left out: 6, see {run}/bad_files.txt\n" in capsys.readouterr().out
    assert loaded(root, on_bad="skip").facts["num_bad_files"] == 6


def test_a_folder_of_bad_files_alone(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "b/2.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match="2 files cannot be used"):
        loaded(tmp_path)
    with pytest.raises(ConfigError, match="there must be photos of two classes at least, and there are of none"):
        loaded(tmp_path, on_bad="skip")


def test_a_class_that_is_spoilt_altogether(root: Path) -> None:
    for path in (root / "bee").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ConfigError, match="no photo of the training part shows bee"):
        loaded(root, on_bad="skip")


def test_a_store_must_cover_the_crop(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.store_size=20 must not be below data\.image_size=32"):
        loaded(root, image_size=32)


# --- the command line


def test_prepare_builds_the_store(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from src.prepare import main

    main(["data=image_folder", f"data.root={root}", f"data.cache_dir={tmp_path}/my (cache)", "data.store_size=130"])
    assert capsys.readouterr().out == (
        f"image_folder: train 42, val 9, test 9 samples\n3 classes: ant, bee, cow\nready in {root}\n"
    )
    assert len(list((tmp_path / "my (cache)").glob("image_folder-*/stored-130-*/images.u8"))) == 1
    assert not (root / ".cache").exists()


def test_mistakes_are_found_without_torch(root: Path) -> None:
    from src.prepare import main

    with pytest.raises(ConfigError) as caught:
        main(["data=image_folder", "data.on_bad=skp", "data.sampler=wheighted", "data.crop_scale=2", "data.jitter=1"])
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "data.on_bad=skp", "data.sampler=wheighted", "data.crop_scale=2", "data.jitter=1",
    ]  # fmt: skip


def test_trains_and_is_evaluated_on_a_folder_of_test_photos(
    root: Path, tmp_path: Path, train: Callable[..., dict[str, float]], run_folders: Callable[[], list[Path]]
) -> None:
    from src.evaluate import main

    metrics = train("data=image_folder", f"data.root={root}", *SMALL, "model.class_weights=auto")
    assert metrics["test/acc"] == 1.0
    write_image_folder(tmp_path / "held-back/test", 5)
    (run,) = run_folders()
    assert main([f"ckpt={run}", f"data.root={tmp_path}/held-back"])["test/acc"] == 1.0
    assert json.loads((run / "evaluate-test.json").read_text())["metrics"]["test/acc"] == 1.0
