"""Lightning's Trainer with what every run of this project has: loggers, callbacks, safe checkpoints."""

import ctypes
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler

from src.config import build
from src.engine.blackbox import BlackBox
from src.engine.callbacks import Reporter, WaitClock, log_row
from src.engine.checkpoint import AtomicCheckpointIO
from src.engine.finetuning import Finetuning
from src.engine.pictures import TrainingBatch
from src.engine.plan import Plan
from src.engine.resume import ResumePoints
from src.engine.run import Run
from src.engine.sharding import with_strategy
from src.tracking.local import LocalLogger
from src.tracking.progress import Progress
from src.tracking.wandb import WandbTracker

PROFILERS: dict[str, type[Any]] = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


class BestCheckpoint(ModelCheckpoint):
    """The one checkpoint of a run that scored best; its key in other checkpoints is not worked out at every hook."""

    state_key = "best"

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves a best score of training (one of validation is saved by then), and logs it: ``best/val/acc``."""
        super().on_train_epoch_end(trainer, pl_module)
        if self.best_model_score is not None:
            log_row(trainer, {f"best/{self.monitor}": float(self.best_model_score)})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best score; its checkpoint is where the run folder is now."""
        if (score := state_dict["best_model_score"]) is not None:
            path = str(Path(str(self.dirpath), "best.ckpt"))
            self.best_model_path, self.best_model_score = path, score
            self.kth_best_model_path, self.kth_value, self.best_k_models = path, score, {path: score}
            self.current_score = state_dict["current_score"]


class Patience(EarlyStopping):
    """Early stopping whose patience is that of the config, also in a run that began with another."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores how long it has waited for which score."""
        super().load_state_dict({**state_dict, "patience": self.patience})


def build_trainer(plan: Plan, run: Run) -> Trainer:
    """Builds the Trainer of a run."""
    run.update(parameters=plan.parameters)
    keep_freed_memory()
    arguments = with_strategy(plan.cfg["trainer"])
    arguments["profiler"] = build_profiler(arguments.get("profiler"), run.folder)
    if batches := arguments.pop("overfit_batches", 0):  # Lightning's own would put another sampler in place of ours
        plan.datamodule.repeats = True
        arguments["limit_train_batches"] = arguments["limit_val_batches"] = batches
    if plan.cfg["compile"]["backend"] is not None:
        # In place: the keys of the state dict stay what they are without compilation.
        plan.module.net.compile(backend=plan.cfg["compile"]["backend"], mode=plan.cfg["compile"]["mode"])
    trainer = Trainer(
        **arguments,
        logger=build_loggers(plan, run),
        callbacks=build_callbacks(plan, run),
        plugins=[AtomicCheckpointIO()],
        default_root_dir=run.folder,
        num_sanity_val_steps=0,  # the preflight has looked already
        use_distributed_sampler=False,  # ours pads nothing
    )
    # Else a run of so many steps that goes on at an epoch's beginning first makes an empty pass, which counts a step.
    trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]
    # Lightning's handlers stay out: they end a run without a save, and requeue a job before it has a point.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def build_profiler(name: str | None, folder: Path) -> Profiler:
    """Builds the profiler of ``trainer.profiler``, which writes into the run folder."""
    if name is None:
        return WaitClock()
    profiler: Profiler = PROFILERS[name](dirpath=folder / "profile", filename=name)
    return profiler


def keep_freed_memory() -> None:
    """Has the C library keep what a step frees for the next one, where it is glibc.

    By default it returns the free end of its heap to the system again and again, by the order in which tensors die,
    and every 4 kB that come back are a page fault: up to a tenth of an epoch of a ResNet-20.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # M_..., malloc.h
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_threshold, 32 * 2**20)  # the largest that it takes; larger tensors are mapped one by one


def build_callbacks(plan: Plan, run: Run) -> list[Callback]:
    """The callbacks of every run and those of the config; the order matters, see each."""
    cfg, monitor = plan.cfg, plan.cfg["monitor"]
    # Not when an epoch ends without a validation: its value is an old one, or none.
    by_epoch = not monitor["metric"].startswith("val/")
    best = BestCheckpoint(
        run.checkpoints,
        "best",
        monitor["metric"],
        mode=monitor["mode"],
        enable_version_counter=False,
        save_on_train_epoch_end=by_epoch,
    )
    stopping = []
    if cfg["early_stopping"]["patience"] is not None:
        options = {"mode": monitor["mode"], "check_finite": False, "check_on_train_epoch_end": by_epoch}
        stopping = [Patience(monitor["metric"], **options, **cfg["early_stopping"])]
    finetuning = [Finetuning(cfg["model"]["unfreeze_epoch"], run.point)] if cfg["model"]["freeze"] is not None else []
    own = [build(node, Callback) for node in cfg["callbacks"].values()]
    return [
        ResumePoints(run),
        # Under FSDP a process has a part of the weights only: there the next row finds a loss that is not finite.
        *([TrainingBatch(run)] if cfg["pictures"] else []),  # before the clocks start
        *([BlackBox(run)] if cfg["black_box"] and cfg["trainer"].get("strategy") != "fsdp" else []),
        Reporter(run, best),
        Progress(),
        *stopping,
        *finetuning,
        *own,
        best,
    ]


def build_loggers(plan: Plan, run: Run) -> list[Logger]:
    """The local files of every run, and the tracker of the config."""
    loggers: list[Logger] = [LocalLogger(run.folder)]
    if node := plan.cfg["logger"]:
        injected: dict[str, Any] = {"save_dir": str(run.folder)}
        if node["_target_"].startswith("src.tracking."):
            injected["run"] = {
                **{key: run.cfg[key] for key in ("tags", "group", "notes")},
                "id": run.run_id,
                "name": run.name,
                "config": run.cfg,
                "facts": plan.datamodule.facts,
                "parameters": run.status["parameters"],
            }
        base: type[Logger] = Logger  # type: ignore[type-abstract]
        loggers.append(build(node, base, **injected))
    run.trackers = [logger for logger in loggers if isinstance(logger, WandbTracker)]
    return loggers
