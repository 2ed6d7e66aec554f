"""Every shipped experiment and every shipped choice of a group runs; they are discovered in the folder."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.fake_crystals import crystals, write_cgcnn_folder
from tests.fakes import CIFAR, write_cifar, write_dogcat, write_image_folder, write_mnist

EXPERIMENTS = sorted(path.stem for path in (ROOT / "configs/experiment").glob("*.yaml"))
CHOICES = sorted(
    f"{path.parent.name}={path.stem}"
    for path in (ROOT / "configs").glob("*/*.yaml")
    if path.parent.name in ("model", "optimizer", "scheduler", "callbacks", "logger", "data")
)
PHOTOS = ["data.image_size=32", "data.store_size=36", "data.batch_size=8"]
SMALLER = {
    "mnist_linear": [],
    "emt_cgcnn": ["data.num_structures=600", "data.split=random", "trainer.max_epochs=40"],
    "cifar10_resnet18": ["data.val_size=60", "model.net.width=8"],
    # "eager" traces the net as any backend, and needs no compiler.
    "cifar10_speedrun": ["data.val_size=60", "model.net.width=8", "compile.backend=eager"],
    "dogcat": [*PHOTOS, "model.net.width=8", "trainer.max_epochs=8", "monitor.metric=val/loss", "monitor.mode=min"],
}
"""What keeps an experiment's run short; of the others, the validation part alone."""

CRYSTALS = ["experiment=emt_cgcnn", "data.num_structures=120"]
SMALL_CHOICES = {
    "model=cgcnn": CRYSTALS,
    "model=cgcnn_paper": CRYSTALS,
    "data=emt_alloys": CRYSTALS,
    "data=crystals": ["experiment=emt_cgcnn", "data.split=random"],
    "data=dogcat": PHOTOS,
    "data=image_folder": [*PHOTOS, "data.root=photos"],
}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny sets in the true format, where DATA_ROOT says that data is."""
    for name in ("MNIST", "FashionMNIST"):
        write_mnist(tmp_path / "data", name, train=700, test=60, gz=name == "FashionMNIST")
    write_cgcnn_folder(tmp_path / "data/crystals", crystals(24))
    for name, (source, _) in CIFAR.items():
        for part, files in write_cifar(tmp_path / "data", name, train=700, test=100).items():
            monkeypatch.setattr(source, part, files)
    write_dogcat(tmp_path / "data/dogcat", 60)
    write_image_folder(tmp_path / "photos", 30)
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment(name: str, data: None, train: Callable[..., dict[str, float]]) -> None:
    small = SMALLER.get(name, ["data.val_size=60"])
    metrics = train(f"experiment={name}", "trainer.max_epochs=4", "data.batch_size=32", *small)
    if "test/r2" in metrics:
        assert metrics["test/r2"] > 0.2  # predicting the mean has 0
    else:
        assert metrics["test/acc"] > 0.8  # the fakes can be learnt


@pytest.mark.parametrize("choice", CHOICES)
def test_choice(choice: str, data: None, train: Callable[..., dict[str, float]]) -> None:
    data_of_its_own = choice.startswith("data=") and choice != "data=mnist_subset"
    small = SMALL_CHOICES.get(choice, ["data.val_size=100"] if data_of_its_own else [])
    limits = [f"trainer.limit_{split}_batches=2" for split in ("train", "val", "test")]
    train("trainer.max_epochs=2", *limits, "data.batch_size=8", choice, *small)


@pytest.mark.parametrize("path", sorted((ROOT / "configs/experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_experiment_file_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 20
