"""The MNIST family: reading, splitting, downloading, and what is said when files are missing or broken."""

import gzip
import hashlib
import http.server
import os
import random
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import datasets  # type: ignore[import-untyped]

from src.config import ConfigError
from src.data.mnist import FILES, FashionMNISTDataModule, MNISTDataModule, MNISTSubsetDataModule
from tests.conftest import refusal_of
from tests.fakes import write_idx, write_mnist


def mnist(root: Path, **changes: Any) -> MNISTDataModule:
    defaults = {"batch_size": 16, "val_size": 14, "split_seed": 0, "seed": 0}
    return MNISTDataModule(str(root), **{**defaults, **changes})


def loaded(root: Path, **changes: Any) -> MNISTDataModule:
    datamodule = mnist(root, **changes)
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def refusal(root: Path, **changes: Any) -> str:
    return refusal_of(loaded, root, **changes)


# --- the data sets


def test_subset_is_stratified_and_the_same_on_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    datamodule = MNISTSubsetDataModule(batch_size=64, val_size=750, test_size=750, split_seed=0, seed=0)
    datamodule.setup()
    facts = datamodule.facts
    assert facts.pop("mean") == pytest.approx([0.1315229091636655], abs=1e-12)
    assert facts.pop("std") == pytest.approx([0.3087737143953126], abs=1e-12)
    assert facts == {
        "name": "mnist_subset",
        "task": "classification",
        "input_shape": [1, 28, 28],
        "num_classes": 10,
        "class_names": list("0123456789"),
        "num_samples": {"train": 3500, "val": 750, "test": 750},
        "class_counts": {"train": [350] * 10, "val": [75] * 10, "test": [75] * 10},
        "batch_size": 64,
        "split_seed": 0,
        "fingerprint": "19c54153d1e2976c0ec80921e970a563c0755a62b40db732aa8e0ce70d0f487f",
    }


@pytest.mark.parametrize("gz", [False, True], ids=["unpacked", "gz"])
def test_reads_torchvision_layout(tmp_path: Path, gz: bool) -> None:
    write_mnist(tmp_path, train=64, test=32)
    expected = {train: datasets.MNIST(tmp_path, train) for train in (True, False)}
    root = tmp_path / "read"
    write_mnist(root, train=64, test=32, gz=gz)
    splits = loaded(root).splits
    torch.testing.assert_close(splits["test"].x_NCHW, expected[False].data.unsqueeze(1))
    torch.testing.assert_close(splits["test"].y_N, expected[False].targets)
    both = torch.cat([splits["train"].x_NCHW, splits["val"].x_NCHW])
    assert sorted(image.numpy().tobytes() for image in both) == sorted(
        image.numpy().tobytes() for image in expected[True].data
    )
    assert [len(splits[part]) for part in ("train", "val", "test")] == [50, 14, 32]


