"""Linear and fully connected classifiers. Tensor suffixes: B batch, C channels, H height, W width, K classes."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import Tensor, nn


class LinearClassifier(nn.Module):
    """Softmax regression: one affine map from the flattened input to the logits.

    Args:
        input_shape: Shape of one sample, for example ``[1, 28, 28]``.
        num_classes: Number of logits.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(prod(input_shape), num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Returns the logits ``[B, K]``."""
        logits_BK: Tensor = self.head(x_BCHW.flatten(1))
        return logits_BK


class MLP(nn.Module):
    """Fully connected layers, each with batch norm (Ioffe and Szegedy 2015) and ReLU, and a linear head.

    Args:
        input_shape: Shape of one sample.
        num_classes: Number of logits.
        hidden_sizes: Width of each hidden layer.
    """

    def __init__(
        self, input_shape: Sequence[int], num_classes: int, hidden_sizes: Sequence[int] = (64, 128, 64)
    ) -> None:
        super().__init__()
        widths = [prod(input_shape), *hidden_sizes]
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            # The batch norm that follows has a bias of its own.
            layers += [nn.Linear(width_in, width_out, bias=False), nn.BatchNorm1d(width_out), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Returns the logits ``[B, K]``."""
        logits_BK: Tensor = self.head(self.body(x_BCHW.flatten(1)))
        return logits_BK
