"""Residual networks: sizes of the paper, torchvision's keys and outputs, shortcuts, initialisation."""

from typing import Any

import pytest
import torch
import torchvision  # type: ignore[import-untyped]
from torch import nn

from src.nets.resnet import BasicBlock, Bottleneck, CifarResNet, ConvShortcut, PadShortcut, ResNet, ResNet9


def size(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("depth", "paper", "exact"),
    [(20, 0.27, 269_722), (32, 0.46, 464_154), (44, 0.66, 658_586), (56, 0.85, 853_018), (110, 1.7, 1_727_962)],
)
def test_cifar_nets_have_the_size_of_the_paper(depth: Any, paper: float, exact: int) -> None:
    net = CifarResNet([3, 32, 32], 10, depth)
    assert size(net) == exact
    assert round(exact / 1e6, 2 if paper < 1 else 1) == paper
    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth  # the shortcuts have none


def test_cifar_stages() -> None:
    net = CifarResNet([3, 32, 32], 10, 20)
    shapes: list[list[int]] = []
    for stage in (net.layer1, net.layer2, net.layer3):
        stage.register_forward_hook(lambda module, args, output: shapes.append(list(output.shape[1:])))
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert shapes == [[16, 32, 32], [32, 16, 16], [64, 8, 8]]


@pytest.mark.parametrize(("depth", "parameters"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)])
def test_torchvision_s_weights_fit_and_give_its_outputs(depth: Any, parameters: int) -> None:
    torch.manual_seed(0)
    reference = torchvision.models.get_model(f"resnet{depth}", weights=None).eval()
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    net = ResNet([3, 64, 64], 1000, depth).eval()
    assert list(net.state_dict()) == list(reference.state_dict())
    assert [tensor.shape for tensor in net.state_dict().values()] == [
        tensor.shape for tensor in reference.state_dict().values()
    ]
    net.load_state_dict(reference.state_dict())
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(net(x), reference(x), rtol=0, atol=0)
    assert size(net) == parameters
    assert net.published_as == f"resnet{depth}"


def test_the_stem_for_small_images_keeps_their_size() -> None:
    net = ResNet([3, 32, 32], 10, 18, stem="cifar")
    sizes: list[int] = []
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        stage.register_forward_hook(lambda module, args, output: sizes.append(output.shape[-1]))
    net(torch.zeros(1, 3, 32, 32))
    assert sizes == [32, 16, 8, 4]
    assert size(net) == 11_173_962


def test_the_shortcut_without_parameters_subsamples_and_pads() -> None:
    x = torch.arange(1.0, 2 * 2 * 4 * 4 + 1).view(2, 2, 4, 4)
    y = PadShortcut(2, 5, stride=2)(x)
    assert y.shape == (2, 5, 2, 2)
    assert torch.equal(y[:, :2], x[:, :, ::2, ::2])
    assert not y[:, 2:].any()
    channels_last = x.contiguous(memory_format=torch.channels_last)
    assert PadShortcut(2, 5, 2)(channels_last).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_zero_init_makes_a_block_its_shortcut(block: type[BasicBlock | Bottleneck]) -> None:
    net = ResNet([3, 32, 32], 10, 18 if block is BasicBlock else 50, stem="cifar", width=8, zero_init_last_norm=True)
    inner = net.layer1[1]
    assert isinstance(inner, block)
    x = torch.rand(2, 8 * block.expansion, 8, 8)
    assert torch.equal(inner(x), x)
    ordinary = ResNet([3, 32, 32], 10, 18 if block is BasicBlock else 50, stem="cifar", width=8).layer1[1]
    assert not torch.equal(ordinary(x), x)


def test_zero_init_leaves_no_channel_dead() -> None:
    torch.manual_seed(0)
    net = CifarResNet([3, 32, 32], 10, 20, width=8, zero_init_last_norm=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = {name: value.clone() for name, value in net.named_parameters() if name.endswith("bn2.weight")}
    for _ in range(4):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(torch.randn(16, 3, 32, 32)), torch.arange(16) % 10).backward()
        optimizer.step()
    for name, value in before.items():
        assert (net.get_parameter(name) != value).all(), name


def test_convolutions_are_drawn_by_their_outputs() -> None:
    torch.manual_seed(0)
    weight = ResNet([3, 32, 32], 10, 18).layer4[1].conv1.weight
    assert float(weight.detach().std()) == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)


def test_a_block_changes_nothing_of_its_input() -> None:
    x = torch.randn(2, 8, 4, 4)
    before = x.clone()
    BasicBlock(8, 8, 1, ConvShortcut)(x)
    assert torch.equal(x, before)


def test_resnet9() -> None:
    net = ResNet9([3, 32, 32], 10)
    assert size(net) == 6_573_120
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    wide = ResNet9([3, 32, 32], 10, scale=1.0).eval()
    wide.load_state_dict(net.state_dict())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(net.eval()(x) * 8, wide(x))
