"""Errors against their definitions, with targets missing; what a checkpoint carries; what can be monitored."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from src.config import ConfigError, compose
from src.data.base import Batch
from src.engine.checkpoint import build_module
from src.engine.plan import check_monitor
from src.modules.metrics import EpochMetrics
from src.modules.regression import RegressionErrors, RegressionModule

NAN = math.nan
MEAN, STD = [10.0, -2.0], [4.0, 0.5]
FACTS = {
    "name": "fake",
    "task": "regression",
    "input_shape": [3],
    "num_classes": 2,  # the outputs of the linear net that stands in for a graph network
    "target_names": ["a", "b"],
    "target_units": ["eV", ""],
    "target_mean": MEAN,
    "target_std": STD,
}


def module(loss: str = "l1", **facts: Any) -> RegressionModule:
    torch.manual_seed(0)
    cfg = compose(["trainer=cpu", "logger=none"]).cfg
    cfg["model"] = {
        "_target_": "src.modules.regression.RegressionModule",
        "loss": loss,
        "net": {"_target_": "src.nets.linear.LinearClassifier"},
    }
    built = build_module(cfg, FACTS | facts)
    assert isinstance(built, RegressionModule)
    return built


def data(samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, 3))
    y = np.stack([10 + 4 * x[:, 0], -2 + 0.5 * x[:, 1]], axis=1) + 0.1 * rng.normal(size=(samples, 2))
    y[rng.random(y.shape) < 0.3] = NAN
    y[:3] = [[NAN, NAN], [9.0, NAN], [NAN, -2.5]]
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)


def errors(prediction: Tensor, target: Tensor) -> dict[str, list[float]]:
    """MAE, RMSE and R2 of each target, as their textbooks have them."""
    columns = [
        (p[~y.isnan()].double().numpy(), y[~y.isnan()].double().numpy())
        for p, y in zip(prediction.T, target.T, strict=True)
    ]
    return {
        "mae": [float(np.abs(p - y).mean()) for p, y in columns],
        "rmse": [float(np.sqrt(((p - y) ** 2).mean())) for p, y in columns],
        "r2": [float(1 - ((p - y) ** 2).sum() / ((y - y.mean()) ** 2).sum()) for p, y in columns],
    }


# --- metrics


def test_errors_are_those_of_the_definitions() -> None:
    _, target = data(50)
    prediction = (
        torch.nan_to_num(target, 1.0) + torch.tensor(np.random.default_rng(1).normal(size=target.shape)).float()
    )
    metric, expected = RegressionErrors(["a", "b"], MEAN, STD), errors(prediction, target)
    for rows in torch.arange(50).split(16):
        metric.update(prediction[rows], target[rows])
    values = {name: float(value) for name, value in metric.compute().items()}
    for name in ("mae", "rmse", "r2"):
        assert values[name] == pytest.approx(np.mean(expected[name]), rel=1e-5)
    assert [values["mae_a"], values["mae_b"]] == pytest.approx(expected["mae"], rel=1e-5)


def test_r2_is_accurate_far_from_zero() -> None:
    """A mean two million times the spread: sums of squares in the targets' units would keep no digit of it."""
    generator = torch.Generator().manual_seed(0)
    target = 1024.0 + torch.randint(-8, 8, (400, 1), generator=generator) * 2.0**-13
    prediction = target + torch.randint(-2, 2, (400, 1), generator=generator) * 2.0**-13
    metric = RegressionErrors(["a"], [1024.0], [2.0**-11])
    metric.update(prediction, target)
    assert float(metric.compute()["r2"]) == pytest.approx(errors(prediction, target)["r2"][0], rel=1e-5)


def test_a_single_target_has_no_names_and_one_that_is_missing_throughout_is_left_out() -> None:
    metric = RegressionErrors(["a"], [0.0], [1.0])
    metric.update(torch.tensor([[1.0], [2.0]]), torch.tensor([[2.0], [4.0]]))
    assert {name: float(value) for name, value in metric.compute().items()} == pytest.approx(
        {"mae": 1.5, "rmse": math.sqrt(2.5), "r2": -1.5}
    )
    metric = RegressionErrors(["a", "b"], [0.0, 0.0], [1.0, 1.0])
    metric.update(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[2.0, NAN], [4.0, NAN]]))
    assert float(metric.compute()["mae"]) == 1.5


