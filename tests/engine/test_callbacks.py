"""The rows of a run: what they say of the gradient, of the wait for data and of the best score."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from src.data.sampler import TrainSampler
from src.engine.callbacks import WaitClock, gradient_norm
from tests.conftest import Folders, Train, metric_rows

SMALL = [
    "test=false", "data.val_size=200", "data.test_size=3800", "data.batch_size=50", "trainer.log_every_n_steps=1",
]  # fmt: skip


def values(folder: Path, name: str) -> list[float]:
    return [row[name] for row in metric_rows(folder) if name in row]


def perf(folder: Path, name: str) -> list[float]:
    lines = [line.split(",") for line in (folder / "perf.csv").read_text().splitlines()]
    return [float(value) for _, key, value in lines if key == name]


@pytest.mark.parametrize(("scale", "fused", "expected"), [(None, False, 5.0), (None, True, 5.0), (8.0, True, 0.625)])
def test_the_norm_is_of_what_the_optimizer_uses(scale: float | None, fused: bool, expected: float) -> None:
    weights = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.ones(3))]
    weights[0].grad, weights[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])  # the third is frozen
    optimizer = torch.optim.SGD([{"params": weights[:1]}, {"params": weights[1:]}], lr=1.0, fused=fused)
    scaler = None if scale is None else SimpleNamespace(get_scale=lambda: scale)
    trainer: Any = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler))
    assert float(gradient_norm(trainer, optimizer)) == expected


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How far each optimizer step has moved the weights."""
    distances: list[float] = []
    original = torch.optim.SGD.step

    def step(self: torch.optim.SGD, closure: Any = None) -> Any:
        weights = [weight for group in self.param_groups for weight in group["params"]]
        before = [weight.detach().clone() for weight in weights]
        loss = original(self, closure)
        changes = [(weight.detach() - old).flatten() for weight, old in zip(weights, before, strict=True)]
        distances.append(float(torch.cat(changes).norm()))
        return loss

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    return distances


@pytest.mark.parametrize("clip", [None, 0.01])
def test_the_logged_norm_is_that_of_the_step_before_clipping(
    clip: float | None, moved: list[float], train: Train, run_folders: Folders
) -> None:
    """Plain gradient descent with rate 1 moves the weights by the gradient, which two batches make together."""
    overrides = ["optimizer=sgd", "optimizer.lr=1.0", "optimizer.momentum=0", "optimizer.nesterov=false"]
    overrides += ["optimizer.weight_decay=0", "trainer.accumulate_grad_batches=2", "trainer.max_epochs=1"]
    train(*SMALL, *overrides, f"trainer.gradient_clip_val={json.dumps(clip)}")
    (folder,) = run_folders()
    norms = values(folder, "train/grad_norm")
    assert len(norms) == len(values(folder, "train/loss_step")) == len(moved) == 10
    if clip is None:
        assert norms == pytest.approx(moved, rel=1e-4) and len(set(norms)) == 10
    else:
        assert moved == pytest.approx([clip] * 10, rel=1e-3) and min(norms) > 20 * clip


def test_a_row_of_a_step_of_several_batches(train: Train, run_folders: Folders) -> None:
    """Its loss is that of the step's last batch, and the epoch's last step has a row although it has fewer batches."""
    still = [*SMALL, "optimizer.lr=1e-12", "trainer.max_epochs=2"]
    train(*still)
    train(*still, "trainer.accumulate_grad_batches=3")
    train(*still, "trainer.accumulate_grad_batches=30")
    single, three, all_of_them = (values(folder, "train/loss_step") for folder in run_folders())
    last = [batch for epoch in (0, 20) for batch in (*range(epoch + 2, epoch + 20, 3), epoch + 19)]
    assert three == pytest.approx([single[batch] for batch in last], rel=1e-6)
    assert all_of_them == pytest.approx([single[19], single[39]], rel=1e-6)
    steps = [row["step"] for row in metric_rows(run_folders()[1]) if "train/loss_step" in row]
    assert steps == list(range(14))


