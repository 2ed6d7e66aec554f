"""The store of decoded photos: built once, whole or not at all, equal to the files."""

import os
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from src.config import ConfigError
from src.data import store as module
from src.data.decode import BadPhotoError, decode
from src.data.folder import Listing, list_photos
from src.data.store import Store, StoredImages, StreamedImages, open_store
from tests.conftest import ROOT, refusal_of
from tests.fakes import write_image_folder, write_photo

MB = 1_000_000


def listed(root: Path) -> Listing:
    return list_photos(root, "", lambda below: below[0], "")


def opened(root: Path, size: int = 16, memory: int = MB, disk: int = MB, cache: Path | None = None) -> Store:
    return open_store(listed(root), size, cache or root / ".cache", memory, disk)


def folders(root: Path) -> list[str]:
    return sorted(path.name for path in (root / ".cache").iterdir() if path.is_dir())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_image_folder(tmp_path / "photos", 14)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are decoded from now on."""
    seen: list[str] = []
    monkeypatch.setattr(module, "decode", lambda path, size: seen.append(path.name) or decode(path, size))  # type: ignore[func-returns-value]
    return seen


# --- content


def test_holds_what_the_files_hold(root: Path) -> None:
    store, listing = opened(root), listed(root)
    assert isinstance(store.images, StoredImages)
    x = store.images.gather(torch.arange(42))
    assert x.is_contiguous(memory_format=torch.channels_last)
    for position, path in enumerate(listing.paths):
        digest, image = decode(root / path, 16)
        pixels = np.asarray(image).astype(np.int64)
        assert np.array_equal(x[position].permute(1, 2, 0), pixels)
        assert store.digests[position] == digest
        assert store.moments[position].tolist() == [pixels.sum((0, 1)).tolist(), (pixels**2).sum((0, 1)).tolist()]
    assert store.faults == {}


@pytest.mark.parametrize("index", [[], [3], [41, 0, 7, 7]])
def test_images_from_the_disk_and_streamed_ones_are_equal_to_the_last_bit(root: Path, index: list[int]) -> None:
    positions = torch.tensor(index, dtype=torch.int64)
    expected = opened(root).images.gather(positions)
    from_disk, streamed = opened(root, memory=0).images, opened(root, disk=0).images
    assert isinstance(from_disk, StoredImages)
    assert from_disk.x_NHWC is None
    assert isinstance(streamed, StreamedImages)
    for images in (from_disk, streamed):
        x = images.gather(positions)
        assert torch.equal(x, expected)
        assert x.is_contiguous(memory_format=torch.channels_last) or not index


def test_a_store_on_disk_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "images"
    np.random.default_rng(0).integers(0, 256, 200 * 256 * 256 * 3, dtype=np.uint8).tofile(path)

    def resident() -> int:
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024

    images = StoredImages(path, 256, budget=4 * MB)
    images.gather(torch.arange(10))
    before = resident()
    for start in range(0, 200, 10):
        images.gather(torch.arange(start, start + 10))
    assert resident() - before < 4 * MB < path.stat().st_size / 5


def test_a_streamed_photo_that_breaks_later_is_named(root: Path) -> None:
    images = opened(root, disk=0).images
    (root / "bee/1.jpg").write_bytes(b"")
    with pytest.raises(ConfigError, match=f"{root}/bee/1.jpg is empty"):
        images.gather(torch.arange(42))


# --- when it is built


def test_is_built_once(root: Path, decoded: list[str]) -> None:
    first = opened(root)
    assert len(decoded) == 42
    decoded.clear()
    again = opened(root)
    from_disk = opened(root, memory=0)
    assert decoded == []
    positions = torch.arange(42)
    assert torch.equal(again.images.gather(positions), first.images.gather(positions))
    assert torch.equal(from_disk.images.gather(positions), first.images.gather(positions))
    assert len(folders(root)) == 1


def test_is_built_by_the_cores_that_the_process_may_use(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads, pool = [], module.ThreadPoolExecutor
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    monkeypatch.setattr(module, "ThreadPoolExecutor", lambda number: threads.append(number) or pool(number))  # type: ignore[func-returns-value]
    opened(root)
    assert threads == [2]


def test_a_streamed_set_is_checked_once(root: Path, decoded: list[str]) -> None:
    opened(root, disk=0)
    assert len(decoded) == 42
    opened(root, disk=0)
    assert len(decoded) == 42
    (folder,) = folders(root)
    assert sum(path.stat().st_size for path in (root / ".cache" / folder).iterdir()) < 10_000


@pytest.mark.parametrize("change", ["content", "time", "added", "removed", "renamed"])
def test_is_built_anew_when_the_files_change(root: Path, decoded: list[str], change: str) -> None:
    opened(root)
    before = folders(root)
    path, expected = root / "ant/1.jpg", 42
    if change == "content":
        write_photo(path, 2, seed=77, size=(50, 50))
    elif change == "time":
        os.utime(path, ns=(1, 1))
    elif change == "added":
        write_photo(root / "ant/new.jpg", 0)
        expected = 43
    elif change == "removed":
        path.unlink()
        expected = 41
    else:
        path.rename(root / "ant/new.jpg")
    decoded.clear()
    opened(root)
    assert len(decoded) == expected
    assert folders(root) != before
    assert len(folders(root)) == 1  # the old one is gone


@pytest.mark.parametrize("name", ["images.u8", "index.npz"])
@pytest.mark.parametrize("rest", [None, 1000])
def test_is_built_anew_when_it_is_damaged(root: Path, decoded: list[str], name: str, rest: int | None) -> None:
    """As where a cache was copied and the copy broke off."""
    expected = opened(root).images.gather(torch.arange(42))
    path = root / ".cache" / folders(root)[0] / name
    if rest is None:
        path.unlink()
    else:
        os.truncate(path, rest)
    decoded.clear()
    assert torch.equal(opened(root).images.gather(torch.arange(42)), expected)
    assert len(decoded) == 42


def test_sizes_stand_side_by_side(root: Path, decoded: list[str]) -> None:
    opened(root, 16)
    opened(root, 24)
    decoded.clear()
    assert opened(root, 16).images.gather(torch.arange(2)).shape == (2, 3, 16, 16)
    assert opened(root, 24).images.gather(torch.arange(2)).shape == (2, 3, 24, 24)
    assert decoded == []


# --- bad files


def test_bad_files_are_noted_with_their_reasons(root: Path, decoded: list[str]) -> None:
    (root / "ant/0.png").write_bytes(b"")
    (root / "cow/3.jpg").write_text("text")
    for disk in (MB, 0):
        for _ in range(2):
            assert opened(root, disk=disk).faults == {0: "is empty", 35: "is no image of a known format"}
    assert len(decoded) == 2 * (42 + 2)  # those that were bad are looked at each time


def test_a_file_that_can_be_read_again_is_noticed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, size: int) -> Any:
        if path.name == "2.jpg":
            raise BadPhotoError("cannot be read: Permission denied")
        return decode(path, size)

    monkeypatch.setattr(module, "decode", denied)
    assert len(opened(root).faults) == 3
    monkeypatch.setattr(module, "decode", decode)  # as after chmod, which leaves size and time as they are
    store = opened(root)
    assert store.faults == {}
    assert store.images.gather(torch.tensor([6])).any()


# --- when something goes wrong


def test_a_build_that_was_killed_leaves_nothing_that_counts(root: Path, decoded: list[str]) -> None:
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from src.data import store\n"
        "from tests.data.test_store import opened, decode\n"
        "seen = []\n"
        "def die(path, size):\n"
        "    seen.append(path)\n"
        "    if len(seen) == 20: os._exit(9)\n"
        "    return decode(path, size)\n"
        "store.decode = die\n"
        "opened(Path(sys.argv[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(root)], cwd=ROOT, timeout=120)
    assert done.returncode == 9
    assert folders(root) == ["stored-16.partial"]
    assert opened(root).images.gather(torch.arange(42)).flatten(1).any(1).all()
    assert len(decoded) == 42
    assert [name for name in folders(root) if "partial" in name] == []


def test_of_several_that_come_at_once_one_builds(root: Path, decoded: list[str]) -> None:
    stores: list[Store] = []
    threads = [threading.Thread(target=lambda: stores.append(opened(root))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(decoded) == 42
    pixels = {store.images.gather(torch.arange(42)).numpy().tobytes() for store in stores}
    assert (len(stores), len(pixels)) == (4, 1)


def refusal(root: Path, cache: Path) -> str:
    return refusal_of(opened, root, cache=cache)


def test_a_cache_that_cannot_be_written(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert refusal(root, tmp_path / "file/cache") == (
        f"the decoded photos cannot be stored in {tmp_path}/file/cache: Not a directory\n"
        "    data.cache_dir=FOLDER stores them elsewhere"
    )


def test_a_store_can_be_used_where_nothing_can_be_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(root)

    def read_only(*args: Any, **kwargs: Any) -> None:
        raise OSError(30, "Read-only file system")

    for owner, name in ((Path, "mkdir"), (Path, "rename"), (os, "open"), (shutil, "rmtree")):
        monkeypatch.setattr(owner, name, read_only)
    assert opened(root).images.gather(torch.arange(42)).shape == (42, 3, 16, 16)


def test_a_full_disk_is_noticed_before_the_work(
    root: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[str]
) -> None:
    usage = namedtuple("usage", "total used free")(10**6, 10**6, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert "0 MB are needed, 0 are free" in refusal(root, root / ".cache")
    assert decoded == []
    assert folders(root) == []


def test_a_disk_that_fills_up_is_an_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    assert "No space left on device" in refusal(root, root / ".cache")
    assert folders(root) == []
    monkeypatch.setattr(os, "pwrite", lambda *args: 5)
    assert "No space left on device" in refusal(root, root / ".cache")
