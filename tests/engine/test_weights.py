"""Warm starts: where weights come from, what is copied, what is refused, and that it happens once."""

import hashlib
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision  # type: ignore[import-untyped]
from torch import Tensor, nn

from src.config import ConfigError
from src.engine.checkpoint import read_checkpoint
from src.engine.weights import warm_start
from src.evaluate import main as evaluate
from src.nets.linear import MLP
from src.nets.resnet import ResNet
from tests.conftest import Train, refusal_of, status
from tests.fakes import Hostile

SMALL = ("trainer.max_epochs=1", "trainer.limit_train_batches=3", "trainer.limit_val_batches=2")


def section(weights: object, **changes: Any) -> dict[str, Any]:
    return {"weights": str(weights), "freeze": None, "unfreeze_epoch": None, **changes}


def refusal(net: nn.Module, weights: object) -> str:
    return refusal_of(warm_start, net, section(weights))


def saved(path: Path, state: dict[str, Any]) -> Path:
    torch.save(state, path)
    return path


def small_resnet(num_classes: int = 10, **options: Any) -> ResNet:
    return ResNet([3, 64, 64], num_classes, 18, width=8, **options)


def test_nothing_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    net = MLP([4], 3, [5])
    before = [parameter.clone() for parameter in net.parameters()]
    warm_start(net, section(None) | {"weights": None})
    assert all(map(torch.equal, before, net.parameters()))
    assert capsys.readouterr().out == ""


def test_a_state_dict_with_a_head_that_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, net = small_resnet(), small_resnet()
    path = saved(tmp_path / "a b (1), =ü.pth", source.state_dict())
    warm_start(net, section(path))
    assert all(torch.equal(a, b) for a, b in zip(source.state_dict().values(), net.state_dict().values(), strict=True))
    assert capsys.readouterr().out == f"weights from {path}, head included\n"


def test_torchvision_s_file_with_another_number_of_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = torchvision.models.resnet18().state_dict()
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}  # as it is published
    path = saved(tmp_path / "resnet18.pth", old)
    net = ResNet([3, 64, 64], 2, 18)
    head = net.fc.weight.clone(), net.fc.bias.clone()
    warm_start(net, section(path))
    own = net.state_dict()
    assert all(torch.equal(own[key], old[key]) for key in old if not key.startswith("fc."))
    assert torch.equal(net.fc.weight, head[0])
    assert torch.equal(net.fc.bias, head[1])
    assert capsys.readouterr().out == (
        f"weights from {path}; the head is new: fc.bias [2], in the file [1000], "
        "fc.weight [2, 512], in the file [1000, 512]\n"
    )


def test_a_head_is_swapped_whole(tmp_path: Path) -> None:
    state = small_resnet(10).state_dict()
    state["fc.weight"] = torch.zeros(3, 64)
    net = small_resnet(10)
    bias = net.fc.bias.clone()
    warm_start(net, section(saved(tmp_path / "x.pth", state)))
    assert torch.equal(net.fc.bias, bias)


def test_wrapped_state_dicts(tmp_path: Path) -> None:
    source, net = small_resnet(), small_resnet()
    warm_start(net, section(saved(tmp_path / "x.pth", {"epoch": 3, "state_dict": source.state_dict()})))
    assert torch.equal(net.conv1.weight, source.conv1.weight)


def test_a_net_can_translate_a_foreign_file(tmp_path: Path) -> None:
    class Translating(MLP):
        @staticmethod
        def import_weights(raw: dict[str, Any]) -> dict[str, Tensor]:
            return {key.removeprefix("old_"): value for key, value in raw["model"].items()}

    source = MLP([4], 3, [5])
    state = {f"old_{key}": value for key, value in source.state_dict().items()}
    for content in ({"model": state}, source.state_dict()):
        net = Translating([4], 3, [5])
        path = saved(tmp_path / "x.pth", content)
        warm_start(net, section(path))
        assert torch.equal(net.head.weight, source.head.weight)
    for content in ([1], {"weights": state}):
        path = saved(tmp_path / "x.pth", content)
        assert refusal(net, path).startswith(f"model.weights={path}: no file that Translating knows: ")


# --- what does not fit


def test_the_first_keys_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", MLP([4], 3, [5]).state_dict())
    assert refusal(small_resnet(), path) == (
        f"model.weights={path}: not of this ResNet\n"
        "    missing: conv1.weight, bn1.weight, bn1.bias and 97 more\n"
        "    unexpected: body.0.weight, body.1.weight, body.1.bias and 5 more"
    )


