"""IDX files: what is right is read, everything else is named."""

import gzip
import re
from pathlib import Path

import numpy as np
import pytest

from src.config import ConfigError
from src.data.idx import read_idx
from tests.fakes import write_idx

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
CONTENT = bytes.fromhex("00000803 00000002 00000003 00000004") + IMAGES.tobytes()
PACKED = gzip.compress(CONTENT, mtime=0)


@pytest.mark.parametrize("gz", [False, True])
def test_reads_what_was_written(tmp_path: Path, gz: bool) -> None:
    path = write_idx(tmp_path / "images", IMAGES, gz)
    assert (gzip.decompress(path.read_bytes()) if gz else path.read_bytes()) == CONTENT
    np.testing.assert_array_equal(read_idx(path, ndim=3), IMAGES, strict=True)


def test_reads_an_array_without_elements(tmp_path: Path) -> None:
    assert read_idx(write_idx(tmp_path / "labels", np.zeros(0, np.uint8)), ndim=1).shape == (0,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (CONTENT[:2], "is no IDX file of 3-d bytes: it starts with 0000, not 00000803"),
        (CONTENT[:10], "is truncated: 10 bytes, less than its header of 16"),
        (CONTENT[:16], "is truncated: 16 bytes, not 40 (2 x 3 x 4)"),
        (CONTENT[:-1], "is truncated: 39 bytes, not 40 (2 x 3 x 4)"),
        (CONTENT + b"\0\0", "goes on after its end: 42 bytes, not 40 (2 x 3 x 4)"),
        (b"\x00\x00\x08\x01" + CONTENT[4:], "is no IDX file of 3-d bytes: it starts with 00000801, not 00000803"),
        (b"\x00\x00\x0d\x03" + CONTENT[4:], "is no IDX file of 3-d bytes: it starts with 00000d03, not 00000803"),
        (PACKED, "is no IDX file of 3-d bytes: it starts with 1f8b0800, not 00000803"),
        (b"<html>403 Forbidden</html>", "is no IDX file of 3-d bytes: it starts with 3c68746d, not 00000803"),
    ],
    ids=["empty", "magic cut", "header cut", "no data", "cut", "trailing", "labels", "floats", "packed", "web page"],
)
def test_refuses_what_is_not_exactly_an_idx_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_idx(path, ndim=3)
    assert str(caught.value) == f"{path} {message}"


@pytest.mark.parametrize(
    "content",
    [
        PACKED[:-9],
        PACKED[:5],
        CONTENT,
        PACKED[:12] + bytes([PACKED[12] ^ 255]) + PACKED[13:],
        PACKED[:-6] + b"\0\0" + PACKED[-4:],
    ],
    ids=["truncated", "header only", "not packed", "broken stream", "wrong checksum"],
)
def test_refuses_a_broken_gzip_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(f"{path} is a broken gzip file: ")):
        read_idx(path, ndim=3)


def test_refuses_an_empty_gzip_file(tmp_path: Path) -> None:
    (tmp_path / "images.gz").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"images\.gz is empty"):
        read_idx(tmp_path / "images.gz", ndim=3)


def test_refuses_a_folder_in_the_place_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: Is a directory"):
        read_idx(tmp_path, ndim=3)
