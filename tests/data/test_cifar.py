"""CIFAR: both versions of the files, what is refused, augmentation while training, the set on a device."""

import hashlib
import http.server
import tarfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from torchvision import datasets  # type: ignore[import-untyped]

from src.config import ConfigError
from src.data.base import Batch
from src.data.cifar import CIFAR10DataModule, CIFAR100DataModule
from src.data.images import TensorSplit
from src.data.transforms import RandomCropFlip, crop_and_flip
from tests.conftest import refusal_of
from tests.fakes import CIFAR, Hostile, python2_pickle, write_cifar

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a set whose MD5 sums are then the published ones; returns its root."""

    def write(name: str = "cifar10", root: Path = tmp_path, **options: Any) -> Path:
        for part, files in write_cifar(root, name, **options).items():
            monkeypatch.setattr(CIFAR[name][0], part, files)
        return root

    return write


def cifar(root: Path, kind: type[CIFAR10DataModule] = CIFAR10DataModule, **changes: Any) -> CIFAR10DataModule:
    defaults = {"batch_size": 16, "val_size": 20, "split_seed": 0, "seed": 0}
    return kind(str(root), **{**defaults, **changes})


def loaded(root: Path, kind: type[CIFAR10DataModule] = CIFAR10DataModule, **changes: Any) -> CIFAR10DataModule:
    datamodule = cifar(root, kind, **changes)
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def refusal(root: Path) -> str:
    return refusal_of(loaded, root)


def as_set(images: torch.Tensor, labels: torch.Tensor) -> list[tuple[bytes, int]]:
    return sorted((image.numpy().tobytes(), int(label)) for image, label in zip(images, labels, strict=True))


# --- files


@pytest.mark.parametrize("binary", [False, True], ids=["python", "binary"])
@pytest.mark.parametrize(
    ("name", "kind", "train"), [("cifar10", CIFAR10DataModule, 100), ("cifar100", CIFAR100DataModule, 300)]
)
def test_both_versions_read_as_torchvision_reads(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: Any, train: int, binary: bool
) -> None:
    root = write(name, tmp_path / "read", train=train, test=30, binary=binary)
    write_cifar(tmp_path / "reference", name, train=train, test=30)
    source = CIFAR[name][0]
    monkeypatch.setattr(source, "_check_integrity", lambda self: True)
    monkeypatch.setattr(source, "_load_meta", lambda self: None)
    reference = {is_train: source(tmp_path / "reference", is_train) for is_train in (True, False)}
    with monkeypatch.context() as patch:
        if binary:
            patch.delattr("src.data.cifar.ArrayUnpickler")  # no pickle is touched
        datamodule = loaded(root, kind, val_size=100 if name == "cifar100" else 20)
    images = {part: torch.from_numpy(reference[part].data).permute(0, 3, 1, 2) for part in (True, False)}
    test = datamodule.splits["test"]
    assert torch.equal(test.x_NCHW, images[False])
    assert test.y_N.tolist() == reference[False].targets
    both = [
        torch.cat([getattr(datamodule.splits[part], part_of) for part in ("train", "val")])
        for part_of in ("x_NCHW", "y_N")
    ]
    assert as_set(both[0], both[1]) == as_set(images[True], torch.tensor(reference[True].targets))
    assert datamodule.facts["num_samples"]["test"] == 30


def test_facts(write: Write) -> None:
    datamodule = loaded(write())
    facts = datamodule.facts
    pixels = datamodule.splits["train"].x_NCHW.double() / 255
    assert facts["mean"] == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert facts["std"] == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=1e-12)
    assert (facts["name"], facts["input_shape"], facts["num_classes"]) == ("cifar10", [3, 32, 32], 10)
    assert facts["num_samples"] == {"train": 80, "val": 20, "test": 30}
    assert facts["class_counts"] == {"train": [8] * 10, "val": [2] * 10, "test": [3] * 10}


def test_the_hundred_classes() -> None:
    names = list(CIFAR100DataModule.class_names)
    assert len(set(names)) == 100
    assert names == sorted(names)


def test_missing_files_are_named(write: Write) -> None:
    root = write()
    (root / "cifar-10-batches-py/data_batch_3").unlink()
    (root / "cifar-10-batches-py/test_batch").unlink()
    assert refusal(root) == (
        f"CIFAR10 is not there: {root}/cifar-10-batches-py lacks data_batch_3, test_batch\n"
        f"    needed there, or in {root}/cifar-10-batches-bin as .bin\n"
        f"    to download: python -m src.prepare data=cifar10 data.root={root}"
    )


def test_a_file_with_another_sum_is_not_read(write: Write) -> None:
    root = write()
    path = root / "cifar-10-batches-py/data_batch_2"
    path.write_bytes(path.read_bytes() + b"\0")
    message = refusal(root)
    assert message.startswith(f"{path} is not the published file, or damaged: its MD5 sum is ")
    assert message.endswith(f"to fetch it again: python -m src.prepare data=cifar10 data.root={root}")


def test_a_hostile_pickle_runs_nothing_even_with_the_right_sum(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, marker = write(), tmp_path / "executed"
    path = root / "cifar-10-batches-py/test_batch"
    path.write_bytes(python2_pickle({b"data": Hostile(marker), b"labels": [1]}))
    assert "is not the published file" in refusal(root)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", hashlib.md5(path.read_bytes()).hexdigest()]])
    assert refusal(root) == "refused: a pickle that asks for posix.system; reading it could run code"
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes are no whole number of records of 3073"),
        (bytes(3072), "3072 bytes are no whole number of records of 3073"),
        (bytes([10]) + bytes(3072), "label 10 at position 0 is not one of 0 to 9"),
    ],
)
def test_broken_records_are_refused(write: Write, content: bytes, message: str) -> None:
    root = write(binary=True)
    path = root / "cifar-10-batches-bin/test_batch.bin"
    path.write_bytes(content)
    assert refusal(root) == f"{path}: {message}"


def test_download_fetches_checks_and_unpacks_once(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = write(root=tmp_path / "mirror")
    archive = tmp_path / "mirror/cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(mirror / "cifar-10-batches-py", "cifar-10-batches-py")
    requests: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            requests.append(self.command)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(archive.parent)))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(datasets.CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/{archive.name}")
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ConfigError, match=r"the download of CIFAR10 to .* failed: .*corrupted"):
        cifar(tmp_path / "root").download()  # the archive's own sum is the published one, which this is not
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    cifar(tmp_path / "root").download()
    assert loaded(tmp_path / "root").facts["fingerprint"] == loaded(mirror).facts["fingerprint"]
    before = len(requests)
    cifar(tmp_path / "root").download()
    assert len(requests) == before
    server.shutdown()
    server.server_close()


def test_a_size_that_does_not_suit_the_files_is_no_reason_to_fetch_them(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write()
    monkeypatch.setattr("src.data.cifar.download_and_extract_archive", lambda *_, **__: pytest.fail("fetched"))
    cifar(root, val_size=100).download()
    with pytest.raises(ConfigError, match=r"nothing is left to train on: data\.val_size=100 of 100 samples"):
        loaded(root, val_size=100)


# --- augmentation


def slowly(x: torch.Tensor, padding: int, top: torch.Tensor, left: torch.Tensor, flipped: torch.Tensor) -> torch.Tensor:
    height, width = x.shape[2:]
    out = []
    for image, row, column, mirrored in zip(x, top.tolist(), left.tolist(), flipped.tolist(), strict=True):
        canvas = torch.zeros(x.shape[1], height + 2 * padding, width + 2 * padding, dtype=x.dtype)
        canvas[:, padding : padding + height, padding : padding + width] = image
        crop = canvas[:, row : row + height, column : column + width]
        out.append(crop.flip(2) if mirrored else crop)
    return torch.stack(out)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("shape", "padding"), [((3, 32, 32), 4), ((1, 5, 7), 2), ((2, 6, 4), 0)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crop_and_flip_equal_slicing(
    shape: tuple[int, int, int], padding: int, dtype: torch.dtype, channels_last: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    places = [(t, left, f) for t in range(2 * padding + 1) for left in range(2 * padding + 1) for f in (0, 1)]
    top, left, flipped = torch.tensor(places).unbind(1)  # every place, mirrored or not
    x = torch.randint(256, (len(places), *shape), generator=generator).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    before = x.clone()
    cropped = crop_and_flip(x, padding, top, left, flipped.bool())
    assert cropped.dtype == dtype
    assert torch.equal(cropped, slowly(x, padding, top, left, flipped))
    assert torch.equal(x, before)


def test_every_image_has_draws_of_its_own() -> None:
    torch.manual_seed(0)
    image = torch.arange(9, dtype=torch.uint8).view(1, 1, 3, 3) + 1
    crops = RandomCropFlip(padding=1, flip=True)(image.expand(2000, -1, -1, -1))
    kinds, counts = crops.flatten(1).unique(dim=0, return_counts=True)
    assert len(kinds) == 18  # nine places, mirrored or not
    assert counts.min() > 70  # of 111 expected
    assert len(RandomCropFlip(padding=1, flip=False)(image.expand(500, -1, -1, -1)).flatten(1).unique(dim=0)) == 9
    assert torch.equal(RandomCropFlip(padding=0, flip=False)(image), image)


class Strategy:
    root_device = torch.device("cpu")


class Plugin:
    @staticmethod
    def convert_input(x: torch.Tensor) -> torch.Tensor:
        return x


class Trainer:
    """What a data module asks of a trainer."""

    strategy, precision_plugin = Strategy(), Plugin()
    global_rank, world_size = 0, 1

    def __init__(self, training: bool) -> None:
        self.training = training


def test_training_batches_alone_are_augmented(write: Write) -> None:
    datamodule = loaded(write(), crop_padding=3)
    plain = datamodule.on_after_batch_transfer(datamodule.splits["train"][torch.arange(8)], 0).x
    datamodule.trainer = Trainer(training=False)  # type: ignore[assignment]
    assert torch.equal(datamodule.on_after_batch_transfer(datamodule.splits["train"][torch.arange(8)], 0).x, plain)
    datamodule.trainer = Trainer(training=True)  # type: ignore[assignment]
    torch.manual_seed(1)
    changed = datamodule.on_after_batch_transfer(datamodule.splits["train"][torch.arange(8)], 0).x
    torch.manual_seed(1)
    raw = datamodule.splits["train"].x_NCHW[:8]
    assert torch.equal(changed, datamodule.normalize(RandomCropFlip(3, True)(raw)))
    assert not torch.equal(changed, plain)


# --- on the device


@pytest.mark.parametrize("on_device", [False, True])
def test_on_device_moves_the_splits_of_the_loaders(write: Write, on_device: bool) -> None:
    datamodule = loaded(write(), on_device=on_device)
    fake = Trainer(training=False)
    fake.strategy.root_device = torch.device("meta")  # the only other device that every machine has
    datamodule.trainer = fake  # type: ignore[assignment]
    try:
        loader = datamodule.val_dataloader()
        assert isinstance(loader, DataLoader)
        devices = {tensor.device.type for batch in loader for tensor in (batch.x, batch.y, batch.index)}
    finally:
        fake.strategy.root_device = torch.device("cpu")
    assert devices == {"meta" if on_device else "cpu"}


def test_a_batch_on_a_device_is_not_pinned() -> None:
    split = TensorSplit(torch.zeros(4, 3, 2, 2, dtype=torch.uint8), torch.arange(4))
    split.to(torch.device("meta"))
    batch: Batch = split[torch.arange(2)]
    assert batch.pin_memory() is batch


def test_numbers_of_the_configuration_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.crop_padding=-1: must be a whole number of at least 0"):
        cifar(tmp_path, crop_padding=-1)
