"""Linear probing, unfreezing under every schedule; averaged weights."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from src.config import ConfigError, compose
from src.engine.checkpoint import read_checkpoint
from src.engine.plan import Plan, plan_run
from src.engine.run import claim
from src.engine.trainer import build_trainer
from src.evaluate import main as evaluate
from tests.conftest import QUICK, ROOT, status

STEPS = 6
BASE = [
    *QUICK,
    "model=mlp",
    "model.net.hidden_sizes=[8,8]",
    "optimizer=sgd",
    "optimizer.lr=0.01",
    "trainer.max_epochs=3",
    f"trainer.limit_train_batches={STEPS}",
    "trainer.limit_val_batches=2",
]


class Watch(Callback):
    """Notes the learning rate of each parameter at every step."""

    def __init__(self) -> None:
        self.rates: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        names = {parameter: name for name, parameter in pl_module.net.named_parameters()}
        groups = trainer.optimizers[0].param_groups
        self.rates.append({names[parameter]: group["lr"] for group in groups for parameter in group["params"]})


def fit(overrides: list[str]) -> tuple[Plan, Watch, dict[str, Tensor]]:
    """Trains, and returns the plan, what was watched and the weights before."""
    composed = compose([*BASE, *overrides])
    plan = plan_run(composed)
    before = {key: value.clone() for key, value in plan.module.net.state_dict().items()}
    watch = Watch()
    with claim(composed) as run:
        trainer = build_trainer(plan, run)
        trainer.callbacks.append(watch)
        trainer.fit(plan.module, datamodule=plan.datamodule)
    return plan, watch, before


def test_linear_probing_trains_the_head_alone(tmp_path: Path) -> None:
    plan, watch, before = fit(["model.freeze=backbone"])
    after = plan.module.net.state_dict()
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    assert changed == {"head.weight", "head.bias"}  # no running mean either
    assert all(rates.keys() == {"head.weight", "head.bias"} for rates in watch.rates)
    assert len(watch.rates) == 3 * STEPS


@pytest.mark.parametrize("head_lr", ["null", "0.1"])
@pytest.mark.parametrize("schedule", ["none", "one_cycle", "cosine", "step", "exponential", "plateau"])
def test_the_backbone_joins_the_schedule(schedule: str, head_lr: str, tmp_path: Path) -> None:
    overrides = [f"scheduler={schedule}", f"optimizer.param_groups.head_lr={head_lr}"]
    if schedule == "step":
        overrides.append("scheduler.step_size=1")
    _, whole, _ = fit(overrides)
    plan, watch, before = fit([*overrides, "model.freeze=backbone", "model.unfreeze_epoch=1"])
    assert all(rates.keys() == {"head.weight", "head.bias"} for rates in watch.rates[:STEPS])
    for rates, expected in zip(watch.rates[STEPS:], whole.rates[STEPS:], strict=True):
        assert rates == pytest.approx(expected, rel=1e-9)
    after = plan.module.net.state_dict()
    assert not any(torch.equal(after[key], before[key]) for key in after)
    decays = {group["name"]: group["weight_decay"] for group in plan.module.trainer.optimizers[0].param_groups}
    assert decays == {name: 0.0 if "no decay" in name else 5e-4 for name in decays}


def test_processes_agree_after_the_unfreezing(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """What was frozen when the processes met is exchanged as well."""
    (tmp_path / "probe.py").write_text(PROBE, encoding="utf-8")
    overrides = [*BASE[2:], "logger=none", "trainer=ddp_sim", "model.freeze=backbone", "model.unfreeze_epoch=1"]
    done = command("probe", *overrides, PYTHONPATH=f"{tmp_path}:{ROOT}")
    sums = [path.read_text(encoding="utf-8").split() for path in sorted(tmp_path.glob("weights-*"))]
    assert len(sums) == 2, done.stderr
    assert sums[0] == sums[1]
    assert sums[0][0] != sums[0][1]


PROBE = """
import sys
from pathlib import Path
from src.config import compose
from src.engine.plan import plan_run
from src.engine.run import claim
from src.engine.trainer import build_trainer

if __name__ == "__main__":
    composed = compose(sys.argv[1:])
    plan = plan_run(composed)
    weight = plan.module.net.body[0].weight.detach()
    before = float(weight.double().sum())
    with claim(composed) as run:
        trainer = build_trainer(plan, run)
        trainer.fit(plan.module, datamodule=plan.datamodule)
    # A file each: what two processes print can share a line.
    note = Path(__file__).parent / f"weights-{trainer.global_rank}"
    note.write_text(f"{before} {float(weight.double().sum())}", encoding="utf-8")
"""


def test_a_probe_is_evaluated_like_any_other(
    train: Callable[..., dict[str, float]], run_folders: Callable[[], list[Path]]
) -> None:
    train(*BASE[2:], "model.freeze=backbone")
    (folder,) = run_folders()
    assert evaluate([f"ckpt={folder}"]) == pytest.approx(status(folder)["metrics"], abs=1e-6)


def test_unfreezing_what_is_not_frozen_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^model.unfreeze_epoch=2: nothing is frozen; add model.freeze=backbone$"):
        plan_run(compose([*BASE, "model.unfreeze_epoch=2"]))


# --- averaged weights


class Average(Callback):
    """The average by its definition."""

    def __init__(self, decay: float) -> None:
        self.decay, self.values = decay, list[Tensor]()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        now = pl_module.net.head.weight.detach().clone()
        self.values.append(now if not self.values else self.values[-1] * self.decay + now * (1 - self.decay))


def test_the_average_is_what_is_saved_and_tested(run_folders: Callable[[], list[Path]], tmp_path: Path) -> None:
    composed = compose([*BASE, "callbacks=ema", "callbacks.ema.decay=0.5", "optimizer.lr=1.0"])
    plan = plan_run(composed)
    average = Average(0.5)
    with claim(composed) as run:
        trainer = build_trainer(plan, run)
        trainer.callbacks.insert(1, average)
        trainer.fit(plan.module, datamodule=plan.datamodule)
        (tested,) = trainer.test(
            plan.module, datamodule=plan.datamodule, ckpt_path="best", verbose=False, weights_only=True
        )
    best = read_checkpoint(run.folder / "checkpoints/best.ckpt")
    epoch = best["epoch"]
    torch.testing.assert_close(best["state_dict"]["net.head.weight"], average.values[STEPS * (epoch + 1) - 1])
    current = best["current_model_state"]["net.head.weight"]
    assert not torch.allclose(current, best["state_dict"]["net.head.weight"])
    assert evaluate([f"ckpt={run.folder}"]) == pytest.approx(tested, abs=1e-6)
