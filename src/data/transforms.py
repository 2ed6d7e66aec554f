"""What happens to a whole batch of images on the device."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize:
    """uint8 images to float32 of mean 0 and standard deviation 1 per channel (of the training part).

    Args:
        mean: Of each channel, in units of the full range (0 to 1).
        std: Likewise.

    Attributes:
        ranges: What the smallest and the largest value of each channel become.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        mean_C11, std_C11 = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (mean, std))
        self.ranges = [(-m / s, (1 - m) / s) for m, s in zip(mean, std, strict=True)]
        self._scale_C11 = (1 / (255 * std_C11)).float()
        self._shift_C11 = (-mean_C11 / std_C11).float()

    def constants(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Returns what the values of each channel are multiplied by, and what is added then, both [C, 1, 1]."""
        if self._scale_C11.device != device:
            self._scale_C11, self._shift_C11 = self._scale_C11.to(device), self._shift_C11.to(device)
        return self._scale_C11, self._shift_C11

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        """Returns a new float32 tensor; `x_BCHW` stays as it is."""
        scale_C11, shift_C11 = self.constants(x_BCHW.device)
        return x_BCHW.to(torch.float32, copy=True).mul_(scale_C11).add_(shift_C11)


class RandomCropFlip:
    """Zero padding, a crop of the original size at a random place, a flip; drawn anew for each image of a batch.

    The usual augmentation of 32x32 images (He et al. 2016, section 4.2). Draws come from the device's own generator.

    Args:
        padding: Pixels of zeros on each side; 0: no crop.
        flip: Whether to mirror half of the images, left to right.
    """

    def __init__(self, padding: int, flip: bool) -> None:
        self.padding, self.flip = padding, flip

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        """Returns new images of the same shape and type."""
        batch, places, device = len(x_BCHW), 2 * self.padding + 1, x_BCHW.device
        top_B, left_B = torch.randint(places, (2, batch), device=device)
        flipped_B = torch.randint(2 if self.flip else 1, (batch,), device=device).bool()
        return crop_and_flip(x_BCHW, self.padding, top_B, left_B, flipped_B)


def crop_and_flip(x_BCHW: Tensor, padding: int, top_B: Tensor, left_B: Tensor, flipped_B: Tensor) -> Tensor:
    """Cuts from each zero-padded image a crop of the original size, and mirrors it where asked.

    One gather for the whole batch, with the crop and the flip folded into its index.

    Args:
        x_BCHW: Images.
        padding: Pixels of zeros on each side.
        top_B: int64 first row of each crop, 0 to 2 * padding.
        left_B: Likewise the first column.
        flipped_B: Which crops are mirrored left to right.
    """
    batch, channels, height, width = x_BCHW.shape
    padded_BCP = nn.functional.pad(x_BCHW, (padding,) * 4).flatten(2)
    row_BH = torch.arange(height, device=x_BCHW.device) + top_B[:, None]
    column_W = torch.arange(width, device=x_BCHW.device)
    column_BW = torch.where(flipped_B[:, None], column_W.flip(0), column_W) + left_B[:, None]
    index_BHW = row_BH[:, :, None] * (width + 2 * padding) + column_BW[:, None, :]
    index_BCP = index_BHW.view(batch, 1, -1).expand(-1, channels, -1)
    return padded_BCP.gather(2, index_BCP).view_as(x_BCHW)


def channel_statistics(x_NCHW: Tensor) -> tuple[list[float], list[float]]:
    """Returns the exact mean and standard deviation of each channel of uint8 images, in units of the full range."""
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in x_NCHW.unbind(1):
        share = torch.bincount(channel.reshape(-1), minlength=256).double() / channel.numel()
        mean.append(float(share @ values))
        std.append(float(share @ (values - mean[-1]).square()) ** 0.5)
    return mean, std