# --- loss


@pytest.mark.parametrize(("loss", "expected"), [("l1", 1.0), ("mse", 4.5 / 3), ("huber", (1.5 + 0.125 + 0.125) / 3)])
def test_loss_is_the_mean_of_what_is_there(loss: str, expected: float) -> None:
    output = torch.tensor([[10.0, -2.0], [10.0, -2.0]])
    target = torch.tensor([[18.0, -2.25], [12.0, NAN]])  # 2, a half and a half deviations away
    assert float(module(loss).loss(output, target)) == pytest.approx(expected)


def test_no_target_no_loss_and_no_nan_gradient() -> None:
    output = torch.ones(2, 2, requires_grad=True)
    loss = module().loss(output, torch.full((2, 2), NAN))
    loss.backward()
    assert float(loss.detach()) == 0
    assert output.grad is not None and output.grad.tolist() == [[0, 0], [0, 0]]


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match=r"gives \[3, 1\] values, the targets are \[3\]"):
        module().loss(torch.zeros(3, 1), torch.zeros(3))


def test_the_epochs_loss_weighs_every_target_alike() -> None:
    x, target = data(40)
    regression = module()
    output = regression(x)
    whole = regression.loss(output, target)
    metrics = EpochMetrics(regression.build_metrics("val"))
    for rows in torch.arange(40).split(7):
        metrics.add(output[rows], target[rows], regression.loss(output[rows], target[rows]), rows)
    assert float(metrics.compute()["loss"]) == pytest.approx(float(whole), rel=1e-5)


# --- module


def test_standardisation_travels_in_the_checkpoint() -> None:
    regression = module()
    x, _ = data(5)
    torch.testing.assert_close(regression(x), regression.net(x) * torch.tensor(STD) + torch.tensor(MEAN))
    other = module(target_mean=[0.0, 0.0], target_std=[1.0, 1.0])
    other.load_state_dict(regression.state_dict())
    torch.testing.assert_close(other(x), regression(x))
    assert [name for name in regression.state_dict() if not name.startswith("net.")] == ["target_mean", "target_std"]


def test_one_epoch_in_lightning(tmp_path: Path) -> None:
    x, y = data(64)
    regression = module("mse")
    regression.configure_optimizers = lambda: torch.optim.Adam(regression.parameters(), 0.1)  # type: ignore[method-assign]
    batches = [Batch(x[rows], y[rows], rows) for rows in torch.arange(64).split(8)]
    loader = DataLoader(batches, batch_size=None)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=20,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(regression, loader, loader)
    (metrics,) = trainer.test(regression, loader, verbose=False)
    prediction = regression(x).detach()
    expected = errors(prediction, y)
    assert metrics["test/mae"] == pytest.approx(np.mean(expected["mae"]), rel=1e-4)
    assert metrics["test/r2"] == pytest.approx(np.mean(expected["r2"]), rel=1e-4) and metrics["test/r2"] > 0.9
    assert set(metrics) == {f"test/{name}" for name in ("loss", "mae", "rmse", "r2", "mae_a", "mae_b")}
    rows = torch.cat([torch.arange(64)[:, None], prediction, y], 1)
    torch.testing.assert_close(regression.tables["test"]["samples"], rows, equal_nan=True)
    assert "samples" not in regression.tables["val"]


# --- monitor


@pytest.mark.parametrize(
    ("metric", "mode", "problem"),
    [
        ("val/mae", "min", None),
        ("val/r2", "max", None),
        ("val/rmse", "max", "val/rmse is better when minimal; set min"),
        ("val/r2", "min", "val/r2 is better when maximal; set max"),
        ("val/acc", "max", "no metric of that name"),
    ],
)
def test_monitor(metric: str, mode: str, problem: str | None) -> None:
    cfg = compose([f"monitor.metric={metric}", f"monitor.mode={mode}"]).cfg
    cfg["model"] = {"_target_": "src.modules.regression.RegressionModule"}
    if problem is None:
        check_monitor(cfg)
    else:
        with pytest.raises(ConfigError, match=problem):
            check_monitor(cfg)
