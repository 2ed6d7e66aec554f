"""Predictions of pictures: what goes in, what stands in the rows, and what one bad file does to the others."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import src.engine.prediction
from src import load
from src.config import ConfigError
from src.data.idx import read_idx
from src.evaluate import main as evaluate
from src.modules.classification import ClassificationModule
from src.predict import main
from src.train import main as train
from tests.conftest import QUICK, Command, read_csv
from tests.fakes import write_cifar, write_idx, write_image_folder, write_mnist, write_photo
from tests.forked import run_ranks

SHORT = [*QUICK, "trainer.max_epochs=1", "trainer.limit_train_batches=2"]


def trained(folder: Path, *overrides: str) -> Path:
    torch.set_num_threads(1)
    train([*SHORT, f"runs_dir={folder / 'runs'}", *overrides])
    (run,) = folder.glob("runs/*/*")
    return run


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on MNIST's files, in the folder that holds them."""
    folder = tmp_path_factory.mktemp("digits")
    write_mnist(folder, train=64, test=23)
    return trained(folder, "data=mnist", f"data.root={folder}", "data.val_size=10", "data.batch_size=8", "model=mlp")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a convolutional net on photos of which it sees the middle."""
    folder = tmp_path_factory.mktemp("photos")
    root = write_image_folder(folder / "photos", 10)
    sizes = ["data.image_size=15", "data.store_size=20", "data.batch_size=8"]
    return trained(folder, "data=image_folder", f"data.root={root}", *sizes, "model=resnet20")


def predict(run: Path, inputs: object, *arguments: str) -> list[list[str]]:
    return read_csv(main([f"ckpt={run}", f"inputs={inputs}", f"output={run / 'out.csv'}", *arguments]))


def outputs_of_evaluation(run: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Tensor:
    outputs, loss = [], ClassificationModule.loss

    def record(self: ClassificationModule, output: Tensor, target: Tensor) -> Tensor:
        outputs.append(output)
        return loss(self, output, target)

    monkeypatch.setattr(ClassificationModule, "loss", record)
    evaluate([f"ckpt={run}", *overrides])
    return torch.cat(outputs)


def cells(outputs: Tensor, names: list[str]) -> list[list[str]]:
    return [
        [names[row.argmax()], *(str(float(f"{value:.7g}")) for value in row.softmax(0).tolist()), ""] for row in outputs
    ]


def numbers(row: list[str]) -> list[float]:
    return [float(value or "-1") for value in row[2:-1]]


# --- what goes in


def test_photos_are_seen_as_in_evaluation(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held_back = write_image_folder(tmp_path / "held-back" / "test", 7)
    write_photo(held_back / "ant" / "large.jpg", 0, size=(150, 90))
    outputs = outputs_of_evaluation(photos, monkeypatch, f"data.root={held_back.parent}")
    header, *rows = predict(photos, held_back)
    assert header == ["id", "class", "p(ant)", "p(bee)", "p(cow)", "problem"]
    assert [row[0] for row in rows] == sorted(p.relative_to(held_back).as_posix() for p in held_back.glob("*/*"))
    assert [row[1:] for row in rows] == cells(outputs, ["ant", "bee", "cow"])
    for changes in (
        ["data=cifar10", "data.root=nowhere"],
        ["data.image_size=64", "data.store_size=64"],
    ):  # the checkpoint says how
        assert predict(photos, held_back, "data.batch_size=8", *changes) == [header, *rows]
    (photo,) = predict(photos, held_back / "bee" / "3.jpg")[1:]
    assert photo[0] == "3.jpg"  # a file by itself
    (same,) = (row for row in rows if row[0] == "bee/3.jpg")
    assert photo[1] == same[1] and numbers(photo) == pytest.approx(numbers(same), abs=1e-6)


def test_an_idx_file_its_pictures_and_evaluation_agree(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [str(digit) for digit in range(10)]
    idx = digits.parents[2] / "MNIST/raw/t10k-images-idx3-ubyte"
    expected = cells(outputs_of_evaluation(digits, monkeypatch), names)
    header, *rows = predict(digits, idx)
    assert header == ["id", "class", *(f"p({name})" for name in names), "problem"]
    assert rows == [[str(number), *row] for number, row in enumerate(expected)]
    images = read_idx(idx, ndim=3)
    assert predict(digits, write_idx(tmp_path / "packed", images, gz=True))[1:] == rows
    (tmp_path / "png" / "b").mkdir(parents=True)
    for number, image in enumerate(images):
        picture, folder = Image.fromarray(image), "b" if number > 20 else ""
        (picture.convert("RGB") if number % 2 else picture).save(tmp_path / "png" / folder / f"{number:02}.png")
    (tmp_path / "png" / "notes.txt").write_text("no picture")
    ids = [*(f"{number:02}.png" for number in range(21)), "b/21.png", "b/22.png"]
    assert predict(digits, tmp_path / "png")[1:] == [[name, *row] for name, row in zip(ids, expected, strict=True)]
    monkeypatch.chdir(tmp_path)
    named = [f"png/{name}" for name in ids if "/1" not in f"/{name}"]  # 00 to 09, 20 and those of b
    chosen = [row for name, row in zip(ids, expected, strict=True) if f"png/{name}" in named]
    found = predict(digits, "png/**/[02]*.png")[1:]
    assert [row[:2] for row in found] == [[name, row[0]] for name, row in zip(named, chosen, strict=True)]
    for row, other in zip(found, chosen, strict=True):
        assert numbers(row) == pytest.approx(numbers(["", *other]), abs=1e-6)


def test_cifar_pictures_are_seen_as_in_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, train=60, test=12, binary=True)
    sizes = ["data.val_size=20", "data.batch_size=8", "data.on_device=true"]
    run = trained(tmp_path, "data=cifar10", f"data.root={tmp_path}", *sizes, "model=resnet20")
    records = np.fromfile(tmp_path / "cifar-10-batches-bin/test_batch.bin", np.uint8).reshape(12, -1)
    (tmp_path / "png").mkdir()
    for number, record in enumerate(records):
        Image.fromarray(record[1:].reshape(3, 32, 32).transpose(1, 2, 0)).save(tmp_path / "png" / f"{number:02}.png")
    names = load(run).card["class_names"]
    expected = cells(outputs_of_evaluation(run, monkeypatch), names)
    assert [row[1:] for row in predict(run, tmp_path / "png")[1:]] == expected
    with pytest.raises(ConfigError, match=r"idx: \(2, 32, 32\); the model takes images of \[3, 32, 32\]"):
        predict(run, write_idx(tmp_path / "idx", np.zeros((2, 32, 32), np.uint8)))


def test_inputs_that_are_none(digits: Path, tmp_path: Path) -> None:
    for inputs in (tmp_path, tmp_path / "*.jpg"):
        with pytest.raises(ConfigError, match=r"there are no pictures; an IDX file is given by its own name"):
            predict(digits, inputs)
    with pytest.raises(ConfigError, match=r"t10k-labels-idx1-ubyte is no IDX file of 3-d bytes"):
        predict(digits, digits.parents[2] / "MNIST/raw/t10k-labels-idx1-ubyte")
    with pytest.raises(ConfigError, match=r"idx: \(0, 28, 28\); the model takes images of \[1, 28, 28\]"):
        predict(digits, write_idx(tmp_path / "idx", np.zeros((0, 28, 28), np.uint8)))


# --- bad files


def write_bad(folder: Path) -> dict[str, str]:
    """Writes one file of every bad kind, and returns what is wrong with each."""
    folder.mkdir(exist_ok=True)
    (folder / "b-text.jpg").write_text("not a photo")
    (folder / "d-empty.png").write_bytes(b"")
    cut = write_photo(folder / "f-cut.jpg", 0, size=(90, 80)).read_bytes()
    (folder / "f-cut.jpg").write_bytes(cut[: len(cut) // 2])
    (folder / "h-gone.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "j-out.jpg").symlink_to("/dev/zero")
    os.mkfifo(folder / "l-pipe.jpg")
    return {
        "b-text.jpg": "is no image of a known format",
        "d-empty.png": "is empty",
        "f-cut.jpg": "is broken: ",
        "h-gone.jpg": "cannot be read: No such file or directory",
        "j-out.jpg": "is a link that leads out of the data set",
        "l-pipe.jpg": "is no regular file",
    }


def test_a_bad_file_costs_its_own_row_only(photos: Path, tmp_path: Path, command: Command) -> None:
    good = ["a.jpg", "e,.png", "k\n.png", "z.jpg"]
    for label, name in enumerate(good):
        write_photo(tmp_path / "in" / name, label % 3)
    strange = os.fsdecode(b"in/caf\xe9.jpg")
    os.link(tmp_path / "in" / "a.jpg", tmp_path / strange)
    names = sorted([*good, strange.removeprefix("in/")])
    before = predict(photos, tmp_path / "in")
    assert [row[0] for row in before[1:]] == names and {row[-1] for row in before[1:]} == {""}
    bad = write_bad(tmp_path / "in")
    done = command(
        "src.predict",
        f"ckpt={photos}",
        f"inputs={tmp_path / 'in'}",
        f"output={tmp_path / 'out.csv'}",
        "data.batch_size=1",
    )
    assert done.returncode == 1
    assert done.stdout == f"written: {tmp_path / 'out.csv'} (5 predictions, 6 of 11 inputs cannot be used)\n"
    assert done.stderr == f"error: inputs that cannot be used: 6; the last column of {tmp_path / 'out.csv'} says why\n"
    header, *rows = read_csv(tmp_path / "out.csv")
    assert header == before[0] and [row[0] for row in rows] == sorted([*names, *bad])
    for row in rows:
        if row[0] in bad:
            assert row[1:-1] == [""] * 4 and row[-1].startswith(bad[row[0]]), row
        else:
            (same,) = (other for other in before if other[0] == row[0])
            assert row[1] == same[1] and row[-1] == ""
            assert numbers(row) == pytest.approx(numbers(same), abs=1e-6)


def test_only_bad_files(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = write_bad(tmp_path / "in")
    with pytest.raises(SystemExit) as caught:
        predict(photos, tmp_path / "in")
    assert caught.value.code == 1
    rows = predict(photos, tmp_path / "in", "on_bad=skip")[1:]
    assert [row[0] for row in rows] == sorted(bad)
    assert capsys.readouterr().out.endswith("(0 predictions, 6 of 6 inputs cannot be used)\n")
    (row,) = predict(photos, tmp_path / "in" / "b-text.jpg", "on_bad=skip")[1:]
    assert row == ["b-text.jpg", "", "", "", "", "is no image of a known format"]


# --- the file


def test_batches_are_written_as_they_are_done(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):
        Image.fromarray(np.full((28, 28), number, np.uint8)).save(tmp_path / f"{number:02}.png")
    decoded, waiting, ahead = [], [], []
    decode, write = src.data.inputs.decode, src.engine.prediction.RowWriter._write
    monkeypatch.setattr("src.data.inputs.decode", lambda *arguments: decoded.append(1) or decode(*arguments))

    def watched(self: Any) -> None:
        waiting.append(len(self.rows))
        write(self)
        ahead.append(len(decoded) - self.done)

    monkeypatch.setattr(src.engine.prediction.RowWriter, "_write", watched)
    predict(digits, tmp_path, "data.batch_size=8")
    assert waiting == [0, 8, 8, 8, 8, 8] and max(ahead) <= 8  # the next batch


def test_a_file_appears_when_it_is_complete(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    idx, output = digits.parents[2] / "MNIST/raw/t10k-images-idx3-ubyte", digits / "out.csv"
    output.write_text("of before")
    write, there = src.engine.prediction.RowWriter._write, []

    def full_disk(self: Any) -> None:
        write(self)
        there.append(output.read_text())
        if self.done == 16:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(src.engine.prediction.RowWriter, "_write", full_disk)
    with pytest.raises(ConfigError) as caught:
        predict(digits, idx)
    assert str(caught.value) == f"output={output}: cannot be written: [Errno 28] No space left on device"
    assert there == ["of before"] * 3 and output.read_text() == "of before"
    assert not list(digits.glob(".*.tmp"))


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_write_the_rows_of_one(world_size: int, digits: Path, tmp_path: Path) -> None:
    for number in range(13):
        write_photo(tmp_path / "in" / f"{number}.jpg", number % 3, number)
    write_bad(tmp_path / "in")
    (alone,) = [predict(digits, tmp_path / "in", "on_bad=skip")]
    arguments = [f"ckpt={digits}", f"inputs={tmp_path / 'in'}", f"output={tmp_path / 'out.csv'}"]
    devices = [f"trainer.devices={world_size}", "trainer.strategy=ddp"]
    codes = run_ranks(world_size, lambda rank: lambda: main([*arguments, *devices]), tmp_path)
    prints = [(tmp_path / f"rank-{rank}").read_text() for rank in range(world_size)]
    assert codes == [1] + [0] * (world_size - 1), prints
    assert "13 predictions, 6 of 19 inputs cannot be used" in prints[0] and "written" not in "".join(prints[1:])
    rows = read_csv(tmp_path / "out.csv")
    assert [[*row[:2], row[-1]] for row in rows] == [[*row[:2], row[-1]] for row in alone]
    for row, other in zip(rows[1:], alone[1:], strict=True):
        assert numbers(row) == pytest.approx(numbers(other), abs=1e-6)


# --- load


def test_load(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = write_photo(tmp_path / "cow.png", 2)
    monkeypatch.setenv("RUNS_DIR", str(photos.parents[1]))
    rows = predict(photos, photo)
    for path in (photos, str(photos / "checkpoints/best.ckpt"), "last"):
        model = load(path)
        assert not model.training
        assert model.card["class_names"] == ["ant", "bee", "cow"] and model.card["input_shape"] == [3, 15, 15]
        assert [len(model.card[name]) for name in ("mean", "std")] == [3, 3]
        assert model.card["config"]["data"]["store_size"] == 20
        assert (model.card["metric"], model.card["mode"]) == ("val/acc", "max") and 0 <= model.card["score"] <= 1
        x_BCHW = model.prepare(photo)
        assert x_BCHW.shape == (1, 3, 15, 15) and x_BCHW.dtype == torch.float32
        assert cells(model(x_BCHW).detach(), model.card["class_names"]) == [rows[1][1:]]
    (tmp_path / "bad.jpg").write_text("not a photo")
    with pytest.raises(ConfigError, match=r"bad\.jpg: is no image of a known format"):
        model.prepare(tmp_path)
    with pytest.raises(ConfigError, match="there is no such file"):
        load(tmp_path / "none.ckpt")
    with pytest.raises(AttributeError, match="module 'src' has no attribute 'lode'"):
        src.lode  # noqa: B018


def test_a_pattern_that_finds_a_pipe_and_a_link_to_the_output(photos: Path, tmp_path: Path) -> None:
    write_photo(tmp_path / "a.jpg", 0)
    os.mkfifo(tmp_path / "b.jpg")
    (tmp_path / "c.jpg").symlink_to("/dev/zero")
    (tmp_path / "out.csv").touch()
    (tmp_path / "link.csv").symlink_to(tmp_path / "out.csv")
    main([f"ckpt={photos}", f"inputs={tmp_path}/*.jpg", f"output={tmp_path}/link.csv", "on_bad=skip"])
    assert (tmp_path / "link.csv").is_symlink()
    assert [row[-1] for row in read_csv(tmp_path / "out.csv")[1:]] == ["", "is no regular file", "is no regular file"]
    with pytest.raises(ConfigError, match="output=/dev/stdout: is a folder or a device, not a file"):
        main([f"ckpt={photos}", f"inputs={tmp_path}/a.jpg", "output=/dev/stdout"])


def test_an_evaluation_on_other_data_says_so(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate([f"ckpt={photos}"])
    assert capsys.readouterr().err == ""
    evaluate([f"ckpt={photos}", "data.split_seed=1"])
    assert "other data, or another split of it, than the model was trained with" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="this is image_folder"):
        evaluate([f"ckpt={photos}", "data.store_size=40"])
    root = write_image_folder(tmp_path / "only/test", 4).parent
    with pytest.raises(ConfigError, match="split=val: the data has no samples for it"):
        evaluate([f"ckpt={photos}", f"data.root={root}", "split=val"])
