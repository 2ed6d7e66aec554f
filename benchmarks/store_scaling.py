"""Time an image and resident memory of a store on disk, from ten thousand to a million images of 32x32.

The store is a file of noise; an epoch draws its images in random order in batches of 128, through the sampler and the
split that a run uses, and normalises them. At most `--images` are drawn of each size, the first pass warms up.

    python -m benchmarks.store_scaling [--sizes 10000 100000 1000000] [--images 100000] [--budget-mb 30] [--folder DIR]

The last line is one JSON object: nanoseconds an image and the peak of the resident memory by size, the slowest size
against the fastest, and the growth of the memory from the first size to the last.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from src.data.photos import PhotoSplit
from src.data.sampler import TrainSampler
from src.data.store import Store, StoredImages
from src.data.transforms import Normalize

SIDE, BATCH, PASSES = 32, 128, 5
IMAGE = SIDE * SIDE * 3


def write_noise(path: Path, count: int) -> None:
    """Writes `count` images, a hundred megabytes at a time."""
    rng = np.random.default_rng(0)
    block = rng.integers(0, 256, min(count, 32_768) * IMAGE, dtype=np.uint8)
    with open(path, "wb") as file:
        for start in range(0, count, 32_768):
            file.write(np.roll(block, start)[: min(32_768, count - start) * IMAGE].data)


def resident_mb(which: str) -> float:
    """Resident memory of this process (Linux): VmRSS now, VmHWM at its peak."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) / 1024


def measure(path: Path, count: int, images: int, budget: int) -> tuple[float, float]:
    """Returns the median time an image in nanoseconds and the peak of the resident memory in MB."""
    stored = StoredImages(path, SIDE, budget)
    unknown = np.zeros(0, np.uint64), np.zeros((0, 2, 3), np.int64)
    split = PhotoSplit(Store(stored, *unknown, {}), torch.arange(count), torch.zeros(count, dtype=torch.int64))
    sampler, normalize = TrainSampler(count, BATCH, seed=0), Normalize([0.5] * 3, [0.25] * 3)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    seconds = []
    for epoch in range(PASSES + 1):
        sampler.set_epoch(epoch)
        order = iter(sampler)
        first = next(order)  # the permutation is made here, and is no part of a step
        began, steps = time.perf_counter(), min(images, count) // BATCH - 1
        normalize(split[first].x)
        for _, index in zip(range(steps - 1), order, strict=False):
            normalize(split[index].x)
        seconds.append((time.perf_counter() - began) / (steps * BATCH))
    return statistics.median(seconds[1:]) * 1e9, resident_mb("VmHWM")


def main() -> None:
    """Measures every size and prints the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--budget-mb", type=float, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", help="where the files go, at most one at a time; the system's temporary folder")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "images.u8"
        write_noise(path, 4096)
        measure(path, 4096, 4096, 0)  # what the first use allocates
        for count in arguments.sizes:
            write_noise(path, count)
            time_ns, memory = measure(path, count, arguments.images, int(arguments.budget_mb * 1e6))
            size = f"{count:>9,} images, {count * IMAGE / 1e6:>7,.0f} MB"
            print(f"{size}: {time_ns:,.0f} ns an image, {memory:,.0f} MB resident")
            result[str(count)] = {"ns": round(time_ns), "resident_mb": round(memory, 1)}
    times, memories = ([entry[key] for entry in result.values()] for key in ("ns", "resident_mb"))
    ratios = {"time_ratio": round(max(times) / min(times), 3), "memory_growth_mb": round(memories[-1] - memories[0], 1)}
    print(json.dumps({"sizes": result, **ratios}))


if __name__ == "__main__":
    main()