def test_labels_stay_with_their_images(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    for split in loaded(tmp_path).splits.values():
        for image, label in zip(split.x_NCHW[:, 0], split.y_N.tolist(), strict=True):
            row, column = 7 * (label // 4), 7 * (label % 4)
            assert image[row : row + 7, column : column + 7].min() >= 150


def test_unpacked_files_win_over_packed_ones(tmp_path: Path) -> None:
    write_mnist(tmp_path, gz=True, seed=1)
    write_mnist(tmp_path, seed=2)
    write_mnist(tmp_path / "only", seed=2)
    assert loaded(tmp_path).facts["fingerprint"] == loaded(tmp_path / "only").facts["fingerprint"]


def test_fashion_mnist_has_its_own_folder_and_classes(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path, "FashionMNIST")
    datamodule = FashionMNISTDataModule(str(tmp_path), batch_size=16, val_size=14, split_seed=0, seed=0)
    datamodule.setup()
    assert datamodule.folder == folder
    assert datamodule.facts["name"] == "fashion_mnist"
    assert datamodule.facts["class_names"] == datasets.FashionMNIST.classes


def test_split_seed_alone_decides_the_split(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    first = loaded(tmp_path).facts["fingerprint"]
    assert loaded(tmp_path, seed=5, batch_size=8).facts["fingerprint"] == first
    assert loaded(tmp_path, split_seed=1).facts["fingerprint"] != first


def test_the_test_images_do_not_depend_on_the_split(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    first, second = loaded(tmp_path), loaded(tmp_path, split_seed=1, val_size=20)
    assert torch.equal(first.splits["test"].x_NCHW, second.splits["test"].x_NCHW)


# --- wrong values


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("batch_size", 0, "data.batch_size=0: must be a whole number of at least 1"),
        ("batch_size", 2.5, "data.batch_size=2.5: must be a whole number of at least 1"),
        ("batch_size", True, "data.batch_size=True: must be a whole number of at least 1"),
        ("val_size", -3, "data.val_size=-3: must be a whole number of at least 1"),
        ("split_seed", -1, "data.split_seed=-1: must be a whole number of at least 0"),
        ("val_size", 64, "nothing is left to train on: data.val_size=64 of 64 samples"),
        ("val_size", 5, "a part of 5 samples gets none of class '4', which has 6 of 64: choose other sizes, or"),
    ],
)
def test_wrong_values_are_refused(tmp_path: Path, key: str, value: Any, message: str) -> None:
    write_mnist(tmp_path)
    assert refusal(tmp_path, **{key: value}).startswith(message)


def test_batch_larger_than_the_training_part_is_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    with pytest.raises(ConfigError, match="larger than the training part of 50 samples"):
        loaded(tmp_path, batch_size=51).batches_per_epoch(world_size=1)


# --- missing files


def way_out(root: Path) -> str:
    return (
        f"\n    needed in {root}/MNIST/raw, each unpacked or as .gz: train-images-idx3-ubyte, train-labels-idx1-ubyte, "
        "t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte"
        f"\n    to download: python -m src.prepare data=mnist data.root={root}"
    )


def test_missing_root_is_named(tmp_path: Path) -> None:
    root = tmp_path / "nowhere"
    assert refusal(root) == f"MNIST is not there: there is no folder {root}" + way_out(root)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"MNIST is not there: {tmp_path} has no folder MNIST/raw" + way_out(tmp_path)


def test_empty_folder_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    assert refusal(tmp_path) == f"MNIST is not there: {folder} has none of its files" + way_out(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path)
    for file in FILES[1:3]:
        (folder / file).unlink()
    expected = f"MNIST is not there: {folder} lacks train-labels-idx1-ubyte, t10k-images-idx3-ubyte"
    assert refusal(tmp_path) == expected + way_out(tmp_path)


def test_command_leaves_the_default_root_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DATA_ROOT", raising=False)
    assert refusal(Path("data")).endswith("to download: python -m src.prepare data=mnist")
    monkeypatch.setenv("DATA_ROOT", "/elsewhere")
    assert refusal(Path("data")).endswith("to download: python -m src.prepare data=mnist data.root=data")


def test_command_quotes_the_root_for_the_shell(tmp_path: Path) -> None:
    assert refusal(tmp_path / "my (daten) ü").endswith(f"data=mnist 'data.root={tmp_path}/my (daten) ü'")


@pytest.mark.parametrize("place", ["root", "root/MNIST", "root/MNIST/raw"])
def test_file_in_the_place_of_a_folder_is_named(tmp_path: Path, place: str) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("a file")
    root = tmp_path / "root"
    assert refusal(root) == f"data.root={root}: {path} is a file, not a folder"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that another user can enter, unlike pytest's."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextmanager
def without_privileges() -> Iterator[None]:
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_unreadable_folder_is_named(open_folder: Path) -> None:
    folder = write_mnist(open_folder)
    folder.chmod(0)
    with without_privileges():
        message = refusal(open_folder)
    folder.chmod(0o755)
    assert message == f"data.root={open_folder}: {folder} cannot be read: Permission denied"


def test_unreadable_file_is_named(open_folder: Path) -> None:
    path = write_mnist(open_folder) / "t10k-labels-idx1-ubyte"
    path.chmod(0)
    with without_privileges():
        message = refusal(open_folder)
    assert message.startswith(f"{path} cannot be read: Permission denied\n    to fetch it again: python -m src.prepare")


# --- broken files


def broken_set(root: Path, file: str, array: np.ndarray[Any, np.dtype[np.uint8]]) -> str:
    write_idx(write_mnist(root) / file, array)
    return refusal(root)


def test_images_and_labels_of_different_length_are_refused(tmp_path: Path) -> None:
    message = broken_set(tmp_path, "train-labels-idx1-ubyte", np.zeros(63, np.uint8))
    folder = tmp_path / "MNIST" / "raw"
    assert message == (
        f"{folder}/train-images-idx3-ubyte has 64 images, {folder}/train-labels-idx1-ubyte has 63 labels"
        f"\n    to fetch it again: python -m src.prepare data=mnist data.root={tmp_path}"
    )


def test_labels_that_are_no_class_are_refused(tmp_path: Path) -> None:
    labels = np.arange(32, dtype=np.uint8) % 10
    labels[[5, 9]] = 10, 255
    message = broken_set(tmp_path, "t10k-labels-idx1-ubyte", labels)
    assert "t10k-labels-idx1-ubyte: label 10 at position 5 is not one of 0 to 9\n" in message


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    message = broken_set(tmp_path, "t10k-images-idx3-ubyte", np.zeros((32, 28, 27), np.uint8))
    assert "t10k-images-idx3-ubyte: images of 28 x 27 pixels, not 28 x 28\n" in message


def test_swapped_files_are_refused(tmp_path: Path) -> None:
    message = broken_set(tmp_path, "train-images-idx3-ubyte", np.zeros(64, np.uint8))
    assert "is no IDX file of 3-d bytes: it starts with 00000801, not 00000803\n" in message


@pytest.mark.parametrize("gz", [False, True], ids=["unpacked", "gz"])
def test_truncated_files_are_refused_with_the_way_out(tmp_path: Path, gz: bool) -> None:
    path = next(write_mnist(tmp_path, gz=gz).glob("train-images*"))
    path.write_bytes(path.read_bytes()[:-100])
    message = refusal(tmp_path)
    assert message.startswith(f"{path} is a broken gzip file: " if gz else f"{path} is truncated: ")
    assert message.endswith(f"\n    to fetch it again: python -m src.prepare data=mnist data.root={tmp_path}")


def test_empty_test_set_is_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path, test=0)
    assert "t10k-images-idx3-ubyte has no images" in refusal(tmp_path)


# --- download


class Server:
    """A mirror on this machine that serves a fake set, packed."""

    def __init__(self, folder: Path) -> None:
        self.requests: list[str] = []
        server = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                if self.command == "GET":
                    server.requests.append(self.path.lstrip("/"))

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/"


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    folder = write_mnist(tmp_path / "mirror", gz=True, seed=7)
    server = Server(folder)
    packed = [f"{file}.gz" for file in FILES]
    sums = [(name, hashlib.md5((folder / name).read_bytes()).hexdigest()) for name in packed]
    monkeypatch.setattr(datasets.MNIST, "mirrors", [server.url])
    monkeypatch.setattr(datasets.MNIST, "resources", sums)
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    yield server
    server.http.shutdown()
    server.http.server_close()


def test_download_fetches_the_set_once(tmp_path: Path, mirror: Server) -> None:
    root = tmp_path / "new" / "root"
    mnist(root).download()
    assert loaded(root).facts["fingerprint"] == loaded(tmp_path / "mirror").facts["fingerprint"]
    requests = len(mirror.requests)
    mnist(root).download()
    assert len(mirror.requests) == requests > 0


def test_processes_that_ask_at_once_download_once(tmp_path: Path, mirror: Server) -> None:
    mnist(tmp_path / "alone").download()
    alone = mirror.requests.copy()
    mirror.requests.clear()
    threads = [threading.Thread(target=mnist(tmp_path / "root").download) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert mirror.requests == alone
    loaded(tmp_path / "root")


def test_download_replaces_a_broken_file_and_keeps_it_aside(tmp_path: Path, mirror: Server) -> None:
    root = tmp_path / "root"
    mnist(root).download()
    path = root / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    (root / "MNIST" / "raw" / "train-images-idx3-ubyte.gz").unlink()
    mnist(root).download()
    assert loaded(root).facts["fingerprint"] == loaded(tmp_path / "mirror").facts["fingerprint"]
    assert path.with_name("train-images-idx3-ubyte.broken").exists()


def test_download_adds_what_is_missing(tmp_path: Path, mirror: Server) -> None:
    root = tmp_path / "root"
    mnist(root).download()
    for path in (root / "MNIST" / "raw").glob("t10k-labels*"):
        path.unlink()
    mirror.requests.clear()
    mnist(root).download()
    assert set(mirror.requests) == {"t10k-labels-idx1-ubyte.gz"}
    loaded(root)


def test_a_set_of_your_own_is_left_as_it_is(tmp_path: Path, mirror: Server) -> None:
    folder = write_mnist(tmp_path / "root", gz=True)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    mnist(tmp_path / "root").download()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert mirror.requests == []


def test_nothing_is_written_beside_a_sound_set(open_folder: Path) -> None:
    write_mnist(open_folder)
    with without_privileges():
        mnist(open_folder).download()
    assert [path.name for path in open_folder.iterdir()] == ["MNIST"]


def test_download_to_a_folder_of_somebody_else_says_so(open_folder: Path) -> None:
    open_folder.chmod(0o555)
    with without_privileges(), pytest.raises(ConfigError, match=r"failed: .*Permission denied"):
        mnist(open_folder).download()


def test_failed_download_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: Any, **kwargs: Any) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    with pytest.raises(ConfigError) as caught:
        mnist(tmp_path / "root").download()
    message = str(caught.value)
    assert message.startswith(f"the download of MNIST to {tmp_path / 'root' / 'MNIST' / 'raw'} failed: ")
    assert "Temporary failure in name resolution" in message
    assert "\n    without a network, put the files there yourself: train-images-idx3-ubyte, " in message
    assert socket.getdefaulttimeout() is None


def test_download_of_something_else_is_refused(tmp_path: Path, mirror: Server) -> None:
    (tmp_path / "mirror/MNIST/raw/train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"<html>"))
    with pytest.raises(ConfigError, match="File not found or corrupted"):
        mnist(tmp_path / "root").download()


def test_download_to_a_place_that_is_a_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("a file")
    with pytest.raises(ConfigError, match=r"the download of MNIST to .* failed: .*File exists"):
        mnist(tmp_path / "root").download()


def test_training_never_downloads(tmp_path: Path, mirror: Server) -> None:
    refusal(tmp_path / "root")
    assert mirror.requests == []


def test_reading_leaves_the_global_generators_alone(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()
    datamodule = loaded(tmp_path)
    for loader in (datamodule.train_dataloader(), datamodule.val_dataloader(), datamodule.test_dataloader()):
        assert [len(batch) for batch in loader] == [len(batch) for batch in loader]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state(legacy=False)["state"]["key"].tolist() == states[2]
