"""What changes images, targets and loss while training, and only then: smoothing, mixing, class weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from src.config import ConfigError
from src.data.base import Batch
from src.engine.checkpoint import read_checkpoint
from src.evaluate import main as evaluate
from src.modules.classification import ClassificationModule, balancing_weights
from tests.conftest import status

K = 4
FACTS = {
    "input_shape": [3, 8, 8],
    "num_classes": K,
    "class_names": ["ant", "bee", "cow", "dog"],
    "class_counts": {"train": [10, 40, 20, 30], "val": [1, 1, 1, 0]},
}


def module(net: dict[str, Any] | None = None, **options: Any) -> ClassificationModule:
    return ClassificationModule(
        net=net or {"_target_": "src.nets.linear.LinearClassifier"},
        facts=FACTS,
        optimizer={},
        scheduler={},
        monitor={},
        **options,
    )


def batch(size: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(size, 3, 8, 8, generator=generator)
    return Batch(x, torch.arange(size) % K, torch.arange(size))


def test_label_smoothing_in_training_alone() -> None:
    logits, y = torch.randn(5, K), torch.tensor([0, 1, 2, 3, 0])
    smoothed = module(label_smoothing=0.2)
    target = nn.functional.one_hot(y, K) * 0.8 + 0.2 / K
    torch.testing.assert_close(smoothed.loss(logits, y), -(target * logits.log_softmax(1)).sum(1).mean())
    torch.testing.assert_close(smoothed.eval().loss(logits, y), nn.functional.cross_entropy(logits, y))


LOGITS, CLASSES = torch.eye(K)[[0, 1, 2, 0]] * 2, torch.tensor([0, 1, 1, 3])


@pytest.mark.parametrize(
    ("weights", "expected"),
    [("auto", [100 / 40, 100 / 160, 100 / 80, 100 / 120]), ([1, 2.0, 0, 3], [1.0, 2.0, 0.0, 3.0]), (None, [1.0] * K)],
)
def test_class_weights_in_training_alone(weights: Any, expected: list[float]) -> None:
    """Of "auto", inverse to the share of the training samples."""
    weighted, plain = module(class_weights=weights), nn.functional.cross_entropy(LOGITS, CLASSES)
    in_training = nn.functional.cross_entropy(LOGITS, CLASSES, weight=torch.tensor(expected))
    assert torch.equal(weighted.train().loss(LOGITS, CLASSES), in_training)
    assert torch.equal(weighted.eval().loss(LOGITS, CLASSES), plain)
    assert (weights is None) == torch.equal(in_training, plain)


@pytest.mark.parametrize("weights", [[1.0, -2.0, 0.0, 1.0], [0, 0, 0, 0]])
def test_class_weights_that_weigh_nothing(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match="no weight may be below 0, and one must be above it"):
        module(class_weights=weights)


def test_class_weights_are_plain_hyper_parameters_and_no_part_of_the_state() -> None:
    weighted = module(class_weights="auto")
    assert weighted.hparams["class_weights"] == "auto"
    assert weighted.state_dict().keys() == module().state_dict().keys()


def test_class_weights_that_do_not_fit_the_classes() -> None:
    with pytest.raises(ConfigError, match="2 weights for 4 classes"):
        module(class_weights=[1.0, 2.0])
    facts = {"class_names": ["ant", "bee", "cow"], "class_counts": {"train": [10, 0, 50]}}
    with pytest.raises(ConfigError, match="class_weights=auto: no training sample is of class bee; give a list"):
        balancing_weights(facts)


def mixed(kind: str, seed: int = 0) -> tuple[Tensor, Tensor, Batch]:
    given = batch()
    torch.manual_seed(seed)
    x, target = module(**{kind: 1.0}).mix(given.x, given.y)
    return x, target, given


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_targets_have_the_shares_of_the_images(kind: str) -> None:
    x, target, given = mixed(kind)
    one_hot = nn.functional.one_hot(given.y, K).float()
    share = float(target[0, given.y[0]])  # of the first image's own class: its neighbour is of another
    assert 0 < share < 1
    torch.testing.assert_close(target, share * one_hot + (1 - share) * one_hot.roll(1, 0))
    if kind == "mixup":
        torch.testing.assert_close(x, share * given.x + (1 - share) * given.x.roll(1, 0))
    else:
        own = (x == given.x).all(1)
        assert float(own.float().mean()) == pytest.approx(share)
        assert torch.equal(torch.where(own[:, None], given.x, given.x.roll(1, 0)), x)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_the_draws_follow_the_generator(kind: str) -> None:
    assert torch.equal(mixed(kind, seed=3)[0], mixed(kind, seed=3)[0])
    assert not torch.equal(mixed(kind, seed=3)[0], mixed(kind, seed=4)[0])


def test_one_of_both_is_drawn_for_each_batch() -> None:
    both = module(mixup=1.0, cutmix=1.0)
    torch.manual_seed(0)
    pasted = [bool((both.mix(batch().x, batch().y)[0] == batch().x).any()) for _ in range(40)]
    assert 10 < sum(pasted) < 30  # a cut leaves pixels as they were


def test_off_by_default() -> None:
    given = batch()
    x, y = module().mix(given.x, given.y)
    assert x is given.x
    assert y is given.y


def test_metrics_see_the_true_classes_and_evaluation_the_true_images() -> None:
    mixing = module(mixup=1.0)
    seen: list[Tensor] = []
    mixing.net.register_forward_pre_hook(lambda net, args: seen.append(args[0]))
    given = batch()
    for split in ("train", "val", "test"):
        mixing.step(given, split)
        ((_, target, _, _),) = mixing.epoch_metrics(split).pending
        assert target is given.y
    assert [torch.equal(x, given.x) for x in seen] == [False, True, True]


def test_channels_last_changes_the_layout_alone() -> None:
    net = {"_target_": "src.nets.resnet.CifarResNet", "depth": 20, "width": 4}
    torch.manual_seed(0)
    usual, last = module(net), module(net, channels_last=True)
    last.load_state_dict(usual.state_dict())
    seen: list[Tensor] = []
    last.net.register_forward_pre_hook(lambda net, args: seen.append(args[0]))
    x = batch().x
    torch.testing.assert_close(last.eval()(x), usual.eval()(x))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    filters = [parameter for parameter in last.net.parameters() if parameter.ndim == 4]
    assert all(f.is_contiguous(memory_format=torch.channels_last) for f in filters)


def test_through_the_command_line(
    train: Callable[..., dict[str, float]], run_folders: Callable[[], list[Path]]
) -> None:
    options = ["model.label_smoothing=0.1", "model.mixup=0.2", "model.cutmix=1.0", "model.channels_last=true"]
    for _ in range(2):
        train("trainer.max_epochs=1", "trainer.limit_train_batches=4", *options)
    train("trainer.max_epochs=1", "trainer.limit_train_batches=4")
    folders = run_folders()
    weights = [read_checkpoint(folder / "checkpoints/best.ckpt")["state_dict"]["net.head.weight"] for folder in folders]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert evaluate([f"ckpt={folders[0]}"]) == pytest.approx(status(folders[0])["metrics"], abs=1e-6)
