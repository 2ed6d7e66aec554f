"""Crops, flips and colours of a batch of photos."""

from collections.abc import Iterator

import pytest
import torch
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional as reference  # type: ignore[import-untyped]

from src.data.photo_transforms import (
    LUMA,
    center_crop,
    color_jitter,
    random_resized_crop,
    resize_all,
    resize_each,
)
from src.data.transforms import Normalize


def photos(count: int = 6, side: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    small = torch.randint(0, 256, (count, 3, 9, 9), generator=generator, dtype=torch.uint8)
    return interpolate(small, (side, side), mode="bilinear").contiguous(memory_format=torch.channels_last)


BYTES = Normalize([0.0] * 3, [1 / 255] * 3)  # leaves the values as they are
BOXES = torch.tensor(
    [[0, 40, 0, 40, 0], [3, 20, 5, 30, 0], [3, 20, 5, 30, 1], [0, 40, 10, 7, 1], [39, 1, 0, 1, 0]]
).float()


@pytest.mark.parametrize("size", [16, 32, 40, 64])
def test_both_ways_to_resize_are_torch_s_own(size: int) -> None:
    x = photos(len(BOXES))
    exact, fast = resize_all(x, BOXES, size), resize_each(x, BOXES, size)
    assert fast.dtype == torch.uint8
    for image, (top, height, left, width, mirrored), one, other in zip(
        x, BOXES.int().tolist(), exact, fast, strict=True
    ):
        crop = image[None, :, top : top + height, left : left + width].float()
        expected = interpolate(crop, (size, size), mode="bilinear", antialias=True)[0]
        expected = expected.flip(-1) if mirrored else expected
        torch.testing.assert_close(one, expected, rtol=0, atol=2e-3)
        assert (other.float() - expected).abs().max() <= 1.5  # rounded after each of the two directions


def test_crops_differ_between_images_follow_the_seed_and_stay_in_bounds() -> None:
    x = photos(1).expand(64, -1, -1, -1)
    torch.manual_seed(1)
    first = random_resized_crop(x, 16, 0.3, flip=True)
    assert len({image.numpy().tobytes() for image in first}) == 64
    torch.manual_seed(1)
    assert torch.equal(random_resized_crop(x, 16, 0.3, flip=True), first)
    assert first.shape == (64, 3, 16, 16)


@pytest.mark.parametrize("min_area", [0.1, 0.5, 1.0])
def test_the_area_is_at_least_what_was_asked(min_area: float) -> None:
    """Two ramps as an image: the differences of neighbouring results tell the size of the rectangle."""
    side, size = 240, 24
    ramp = torch.arange(side, dtype=torch.uint8)
    x = torch.stack([ramp.expand(side, side), ramp.expand(side, side).T, ramp.expand(side, side)])
    out = random_resized_crop(x.expand(500, -1, -1, -1), size, min_area, flip=False).float()
    width = (out[:, 0, 0, -2] - out[:, 0, 0, 1]) / (size - 3) * size
    height = (out[:, 1, -2, 0] - out[:, 1, 1, 0]) / (size - 3) * size
    area = width * height / side**2
    assert area.max() <= 1.02
    assert area.min() >= min_area * 0.95 if min_area < 1 else area.min() >= 0.73  # clamped where it would stick out
    if min_area == 0.1:
        assert area.min() < 0.2
        assert area.max() > 0.8
        assert ((width / height).log().abs() < 0.31).all()
        assert (width / height).std() > 0.1


def test_half_of_the_crops_are_mirrored() -> None:
    x = torch.arange(32, dtype=torch.uint8).expand(1000, 3, 32, 32)
    mirrored = [random_resized_crop(x, 8, 0.5, flip)[:, 0, 0] for flip in (True, False)]
    assert 400 < sum(int(row[0] > row[-1]) for row in mirrored[0]) < 600
    assert not any(row[0] > row[-1] for row in mirrored[1])


def test_jitter_is_brightness_then_contrast_then_saturation(monkeypatch: pytest.MonkeyPatch) -> None:
    x = 80 + photos(7).float() / 4  # nothing to clamp on the way
    draws = torch.rand(3, 7, 1, 1)
    monkeypatch.setattr(torch, "rand", lambda *shape, device: draws)
    out = color_jitter(x, 0.3, BYTES)
    for image, result, (b, c, s) in zip(x, out, (1 + 0.3 * (2 * draws.view(3, 7).T - 1)).tolist(), strict=True):
        expected = image * b
        expected = c * expected + (1 - c) * (torch.tensor(LUMA) @ expected.mean((1, 2)))
        expected = s * expected + (1 - s) * torch.einsum("c,chw->hw", torch.tensor(LUMA), expected)
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-3)
        theirs = reference.adjust_contrast(reference.adjust_brightness(image / 255, b), c)
        theirs = reference.adjust_saturation(theirs, s) * 255
        torch.testing.assert_close(result, theirs, rtol=0, atol=0.2)  # their weights have three digits


def test_jitter_takes_bytes_and_keeps_the_range() -> None:
    x = photos(9)
    out = color_jitter(x, 0.9, BYTES)
    assert out.dtype == torch.float32
    assert out.min() >= 0
    assert out.max() <= 255
    torch.testing.assert_close(color_jitter(x, 0.0, BYTES), x.float(), rtol=0, atol=1e-3)
    assert color_jitter(x[:0], 0.5, BYTES).shape == (0, 3, 40, 40)


def test_jitter_normalises() -> None:
    x, normalize = photos(9), Normalize([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
    torch.manual_seed(3)
    plain = color_jitter(x, 0.9, BYTES)
    torch.manual_seed(3)
    torch.testing.assert_close(color_jitter(x, 0.9, normalize), normalize(plain), rtol=1e-5, atol=1e-5)


def test_center_crop() -> None:
    x = torch.arange(25).view(1, 1, 5, 5)
    assert center_crop(x, 3).tolist() == [[[[6, 7, 8], [11, 12, 13], [16, 17, 18]]]]
    assert center_crop(x, 5) is not None
    assert torch.equal(center_crop(x, 5), x)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_threads_do_not_change_the_photos(two_threads: None) -> None:
    x = torch.randint(256, (11, 3, 40, 40), dtype=torch.uint8)
    results = []
    for threads in (2, 1):
        torch.set_num_threads(threads)
        torch.manual_seed(5)
        results.append(color_jitter(random_resized_crop(x, 16, 0.3, flip=True), 0.3, BYTES))
        assert torch.get_num_threads() == threads
    assert torch.equal(*results)


def test_the_threads_come_back_after_a_failure(two_threads: None) -> None:
    with pytest.raises(ValueError, match="number of spatial dimensions"):
        resize_each(torch.zeros(1, 16, 16, dtype=torch.uint8), torch.tensor([[0, 4, 0, 4, 0]]), 4)
    assert torch.get_num_threads() == 2
