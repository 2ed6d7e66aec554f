"""Every shipped experiment and every shipped choice of a group runs; they are discovered in the folder."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.fakes import write_mnist

EXPERIMENTS = sorted(path.stem for path in (ROOT / "configs/experiment").glob("*.yaml"))
CHOICES = sorted(
    f"{path.parent.name}={path.stem}"
    for path in (ROOT / "configs").glob("*/*.yaml")
    if path.parent.name in ("model", "optimizer", "scheduler", "callbacks", "logger", "data")
)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny sets in the true format, where DATA_ROOT says that data is."""
    for name in ("MNIST", "FashionMNIST"):
        write_mnist(tmp_path / "data", name, train=700, test=60, gz=name == "FashionMNIST")
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment(name: str, data: None, train: Callable[..., dict[str, float]]) -> None:
    small = [] if name == "mnist_linear" else ["data.val_size=60"]
    if name.startswith("emt_"):
        small = ["data.num_structures=600", "data.split=random", "trainer.max_epochs=40"]
    metrics = train(f"experiment={name}", "trainer.max_epochs=4", "data.batch_size=32", *small)
    if "test/r2" in metrics:
        assert metrics["test/r2"] > 0.2  # predicting the mean has 0
    else:
        assert metrics["test/acc"] > 0.8  # the fakes can be learnt


@pytest.mark.parametrize("choice", CHOICES)
def test_choice(choice: str, data: None, train: Callable[..., dict[str, float]]) -> None:
    small = [] if choice in ("data=mnist_subset",) or not choice.startswith("data=") else ["data.val_size=60"]
    if choice.startswith("model=cgcnn") or choice == "data=emt_alloys":
        small = ["experiment=emt_cgcnn", "data.num_structures=120"]
    train("trainer.max_epochs=2", "trainer.limit_train_batches=2", "data.batch_size=32", choice, *small)


@pytest.mark.parametrize("path", sorted((ROOT / "configs/experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_experiment_file_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 20
