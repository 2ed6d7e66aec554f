"""IDX, the file format of MNIST (http://yann.lecun.com/exdb/mnist, section "File formats")."""

import gzip
import zlib
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from src.config import ConfigError

_UINT8 = 0x08  # the type code in the third byte of the magic number; the fourth is the number of dimensions


def read_idx(path: Path, ndim: int) -> NDArray[np.uint8]:
    """Reads an IDX file of unsigned bytes, unpacked or gzipped (by the suffix .gz).

    Args:
        path: The file.
        ndim: Dimensions it must have: 3 for images, 1 for labels.

    Returns:
        The array, read-only.

    Raises:
        ConfigError: If the file cannot be read or is not exactly what its header says.
    """
    raw = read_bytes(path)
    header = 4 + 4 * ndim
    if not raw:
        raise ConfigError(f"{path} is empty")
    magic = bytes([0, 0, _UINT8, ndim])
    if raw[:4] != magic:
        raise ConfigError(f"{path} is no IDX file of {ndim}-d bytes: it starts with {raw[:4].hex()}, not {magic.hex()}")
    if len(raw) < header:
        raise ConfigError(f"{path} is truncated: {len(raw)} bytes, less than its header of {header}")
    shape = tuple(int.from_bytes(raw[i : i + 4], "big") for i in range(4, header, 4))
    expected = header + prod(shape)
    if len(raw) != expected:
        wrong = "is truncated" if len(raw) < expected else "goes on after its end"
        raise ConfigError(f"{path} {wrong}: {len(raw)} bytes, not {expected} ({' x '.join(map(str, shape))})")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def read_bytes(path: Path) -> bytes:
    """Returns what is in a file, unpacked if its suffix is .gz.

    Raises:
        ConfigError: If the file cannot be read.
    """
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ConfigError(f"{path} is a broken gzip file: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
