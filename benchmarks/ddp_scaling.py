"""Images per second on one process and on two, and what checkpoints and exact resume cost.

ResNet-20 on 32x32 images (noise in CIFAR-10's format) with gloo, one thread a process and the same global batch. Every
measurement is a full `python -m src.train`; those of one and of two processes alternate, and the medians are compared.

    python -m benchmarks.ddp_scaling [--images 6000] [--batch 128] [--repeats 3]

The last line is one JSON object: images per second and their ratio; seconds of a save, of the seeding of one batch from
its position and of a restore; and what one save, the seeding of every batch and one restore take of an epoch of 50,000
images on two processes, in per cent.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.cifar_epoch import write_images
from src.config import compose
from src.engine.checkpoint import is_committed, read_checkpoint
from src.engine.plan import plan_run
from src.engine.run import claim
from src.engine.trainer import build_trainer

EPOCH = 50_000  # images


def arguments_of(folder: Path, batch: int, runs: Path) -> list[str]:
    """What both kinds of runs have in common."""
    return [
        *("experiment=cifar10_resnet20", f"data.root={folder}", f"data.batch_size={batch}", f"runs_dir={runs}"),
        *("trainer=cpu", "logger=none", "test=false", "trainer.max_epochs=1", "trainer.log_every_n_steps=5"),
        "data.val_size=500",
    ]


def images_per_second(folder: Path, batch: int, processes: int) -> tuple[float, float]:
    """The median over an epoch's rows but the first, and the seconds of a save, of a run on so many processes."""
    with tempfile.TemporaryDirectory() as runs:
        several = [f"trainer.devices={processes}", "trainer.strategy=ddp"] if processes > 1 else []
        command = [sys.executable, "-m", "src.train", *arguments_of(folder, batch, Path(runs)), *several]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        (table,) = Path(runs).glob("*/*/perf.csv")
        rows: dict[str, list[float]] = {}
        for row in csv.DictReader(table.read_text(encoding="utf-8").splitlines()):
            rows.setdefault(row["name"], []).append(float(row["value"]))
    return statistics.median(rows["perf/samples_per_second"][1:]), rows["perf/checkpoint_seconds"][-1]


class SeedingTimer(Callback):
    """Times what makes a batch's random numbers follow from its position."""

    seconds = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seeds a thousand times, which changes nothing: the seed is that of this batch."""
        if batch_idx == 3:
            datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
            began = time.perf_counter()
            for _ in range(1000):
                datamodule.on_before_batch_transfer(batch, 0)
            self.seconds = (time.perf_counter() - began) / 1000


def seeding_and_restoring(folder: Path, batch: int) -> tuple[float, float]:
    """Seconds to seed for a batch, and to check, read and load a checkpoint."""
    with tempfile.TemporaryDirectory() as runs:
        composed = compose([*arguments_of(folder, batch, Path(runs)), "trainer.limit_train_batches=6"])
        plan, timer = plan_run(composed), SeedingTimer()
        with claim(composed) as run:
            trainer = build_trainer(plan, run)
            trainer.callbacks.append(timer)
            trainer.fit(plan.module, datamodule=plan.datamodule)
            point = max(run.checkpoints.glob("step-*.ckpt"))
            began = time.perf_counter()
            assert is_committed(point)
            checkpoint = read_checkpoint(point)
            plan.module.load_state_dict(checkpoint["state_dict"])
            trainer.optimizers[0].load_state_dict(checkpoint["optimizer_states"][0])
            return timer.seconds, time.perf_counter() - began


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder, options.images)
        one, two, saves = [], [], []
        for _ in range(options.repeats):
            for processes, speeds in ((1, one), (2, two)):
                speed, save = images_per_second(folder, options.batch, processes)
                speeds.append(speed)
                saves.append(save)
                print(f"{processes} {'process' if processes == 1 else 'processes'}: {speed:.0f} images/s")
        seed, restore = seeding_and_restoring(folder, options.batch)
    epoch = EPOCH / statistics.median(two)
    save, steps = statistics.median(saves), EPOCH // options.batch
    print(
        json.dumps(
            {
                "one_images_per_second": round(statistics.median(one), 1),
                "two_images_per_second": round(statistics.median(two), 1),
                "ratio": round(statistics.median(b / a for a, b in zip(one, two, strict=True)), 3),
                "save_s": round(save, 4),
                "seed_s": round(seed, 7),
                "restore_s": round(restore, 4),
                "save_percent": round(100 * save / epoch, 3),
                "exact_resume_percent": round(100 * (seed * steps + restore) / epoch, 3),
            }
        )
    )


if __name__ == "__main__":
    main()
