"""What happens to a whole batch of photos on the device: crops, flips and colours of their own for each image."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import interpolate

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
LOG_RATIO = 0.28768207245178096  # of width to height: log(4 / 3), as in Szegedy et al. 2015
CACHED = 4  # images whose float values stay in a CPU's cache


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
    out = torch.empty((*x_BCHW.shape[:2], size, size), dtype=torch.uint8, memory_format=torch.channels_last)
    boxes = boxes_B5.int().tolist()

    def resize(part: slice) -> None:
        for image, result, box in zip(x_BCHW[part], out[part], boxes[part], strict=True):
            top, height, left, width, mirrored = box
            crop = image[None, :, top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)
            crop = interpolate(crop, (size, size), mode="bilinear", antialias=True)[0]
            result.copy_(crop.flip(-1) if mirrored else crop)

    in_parts(len(out), resize)
    return out


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


def color_jitter(x_BCHW: Tensor, strength: float) -> Tensor:
    """Changes brightness, contrast and saturation, in this order, each by a factor from 1 - strength to 1 + strength.

    The three are one affine map of the colours, and the result is clamped once, at its end.

    Args:
        x_BCHW: RGB images from 0 to 255.
        strength: From 0 to below 1.

    Returns:
        Float32 images from 0 to 255.
    """
    luma_C = torch.tensor(LUMA, device=x_BCHW.device)
    factors = 1 + strength * (2 * torch.rand(3, len(x_BCHW), 1, 1, device=x_BCHW.device) - 1)
    brightness, contrast, saturation = factors
    mix_BCC = saturation * torch.eye(3, device=x_BCHW.device) + (1 - saturation) * luma_C
    map_BCC, gray_B11 = brightness * contrast * mix_BCC, brightness * (1 - contrast)
    out = torch.empty(x_BCHW.shape, device=x_BCHW.device)

    def change(part: slice) -> None:
        x_BCL = x_BCHW[part].flatten(2).contiguous().float()  # one plane a channel: an eighth of the time
        bias_B11 = (x_BCL.mean(2) @ luma_C).view(-1, 1, 1) * gray_B11[part]
        torch.baddbmm(bias_B11.expand(-1, 3, 1), map_BCC[part], x_BCL, out=out[part].flatten(2)).clamp_(0, 255)

    if x_BCHW.device.type == "cpu":
        in_parts(len(out), change)
    else:
        change(slice(None))
    return out


def in_parts(count: int, work: Callable[[slice], None]) -> None:
    """Works on a few images of a batch at a time, in one thread.

    Torch's own threads would share every small operation and wait for each other at the end of each, which on a machine
    that is busy with something else takes a thousand times as long as the operation. Threads that take whole parts were
    measured too: they wait for Python's lock, and are half as fast as one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for start in range(0, count, CACHED):
            work(slice(start, start + CACHED))
    finally:
        torch.set_num_threads(threads)
