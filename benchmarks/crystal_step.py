"""A full run on crystals against the code everyone starts from, and against a hand-written loop, in one run.

- run: what `python -m src.train experiment=emt_cgcnn` does, with metrics, checkpoints, offline W&B and validation.
- loop: the same net, batches and optimizer in the shortest loop that also validates; it alternates with the run.
- stock: Lightning's `fit` with PyG's DataLoader, PyG's CGConv and Gaussians as they come out of `exp`; no validation.

    python -m benchmarks.crystal_step [--samples 4000] [--batch-size 256] [--epochs 4] [--threads 1] [key=value ...]
    python -m benchmarks.crystal_step --baselines [--samples 4000] [key=value ...]

With `--baselines` it measures scores instead: the test MAE in eV/atom of the mean of the training part, of a linear
model of the composition, of kernel ridge regression on hand-made features and of the net (one seed), for the random
split and for the one by composition. The last line is one JSON object.
"""

import argparse
import copy
import itertools
import json
import os
import statistics
import tempfile
import time
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import CGConv, global_mean_pool

from benchmarks._alternate import alternate, medians
from src.config import compose
from src.engine.plan import Plan, prepare_data
from src.train import main as train

COMMON = ["experiment=emt_cgcnn", "trainer=cpu", "early_stopping.patience=null"]
Floats = NDArray[np.float64]


class HandWritten:
    """The plain loop on the data of a plan, with a net and an optimizer of its own."""

    def __init__(self, plan: Plan, trainer: Trainer) -> None:
        self.splits, self.batch_size = plan.datamodule.splits, plan.cfg["data"]["batch_size"]
        facts = plan.datamodule.facts
        self.mean, self.std = torch.tensor(facts["target_mean"]), torch.tensor(facts["target_std"])
        self.net = copy.deepcopy(plan.module.net)
        rate, decay = plan.cfg["optimizer"]["lr"], plan.cfg["optimizer"]["weight_decay"]
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=rate, weight_decay=decay, fused=True)

    def epoch(self) -> None:
        """Trains and validates one epoch."""
        self.net.train()
        order = torch.randperm(len(self.splits["train"]))
        for start in range(0, len(order) - self.batch_size + 1, self.batch_size):
            self.optimizer.zero_grad()
            self.loss("train", order[start : start + self.batch_size]).backward()
            self.optimizer.step()
        self.net.eval()
        with torch.no_grad():
            for index in torch.arange(len(self.splits["val"])).split(self.batch_size):
                self.loss("val", index)

    def loss(self, split: str, index: Tensor) -> Tensor:
        """The L1 loss of one batch."""
        batch = self.splits[split][index]
        return nn.functional.l1_loss(self.net(batch.x), (batch.y - self.mean) / self.std)


class Stock(LightningModule):
    """The same sizes from PyG's parts, as its documentation puts them together."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        net, facts = plan.module.net, plan.datamodule.facts
        features, gaussians = net.head.in_features, len(net.centers)
        self.embedding = nn.Embedding(101, features)
        self.convs = nn.ModuleList(CGConv(features, gaussians) for _ in net.convs)
        self.head = nn.Sequential(nn.Linear(features, features), nn.Softplus(), nn.Linear(features, 1))
        self.mean, self.std = facts["target_mean"][0], facts["target_std"][0]

    def training_step(self, batch: Any) -> Tensor:
        """The L1 loss of one batch, logged."""
        x = self.embedding(batch.z)
        for conv in self.convs:
            x = conv(x, batch.edge_index, batch.edge_attr)
        output = self.head(global_mean_pool(x, batch.batch))
        loss = nn.functional.l1_loss(output, (batch.y - self.mean) / self.std)
        self.log("train/loss", loss, batch_size=batch.num_graphs)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, as in the run."""
        return torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=1e-4, fused=True)


class Epochs(Callback):
    """The seconds from an epoch's start to its last batch's end."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        """Starts the clock."""
        self._began = time.perf_counter()

    def on_train_epoch_end(self, *_: Any) -> None:
        """Stops the clock."""
        self.seconds.append(time.perf_counter() - self._began)


def measure(overrides: list[str], epochs: int, stock_batches: int) -> dict[str, float]:
    """Alternates run and loop, then trains the stock net; the first epoch of each warms up and is not counted."""
    plan, pairs = alternate(overrides, epochs, HandWritten)
    of_both, size = medians(pairs), plan.cfg["data"]["batch_size"]
    crystals = plan.datamodule.batches_per_epoch(1) * size
    data, stock = pyg_data(plan), Stock(plan)
    clock = Epochs()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(
        accelerator="cpu",
        max_epochs=3,
        limit_train_batches=stock_batches,
        enable_model_summary=False,
        callbacks=[clock],
        **quiet,
    ).fit(stock, DataLoader(data, batch_size=size, shuffle=True, drop_last=True))
    batches = min(stock_batches, len(data) // size)
    of_stock = batches * size / statistics.median(clock.seconds[1:])
    of_run = crystals / of_both["run_s"]
    print(f"  run {of_run:.0f} crystals/s   stock {of_stock:.0f} crystals/s   {of_run / of_stock:.1f} times")
    return {
        "loop_ratio": of_both["ratio"],
        "stock_speedup": of_run / of_stock,
        "run_crystals_per_s": of_run,
        "stock_crystals_per_s": of_stock,
    }


def pyg_data(plan: Plan) -> list[Data]:
    """The training part as PyG keeps it: Gaussians in every `Data`, subnormal numbers among them."""
    split, net = plan.datamodule.splits["train"], plan.module.net
    data = []
    for position in range(len(split)):
        batch = split[torch.tensor([position])]
        edge_attr = torch.exp(-(((batch.x["distance"][:, None] - net.centers) / net.step) ** 2))
        z, edge_index = batch.x["z"], batch.x["edge_index"]
        data.append(Data(z=z, edge_index=edge_index, edge_attr=edge_attr, y=batch.y, num_nodes=len(z)))
    return data


# --- scores


def baselines(overrides: list[str]) -> dict[str, float]:
    """Test MAE of the simple models and of the net, in the target's unit."""
    splits = prepare_data(compose(overrides).cfg).splits
    parts = {name: splits[name][torch.arange(len(splits[name]))] for name in ("train", "val", "test")}
    y = {name: part.y[:, 0].double().numpy() for name, part in parts.items()}
    composition = {name: composition_of(part.x) for name, part in parts.items()}
    hand_made = {name: np.hstack([composition[name], pair_features(part.x)]) for name, part in parts.items()}
    weights = np.linalg.lstsq(composition["train"], y["train"])[0]
    return {
        "mean": float(np.abs(y["test"] - y["train"].mean()).mean()),
        "composition_linear": float(np.abs(y["test"] - composition["test"] @ weights).mean()),
        "hand_made_features": kernel_ridge(hand_made, y),
        "net": train([*overrides, "logger=none"])["test/mae"],
    }


