"""What happens to a whole batch of images on the device."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Normalize:
    """uint8 images to float32 of mean 0 and standard deviation 1 per channel (of the training part).

    Args:
        mean: Of each channel, in units of the full range (0 to 1).
        std: Likewise.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        mean_C11, std_C11 = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (mean, std))
        self.scale_C11 = (1 / (255 * std_C11)).float()
        self.shift_C11 = (-mean_C11 / std_C11).float()

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        """Returns a new float32 tensor; `x_BCHW` stays as it is."""
        if self.scale_C11.device != x_BCHW.device:
            self.scale_C11, self.shift_C11 = self.scale_C11.to(x_BCHW.device), self.shift_C11.to(x_BCHW.device)
        return x_BCHW.to(torch.float32, copy=True).mul_(self.scale_C11).add_(self.shift_C11)


def channel_statistics(x_NCHW: Tensor) -> tuple[list[float], list[float]]:
    """Returns the exact mean and standard deviation of each channel of uint8 images, in units of the full range."""
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in x_NCHW.unbind(1):
        share = torch.bincount(channel.reshape(-1), minlength=256).double() / channel.numel()
        mean.append(float(share @ values))
        std.append(float(share @ (values - mean[-1]).square()) ** 0.5)
    return mean, std
