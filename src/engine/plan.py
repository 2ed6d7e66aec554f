"""Stage 2 of the checks: what needs torch or the data. Every problem is found before a run folder exists."""

import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ProgressBar, WeightAveraging
from lightning.pytorch.utilities.seed import isolate_rng

from src.config import Composed, ConfigError, build, resolve_target
from src.config.errors import hint
from src.config.resume import differences
from src.config.slurm import count_devices
from src.data.base import DataModule
from src.engine.checkpoint import build_module, points
from src.engine.sharding import ShardedStrategy, with_strategy
from src.engine.weights import warm_start
from src.modules.base import BaseModule, limited
from src.tracking.mode import check_tracker

PREFLIGHT_SAMPLES = 8
"""Enough to see that shapes fit, few enough for the largest net on a CPU."""


@dataclass(frozen=True)
class Plan:
    """A run that is known to be able to start."""

    cfg: Mapping[str, Any]
    datamodule: DataModule
    module: BaseModule

    @property
    def parameters(self) -> int:
        """How many numbers the net has to learn."""
        return sum(parameter.numel() for parameter in self.module.parameters())


def plan_run(composed: Composed) -> Plan:
    """Builds data and module and tries everything that can be tried without training.

    Raises:
        ConfigError: With every problem that was found.
    """
    cfg = composed.cfg
    quiet()
    seed_everything(cfg["seed"], verbose=False)
    problems: list[str] = []
    with collected(problems):
        check_monitor(cfg)
    with collected(problems):
        if cfg["logger"].get("_target_") == "src.tracking.wandb.WandbTracker":
            check_tracker(cfg["logger"])
    for name, node in cfg["callbacks"].items():
        with collected(problems), refused(f"callbacks.{name}"):
            if isinstance(build(node, Callback), WeightAveraging) and cfg["trainer"].get("strategy") == "fsdp":
                raise ConfigError(f"callbacks.{name}: trainer.strategy=fsdp splits the weights: none could be averaged")
    trainer = None
    with collected(problems):
        trainer = bare_trainer(cfg["trainer"])
    with collected(problems):
        datamodule = prepare_data(cfg)
        with collected(problems):
            check_monitor(cfg, several if len(several := datamodule.facts.get("target_names", [])) > 1 else [])
        if composed.resumed is not None:
            with collected(problems):
                check_data(datamodule, composed.resumed.folder)
        with collected(problems):
            datamodule.batches_per_epoch(trainer.world_size if trainer is not None else 1)
        module = build_module(cfg, datamodule.facts)
        if composed.resumed is None or not points(composed.resumed.folder / "checkpoints"):
            warm_start(module.net, cfg["model"])
        preflight(module, datamodule)
        if trainer is not None and not problems:
            if cfg["train"]:
                check_length(cfg, datamodule, trainer)
            check_optimization(module, datamodule, trainer)
    if problems:
        raise ConfigError(*problems)
    return Plan(cfg, datamodule, module)


def prepare_data(cfg: Mapping[str, Any]) -> DataModule:
    """The data module of a config, with its data.

    Raises:
        ConfigError: The data is missing or broken.
    """
    datamodule = build(cfg["data"], DataModule, seed=cfg["seed"])
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def check_data(datamodule: DataModule, folder: Path) -> None:
    """A run goes on with the data that it began with; one that was killed before it wrote down which has none yet.

    Raises:
        ConfigError: They are others; it names the facts that differ.
    """
    if not (folder / "facts.json").is_file():
        return
    began = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    now = json.loads(json.dumps(datamodule.facts))
    if changed := [key for key, _ in differences(began, now)]:
        raise ConfigError(f"resume={folder}: the data is not what the run began with: {', '.join(changed)} differ")


@contextmanager
def collected(problems: list[str]) -> Iterator[None]:
    """Notes the problems of a ConfigError instead of stopping at the first."""
    try:
        yield
    except ConfigError as error:
        problems.extend(error.problems)