def composition_of(x: dict[str, Tensor]) -> Floats:
    """The share of each element, ``[B, 101]``."""
    crystal = torch.repeat_interleave(x["num_nodes"])
    counts = torch.zeros(len(x["num_nodes"]), 101, dtype=torch.float64)
    counts.index_put_((crystal, x["z"]), torch.ones(len(crystal), dtype=torch.float64), accumulate=True)
    return (counts / x["num_nodes"][:, None]).numpy()


def pair_features(x: dict[str, Tensor], elements: tuple[int, ...] = (13, 28, 29, 46, 47, 78, 79)) -> Floats:
    """Smooth histograms of the distances between each two elements, per atom, ``[B, pairs * bins]``."""
    pairs = list(itertools.combinations_with_replacement(elements, 2))
    table = torch.zeros(101, 101, dtype=torch.int64)
    for number, (a, b) in enumerate(pairs):
        table[a, b] = table[b, a] = number
    centers = torch.linspace(2.2, 4.2, 6)
    bins = torch.exp(-(((x["distance"][:, None] - centers) / 0.4) ** 2)).double()
    crystal = torch.repeat_interleave(x["num_nodes"])
    source, target = x["edge_index"]
    row = crystal[target] * len(pairs) + table[x["z"][source], x["z"][target]]
    sums = torch.zeros(len(x["num_nodes"]) * len(pairs), len(centers), dtype=torch.float64).index_add_(0, row, bins)
    return (sums.view(len(x["num_nodes"]), -1) / x["num_nodes"][:, None]).numpy()


def kernel_ridge(x: dict[str, Floats], y: dict[str, Floats]) -> float:
    """Test MAE of kernel ridge regression with a Gaussian kernel; width and ridge are chosen on the validation part."""
    used = x["train"].std(0) > 0
    x = {name: part[:, used] / x["train"].std(0)[used] for name, part in x.items()}
    squares = {name: (part**2).sum(1)[:, None] + (x["train"] ** 2).sum(1) for name, part in x.items()}
    distances = {name: np.maximum(squares[name] - 2 * part @ x["train"].T, 0) for name, part in x.items()}
    scores = []
    for width in (3.0, 10.0, 30.0):
        kernel = {
            name: np.exp(-distance / (2 * used.sum() * (width / 10) ** 2)) for name, distance in distances.items()
        }
        for ridge in (1e-1, 1e-3, 1e-5):
            weights = np.linalg.solve(
                kernel["train"] + ridge * np.eye(len(kernel["train"])), y["train"] - y["train"].mean()
            )
            errors = [
                float(np.abs(kernel[name] @ weights + y["train"].mean() - y[name]).mean()) for name in ("val", "test")
            ]
            scores.append(errors)
    return min(scores)[1]


def main() -> None:
    """Measures and prints the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--stock-batches", type=int, default=6, help="of an epoch of the stock net")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", help="where the alloys are kept, or are to be kept, instead of a temporary folder")
    parser.add_argument("--baselines", action="store_true", help="scores instead of speed")
    arguments, overrides = parser.parse_known_args()
    torch.set_num_threads(arguments.threads)
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"data.root={arguments.data or folder}", f"runs_dir={folder}/runs"]
        every = [*COMMON, f"data.num_structures={arguments.samples}", *paths, *overrides]
        if arguments.baselines:
            for split in ("random", "composition"):
                scores = baselines([*every, f"data.split={split}"])
                print(f"{split}: " + "   ".join(f"{name} {value:.4f}" for name, value in scores.items()))
                result |= {f"{split}_{name}_mae": round(value, 5) for name, value in scores.items()}
        else:
            speed = [f"data.batch_size={arguments.batch_size}", "scheduler=none", "logger.mode=offline"]
            speed.append("optimizer.param_groups.decay_bias_and_norm=true")  # one group of parameters, as in the loop
            values = measure([*every, *speed], arguments.epochs, arguments.stock_batches)
            result |= {name: round(value, 3) for name, value in values.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
