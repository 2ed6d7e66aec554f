"""The step that went wrong is saved and can be taken again."""

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from src.config import ConfigError
from src.engine.blackbox import BlackBox, take_step
from src.engine.checkpoint import read_checkpoint
from src.modules.base import BaseModule
from src.modules.classification import ClassificationModule
from src.modules.metrics import NonFiniteLossError
from src.nets.linear import MLP
from src.replay import main as replay
from tests.conftest import Folders, Train, status
from tests.fakes import CIFAR, write_cifar


class _Poisoned(torch.autograd.Function):
    """The identity, whose gradient is infinite."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return torch.full_like(gradient, torch.inf)


@pytest.fixture
def fault(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A net that goes wrong with some of the samples: those that the run meets in its step 37."""
    where: str = request.param
    original = MLP.forward
    seen: list[Tensor] = []

    def forward(self: MLP, x: Tensor) -> Tensor:
        if self.training and not seen and forward.calls == 37:  # type: ignore[attr-defined]
            seen.append(x.detach().clone())
        forward.calls += self.training  # type: ignore[attr-defined]
        bad = bool(seen) and x.shape == seen[0].shape and torch.equal(x, seen[0])
        layer = next(m for m in self.modules() if isinstance(m, nn.ReLU))
        handle = None
        if bad and where == "output":
            handle = layer.register_forward_hook(lambda m, i, output: output / 0, prepend=True)
        elif bad and where == "gradient":
            handle = layer.register_forward_hook(lambda m, i, output: _Poisoned.apply(output), prepend=True)
        result = original(self, x)
        if handle is not None:
            handle.remove()
        return result * torch.nan if bad and where == "loss" else result

    forward.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(MLP, "forward", forward)
    return where


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("output", "output of net.body.2 (ReLU)"),
        ("gradient", "the gradient that comes out of net.body.2 (ReLU)"),
        ("loss", "output of net (MLP)"),
    ],
    indirect=["fault"],
)
def test_the_step_is_saved_and_replayed(
    fault: str, found: str, train: Train, run_folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    what = "gradient" if fault == "gradient" else "loss"
    message = rf"the train {what} is not finite at step 37 \(epoch 0\); the first value that is not finite: {found[:6]}"
    with pytest.raises(NonFiniteLossError, match=message):
        train("model=mlp", "trainer.log_every_n_steps=1000")
    (folder,) = run_folders()
    path = folder / "black_box/step-37.pt"
    assert status(folder)["state"] == "failed" and str(path) in status(folder)["reason"]
    dump = read_checkpoint(path)
    assert dump["finding"]["layer"] in found and dump["step"] == 37
    index = dump["batch"]["index"]
    assert index.tolist() == expected_positions(folder, 37) and torch.isfinite(dump["batch"]["x"]).all()
    assert all(torch.isfinite(value).all() for name, value in dump["state_dict"].items() if "running" not in name)
    capsys.readouterr()
    replay([str(path)])
    printed = capsys.readouterr().out
    assert "step 37 (epoch 0, process 0), 64 samples: " + ", ".join(map(str, index[:10].tolist())) in printed
    assert f"the first value that is not finite: {found}" in printed


@pytest.mark.parametrize("fault", ["gradient", "loss"], indirect=True)
def test_the_batch_that_went_wrong_is_the_one_saved_of_those_that_a_step_collects(
    fault: str, train: Train, run_folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    """Batch 37 is the fourth of the third epoch; each epoch takes four steps, the last of them of two batches."""
    with pytest.raises(NonFiniteLossError, match=rf"the train {fault} is not finite at step 8 \(epoch 2\); the first"):
        train("model=mlp", "trainer.accumulate_grad_batches=5", "trainer.limit_train_batches=17")
    path = run_folders()[0] / "black_box/step-8.pt"
    capsys.readouterr()
    replay([str(path)])
    assert "the first value that is not finite: " in capsys.readouterr().out


def expected_positions(folder: Path, step: int) -> list[int]:
    from src.data.sampler import TrainSampler

    facts = json.loads((folder / "facts.json").read_text())
    sampler = TrainSampler(facts["num_samples"]["train"], facts["batch_size"], seed=0)
    positions: list[int] = list(sampler)[step].tolist()
    return positions


def test_weights_are_those_before_the_step(train: Train, run_folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    step, kept = BaseModule.step, {}

    def broken(self: BaseModule, batch: object, split: str) -> Tensor:
        loss = step(self, batch, split)  # type: ignore[arg-type]
        if split == "train" and self._trainer is not None and self.trainer.fit_loop.total_batch_idx == 20:
            kept.update({name: value.clone() for name, value in self.state_dict().items()})
            return loss * torch.inf
        return loss

    monkeypatch.setattr(BaseModule, "step", broken)
    with pytest.raises(NonFiniteLossError, match=r"at step 20 .*all is finite"):
        train()
    (folder,) = run_folders()
    path = folder / "black_box/step-20.pt"
    dump = read_checkpoint(path)
    assert all(torch.equal(dump["state_dict"][name], value) for name, value in kept.items())
    with pytest.raises(SystemExit) as stopped:  # the fault was not in the net, the loss or the data
        replay([str(path)])
    assert stopped.value.code == 1


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.mixup=0.4", "callbacks=ema"],
        ["model.cutmix=0.4", "trainer.precision=bf16-mixed"],
        ["model.freeze=backbone"],
        ["trainer.accumulate_grad_batches=2"],
    ],
    ids=" ".join,
)
def test_replay_takes_the_very_same_step(
    overrides: list[str], train: Train, run_folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the step is that of the run to the last digit, where nothing is wrong with it."""
    for part, files in write_cifar(tmp_path / "data", train=300, test=30).items():
        monkeypatch.setattr(CIFAR["cifar10"][0], part, files)
    losses = []

    def at_step_8(self: BlackBox, trainer: Trainer, module: BaseModule, loss: Tensor) -> None:
        if trainer.fit_loop.total_batch_idx == 8:
            losses.append(float(loss.detach()) * trainer.accumulate_grad_batches)
            self._save(trainer, module, "loss")

    monkeypatch.setattr(BlackBox, "on_before_backward", at_step_8)
    data = ["experiment=cifar10_resnet20", f"data.root={tmp_path / 'data'}", "data.val_size=40", "data.batch_size=16"]
    with pytest.raises(NonFiniteLossError, match="all is finite"):
        train(*data, *overrides)
    (path,) = (run_folders()[0] / "black_box").glob("*.pt")
    finding = take_step(read_checkpoint(path), path)
    assert finding.loss == read_checkpoint(path)["finding"]["loss"] == losses[0]


def test_without_it_the_row_finds_out(train: Train, run_folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClassificationModule, "loss", lambda self, output, target: output.sum() * torch.nan)
    with pytest.raises(NonFiniteLossError, match="the train loss is not finite at step 0"):
        train("black_box=false")
    assert not (run_folders()[0] / "black_box").exists()


def test_bad_files(train: Train, run_folders: Folders, tmp_path: Path) -> None:
    train("trainer.max_epochs=1")
    (tmp_path / "text.pt").write_text("no dump")
    for arguments, message in (
        ([], "one argument: the file"),
        (["nowhere.pt"], "nowhere.pt: there is no such file"),
        ([str(tmp_path / "text.pt")], "refused|damaged"),
        ([str(run_folders()[0] / "checkpoints/best.ckpt")], "a checkpoint, not a saved step"),
    ):
        with pytest.raises(ConfigError, match=message):
            replay(arguments)