def test_frozen_weights_have_no_part_in_the_norm(moved: list[float], train: Train, run_folders: Folders) -> None:
    overrides = ["model=mlp", "model.freeze=backbone", "optimizer=sgd", "optimizer.lr=1.0", "optimizer.momentum=0"]
    train(*SMALL, *overrides, "optimizer.nesterov=false", "optimizer.weight_decay=0", "trainer.max_epochs=1")
    assert values(run_folders()[0], "train/grad_norm") == pytest.approx(moved, rel=1e-4)


@pytest.mark.parametrize("metric", ["val/acc", "train/acc"])
def test_the_best_score_so_far_is_a_curve(metric: str, train: Train, run_folders: Folders) -> None:
    """At this rate the accuracy of validation goes up and down, that of training up."""
    train(*SMALL, f"monitor.metric={metric}", "optimizer.lr=0.2", "trainer.max_epochs=5")
    (folder,) = run_folders()
    scores, best = values(folder, metric), values(folder, f"best/{metric}")
    assert best == [max(scores[: epoch + 1]) for epoch in range(5)]
    assert metric != "val/acc" or best != scores
    steps = [row["step"] for row in metric_rows(folder) if f"best/{metric}" in row]
    assert steps == [row["step"] for row in metric_rows(folder) if metric in row]


def test_the_wait_for_data_is_a_share_of_the_time(
    train: Train, run_folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TrainSampler.__iter__

    def slowly(self: TrainSampler) -> Iterator[torch.Tensor]:
        for index in original(self):
            time.sleep(0.05)
            yield index

    train(*SMALL, "trainer.max_epochs=1")
    monkeypatch.setattr(TrainSampler, "__iter__", slowly)
    train(*SMALL, "trainer.max_epochs=1", "trainer.log_every_n_steps=4")
    fast, slow = (perf(folder, "perf/data_wait_share") for folder in run_folders())
    assert len(fast) == 20 and len(slow) == 5
    assert all(0 <= share < 0.7 for share in sorted(fast)[:10]) and all(0.7 < share <= 1 for share in slow)
    assert {name.partition("/")[0] for folder in run_folders() for row in metric_rows(folder) for name in row} == {
        "step", "epoch", "train", "val", "best",
    }  # fmt: skip


def test_a_profiler_of_the_config_measures_the_wait_itself(train: Train, run_folders: Folders) -> None:
    train(*SMALL, "trainer.max_epochs=1", "trainer.profiler=simple")
    assert perf(run_folders()[0], "perf/data_wait_share") == []
    assert len(perf(run_folders()[0], "perf/samples_per_second")) == 20


def test_the_clock_adds_up() -> None:
    clock = WaitClock()
    for _ in range(2):
        clock.start("fetch")
        time.sleep(0.02)
        clock.stop("fetch")
        time.sleep(0.05)
    assert 0.04 <= clock.waited < 0.07


def test_lightnings_monitors_are_wired_to_the_logger(train: Train, run_folders: Folders) -> None:
    monitors = [
        "callbacks=throughput", "+callbacks.device_stats._target_=lightning.pytorch.callbacks.DeviceStatsMonitor",
        "+callbacks.device_stats.cpu_stats=true", "callbacks.throughput.window_size=2",
    ]  # fmt: skip
    train(*SMALL, *monitors, "trainer.max_epochs=1")
    (folder,) = run_folders()
    assert all(value > 0 for value in perf(folder, "train|device|samples_per_sec")[1:])
    assert len(perf(folder, "train|device|samples_per_sec")) > 2
    assert perf(folder, "DeviceStatsMonitor.on_train_batch_end/cpu_vm_percent")
    assert not [name for row in metric_rows(folder) for name in row if "|" in name or "DeviceStats" in name]