def quiet() -> None:
    """Silences what Lightning says of settings that are meant as they are."""
    for name in ("pytorch.utilities.rank_zero", "pytorch.trainer.connectors.checkpoint_connector", "fabric"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)
    for message in (
        r".*does not have many workers",  # whole batches are gathered from memory: workers would be slower
        r".*your dataloader is not resumable",  # its sampler is, by the position in Lightning's loops
        r".*The `srun` command is available",  # on a login node; who wants to train there knows
        r".*`torch.jit.script` is deprecated",  # of torch_geometric's making
        r".*sync_dist=True",  # torchmetrics has reduced the values over the processes already
        r".*is smaller than the logging interval",  # every epoch is a row anyway
        r".*Checkpoint directory .* exists and is not empty",  # it is this run's own
        r".*WeightAveraging callback with a model that overrides",  # it splits the net under FSDP only
        r".*in eval mode at the start of training",  # so is a frozen backbone
        r".*you need to define a `flops_per_batch`",  # who wants the FLOPs does
        r".*`isinstance\(treespec, LeafSpec\)` is deprecated",  # of Lightning's making, nothing to do here
    ):
        warnings.filterwarnings("ignore", message)


def check_monitor(cfg: Mapping[str, Any], targets: Sequence[str] | None = None) -> None:
    """The monitored metric must be one that the module logs while it trains, in stages that run.

    Args:
        cfg: The configuration.
        targets: Those of the data that have an error of their own; None: the data is not there yet.

    Raises:
        ConfigError: It is not; the message lists those that are.
    """
    metric, trainer = cfg["monitor"]["metric"], cfg["trainer"]
    module = resolve_target(cfg["model"]["_target_"], BaseModule)
    names = [*module.metric_names, *(f"mae_{target}" for target in targets or ())]
    if targets is None and "mae" in names and (name := metric.partition("/")[2]).startswith("mae_"):
        names.append(name)
    known = [f"{split}/{name}" for split in ("train", "val") for name in names]
    if metric not in known:
        raise ConfigError(f"monitor.metric={metric}: no metric of that name{hint(metric, known, 'there are')}")
    if metric.startswith("val/") and trainer.get("limit_val_batches", 1) == 0:
        raise ConfigError(f"monitor.metric={metric}: trainer.limit_val_batches=0 leaves nothing to compute it from")
    if (better := "max" if metric.partition("/")[2] in module.higher_is_better else "min") != cfg["monitor"]["mode"]:
        raise ConfigError(f"monitor.mode={cfg['monitor']['mode']}: {metric} is better when {better}imal; set {better}")


@contextmanager
def refused(section: str) -> Iterator[None]:
    """Makes a ConfigError of what the classes of a section refuse, in their own words."""
    try:
        yield
    except ConfigError:
        raise
    except (MisconfigurationException, ValueError, TypeError, IndexError, RuntimeError, ImportError) as error:
        raise ConfigError(f"{section}: {' '.join(str(error).split())}") from error


def bare_trainer(arguments: Mapping[str, Any], callbacks: Sequence[Callback] = ()) -> Trainer:
    """Builds a Trainer that writes nothing: to evaluate, to predict, and to hear of what it cannot do here.

    Raises:
        ConfigError: More GPUs than there are, an unknown precision, ...
    """
    check_devices(arguments)
    with refused("trainer"):
        return Trainer(
            **with_strategy(arguments),
            logger=False,
            callbacks=[*callbacks],
            enable_checkpointing=False,
            enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
            use_distributed_sampler=False,  # ours pads nothing
        )


def check_devices(arguments: Mapping[str, Any]) -> None:
    """Compares the GPUs that are asked for with those of this machine.

    Raises:
        ConfigError: There are fewer.
    """
    accelerator, devices = arguments.get("accelerator", "auto"), arguments.get("devices", "auto")
    if arguments.get("sync_batchnorm") and (accelerator == "cpu" or not torch.cuda.is_available()):
        raise ConfigError("trainer.sync_batchnorm=true: PyTorch's synchronised batch norm runs on CUDA GPUs only")
    if accelerator not in ("gpu", "cuda"):
        return
    there = torch.cuda.device_count() or (torch.mps.device_count() if accelerator == "gpu" else 0)
    if (count_devices(arguments) or 1) > there:
        raise ConfigError(
            f"trainer.devices={devices}: this machine has {there} GPU{'' if there == 1 else 's'} that torch can use; "
            + (f"trainer.devices={there}" if there else "trainer=cpu runs without one")
        )


