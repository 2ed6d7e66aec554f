"""An epoch of a full run against a hand-written loop: same net, same batches, same optimizer, alternating in one run.

The run is what `python -m src.train` does: every default callback, torchmetrics, metrics.csv, offline W&B, checkpoints
and validation. The loop is what one would write without any of it: forward, backward, step, and the validation loss and
accuracy. 60,000 training and 5,000 validation images of 28x28 (noise in MNIST's format), batch 128.

    python -m benchmarks.mnist_epoch [--epochs 8] [--threads 1] [--data FOLDER] [key=value ...]

The last line is one JSON object: the median ratios (run / loop), the medians in seconds, the peak memory of each alone.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from benchmarks._alternate import ImageLoop, alternate, medians
from src.config import compose
from src.engine.plan import Plan, plan_run
from src.engine.run import claim
from src.engine.trainer import build_trainer

EXPERIMENTS = {"mlp": ["experiment=mnist_mlp"], "linear": ["experiment=mnist_mlp", "model=linear"]}
COMMON = ["scheduler=none", "trainer=cpu", "early_stopping.patience=null", "logger.mode=offline"]
COMMON.append("optimizer.param_groups.decay_bias_and_norm=true")  # one group of parameters, as in the loop
IMAGES = {"train": 65_000, "t10k": 1_000}  # 5,000 of the first are for validation


class HandWritten(ImageLoop):
    """The plain loop on the CPU."""

    def __init__(self, plan: Plan, trainer: Trainer | None = None) -> None:
        super().__init__(plan)
        self.mean, self.std = plan.datamodule.facts["mean"][0], plan.datamodule.facts["std"][0]

    def batch(self, split: str, index: Tensor) -> tuple[Tensor, Tensor]:
        """Gathers and normalises one batch."""
        return self.x[split][index].float().div_(255).sub_(self.mean).div_(self.std), self.y[split][index]


def measure(overrides: list[str], epochs: int) -> dict[str, float]:
    """Returns the ratio and the seconds."""
    _, pairs = alternate(overrides, epochs, HandWritten)
    return medians(pairs)


def alone(which: str, overrides: list[str]) -> None:
    """One epoch of one of them, for the memory it needs; prints the peak in MB."""
    composed = compose([*overrides, "trainer.max_epochs=1"])
    plan = plan_run(composed)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of imports and data preparation (Linux)
    if which == "loop":
        HandWritten(plan).epoch()
    else:
        with claim(composed) as run:
            build_trainer(plan, run).fit(plan.module, datamodule=plan.datamodule)
    (peak,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) / 1024)


def peak_memory(which: str, overrides: list[str]) -> float:
    """Peak resident memory of one of them in a process of its own, in MB."""
    command = [sys.executable, "-m", "benchmarks.mnist_epoch", "--alone", which, *overrides]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.split()[-1])


def write_images(root: Path) -> None:
    """Writes noise with a label-dependent mean in MNIST's format."""
    rng = np.random.default_rng(0)
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, count in IMAGES.items():
        labels = rng.permutation(np.arange(count) % 10).astype(np.uint8)
        images = rng.integers(0, 156, (count, 28, 28), dtype=np.uint8) + labels[:, None, None] * 11
        header = (2051).to_bytes(4, "big") + b"".join(size.to_bytes(4, "big") for size in (count, 28, 28))
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.astype(np.uint8).tobytes())
        header = (2049).to_bytes(4, "big") + count.to_bytes(4, "big")
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())


def main() -> None:
    """Measures both nets and prints the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", help="a folder with MNIST/raw/... instead of noise")
    parser.add_argument("--alone", choices=("run", "loop"), help=argparse.SUPPRESS)
    arguments, overrides = parser.parse_known_args()
    if arguments.alone:
        return alone(arguments.alone, overrides)
    torch.set_num_threads(arguments.threads)
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # for the processes that measure memory
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        if arguments.data is None:
            write_images(Path(folder) / "data")
        paths = [f"data.root={arguments.data or Path(folder) / 'data'}", f"runs_dir={folder}/runs"]
        for name, experiment in EXPERIMENTS.items():
            every = [*experiment, *COMMON, *paths, *overrides]
            print(f"{name}, {arguments.threads} thread(s):")
            result |= {f"{name}_{key}": round(value, 3) for key, value in measure(every, arguments.epochs).items()}
            for which in ("run", "loop"):
                result[f"{name}_{which}_peak_mb"] = round(peak_memory(which, every))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
