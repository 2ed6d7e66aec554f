"""One file to a square of RGB: formats, modes, orientation, and everything that is wrong with files."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.data import decode as module
from src.data.decode import BadPhotoError, decode
from tests.fakes import write_photo

STORED = {  # how a camera held in each way stores an upright photo
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def smooth(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def pixels(path: Path, size: int = 16) -> np.ndarray:
    image = decode(path, size)[1]
    assert (image.mode, image.size) == ("RGB", (size, size))
    return np.asarray(image).astype(np.float64)


def fault(path: Path) -> str:
    with pytest.raises(BadPhotoError) as caught:
        decode(path, 16)
    return str(caught.value)


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG by hand, for what Pillow does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# --- what comes out


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("shape", [(96, 64), (65, 97)])
def test_exif_orientation_is_honoured(tmp_path: Path, orientation: int, shape: tuple[int, int]) -> None:
    upright, exif = smooth(*shape), Image.Exif()
    exif[0x0112] = orientation
    turn = STORED[orientation]
    (upright if turn is None else upright.transpose(turn)).save(tmp_path / "a.jpg", quality=98, exif=exif)
    side = min(shape)
    left, top = (shape[0] - side) / 2, (shape[1] - side) / 2
    box = (left, top, left + side, top + side)
    expected = np.asarray(upright.resize((16, 16), Image.Resampling.BILINEAR, box)).astype(np.float64)
    assert np.abs(pixels(tmp_path / "a.jpg") - expected).mean() < 3


def test_large_jpegs_are_decoded_at_the_smallest_scale_that_covers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, to_rgb = [], module.to_rgb
    monkeypatch.setattr(module, "to_rgb", lambda image: seen.append(image.size) or to_rgb(image))  # type: ignore[func-returns-value]
    for width, height in ((1280, 960), (479, 700), (480, 700), (159, 1000)):
        smooth(width, height).save(tmp_path / "a.jpg", quality=95)
        small = pixels(tmp_path / "a.jpg", 160)
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        whole = smooth(width, height).resize(
            (160, 160), Image.Resampling.BILINEAR, (left, top, left + side, top + side)
        )
        assert np.abs(small - np.asarray(whole)).mean() < 2
    assert seen == [(320, 240), (240, 350), (240, 350), (159, 1000)]


@pytest.mark.parametrize("size", [(3, 5), (1, 1), (40, 2)])
def test_small_images_are_enlarged(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (10, 200, 90)).save(tmp_path / "a.png")
    assert np.array_equal(pixels(tmp_path / "a.png"), np.full((16, 16, 3), (10, 200, 90)))


COLOUR, GREY = (200, 100, 50), (120, 120, 120)


@pytest.mark.parametrize(
    ("image", "suffix", "expected"),
    [
        (Image.new("L", (20, 24), 120), ".jpg", GREY),
        (Image.new("L", (20, 24), 120), ".png", GREY),
        (Image.new("1", (20, 24), 1), ".png", (255, 255, 255)),
        (Image.new("LA", (20, 24), (120, 255)), ".png", GREY),
        (Image.new("RGB", (20, 24), COLOUR).quantize(4), ".png", COLOUR),
        (Image.new("RGB", (20, 24), COLOUR).quantize(4), ".gif", COLOUR),
        (Image.new("RGBA", (20, 24), (*COLOUR, 255)), ".png", COLOUR),
        (Image.new("RGBA", (20, 24), (*COLOUR, 0)), ".png", (255, 255, 255)),
        (Image.new("RGBA", (20, 24), (*COLOUR, 0)), ".webp", (255, 255, 255)),
        (Image.new("RGBA", (20, 24), (0, 0, 0, 128)), ".png", (127, 127, 127)),
        (Image.new("CMYK", (20, 24), (0, 128, 255, 0)), ".jpg", (255, 127, 0)),
        (Image.new("CMYK", (20, 24), (0, 128, 255, 0)), ".tif", (255, 127, 0)),
        (Image.new("YCbCr", (20, 24), (120, 128, 128)), ".jpg", GREY),
        (Image.fromarray(np.full((24, 20), 120 * 257, np.uint16)), ".png", GREY),
        (Image.fromarray(np.full((24, 20), 120 * 257, np.uint16)), ".tif", GREY),
        (Image.fromarray(np.full((24, 20), 120 * 257, np.int32)), ".tif", GREY),
        (Image.new("RGB", (20, 24), COLOUR), ".bmp", COLOUR),
        (Image.new("RGB", (20, 24), COLOUR), ".ppm", COLOUR),
        (Image.new("RGB", (20, 24), COLOUR), ".webp", COLOUR),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_every_mode_becomes_rgb(tmp_path: Path, image: Image.Image, suffix: str, expected: tuple[int, ...]) -> None:
    image.save(tmp_path / f"a{suffix}")
    assert np.abs(pixels(tmp_path / f"a{suffix}") - expected).max() <= 3


def test_a_transparent_palette_entry_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (20, 24), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.save(tmp_path / "opaque.png", transparency=0)
    image.save(tmp_path / "transparent.png", transparency=1)
    assert np.array_equal(pixels(tmp_path / "opaque.png")[0, 0], COLOUR)
    assert np.array_equal(pixels(tmp_path / "transparent.png")[0, 0], (255, 255, 255))


def test_colours_of_16_bits_are_scaled(tmp_path: Path) -> None:
    row = b"\0" + struct.pack(">HHH", 200 * 257, 100 * 257, 50 * 257) * 20
    (tmp_path / "a.png").write_bytes(png(20, 20, 16, 2, row * 20))
    assert np.array_equal(pixels(tmp_path / "a.png"), np.full((16, 16, 3), COLOUR))


def test_suffix_and_content_may_disagree(tmp_path: Path) -> None:
    write_photo(tmp_path / "a.png", 1).rename(tmp_path / "a.JPG")
    assert pixels(tmp_path / "a.JPG")[..., 1].min() > 140


def test_broken_exif_does_not_spoil_a_photo(tmp_path: Path) -> None:
    for number, exif in enumerate((b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01", b"Exif\0\0")):
        smooth(40, 30).save(tmp_path / f"{number}.jpg", exif=exif)
        smooth(40, 30).save(tmp_path / "plain.jpg")
        assert np.array_equal(pixels(tmp_path / f"{number}.jpg"), pixels(tmp_path / "plain.jpg"))


def test_the_checksum_is_of_the_content_alone(tmp_path: Path) -> None:
    one = write_photo(tmp_path / "a.jpg", 0)
    other = tmp_path / "b.jpg"
    other.write_bytes(one.read_bytes())
    assert decode(one, 16)[0] == decode(other, 8)[0] != decode(write_photo(tmp_path / "c.jpg", 1), 16)[0]


# --- what cannot be used


def test_zero_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    assert fault(tmp_path / "a.jpg") == "is empty"


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".bmp", ".webp", ".tif"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated(tmp_path: Path, suffix: str, share: float) -> None:
    path = write_photo(tmp_path / f"a{suffix}", 0, size=(200, 200))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert fault(path).startswith("is broken: ") or fault(path) == "is no image of a known format"


def test_text_named_jpg(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("<html>404</html>")
    assert fault(tmp_path / "a.jpg") == "is no image of a known format"


@pytest.mark.parametrize("width", [11_000, 20_000, 2**31 - 1])
def test_decompression_bombs(tmp_path: Path, width: int) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(width, 10_000, 8, 2, b""))
    assert "pixels" in fault(path)


def test_a_bomb_in_a_text_chunk(tmp_path: Path) -> None:
    content = b"comment\0\0" + zlib.compress(bytes(80_000_000))
    chunk = struct.pack(">I", len(content)) + b"zTXt" + content + struct.pack(">I", zlib.crc32(b"zTXt" + content))
    whole = png(4, 4, 8, 2, bytes(13) * 4)
    (tmp_path / "a.png").write_bytes(whole[:33] + chunk + whole[33:])
    assert fault(tmp_path / "a.png").startswith("is broken: ")


def test_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)  # root may read everything
    assert fault(tmp_path / "a.jpg") == "cannot be read: Permission denied"


def test_missing(tmp_path: Path) -> None:
    assert fault(tmp_path / "a.jpg") == "cannot be read: No such file or directory"


@pytest.mark.parametrize("array", [np.full((9, 9), 1e6, np.int32), np.full((9, 9), 0.5, np.float32)])
def test_pixels_without_a_known_range(tmp_path: Path, array: np.ndarray) -> None:
    Image.fromarray(array).save(tmp_path / "a.tif")
    assert fault(tmp_path / "a.tif") == "has pixels of 32 bits, whose range is not known"


def test_a_format_that_runs_another_program_is_not_opened(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    assert fault(tmp_path / "a.jpg") == "is no image of a known format"
