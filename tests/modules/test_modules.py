"""Metrics against torchmetrics fed step by step, parameter groups, schedules against their closed forms."""

import math

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from src.config import ConfigError
from src.evaluate import main as evaluate
from src.modules.base import limited
from src.modules.classification import ClassificationModule
from src.modules.metrics import EpochMetrics, NonFiniteLossError
from src.modules.optimization import build_optimizer, build_scheduler, head_of
from src.nets.linear import MLP, LinearClassifier
from tests.conftest import Train

PLAIN = {"decay_bias_and_norm": True, "head_lr": None}


def measures() -> dict[str, Metric]:
    return {"acc": MulticlassAccuracy(3, average="micro"), "confusion": MulticlassConfusionMatrix(3)}


@pytest.mark.parametrize("block", [1, 2, 64])
def test_blocks_do_not_change_the_metrics(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.modules.metrics.BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    metrics, reference = EpochMetrics(measures()), MetricCollection(measures())
    total = count = 0.0
    for size in (4, 4, 3, 0, 1):
        preds = torch.randn(size, 3, generator=generator)
        target = torch.randint(3, (size,), generator=generator)
        loss = nn.functional.cross_entropy(preds, target)
        if metrics.add(preds, target, loss, torch.arange(size)):
            metrics.flush()
        if size:
            reference.update(preds, target)
            total, count = total + float(loss) * size, count + size
    values, expected = metrics.compute(), reference.compute()
    assert torch.equal(values["confusion"], expected["confusion"])
    assert torch.equal(values["acc"], expected["acc"])
    assert float(values["loss"]) == pytest.approx(total / count, rel=1e-6)  # weighted by the batches' sizes
    assert int(values["confusion"].sum()) == count == 12


def test_metrics_start_afresh() -> None:
    metrics = EpochMetrics(measures())
    target = index = torch.tensor([0, 1])
    metrics.add(torch.eye(3)[target], target, torch.tensor(1.0), index)
    metrics.compute()
    metrics.add(torch.eye(3)[1 - target], target, torch.tensor(3.0), index)
    values = metrics.compute()
    assert (float(values["acc"]), float(values["loss"])) == (0.0, 3.0)


def test_a_non_finite_loss_says_how_long_ago() -> None:
    metrics = EpochMetrics(measures())
    target = index = torch.tensor([0])
    assert metrics.steps_since_non_finite() is None
    for loss, ago in ((1.0, None), (math.inf, 0), (2.0, 1), (math.nan, 2), (1.0, 3)):
        metrics.add(torch.eye(3)[target], target, torch.tensor(loss), index)
        assert metrics.steps_since_non_finite() == ago


def test_a_long_evaluation_names_its_split(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.modules.metrics.BLOCK", 2)
    plain = ClassificationModule.loss

    def loss(self: ClassificationModule, output: Tensor, target: Tensor) -> Tensor:
        bad = self._trainer is not None and self.trainer.validating
        return plain(self, output, target) * (math.nan if bad else 1)

    monkeypatch.setattr(ClassificationModule, "loss", loss)
    with pytest.raises(NonFiniteLossError, match=r"^the val loss is not finite at step 4 \(epoch 0\); "):
        train("trainer.max_epochs=1", "trainer.limit_train_batches=5")


def test_an_evaluation_alone_has_no_step(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    train("trainer.max_epochs=1", "trainer.limit_train_batches=5", "test=false")
    monkeypatch.setattr(ClassificationModule, "loss", lambda *_: torch.tensor(math.nan))
    with pytest.raises(NonFiniteLossError, match=r"^the test loss is not finite$"):
        evaluate(["ckpt=last"])


def test_head_is_the_last_layer() -> None:
    net = MLP([1, 2, 2], 3, [5])
    assert head_of(net) is net.head
    linear = LinearClassifier([1, 2, 2], 3)
    assert head_of(linear) is linear.head


def test_parameter_groups() -> None:
    net = MLP([1, 2, 2], 3, [5])
    node = {
        "_target_": "torch.optim.AdamW",
        "lr": 0.1,
        "weight_decay": 0.5,
        "param_groups": {"decay_bias_and_norm": False, "head_lr": 0.01},
    }
    groups = {group["name"]: group for group in build_optimizer(net, node).param_groups}
    shape = {name: sorted(p.numel() for p in group["params"]) for name, group in groups.items()}
    assert shape == {"body": [20], "body, no decay": [5, 5], "head": [15], "head, no decay": [3]}
    rates = {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()}
    assert rates == {
        "body": (0.1, 0.5),
        "body, no decay": (0.1, 0.0),
        "head": (0.01, 0.5),
        "head, no decay": (0.01, 0.0),
    }


def test_one_group_where_nothing_is_asked() -> None:
    optimizer = build_optimizer(MLP([4], 3), {"_target_": "torch.optim.SGD", "lr": 0.1, "param_groups": PLAIN})
    assert [group["name"] for group in optimizer.param_groups] == ["body"]


def test_frozen_parameters_are_left_out() -> None:
    net = MLP([4], 3, [5])
    net.body.requires_grad_(False)
    optimizer = build_optimizer(net, {"_target_": "torch.optim.SGD", "lr": 0.1, "param_groups": PLAIN})
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2


def rates(name: str, epochs: int = 4, steps: int = 5, max_steps: int = -1, **options: float | str) -> list[float]:
    """The learning rate of every step, 1.0 being the optimizer's."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    node = {"_target_": f"torch.optim.lr_scheduler.{name}", "interval": "step", "warmup_epochs": 0, **options}
    scheduler = build_scheduler(
        node, optimizer, max_epochs=epochs, max_steps=max_steps, steps_per_epoch=steps, mode="min"
    )
    assert scheduler is not None
    seen = []
    for step in range(epochs * steps if epochs > 0 else max_steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if node["interval"] == "step" or (step + 1) % steps == 0:
            scheduler.step()
    return seen


def test_cosine_with_warm_up() -> None:
    seen = rates("CosineAnnealingLR", warmup_epochs=1)
    rise = [(step + 1) / 6 for step in range(5)]
    fall = [(1 + math.cos(math.pi * step / 15)) / 2 for step in range(15)]
    assert seen == pytest.approx(rise + fall)


def test_step_and_exponential_by_epoch() -> None:
    assert rates("StepLR", interval="epoch", step_size=2, gamma=0.1) == pytest.approx([1.0] * 10 + [0.1] * 10)
    expected = [0.5**epoch for epoch in range(4) for _ in range(5)]
    assert rates("ExponentialLR", interval="epoch", gamma=0.5) == pytest.approx(expected)


def test_exponential_with_warm_up_by_epoch() -> None:
    expected = [rate for rate in (1 / 3, 2 / 3, 1.0, 0.5) for _ in range(5)]
    assert rates("ExponentialLR", interval="epoch", gamma=0.5, warmup_epochs=2) == pytest.approx(expected)


def test_one_cycle_ends_with_the_run() -> None:
    seen = rates("OneCycleLR", pct_start=0.3)
    assert max(seen) == pytest.approx(1.0, abs=0.05)
    assert seen[-1] == pytest.approx(4e-6)


def test_a_run_of_so_many_steps() -> None:
    """Whichever of the two ends comes first; by epoch, the one that has begun counts."""
    fall = [(1 + math.cos(math.pi * step / 12)) / 2 for step in range(12)]
    assert rates("CosineAnnealingLR", epochs=-1, max_steps=12) == pytest.approx(fall)
    assert rates("CosineAnnealingLR", epochs=9, max_steps=12)[:12] == pytest.approx(fall)
    assert rates("CosineAnnealingLR", epochs=4, max_steps=100) == rates("CosineAnnealingLR", epochs=4)
    by_epoch = [(1 + math.cos(math.pi * (step // 5) / 3)) / 2 for step in range(12)]
    assert rates("CosineAnnealingLR", epochs=-1, max_steps=12, interval="epoch") == pytest.approx(by_epoch)


def test_plateau_follows_the_monitor() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    node = {
        "_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau",
        "interval": "epoch",
        "warmup_epochs": 0,
        "patience": 0,
        "factor": 0.1,
    }
    scheduler = build_scheduler(node, optimizer, max_epochs=-1, max_steps=-1, steps_per_epoch=1, mode="max")
    assert scheduler is not None
    for score in (0.5, 0.6, 0.7):
        scheduler.step(score)  # type: ignore[arg-type]
    assert optimizer.param_groups[0]["lr"] == 1.0
    scheduler.step(0.7)  # type: ignore[arg-type]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_no_schedule() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    assert build_scheduler({}, optimizer, max_epochs=3, max_steps=-1, steps_per_epoch=1, mode="min") is None


def test_a_schedule_needs_room() -> None:
    with pytest.raises(ConfigError, match="at least one step after the warm-up"):
        rates("CosineAnnealingLR", warmup_epochs=4)


def test_half_an_epoch_of_warm_up_needs_steps() -> None:
    assert rates("ExponentialLR", gamma=1.0, warmup_epochs=0.5, steps=4)[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    with pytest.raises(ConfigError, match=r"warmup_epochs=0.5: with scheduler.interval=epoch these are whole epochs"):
        rates("ExponentialLR", gamma=1.0, warmup_epochs=0.5, interval="epoch")


@pytest.mark.parametrize(("limit", "expected"), [(1.0, 10), (1, 1), (0.25, 2), (40, 10)])
def test_limited(limit: float, expected: int) -> None:
    assert limited(10, limit) == expected
