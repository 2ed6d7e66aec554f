"""Every shipped experiment and every shipped choice of a group runs; they are discovered in the folder."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.fakes import write_dogcat, write_image_folder, write_mnist

EXPERIMENTS = sorted(path.stem for path in (ROOT / "configs/experiment").glob("*.yaml"))
CHOICES = sorted(
    f"{path.parent.name}={path.stem}"
    for path in (ROOT / "configs").glob("*/*.yaml")
    if path.parent.name in ("model", "optimizer", "scheduler", "callbacks", "logger", "data")
)
PHOTOS = ["data.image_size=32", "data.store_size=36", "data.batch_size=8"]
SMALL = {
    "data=mnist_subset": [],
    "data=dogcat": PHOTOS,
    "data=image_folder": [*PHOTOS, "data.root=photos"],
    "dogcat": PHOTOS,
}
"""What makes an experiment or a data set small, where it is not the number of validation samples."""


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny sets in the true format, where DATA_ROOT says that data is."""
    for name in ("MNIST", "FashionMNIST"):
        write_mnist(tmp_path / "data", name, train=700, test=60, gz=name == "FashionMNIST")
    write_dogcat(tmp_path / "data/dogcat", 60)
    write_image_folder(tmp_path / "photos", 30)
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment(name: str, data: None, train: Callable[..., dict[str, float]]) -> None:
    small = [] if name == "mnist_linear" else SMALL.get(name, ["data.val_size=60"])
    metrics = train(f"experiment={name}", "trainer.max_epochs=4", "data.batch_size=32", *small)
    assert metrics["test/acc"] > 0.8  # the fakes can be learnt


@pytest.mark.parametrize("choice", CHOICES)
def test_choice(choice: str, data: None, train: Callable[..., dict[str, float]]) -> None:
    small = SMALL.get(choice, ["data.val_size=60"]) if choice.startswith("data=") else []
    train("trainer.max_epochs=2", "trainer.limit_train_batches=2", "data.batch_size=32", choice, *small)


@pytest.mark.parametrize("path", sorted((ROOT / "configs/experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_experiment_file_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 20
