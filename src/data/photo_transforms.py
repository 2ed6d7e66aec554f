"""What happens to a whole batch of photos on the device: crops, flips and colours of their own for each image."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from src.data.transforms import Normalize

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
LOG_RATIO = 0.28768207245178096  # of width to height: log(4 / 3), as in Szegedy et al. 2015


def center_crop(x_BCHW: Tensor, size: int) -> Tensor:
    """Returns the middle [B, C, size, size], a view."""
    top, left = (x_BCHW.shape[2] - size) // 2, (x_BCHW.shape[3] - size) // 2
    return x_BCHW[..., top : top + size, left : left + size]


def random_resized_crop(x_BCHW: Tensor, size: int, min_area: float, flip: bool) -> Tensor:
    """Cuts a random rectangle out of each image, resizes it (bilinear, antialiased) and may mirror it.

    Args:
        x_BCHW: Square uint8 images.
        size: Pixels of a side of the result.
        min_area: Smallest share of the image that a rectangle may have.
        flip: Whether half of the results are mirrored.

    Returns:
        [B, C, size, size]; uint8 on a CPU, float32 from 0 to 255 elsewhere.
    """
    side = x_BCHW.shape[-1]
    area, ratio, y, x, mirror = torch.rand(5, len(x_BCHW), device=x_BCHW.device)
    area = side * side * (min_area + (1 - min_area) * area)
    ratio = torch.exp(LOG_RATIO * (2 * ratio - 1))
    height, width = ((area * factor).sqrt().round().clamp(1, side) for factor in (1 / ratio, ratio))
    top, left = (y * (side - height + 1)).floor(), (x * (side - width + 1)).floor()
    boxes_B5 = torch.stack([top, height, left, width, (mirror < 0.5) & flip], 1)
    return (resize_each if x_BCHW.device.type == "cpu" else resize_all)(x_BCHW, boxes_B5, size)


def resize_each(x_BCHW: Tensor, boxes_B5: Tensor, size: int) -> Tensor:
    """Resizes rectangles (top, height, left, width, whether mirrored) of uint8 images one by one: fast on a CPU."""
    resized, boxes, threads = [], boxes_B5.int().tolist(), torch.get_num_threads()
    torch.set_num_threads(1)  # operations so small that sharing them takes longer than doing them
    try:
        for x_1CHW, (top, height, left, width, mirrored) in zip(x_BCHW.unsqueeze(1), boxes, strict=True):
            crop_1CHW = x_1CHW[..., top : top + height, left : left + width]
            crop_1CHW = interpolate(crop_1CHW, (size, size), mode="bilinear", antialias=True)
            resized.append(crop_1CHW.flip(3) if mirrored else crop_1CHW)
        return torch.cat(resized)
    finally:
        torch.set_num_threads(threads)


def resize_all(x_BCHW: Tensor, boxes_B5: Tensor, size: int) -> Tensor:
    """Resizes such rectangles all at once to float32, by two matrices an image; GPUs cannot interpolate bytes."""
    top, height, left, width, mirrored = boxes_B5.unbind(1)
    rows_BOH, columns_BOW = (resizing(*line, x_BCHW.shape[-1], size) for line in ((top, height), (left, width)))
    columns_BOW = torch.where(mirrored.view(-1, 1, 1) > 0, columns_BOW.flip(1), columns_BOW)
    return rows_BOH.unsqueeze(1) @ x_BCHW.float() @ columns_BOW.mT.unsqueeze(1)


def resizing(start_B: Tensor, length_B: Tensor, side: int, size: int) -> Tensor:
    """Returns the matrices [B, size, side] that resize these stretches of a line, bilinear and antialiased."""
    start_B11, length_B11 = start_B.view(-1, 1, 1), length_B.view(-1, 1, 1)
    scale_B11 = length_B11 / size
    pixel_S = torch.arange(side, device=start_B.device) + 0.5
    center_BO1 = (torch.arange(size, device=start_B.device).view(1, -1, 1) + 0.5) * scale_B11 + start_B11
    weights_BOS = (1 - (pixel_S - center_BO1).abs() / scale_B11.clamp(min=1)).clamp(min=0)
    weights_BOS = weights_BOS * ((pixel_S > start_B11) & (pixel_S < start_B11 + length_B11))
    return weights_BOS / weights_BOS.sum(2, keepdim=True)


def color_jitter(x_BCHW: Tensor, strength: float, normalize: Normalize) -> Tensor:
    """Changes brightness, contrast and saturation, in this order, each by a factor from 1 - strength to 1 + strength.

    The three and the normalisation are one affine map of the colours, and the result is clamped once, at its end.

    Args:
        x_BCHW: RGB images from 0 to 255.
        strength: From 0 to below 1.
        normalize: What follows.

    Returns:
        Normalised float32 images.
    """
    scale_C1, shift_C1 = (tensor_C11.flatten(1) for tensor_C11 in normalize.constants(x_BCHW.device))
    luma_C = torch.tensor(LUMA, device=x_BCHW.device)
    factors = 1 + strength * (2 * torch.rand(3, len(x_BCHW), 1, 1, device=x_BCHW.device) - 1)
    brightness, contrast, saturation = factors
    mix_BCC = saturation * torch.eye(3, device=x_BCHW.device) + (1 - saturation) * luma_C
    x_BCL = x_BCHW.flatten(2).contiguous().float()  # one plane a channel: an eighth of the time
    gray_B11 = brightness * (1 - contrast) * (x_BCL.mean(2) @ luma_C).view(-1, 1, 1)
    out_BCL = torch.baddbmm(gray_B11 * scale_C1 + shift_C1, brightness * contrast * mix_BCC * scale_C1, x_BCL)
    for plane_BL, (low, high) in zip(out_BCL.unbind(1), normalize.ranges, strict=True):
        plane_BL.clamp_(low, high)  # by numbers: by tensors it takes three times as long
    return out_BCL.view(x_BCHW.shape)
