"""python -m src.prepare: what it fetches, prints and says when it cannot."""

import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from src.config import ConfigError
from src.config.cli import run_entry
from src.prepare import USAGE, main
from tests.fakes import write_image_folder, write_mnist

SMALL = ["data.val_size=20", "data.batch_size=16"]


def test_prints_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_mnist(tmp_path, "FashionMNIST", train=64, test=32)
    main(["data=fashion_mnist", f"data.root={tmp_path}", *SMALL])
    assert capsys.readouterr().out == (
        "fashion_mnist: train 44, val 20, test 32 samples\n"
        "10 classes: T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot\n"
        f"ready in {folder}\n"
    )


def test_the_embedded_digits_need_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    main(["data=mnist_subset"])
    assert capsys.readouterr().out == (
        "mnist_subset: train 3500, val 750, test 750 samples\n"
        "10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9\n"
        "ready in an installed package\n"
    )


def test_alloys_are_made_and_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["data=emt_alloys", f"data.root={tmp_path}", "data.num_structures=40", "data.split=random"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["emt_alloys: train 32, val 4, test 4 samples", "target formation_energy in eV/atom"]
    assert "EMT is a toy" in lines[2]
    assert lines[3:] == [f"ready in {tmp_path}/emt_alloys"]
    assert len(list((tmp_path / "emt_alloys/graphs").glob("*.npz"))) == 1


def test_after_it_training_touches_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Callable[..., dict[str, float]]
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"the network was touched: {args[1:]}")

    write_mnist(tmp_path, train=64, test=32)
    write_image_folder(tmp_path / "photos", 12)
    sets = [
        ["data=mnist", f"data.root={tmp_path}", *SMALL],
        ["data=image_folder", f"data.root={tmp_path}/photos", "data.image_size=16", "data.store_size=16", SMALL[1]],
        ["experiment=emt_cgcnn", f"data.root={tmp_path}", "data.num_structures=40", "data.split=random", SMALL[1]],
    ]
    for overrides in sets:
        main(overrides)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for overrides in sets:
        before = set(tmp_path.rglob("*"))
        train(*overrides, "trainer.max_epochs=1")
        assert not {path for path in set(tmp_path.rglob("*")) - before if "runs" not in path.parts}  # nothing is built


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.split=formula", "expected 'random' or 'composition' or 'files', got the text 'formula'"),
        ("data.on_bad=ignore", "expected 'error' or 'skip', got the text 'ignore'"),
        ("data.cutoff=0", "must be above 0, not 0"),
        ("data.num_neighbors=0", "must be at least 1, not 0"),
        ("data.num_structures=0", "must be at least 1, not 0"),
        ("data.dataset_seed=-1", "must be 0 or more, not -1"),
        ("data.seed=1", "comes from seed and is not set here"),
        ("data.cutof=7", "has no argument cutof; did you mean data.cutoff?"),
    ],
)
def test_a_mistake_in_the_crystals_section(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        main(["data=emt_alloys", override])
    assert message in str(caught.value)


def test_root_may_hold_anything_a_path_may(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "my (daten), = ü"
    folder = write_mnist(root)
    main(["data=mnist", f"data.root={root}", *SMALL])
    assert capsys.readouterr().out.endswith(f"ready in {folder}\n")


def test_failed_download_ends_with_the_reason_and_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_network(*args: Any, **kwargs: Any) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(sys, "argv", ["src.prepare", "data=mnist", f"data.root={tmp_path}"])
    with pytest.raises(SystemExit) as caught:
        run_entry(main, USAGE)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: the download of MNIST to {tmp_path}/MNIST/raw failed: ")
    assert "Temporary failure in name resolution" in error
    assert "Traceback" not in error


def test_misspelt_data_set_is_refused() -> None:
    with pytest.raises(ConfigError, match="mnist"):
        main(["data=mnits"])
