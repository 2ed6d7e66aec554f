"""One photo, of whatever format, to an upright square of RGB bytes."""

import contextlib
import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")  # no format that starts another program
MAX_PIXELS = 100_000_000
"""More is taken for a decompression bomb: a small file that fills the memory."""

ORIENTATION = 0x0112  # EXIF tag

FAULTS = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, ArithmeticError,
    RuntimeError, AssertionError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
"""What Pillow's decoders raise on bytes that are not what they seem."""


class BadPhotoError(Exception):
    """A file that cannot be used; the message says why, as the rest of a sentence that begins with its name."""


def decode(path: Path, size: int) -> tuple[int, Image.Image]:
    """Reads a photo once.

    A JPEG is decoded at the smallest scale of its cosine transform that covers the target. The shorter side becomes
    `size`, larger or smaller, and the middle is kept. Transparency is laid on white; 16 bits are scaled to 8.

    Args:
        path: The file.
        size: Pixels of a side.

    Returns:
        A checksum of 64 bits of the file's content, and the image in mode RGB.

    Raises:
        BadPhotoError: If there is no whole image in the file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadPhotoError(f"cannot be read: {error.strerror}") from error
    if not content:
        raise BadPhotoError("is empty")
    digest = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadPhotoError(f"has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
            drafted = image.draft("RGB", (size, size))  # of an odd size the last pixel is only partly covered
            width, height = drafted[1][2:] if drafted else image.size
            side = min(width, height)
            box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
            square = to_rgb(image).resize((size, size), Image.Resampling.BILINEAR, box)
            with contextlib.suppress(*FAULTS):  # broken EXIF in a sound photo
                square.getexif()[ORIENTATION] = image.getexif().get(ORIENTATION, 1)
                ImageOps.exif_transpose(square, in_place=True)
            return digest, square
    except UnidentifiedImageError as error:
        raise BadPhotoError("is no image of a known format") from error
    except FAULTS as error:
        raise BadPhotoError(f"is broken: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image of any mode; what `convert` would clip is scaled, what it would uncover stays hidden.

    Raises:
        BadPhotoError: If its pixels have no range that is known.
    """
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise BadPhotoError("has pixels of 32 bits, whose range is not known")
        image = Image.fromarray((values / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")
