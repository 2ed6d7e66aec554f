"""An epoch of resnet20 on 32x32 images, a full run against a hand-written loop, alternating in one process.

The run is what `python -m src.train experiment=cifar10_resnet20` does: every default callback, torchmetrics,
metrics.csv, offline W&B, checkpoints and validation. The loop is what one would write without any of it, on the same
tensors: the same crop and flip, channels-last, forward, backward, step, and the validation loss and accuracy.

    python -m benchmarks.cifar_epoch [--images 50000] [--epochs 4] [--threads 2] [--data FOLDER] [key=value ...]

`trainer=gpu trainer.precision=bf16-mixed model=resnet18 model.net.stem=cifar data.on_device=true` and the like go to
both. The last line is one JSON object: the median ratio (run / loop; the goal is at most 1.05), seconds, images/s, and
the ratio of the processor's own time, which other programs on the machine disturb less.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from src.config import compose
from src.data.transforms import Normalize, RandomCropFlip
from src.engine.checkpoint import build_module
from src.engine.plan import Plan, plan_run
from src.engine.run import claim
from src.engine.trainer import build_trainer

EXPERIMENT = ["experiment=cifar10_resnet20", "scheduler=none", "early_stopping.patience=null", "logger.mode=offline"]
EXPERIMENT.append("optimizer.param_groups.decay_bias_and_norm=true")  # one group of parameters, as in the loop


Clocks = tuple[float, float]


class HandWritten:
    """The plain loop on the data of a plan, with a net and an optimizer of its own."""

    def __init__(self, plan: Plan, device: torch.device, precision: str) -> None:
        splits = plan.datamodule.splits
        place = device if plan.cfg["data"]["on_device"] else torch.device("cpu")
        self.x = {split: part.x_NCHW.to(place) for split, part in splits.items()}
        self.y = {split: part.y_N.to(place) for split, part in splits.items()}
        self.device, self.batch_size = device, plan.cfg["data"]["batch_size"]
        self.augment = RandomCropFlip(plan.cfg["data"]["crop_padding"], plan.cfg["data"]["flip"])
        self.normalize = Normalize(plan.datamodule.facts["mean"], plan.datamodule.facts["std"])
        self.net = build_module(plan.cfg, plan.datamodule.facts).net.to(device, memory_format=torch.channels_last)
        arguments = {
            key: value for key, value in plan.cfg["optimizer"].items() if key not in ("_target_", "param_groups")
        }
        self.optimizer = torch.optim.SGD(self.net.parameters(), **arguments)
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed")

    def epoch(self) -> None:
        """Trains and validates one epoch."""
        self.net.train()
        order = torch.randperm(len(self.y["train"]))
        total = torch.zeros((), device=self.device)
        for start in range(0, len(order) - self.batch_size + 1, self.batch_size):
            x, y = self.batch("train", order[start : start + self.batch_size])
            self.optimizer.zero_grad()
            with self.autocast:
                loss = nn.functional.cross_entropy(self.net(x), y)
            loss.backward()
            self.optimizer.step()
            total += loss.detach()
        self.net.eval()
        correct = 0
        with torch.no_grad(), self.autocast:
            for index in torch.arange(len(self.y["val"])).split(self.batch_size):
                x, y = self.batch("val", index)
                output = self.net(x)
                total += nn.functional.cross_entropy(output, y)
                correct += int((output.argmax(1) == y).sum())

    def batch(self, split: str, index: Tensor) -> tuple[Tensor, Tensor]:
        """Gathers, augments (to train) and normalises one batch."""
        index = index.to(self.y[split].device, non_blocking=True)
        x, y = (tensor.index_select(0, index).to(self.device) for tensor in (self.x[split], self.y[split]))
        x = self.normalize(self.augment(x) if split == "train" else x)
        return x.contiguous(memory_format=torch.channels_last), y


class Alternate(Callback):
    """Runs the loop between the epochs of the run; an epoch of the run lasts from the end of one loop to the next."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.loop: HandWritten | None = None
        self.took: dict[str, list[Clocks]] = {"run": [], "loop": []}
        self._resumed: Clocks | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Takes the run's time, then the loop's."""
        self.loop = self.loop or HandWritten(self.plan, trainer.strategy.root_device, str(trainer.precision))
        began = self.now()
        if self._resumed is not None:
            self.took["run"].append((began[0] - self._resumed[0], began[1] - self._resumed[1]))
        self.loop.epoch()
        self._resumed = self.now()
        self.took["loop"].append((self._resumed[0] - began[0], self._resumed[1] - began[1]))

    @staticmethod
    def now() -> Clocks:
        """Wall-clock and processor seconds, once a GPU has done what it was given."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()


def measure(overrides: list[str], epochs: int) -> dict[str, float]:
    """Alternates `epochs` epochs of both; the first of each warms up and is not counted."""
    composed = compose([*overrides, f"trainer.max_epochs={epochs + 2}"])  # the last has no loop after it
    plan = plan_run(composed)
    with claim(composed) as run:
        trainer = build_trainer(plan, run)
        alternate = Alternate(plan)
        trainer.callbacks.insert(0, alternate)
        trainer.fit(plan.module, datamodule=plan.datamodule)
    pairs = list(zip(alternate.took["run"], alternate.took["loop"], strict=False))[1:]
    for of_run, of_loop in pairs:
        print(f"  run {of_run[0]:.2f} s   loop {of_loop[0]:.2f} s   ratio {of_run[0] / of_loop[0]:.3f}")
    run_s, loop_s = (statistics.median(pair[which][0] for pair in pairs) for which in (0, 1))
    images = plan.datamodule.batches_per_epoch(1) * plan.cfg["data"]["batch_size"]
    print(f"training images/s (validation is in the time): run {images / run_s:.0f}, loop {images / loop_s:.0f}")
    return {
        "ratio": statistics.median(of_run[0] / of_loop[0] for of_run, of_loop in pairs),
        "cpu_ratio": statistics.median(of_run[1] / of_loop[1] for of_run, of_loop in pairs),
        "run_s": run_s,
        "loop_s": loop_s,
        "run_images_per_s": images / run_s,
        "loop_images_per_s": images / loop_s,
    }


def write_images(root: Path, count: int, test: int = 1000) -> None:
    """Writes noise with a label-dependent mean in the format of CIFAR-10's binary version."""
    rng = np.random.default_rng(0)
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name, size in {**{f"data_batch_{i + 1}": (count + i) // 5 for i in range(5)}, "test_batch": test}.items():
        records = rng.integers(0, 156, (size, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(size) % 10
        records[:, 1:] += records[:, :1] * 11
        (folder / f"{name}.bin").write_bytes(records.tobytes())


def main() -> None:
    """Measures and prints the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=50_000, help="training images; a tenth of them validates")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", help="a folder with cifar-10-batches-py instead of noise")
    arguments, overrides = parser.parse_known_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.data is None:
            write_images(Path(folder) / "data", arguments.images)
        paths = [f"data.root={arguments.data or Path(folder) / 'data'}", f"runs_dir={folder}/runs"]
        sizes = [f"data.val_size={arguments.images // 10}"]
        print(f"resnet20, {arguments.images:,} images, {arguments.threads} thread(s):")
        result = measure([*EXPERIMENT, *paths, *sizes, *overrides], arguments.epochs)
    print(json.dumps({"images": arguments.images, **{key: round(value, 3) for key, value in result.items()}}))


if __name__ == "__main__":
    main()