def test_the_other_stem_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", small_resnet(stem="cifar").state_dict())
    assert refusal(small_resnet(), path) == (
        f"model.weights={path}: not of this ResNet\n"
        "    other shapes: conv1.weight [8, 3, 7, 7], in the file [8, 3, 3, 3]"
    )


@pytest.mark.parametrize("content", [{}, {"a": 1}, [torch.zeros(2)], torch.zeros(2)])
def test_files_without_weights(content: Any, tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", content)
    assert refusal(MLP([4], 3), path) == f"model.weights={path}: holds no tensors by name"


def test_a_hostile_file_runs_nothing(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", {"state_dict": Hostile(tmp_path / "executed")})
    assert f"{path}: refused: it holds more than tensors and plain values" in refusal(MLP([4], 3), path)
    assert not (tmp_path / "executed").exists()


def test_what_is_not_there(tmp_path: Path) -> None:
    assert refusal(MLP([4], 3), "IMAGENET1K_V1") == (
        "model.weights=IMAGENET1K_V1: there is no such file or run folder"  # nobody publishes an MLP's
    )
    assert refusal(ResNet([3, 64, 64], 2, 50), "IMAGENET1K_V3").startswith(
        "model.weights=IMAGENET1K_V3: there is no such file or run folder; did you mean IMAGENET1K_V"
    )
    assert refusal(MLP([4], 3), tmp_path) == f"{tmp_path}/checkpoints/best.ckpt: there is no such file"


# --- published weights


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch.hub's."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    return tmp_path / "hub/hub/checkpoints"


def test_published_weights_are_downloaded_checked_and_kept(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = torchvision.models.resnet18()
    path = saved(tmp_path / "file.pth", reference.state_dict())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    named = path.rename(tmp_path / f"resnet18-{digest}.pth")
    entry = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    monkeypatch.setattr(type(entry), "url", property(lambda self: named.as_uri()))
    net = ResNet([3, 64, 64], 1000, 18)
    warm_start(net, section("IMAGENET1K_V1"))
    assert torch.equal(net.fc.weight, reference.fc.weight)
    assert "weights from IMAGENET1K_V1, head included\n" in capsys.readouterr().out
    named.unlink()
    warm_start(ResNet([3, 64, 64], 1000, 18), section("IMAGENET1K_V1"))  # from the cache
    (hub / named.name).unlink()
    shutil.copy(saved(tmp_path / "other.pth", {"x": torch.zeros(1)}), named)
    assert "could not be had: invalid hash value" in refusal(net, "IMAGENET1K_V1")


def test_without_a_network_one_message_says_what_to_do(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: Any, **kwargs: Any) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    url = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    message = refusal(ResNet([3, 64, 64], 2, 18), "IMAGENET1K_V1")
    assert message.startswith(f"model.weights=IMAGENET1K_V1: {url} could not be had: ")
    assert "Temporary failure in name resolution" in message
    assert message.endswith(
        f"\n    without a network, put the file at {hub / Path(url).name} or name another by model.weights=PATH"
    )


# --- through the command line


def test_a_run_starts_from_another_and_is_evaluated_without_it(
    train: Train, run_folders: Callable[[], list[Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    train("model=mlp", *SMALL)
    first = run_folders()[0]
    train("model=mlp", f"model.weights={first}", "optimizer=sgd", "optimizer.lr=1e-30", *SMALL)
    assert f"weights from {first}, head included\n" in capsys.readouterr().out
    second = run_folders()[1]
    states = [read_checkpoint(run / "checkpoints/best.ckpt")["state_dict"] for run in (first, second)]
    assert torch.equal(states[0]["net.head.weight"], states[1]["net.head.weight"])
    stored = read_checkpoint(second / "checkpoints/best.ckpt")
    assert stored["config"]["model"]["weights"] == str(first)
    assert not {"weights", "freeze", "unfreeze_epoch"} & stored["hyper_parameters"].keys()
    shutil.rmtree(first)
    assert evaluate([f"ckpt={second}"]) == pytest.approx(status(second)["metrics"], abs=1e-6)


def test_a_file_that_does_not_fit_writes_nothing(
    train: Train, run_folders: Callable[[], list[Path]], tmp_path: Path
) -> None:
    path = saved(tmp_path / "x.pth", small_resnet().state_dict())
    with pytest.raises(ConfigError, match="not of this MLP"):
        train("model=mlp", f"model.weights={path}", *SMALL)
    assert run_folders() == []
