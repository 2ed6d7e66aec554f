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
import tempfile
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from benchmarks._alternate import ImageLoop, alternate, medians
from src.data.transforms import Normalize, RandomCropFlip
from src.engine.plan import Plan

EXPERIMENT = ["experiment=cifar10_resnet20", "scheduler=none", "early_stopping.patience=null", "logger.mode=offline"]
EXPERIMENT.append("optimizer.param_groups.decay_bias_and_norm=true")  # one group of parameters, as in the loop


class HandWritten(ImageLoop):
    """The plain loop on the device of the run."""

    def __init__(self, plan: Plan, trainer: Trainer) -> None:
        super().__init__(plan)
        self.device = trainer.strategy.root_device
        place = self.device if plan.cfg["data"]["on_device"] else torch.device("cpu")
        self.x = {split: x.to(place) for split, x in self.x.items()}
        self.y = {split: y.to(place) for split, y in self.y.items()}
        self.augment = RandomCropFlip(plan.cfg["data"]["crop_padding"], plan.cfg["data"]["flip"])
        self.normalize = Normalize(plan.datamodule.facts["mean"], plan.datamodule.facts["std"])
        self.net.to(self.device, memory_format=torch.channels_last)
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=trainer.precision == "bf16-mixed")

    def batch(self, split: str, index: Tensor) -> tuple[Tensor, Tensor]:
        """Gathers, augments (to train) and normalises one batch."""
        index = index.to(self.y[split].device, non_blocking=True)
        x, y = (tensor.index_select(0, index).to(self.device) for tensor in (self.x[split], self.y[split]))
        x = self.normalize(self.augment(x) if split == "train" else x)
        return x.contiguous(memory_format=torch.channels_last), y


def measure(overrides: list[str], epochs: int) -> dict[str, float]:
    """Returns ratios, seconds and rates."""
    plan, pairs = alternate(overrides, epochs, HandWritten)
    images = plan.datamodule.batches_per_epoch(1) * plan.cfg["data"]["batch_size"]
    result = medians(pairs)
    rates = {f"{which}_images_per_s": images / result[f"{which}_s"] for which in ("run", "loop")}
    print("training images/s (validation is in the time): run {:.0f}, loop {:.0f}".format(*rates.values()))
    return {"ratio": result.pop("ratio"), "cpu_ratio": medians(pairs, clock=1)["ratio"], **result, **rates}


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
