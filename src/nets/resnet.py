"""Residual networks (He et al. 2016). Tensor suffixes: B batch, C channels, H height, W width, K classes."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn


def conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size at stride 1; the norm that follows has the bias."""
    return nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)


class PadShortcut(nn.Module):
    """The shortcut without parameters (option A): every second pixel, and zeros for the channels that are new.

    Args:
        channels_in: Channels of the block's input.
        channels_out: Channels of its output.
        stride: Subsampling.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.stride, self.new_channels = stride, channels_out - channels_in

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Returns the subsampled input, its channels first."""
        sampled_BCHW = x_BCHW[:, :, :: self.stride, :: self.stride]
        return nn.functional.pad(sampled_BCHW, (0, 0, 0, 0, 0, self.new_channels))


class ConvShortcut(nn.Sequential):
    """The projection shortcut (option B): a 1x1 convolution and a norm; arguments as `PadShortcut`."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__(nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out))


Shortcut = type[PadShortcut] | type[ConvShortcut]


def make_shortcut(kind: Shortcut, channels_in: int, channels_out: int, stride: int) -> nn.Module:
    """The identity where input and output of a block have the same shape, else a shortcut of this kind."""
    return kind(channels_in, channels_out, stride) if stride != 1 or channels_in != channels_out else nn.Identity()


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    Args:
        channels_in: Channels of the input.
        width: Channels of the 3x3 convolutions; of the output times `expansion`.
        stride: Of the first 3x3 convolution.
        shortcut: What the input passes on its way to the sum, where its shape changes.
    """

    expansion = 1

    def __init__(self, channels_in: int, width: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels_in, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = make_shortcut(shortcut, channels_in, width, stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Returns the block's output, as high and wide as the input over the stride."""
        y_BCHW: Tensor = self.bn1(self.conv1(x_BCHW)).relu_()
        y_BCHW = self.bn2(self.conv2(y_BCHW))
        return y_BCHW.add_(self.downsample(x_BCHW)).relu_()


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution and a shortcut, with the stride on the 3x3; arguments as `BasicBlock`."""

    expansion = 4

    def __init__(self, channels_in: int, width: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        channels_out = width * self.expansion
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.downsample = make_shortcut(shortcut, channels_in, channels_out, stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Returns the block's output, as high and wide as the input over the stride."""
        y_BCHW: Tensor = self.bn1(self.conv1(x_BCHW)).relu_()
        y_BCHW = self.bn2(self.conv2(y_BCHW)).relu_()
        y_BCHW = self.bn3(self.conv3(y_BCHW))
        return y_BCHW.add_(self.downsample(x_BCHW)).relu_()


class ResidualNet(nn.Module):
    """A stem, three or four stages of blocks, the mean over the image, and a linear head.

    The layers have torchvision's names, so that published weights fit.

    Args:
        channels: Of the images.
        num_classes: Number of logits.
        block: What the stages are made of.
        blocks: How many blocks each stage has; all but the first stage halve the size and double the channels.
        width: Channels of the stem and of the first stage's 3x3 convolutions.
        stem: ``cifar``, one 3x3 convolution, or ``imagenet``, which makes the image four times smaller first.
        shortcut: Of the blocks that change the shape.
        zero_init_last_norm: Whether each block starts as its shortcut alone (Goyal et al. 2017, section 5.1), unless
            that is a `PadShortcut`.

    Attributes:
        feature_map: Which layer gives the last feature map.
    """

    feature_map = "layer4"

    def __init__(
        self,
        channels: int,
        num_classes: int,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: Sequence[int],
        width: int,
        stem: Literal["cifar", "imagenet"],
        shortcut: Shortcut,
        zero_init_last_norm: bool,
    ) -> None:
        super().__init__()
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
        else:
            self.conv1 = conv3x3(channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem == "imagenet" else nn.Identity()
        stages, channels = [], width
        for stage, count in enumerate(blocks):
            layers = []
            for stride in [1 if stage == 0 else 2] + [1] * (count - 1):
                layers.append(block(channels, width * 2**stage, stride, shortcut))
                channels = width * 2**stage * block.expansion
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3 = stages[:3]
        self.layer4 = stages[3] if len(stages) > 3 else nn.Sequential()
        self.fc = nn.Linear(channels, num_classes)
        initialize(self, zero_init_last_norm)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Returns the logits ``[B, K]``."""
        x_BCHW = self.maxpool(self.bn1(self.conv1(x_BCHW)).relu_())
        x_BCHW = self.layer4(self.layer3(self.layer2(self.layer1(x_BCHW))))
        logits_BK: Tensor = self.fc(x_BCHW.mean((2, 3)))
        return logits_BK


def initialize(net: nn.Module, zero_init_last_norm: bool) -> None:
    """Draws the convolutions' weights as He et al. 2015 do, by the outputs; `zero_init_last_norm` as `ResidualNet`."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, BasicBlock | Bottleneck) and zero_init_last_norm:
            if isinstance(module.downsample, PadShortcut):
                continue  # a new channel would be 0 on both sides of the sum, where ReLU passes no gradient, for good
            nn.init.zeros_((module.bn3 if isinstance(module, Bottleneck) else module.bn2).weight)


class CifarResNet(ResidualNet):
    """The networks for 32x32 images, of 6n + 2 layers (section 4.2): three stages, shortcuts without parameters.

    Args:
        input_shape: ``[C, H, W]`` of one image.
        num_classes: Number of logits.
        depth: Layers.
        width: Channels of the first stage.
        zero_init_last_norm: Whether each block starts as its shortcut alone.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        depth: Literal[20, 32, 44, 56, 110],
        width: int = 16,
        zero_init_last_norm: bool = False,
    ) -> None:
        blocks = [(depth - 2) // 6] * 3
        super().__init__(
            input_shape[0], num_classes, BasicBlock, blocks, width, "cifar", PadShortcut, zero_init_last_norm
        )


class ResNet(ResidualNet):
    """The networks for ImageNet (table 1), key for key torchvision's.

    Args:
        input_shape: ``[C, H, W]`` of one image.
        num_classes: Number of logits.
        depth: Layers.
        stem: ``imagenet`` for photos, ``cifar`` for images of about 32x32, which the other would make too small.
        width: Channels of the first stage.
        zero_init_last_norm: Whether each block starts as its shortcut alone.

    Attributes:
        published_as: Under which name torchvision publishes weights.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        depth: Literal[18, 34, 50],
        stem: Literal["cifar", "imagenet"] = "imagenet",
        width: int = 64,
        zero_init_last_norm: bool = False,
    ) -> None:
        block = Bottleneck if depth == 50 else BasicBlock
        blocks = (2, 2, 2, 2) if depth == 18 else (3, 4, 6, 3)
        super().__init__(input_shape[0], num_classes, block, blocks, width, stem, ConvShortcut, zero_init_last_norm)
        self.published_as = f"resnet{depth}"


class ResNet9(nn.Module):
    """A short net that learns CIFAR-10 fast (Page 2018, "How to Train Your ResNet").

    Args:
        input_shape: ``[C, H, W]`` of one image; at least 8 pixels a side.
        num_classes: Number of logits.
        width: Channels of the first layer.
        scale: Of the logits: small ones keep the first steps at a large learning rate in bounds.

    Attributes:
        feature_map: Which layer gives the last feature map.
    """

    feature_map = "body"

    def __init__(self, input_shape: Sequence[int], num_classes: int, width: int = 64, scale: float = 0.125) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths = [input_shape[0], width, 2 * width, 4 * width, 8 * width]
        for stage, (width_in, width_out) in enumerate(pairwise(widths)):
            layers += [conv3x3(width_in, width_out), nn.BatchNorm2d(width_out), nn.ReLU(inplace=True)]
            if stage > 0:
                layers.append(nn.MaxPool2d(2))
            if stage in (1, 3):
                layers.append(BasicBlock(width_out, width_out, 1, ConvShortcut))
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], num_classes, bias=False)
        self.scale = scale
        initialize(self, zero_init_last_norm=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Returns the logits ``[B, K]``."""
        logits_BK: Tensor = self.head(self.body(x_BCHW).amax((2, 3)))
        return logits_BK * self.scale