def check_length(cfg: Mapping[str, Any], datamodule: DataModule, trainer: Trainer) -> None:
    """Finds out whether a run trains, and comes to the validations that it is judged and steered by.

    Raises:
        ConfigError: It does not.
    """
    metric, whole = cfg["monitor"]["metric"], datamodule.batches_per_epoch(trainer.world_size)
    batches = limited(whole, trainer.limit_train_batches)
    if batches == 0:
        raise ConfigError(f"trainer.limit_train_batches={trainer.limit_train_batches}: leaves none of {whole} batches")
    for split in ("val", "test"):
        limit = getattr(trainer, f"limit_{split}_batches")
        if 0 < limit < 1 and not limited(math.ceil(len(datamodule.splits[split]) / datamodule.batch_size), limit):
            raise ConfigError(f"trainer.limit_{split}_batches={limit}: leaves none of the batches of the part {split}")
    every, interval = trainer.check_val_every_n_epoch, getattr(trainer, "val_check_interval", None)
    first = math.inf  # by the clock: nobody knows
    if interval is not None:
        first = interval if isinstance(interval, int) else max(1, int(batches * interval))
    if batches < first < math.inf and every and trainer.limit_val_batches:
        way_out = "trainer.check_val_every_n_epoch=null counts on from epoch to epoch"
        raise ConfigError(f"trainer.val_check_interval={interval}: an epoch has {batches} batches; {way_out}")
    if not metric.startswith("val/"):
        return
    if first > batches and str(cfg["scheduler"].get("_target_")).endswith(".ReduceLROnPlateau"):
        given = cfg["trainer"]["val_check_interval"]
        raise ConfigError(f"trainer.val_check_interval={given}: a plateau schedule needs {metric} after every epoch")
    first += batches * ((every or 1) - 1)
    ends = (trainer.max_epochs or -1) * batches, trainer.max_steps * trainer.accumulate_grad_batches
    end = min((end for end in ends if end > 0), default=math.inf)
    if end < first < math.inf:
        raise ConfigError(
            f"monitor.metric={metric}: the run would end after {end} batches, and its first validation comes after "
            f"{first}: see trainer.val_check_interval and trainer.check_val_every_n_epoch"
        )


def check_optimization(module: BaseModule, datamodule: DataModule, trainer: Trainer) -> None:
    """Builds optimizer and schedule once, for the arguments that they refuse themselves.

    Raises:
        ConfigError: In their own words.
    """
    node = module.hparams["optimizer"]
    fused, is_sgd = node.get("fused"), node["_target_"].endswith(".SGD")
    if fused and trainer.gradient_clip_val is not None and trainer.precision.endswith("-mixed"):
        raise ConfigError(
            f"trainer.gradient_clip_val with trainer.precision={trainer.precision} needs optimizer.fused=false"
        )
    if is_sgd and isinstance(trainer.strategy, ShardedStrategy):
        if fused:
            raise ConfigError("trainer.strategy=fsdp: fused SGD takes no split weights: optimizer.fused=false")
        if not node.get("momentum"):  # Lightning finds no state where it reads the checkpoint
            raise ConfigError("trainer.strategy=fsdp: SGD without momentum cannot be restored: optimizer.momentum=0.9")
    with refused("optimizer or scheduler"):
        module.build_optimization(trainer, datamodule.batches_per_epoch(trainer.world_size))


def preflight(module: BaseModule, datamodule: DataModule) -> None:
    """Sends a few training and validation samples through the net and the loss, and leaves no trace of it.

    It runs without gradient, in evaluation mode and with the random generators as before, so that a run with and
    without it has equal weights.

    Raises:
        ConfigError: Data and net do not fit each other.
    """
    module.eval()
    try:
        with torch.no_grad(), isolate_rng(include_cuda=False):
            for split in ("train", "val"):
                positions = torch.arange(min(PREFLIGHT_SAMPLES, len(datamodule.splits[split])))
                batch = datamodule.on_after_batch_transfer(datamodule.splits[split][positions], 0)
                module.loss(module(batch.x), batch.y)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        shape = datamodule.facts.get("input_shape")
        raise ConfigError(
            f"model and data do not fit: {type(module.net).__name__} on samples of shape {shape}: {error}"
        ) from error
    finally:
        module.train()
