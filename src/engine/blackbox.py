"""The step in which a loss or a gradient stopped being finite: saved before the weights take harm, and played again."""

import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from src.data.base import Batch
from src.engine.checkpoint import AtomicCheckpointIO, restore_module
from src.engine.run import Run
from src.modules.base import BaseModule, step_number
from src.modules.metrics import NonFiniteLossError

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class BlackBox(Callback):
    """Looks at every loss and every gradient; the first that is not finite ends the run and saves its step.

    What is saved is enough to take the step again anywhere: configuration, weights before the step (the running
    statistics of batch norm are those after its forward pass), the batch as the net saw it, and the random states.
    On a GPU each look waits for the device; ``black_box=false`` leaves it to the next logged row to find out.

    Args:
        run: Whose folder takes the file.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._batch: Batch

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keeps the batch until the next."""
        self._batch = batch

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Looks at the loss, before other processes wait for its gradient."""
        if not math.isfinite(loss.item()):
            self._save(trainer, pl_module, "loss")

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the gradient; not under fp16's scaler, which meets infinite ones by a smaller scale."""
        if trainer.precision == "16-mixed":
            return
        groups = trainer.optimizers[0].param_groups
        gradients = [grad for group in groups for weight in group["params"] if (grad := weight.grad) is not None]
        # Sums show what norms would, sooner; one look at the device for all of them.
        if gradients and not math.isfinite(
            torch.stack([gradient.sum(dtype=torch.float) for gradient in gradients]).sum().item()
        ):
            self._save(trainer, pl_module, "gradient")

    def _save(self, trainer: Trainer, module: LightningModule, what: str) -> None:
        assert isinstance(module, BaseModule)
        batch, index = self._batch, self._batch.index
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        again = datamodule.splits["train"][index.cpu()].to(index.device)
        datamodule.seed_batch(trainer.fit_loop.total_batch_idx)
        datamodule.on_after_batch_transfer(again, 0)  # now the random states are those before the net
        step = step_number(trainer, trainer.fit_loop.total_batch_idx)
        dump = {
            "config": self.run.cfg,
            "hyper_parameters": dict(module.hparams),
            "state_dict": {name: value.detach().cpu() for name, value in module.state_dict().items()},
            "in_training": {name: layer.training for name, layer in module.net.named_modules()},
            "frozen": [name for name, weight in module.net.named_parameters() if not weight.requires_grad],
            "batch": {"x": batch.x, "y": batch.y, "index": index},
            "random": random_states(index.device),
            "step": step,
            "epoch": trainer.current_epoch,
            "rank": trainer.global_rank,
        }
        path = self.run.folder / "black_box" / f"step-{step}{f'-rank-{r}' if (r := trainer.global_rank) else ''}.pt"
        finding = take_step(dump, path)
        AtomicCheckpointIO().save_checkpoint({**dump, "finding": asdict(finding)}, path)
        raise NonFiniteLossError(
            f"the train {what} is not finite at step {step} (epoch {trainer.current_epoch}); {finding}\n"
            f"    to see it again: python -m src.replay {path}\n"
            "    a smaller optimizer.lr or trainer.gradient_clip_val=1.0 is the usual remedy"
        )


@dataclass(frozen=True)
class Finding:
    """Where a step first met a value that is not finite.

    Attributes:
        loss: The step's loss.
        layer: Dotted name and type of the layer, or "the loss"; None if all is finite.
        what: ``input``, ``output``, or a gradient.
    """

    loss: float
    layer: str | None
    what: str

    def __str__(self) -> str:
        return (
            f"the first value that is not finite: {self.what} of {self.layer}" if self.layer else "all is finite here"
        )


def take_step(dump: Mapping[str, Any], path: Path, device: torch.device | None = None) -> Finding:
    """Takes a saved step again, forward and backward, and looks at what each layer does.

    Args:
        dump: What `BlackBox` saved.
        path: For messages.
        device: Where to compute; by default where the batch was.

    Raises:
        ConfigError: The dump does not fit the code of today.
    """
    device = device or dump["batch"]["y"].device
    module = restore_module(dump, path).train().to(device)
    for name, layer in module.net.named_modules():
        layer.training = dump["in_training"][name]
    for name in dump["frozen"]:
        module.net.get_parameter(name).requires_grad_(False)
    dtype = next((value.dtype for value in dump["state_dict"].values() if value.is_floating_point()), torch.float32)
    batch = Batch(**dump["batch"]).to(device)
    watch = _Watch(module.to(dtype))
    set_random_states(dump["random"], device)
    autocast = AUTOCAST.get(dump["config"]["trainer"].get("precision"))
    with torch.autocast(device.type, autocast, enabled=autocast is not None):
        loss = module.step(batch, "train")
    if watch.found is None and not torch.isfinite(loss):
        watch.found = "the loss", "value"
    if watch.found is None:
        loss.backward()  # type: ignore[no-untyped-call]
        watch.look_at_parameters()
    layer, what = watch.found or (None, "")
    return Finding(float(loss.detach()), layer, what)


class _Watch:
    """Hooks on every layer of a net that note the first value that is not finite."""

    def __init__(self, module: BaseModule) -> None:
        self.net = module.net
        self.found: tuple[str, str] | None = None
        self._consumer = "the loss"  # of the output whose gradient comes next: backward goes from the last layer on
        for name, layer in module.net.named_modules():
            title = f"net.{name}".rstrip(".") + f" ({type(layer).__name__})"
            layer.register_forward_pre_hook(lambda _, inputs, title=title: self._look(title, "input", inputs))
            leaf = next(layer.children(), None) is None
            layer.register_forward_hook(
                lambda _, inputs, output, title=title, leaf=leaf: self._after(title, output, leaf)
            )

    def _look(self, layer: str, what: str, value: Any) -> None:
        if self.found is None and not _finite(value):
            self.found = layer, what

    def _after(self, layer: str, output: Any, leaf: bool) -> None:
        self._look(layer, "output", output)
        if leaf and isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(lambda gradient: self._backward(layer, gradient))  # type: ignore[no-untyped-call]

    def _backward(self, layer: str, gradient: Tensor) -> None:
        self._look(self._consumer, "the gradient that comes out", gradient)
        self._consumer = layer

    def look_at_parameters(self) -> None:
        for name, parameter in self.net.named_parameters():
            if parameter.grad is not None:
                self._look(f"net.{name}", "the gradient", parameter.grad)


def _finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    return all(map(_finite, parts))


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of all random generators, as plain values and tensors."""
    _, words, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": random.getstate(),
        "numpy": [np.asarray(words).tolist(), *rest],
    }


def set_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Sets what `random_states` returned."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    random.setstate(states["python"])
    words, *rest = states["numpy"]
    np.random.set_state(("MT19937", np.array(words, np.uint32), *rest))


def describe(dump: Mapping[str, Any], finding: Finding) -> str:
    """What `src.replay` prints of a step."""
    index = dump["batch"]["index"].tolist()
    shown = ", ".join(map(str, index[:10])) + (", ..." if len(index) > 10 else "")
    return (
        f"step {dump['step']} (epoch {dump['epoch']}, process {dump['rank']}), {len(index)} samples: {shown}\n"
        f"loss {finding.loss}\n{finding}"
    )
