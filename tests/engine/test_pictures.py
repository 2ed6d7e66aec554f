"""The pictures of a run: the first batch, the worst samples, and where the net looked."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.seed import _collect_rng_states
from PIL import Image
from torch import Tensor, nn

from src.config import compose
from src.engine.checkpoint import read_checkpoint, restore_module
from src.engine.pictures import TrainingBatch, grad_cam, heat_maps, pictures
from src.engine.plan import prepare_data
from src.nets.resnet import CifarResNet, ResNet, ResNet9
from src.tracking import plots
from tests.conftest import QUICK, Folders, Train
from tests.fakes import write_image_folder

GRAYS = {"mean": [0.25], "std": [0.5]}


# --- pictures


def test_pictures_are_what_was_normalised() -> None:
    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    normalised = (x / 255 - 0.25) / 0.5
    shown = pictures(normalised, GRAYS)
    assert shown.shape == (1, 128, 128, 3) and shown.dtype == np.uint8
    assert np.array_equal(shown[0, ::8, ::8, 0], x[0, 0].numpy())  # each pixel is a square of 8 x 8
    assert np.array_equal(shown[0, 7::8, 7::8, 2], x[0, 0].numpy())
    assert pictures(normalised.repeat(1, 1, 9, 10), GRAYS).shape == (1, 144, 160, 3)


# --- Grad-CAM


class PooledLinear(nn.Module):
    """A convolution whose maps are known, their mean over the image, and a linear layer."""

    feature_map = "body"

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(2, 3, 1, bias=False), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("variant", ["plain", "channels last", "compiled", "frozen", "bfloat16"])
def test_grad_cam_of_a_linear_head_is_its_weighted_sum_of_maps(variant: str) -> None:
    torch.manual_seed(0)
    net, x, classes = PooledLinear(), torch.randn(5, 2, 3, 4), torch.tensor([0, 3, 1, 1, 2])
    if variant == "bfloat16":
        net, x = net.bfloat16(), x.bfloat16()
    elif variant == "channels last":
        net, x = net.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    elif variant == "compiled":
        net.compile(backend="eager")
    elif variant == "frozen":
        net.body.requires_grad_(False)
    before = {name: (p.requires_grad, p.detach().clone()) for name, p in net.named_parameters()}
    with torch.no_grad():
        heat = grad_cam(net, x, classes)
        maps = torch.einsum("kc,bchw->bkhw", net.body.weight[..., 0, 0].float(), x.float())
        expected = torch.einsum("bk,bkhw->bhw", net.head.weight[classes].float() / 12, maps).relu()
    torch.testing.assert_close(heat, expected)
    assert (heat > 0).any() and not heat.requires_grad
    assert net.training and not any(module._forward_hooks for module in net.modules())
    for name, parameter in net.named_parameters():
        assert parameter.grad is None and parameter.requires_grad == before[name][0]
        assert torch.equal(parameter, before[name][1])


@pytest.mark.parametrize(
    ("net", "size"),
    [
        (CifarResNet([3, 32, 32], 4, 20, width=4), 8),
        (ResNet([3, 64, 64], 4, 18, width=4), 2),
        (ResNet9([3, 32, 32], 4, width=4), 4),
    ],
    ids=["cifar", "imagenet", "resnet9"],
)
def test_grad_cam_of_the_nets(net: nn.Module, size: int) -> None:
    torch.manual_seed(0)  # some nets see a class nowhere
    for layer in net.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    x = torch.randn(2, *([3, 64, 64] if size == 2 else [3, 32, 32]))
    statistics = deepcopy(net.state_dict())
    heat = grad_cam(net, x, torch.tensor([1, 2]))
    assert heat.shape == (2, size, size) and bool((heat >= 0).all()) and bool((heat > 0).any())
    assert all(torch.equal(value, statistics[name]) for name, value in net.state_dict().items())


def test_heat_is_where_the_map_is_largest() -> None:
    heat, gray = torch.zeros(2, 4, 4), np.full((2, 128, 128, 3), 100, np.uint8)
    heat[0, 0, 3] = 1e-3
    laid = heat_maps(heat, gray).astype(int)
    red_over_blue = laid[0, ..., 0] - laid[0, ..., 2]
    assert np.unravel_index(red_over_blue.argmax(), red_over_blue.shape)[0] < 32
    assert np.unravel_index(red_over_blue.argmax(), red_over_blue.shape)[1] >= 96
    assert (laid[1] == laid[1, 0, 0]).all()  # no heat anywhere: nothing is made of it


# --- runs


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    write_image_folder(tmp_path / "photos", classes=("an $ant", "bee", "собака"))
    return [
        *QUICK, "pictures=true", "data=image_folder", f"data.root={tmp_path / 'photos'}", "data.batch_size=20",
        "data.image_size=24", "data.store_size=28", "model=resnet20", "model.net.width=4", "trainer.max_epochs=1",
    ]  # fmt: skip


def test_the_first_batch_is_shown_and_changes_nothing(
    photos: list[str], train: Train, run_folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    from src.modules.classification import ClassificationModule

    shown: list[Any] = []
    trained: list[Any] = []
    states: list[Any] = []
    draw, step, start = plots.training_batch, ClassificationModule.step, TrainingBatch.on_train_start

    def drawn(images: Any, names: Any) -> Any:
        shown.append((images, names))
        return draw(images, names)

    def stepped(self: ClassificationModule, batch: Any, split: str) -> Tensor:
        trained.append((split, batch.x, batch.y))
        return step(self, batch, split)

    def started(self: TrainingBatch, *arguments: Any) -> None:
        states.append(_collect_rng_states())
        start(self, *arguments)
        states.append(_collect_rng_states())

    monkeypatch.setattr(plots, "training_batch", drawn)
    monkeypatch.setattr(ClassificationModule, "step", stepped)
    monkeypatch.setattr(TrainingBatch, "on_train_start", started)
    train(*photos, "test=false")
    monkeypatch.setattr(TrainingBatch, "on_train_start", lambda *arguments: None)
    train(*photos, "test=false")

    ((images, names),) = shown
    split, x, y = trained[0]
    with_it, without = run_folders()
    facts = json.loads((with_it / "facts.json").read_text(encoding="utf-8"))
    assert split == "train" and len(images) == 16
    assert np.array_equal(images, pictures(x[:16], facts))
    assert names == [facts["class_names"][label] for label in y[:16].tolist()]
    assert repr(states[0]) == repr(states[1])
    assert [path.name for path in sorted((with_it / "plots").iterdir())] == ["loss_curves.png", "training_batch.png"]
    assert not (with_it / "results").exists()  # nothing was tested
    weights = [read_checkpoint(folder / "checkpoints/best.ckpt")["state_dict"] for folder in (with_it, without)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert (with_it / "metrics.jsonl").read_bytes() == (without / "metrics.jsonl").read_bytes()


def test_the_worst_photo_has_the_largest_loss(photos: list[str], train: Train, run_folders: Folders) -> None:
    metrics = train(*photos)
    (folder,) = run_folders()
    result = json.loads((folder / "results/test.json").read_text(encoding="utf-8"))
    path = folder / "checkpoints/best.ckpt"
    checkpoint = read_checkpoint(path)
    module, data = restore_module(checkpoint, path).eval(), prepare_data(compose(photos).cfg)
    test: Any = data.splits["test"]
    everything = test[torch.arange(len(test))]
    batch = data.on_after_batch_transfer(everything, 0)
    with torch.no_grad():
        losses = nn.functional.cross_entropy(module(batch.x), batch.y, reduction="none")
    assert result["checkpoint"] == "checkpoints/best.ckpt"
    assert result["metrics"] == {name: value for name, value in metrics.items() if name.startswith("test/")}
    assert set(result["metrics"]) == {"test/loss", "test/acc", "test/f1", "test/ece"}
    assert result["calibration"]["ece"] == metrics["test/ece"]
    order = losses.argsort(descending=True).tolist()
    assert [entry["index"] for entry in result["worst"]] == order and len(order) == len(test) == 9
    worst = result["worst"][0]
    assert worst["loss"] == pytest.approx(float(losses.max()), rel=1e-5)
    assert worst["id"].partition("/")[0] == worst["true"] == result["class_names"][int(batch.y[order[0]])]
    original = Image.open(data.folder / worst["id"])
    assert np.asarray(original.convert("RGB")).mean((0, 1)).argmax() == int(batch.y[order[0]])  # the bright channel
    seen = test[torch.tensor(order[:1])].x[0, :, 2:26, 2:26].permute(1, 2, 0).numpy()
    assert np.array_equal(np.asarray(Image.open(folder / worst["image"]))[::6, ::6], seen)
    explanation = np.asarray(Image.open(folder / worst["explanation"]))
    assert explanation.shape == (144, 144, 3) and not np.array_equal(explanation, Image.open(folder / worst["image"]))
    assert {path.name for path in (folder / "results/worst").iterdir()} == {
        f"{number:02d}{kind}.png" for number in range(9) for kind in ("", "-gradcam")
    }
    assert {path.stem for path in (folder / "plots").iterdir()} == {
        "loss_curves", "confusion_matrix", "precision_recall", "roc", "calibration", "worst", "training_batch",
    }  # fmt: skip


def test_a_part_of_the_test_is_described_as_a_part(train: Train, run_folders: Folders) -> None:
    train("pictures=true", "train=false", "trainer.limit_test_batches=1")
    (folder,) = run_folders()
    result = json.loads((folder / "results/test.json").read_text(encoding="utf-8"))
    assert result["num_samples"] == 64 == sum(count for _, _, count in result["confusion"])
    assert max(entry["index"] for entry in result["worst"]) < 64
    assert result["worst"][0]["explanation"] is None  # a linear net has no feature maps
    assert result["classes"][9]["auroc"] is None and result["curves"] == []  # the part begins with zeros
    assert not {"roc.png", "precision_recall.png"} & {path.name for path in (folder / "plots").iterdir()}


def test_crystals_are_named_and_not_shown(train: Train, run_folders: Folders, tmp_path: Path) -> None:
    data = ["experiment=emt_cgcnn", "data.num_structures=60", "data.batch_size=8", f"data.root={tmp_path}"]
    train("pictures=true", *data, "train=false")
    (folder,) = run_folders()
    result = json.loads((folder / "results/test.json").read_text(encoding="utf-8"))
    assert result["metrics"]["test/mae"] == pytest.approx(result["targets"][0]["mae"], rel=1e-5)
    crystals: Any = prepare_data(compose([*QUICK, *data]).cfg).splits["test"]
    for entry in result["worst"]:
        assert entry["id"] == crystals.names[entry["index"]]
        assert entry["target"] == pytest.approx(crystals.y[entry["index"]].tolist())
        assert entry["formula"][0].isupper() and "image" not in entry
    assert {path.stem for path in (folder / "plots").iterdir()} == {"loss_curves", "parity", "residuals"}
