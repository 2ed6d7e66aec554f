"""A folder of photos against torchvision's ImageFolder and a DataLoader with two workers: first pass and later epochs.

Both end in the same: normalised float batches of random crops of 128 pixels, mirrored, with other colours. The first
pass of ours lists, checks and decodes every file to the store, then draws an epoch; that of torchvision is an epoch.
Rounds alternate, each on a new data module and a new loader; the system's cache holds the files for both.

    python -m benchmarks.folder_decode [--root FOLDER] [--count 600] [--rounds 3] [--epochs 3] [--threads 1]

`--root` is a folder with one folder a class; else photos of about 400x350 pixels are made. The last line is one JSON
object: the median ratios (torchvision / ours), seconds, and the peak memory of each in processes of their own.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets, transforms  # type: ignore[import-untyped]

from src.config import compose
from src.data.photos import ImageFolderDataModule
from src.engine.trainer import keep_freed_memory

SIZE, BATCH = 128, 32


def write_photos(root: Path, count: int) -> None:
    """Writes JPEGs with as much detail as photos have (about 45 kB each), in two classes."""
    rng = np.random.default_rng(0)
    for number in range(count):
        width, height = (int(size) for size in rng.normal((400, 350), 60).clip(150, 800))
        shapes = Image.fromarray(rng.integers(0, 256, (12, 14, 3), dtype=np.uint8)).resize((width, height))
        grain = rng.normal(0, 9, (height, width, 1))
        path = root / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((np.asarray(shapes) + grain).clip(0, 255).astype(np.uint8)).save(path, quality=90)


def epochs_of_ours(root: Path, count: int) -> Iterator[float]:
    """Yields the seconds of each epoch, the first with all that comes before it."""
    with tempfile.TemporaryDirectory() as cache:
        cfg = compose(["data=image_folder", f"data.root={root}", f"data.cache_dir={cache}"]).cfg["data"]
        began = time.perf_counter()
        datamodule = ImageFolderDataModule(**{name: v for name, v in cfg.items() if name != "_target_"}, seed=0)
        # All photos are for training, as they are for torchvision.
        datamodule.sizes = {}
        datamodule.setup()
        loader = datamodule.train_dataloader()
        datamodule.trainer = training()
        for epoch in range(count):
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            for batch in loader:
                datamodule.on_after_batch_transfer(batch, 0)
            yield time.perf_counter() - began
            began = time.perf_counter()


def training() -> Any:
    """As much of a trainer as the data module asks for."""
    return SimpleNamespace(training=True, precision_plugin=SimpleNamespace(convert_input=lambda x: x))


def epochs_of_torchvision(root: Path, count: int, workers: int) -> Iterator[float]:
    """Yields the seconds of each epoch, the first with the start of the workers."""
    began = time.perf_counter()
    steps = [
        transforms.RandomResizedCrop(SIZE, scale=(0.35, 1.0)),
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(0.2, 0.2, 0.2),
        transforms.ToTensor(),
        transforms.Normalize([0.5] * 3, [0.25] * 3),
    ]
    photos = datasets.ImageFolder(str(root), transforms.Compose(steps))
    loader = DataLoader(photos, BATCH, shuffle=True, num_workers=workers, persistent_workers=True, drop_last=True)
    for _ in range(count):
        for _ in loader:
            pass
        yield time.perf_counter() - began
        began = time.perf_counter()


def peak_mb() -> float:
    """Peak resident memory of this process and, as if they were alike, of its largest child."""
    kinds = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    return sum(resource.getrusage(kind).ru_maxrss for kind in kinds) / 1024


def main() -> None:
    """Measures both and prints the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--root")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of torch; the store is decoded on all cores")
    parser.add_argument("--alone", choices=("ours", "torchvision"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    def epochs(which: str, root: Path) -> list[float]:
        if which == "ours":
            return list(epochs_of_ours(root, arguments.epochs))
        return list(epochs_of_torchvision(root, arguments.epochs, arguments.workers))

    if arguments.alone:
        epochs(arguments.alone, Path(arguments.root))
        print(peak_mb())
        return
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as every run does; the workers of torchvision's loader inherit it
    with tempfile.TemporaryDirectory() as folder:
        root = Path(arguments.root or folder)
        if arguments.root is None:
            write_photos(root, arguments.count)
        ratios: dict[str, list[float]] = {"first": [], "later": []}
        seconds: dict[str, list[float]] = {}
        for _ in range(arguments.rounds):
            ours, theirs = epochs("ours", root), epochs("torchvision", root)
            for name, one, other in (
                ("first", ours[0], theirs[0]),
                ("later", *map(statistics.median, (ours[1:], theirs[1:]))),
            ):
                ratios[name].append(other / one)
                seconds.setdefault(f"{name}_ours_s", []).append(one)
                seconds.setdefault(f"{name}_torchvision_s", []).append(other)
                print(f"{name}: ours {one:.3f} s, torchvision {other:.3f} s, ratio {other / one:.1f}")
        result = {f"{name}_ratio": round(statistics.median(values), 2) for name, values in ratios.items()}
        result |= {name: round(statistics.median(values), 3) for name, values in seconds.items()}
        for which in ("ours", "torchvision"):
            command = [sys.executable, "-m", "benchmarks.folder_decode", "--alone", which, "--root", str(root)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            result[f"{which}_peak_mb"] = round(float(done.stdout.split()[-1]))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
