"""A full run against a hand-written loop, epochs in turn, so that whatever else the machine does strikes both."""

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from src.config import build, compose
from src.engine.checkpoint import build_module
from src.engine.plan import Plan, plan_run
from src.engine.run import claim
from src.engine.trainer import build_trainer

Clocks = tuple[float, float]
"""Wall-clock seconds and those of the processor."""

Pair = tuple[Clocks, Clocks]
"""What an epoch of the run took, and one of the loop."""


class Loop(Protocol):
    """A hand-written training loop."""

    def epoch(self) -> None:
        """Trains and validates one epoch."""


class ImageLoop:
    """The plain loop on the images of a plan, with a net and an optimizer of its own; a subclass makes the batches."""

    def __init__(self, plan: Plan) -> None:
        splits = plan.datamodule.splits
        self.x = {split: part.x_NCHW for split, part in splits.items()}
        self.y = {split: part.y_N for split, part in splits.items()}
        self.batch_size = plan.cfg["data"]["batch_size"]
        self.net = build_module(plan.cfg, plan.datamodule.facts).net
        arguments = {key: value for key, value in plan.cfg["optimizer"].items() if key != "param_groups"}
        self.optimizer = build(arguments, Optimizer, params=self.net.parameters())
        self.autocast: AbstractContextManager[Any] = nullcontext()

    def epoch(self) -> None:
        """Trains and validates one epoch."""
        self.net.train()
        order = torch.randperm(len(self.y["train"]))
        total = torch.zeros((), device=next(self.net.parameters()).device)
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
        """Gathers and normalises one batch."""
        raise NotImplementedError


class Alternate(Callback):
    """Runs the loop between the epochs of the run; an epoch of the run lasts from the end of one loop to the next."""

    def __init__(self, build_loop: Callable[[], Loop]) -> None:
        self.build_loop = build_loop
        self.loop: Loop | None = None
        self.took: dict[str, list[Clocks]] = {"run": [], "loop": []}
        self._resumed: Clocks | None = None

    def on_train_epoch_start(self, *_: Any) -> None:
        """Takes the run's time, then the loop's."""
        self.loop = self.loop or self.build_loop()
        began = now()
        if self._resumed is not None:
            self.took["run"].append((began[0] - self._resumed[0], began[1] - self._resumed[1]))
        self.loop.epoch()
        self._resumed = now()
        self.took["loop"].append((self._resumed[0] - began[0], self._resumed[1] - began[1]))


def now() -> Clocks:
    """The clocks, once a GPU has done what it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def alternate(
    overrides: Sequence[str], epochs: int, loop_of: Callable[[Plan, Trainer], Loop]
) -> tuple[Plan, list[Pair]]:
    """Alternates `epochs` epochs of both, after one of each that warms up, and prints what they took."""
    composed = compose([*overrides, f"trainer.max_epochs={epochs + 2}"])  # the last has no loop after it
    plan = plan_run(composed)
    with claim(composed) as run:
        trainer = build_trainer(plan, run)
        turns = Alternate(lambda: loop_of(plan, trainer))
        trainer.callbacks.insert(0, turns)
        trainer.fit(plan.module, datamodule=plan.datamodule)
    pairs = list(zip(turns.took["run"], turns.took["loop"], strict=False))[1:]
    for (run_s, _), (loop_s, _) in pairs:
        print(f"  run {run_s:.3f} s   loop {loop_s:.3f} s   ratio {run_s / loop_s:.3f}")
    return plan, pairs


def medians(pairs: Sequence[Pair], clock: int = 0) -> dict[str, float]:
    """The median ratio (run / loop) by one of the clocks, and the medians in seconds."""
    return {
        "ratio": statistics.median(run[clock] / loop[clock] for run, loop in pairs),
        "run_s": statistics.median(run[clock] for run, _ in pairs),
        "loop_s": statistics.median(loop[clock] for _, loop in pairs),
    }
