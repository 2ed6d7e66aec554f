"""The top level of a configuration: its sections, their types, and what the program fills in by itself."""

from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from math import inf
from typing import Any, Literal


@dataclass
class Monitor:
    """The metric that picks the best checkpoint, stops early and drives plateau schedules."""

    metric: str
    mode: Literal["min", "max"]


@dataclass
class EarlyStopping:
    """Patience in validations; null: off."""

    patience: int | None = None
    min_delta: float = 0.0


@dataclass
class Checkpoint:
    """Checkpoints besides the one after every epoch."""

    every_n_steps: int | None = None
    every_minutes: float | None = None


@dataclass
class Compile:
    """torch.compile of the net; a null backend: off."""

    backend: str | None = None
    mode: str | None = None


@dataclass
class ParamGroups:
    """`optimizer.param_groups`: which parameters are treated apart."""

    decay_bias_and_norm: bool = True
    head_lr: float | None = None


@dataclass
class Schedule:
    """Keys of `scheduler` that are not the scheduler's own: when it steps, and epochs of linear warm-up before it."""

    interval: Literal["step", "epoch"] = "epoch"
    warmup_epochs: float = 0.0


@dataclass
class Config:
    """A whole configuration. Sections typed `dict` are made by their `_target_` and checked against its signature."""

    data: dict[str, Any]
    model: dict[str, Any]
    optimizer: dict[str, Any]
    trainer: dict[str, Any]
    monitor: Monitor
    seed: int
    runs_dir: str
    scheduler: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    compile: Compile = field(default_factory=Compile)
    experiment: str | None = None
    name: str | None = None
    tags: list[str] = field(default_factory=list)
    group: str | None = None
    notes: str | None = None
    train: bool = True
    test: bool = True


SECTIONS = {item.name: item.type for item in fields(Config) if isinstance(item.type, type) and is_dataclass(item.type)}
"""Sections with a fixed set of keys."""

GROUPS = tuple(item.name for item in fields(Config) if "dict" in str(item.type))
"""Sections that come from a file of `configs/<section>/`."""

REQUIRED = tuple(f.name for f in fields(Config) if f.default is MISSING and f.default_factory is MISSING)

TEXT = ("runs_dir", "name", "group", "notes", "tags")
"""Keys that hold text, where `name=42` means "42"."""

TRAINER = "lightning.pytorch.Trainer"

EXTRAS = {"optimizer.param_groups": ParamGroups, "scheduler": Schedule}
"""Keys beyond a target's own arguments, which the program reads itself."""

INJECTED: dict[str, dict[str, str]] = {
    "data": {"seed": "seed"},
    "model": {
        "facts": "the data",
        "optimizer": "the section optimizer",
        "scheduler": "the section scheduler",
        "monitor": "the section monitor",
    },
    "model.net": {"input_shape": "the data", "num_classes": "the data"},
    "optimizer": {"params": "the net"},
    "scheduler": {
        "optimizer": "the section optimizer",
        "T_max": "the length of the run",
        "total_steps": "the length of the run",
        "max_lr": "optimizer.lr",
        "mode": "monitor.mode",
    },
    "logger": {"save_dir": "the run folder", "run": "the run folder"},
    "trainer": {
        "callbacks": "the section callbacks",
        "logger": "the section logger",
        "default_root_dir": "runs_dir",
        "plugins": "the program, for the cluster at hand",
        "use_distributed_sampler": "the program: evaluation never pads",
        "enable_progress_bar": "the program: a bar in a terminal, a line per epoch elsewhere",
        "num_sanity_val_steps": "the program: one batch is tried before the first step",
        "barebones": "the program: it would switch checkpoints and metrics off",
    },
}
"""Arguments that the program fills in, by section, and where each comes from."""

Rule = tuple[Callable[[Any], bool], str]
POSITIVE: Rule = (lambda value: 0 < value < inf, "above 0")
NOT_NEGATIVE: Rule = (lambda value: 0 <= value < inf, "0 or more")
AT_LEAST_ONE: Rule = (lambda value: value >= 1, "at least 1")
OR_UNLIMITED: Rule = (lambda value: value >= 1 or value == -1, "at least 1, or -1 for no limit")

RULES: dict[str, Rule] = {
    "seed": (lambda value: 0 <= value < 2**32, "from 0 to 2**32 - 1"),
    "data.batch_size": AT_LEAST_ONE,
    "data.val_size": POSITIVE,
    "data.test_size": POSITIVE,
    "data.split_seed": NOT_NEGATIVE,
    "data.num_workers": NOT_NEGATIVE,
    "optimizer.lr": POSITIVE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.param_groups.head_lr": POSITIVE,
    "scheduler.warmup_epochs": NOT_NEGATIVE,
    "trainer.max_epochs": OR_UNLIMITED,
    "trainer.max_steps": OR_UNLIMITED,
    "trainer.num_nodes": AT_LEAST_ONE,
    "trainer.accumulate_grad_batches": AT_LEAST_ONE,
    "trainer.log_every_n_steps": AT_LEAST_ONE,
    "early_stopping.patience": AT_LEAST_ONE,
    "early_stopping.min_delta": NOT_NEGATIVE,
    "checkpoint.every_n_steps": AT_LEAST_ONE,
    "checkpoint.every_minutes": POSITIVE,
}
"""What a number must be, beyond its type."""


def complete(cfg: dict[str, Any]) -> dict[str, Any]:
    """Returns `cfg` with the neutral values of keys that are not set, and numbers that stand for text as text.

    A run that was stored before a key existed reads as if the key was off.
    """
    whole = cfg | {name: value for name, value in _neutral(Config).items() if name not in cfg}
    for name, section in SECTIONS.items():
        _fill(whole, name, section)
    if isinstance(whole.get("optimizer"), dict):
        whole["optimizer"] = whole["optimizer"] | {"param_groups": whole["optimizer"].get("param_groups", {})}
        _fill(whole["optimizer"], "param_groups", ParamGroups)
    if isinstance(whole["scheduler"], dict) and whole["scheduler"].get("_target_"):
        _fill(whole, "scheduler", Schedule)
    return whole | {name: _as_text(whole[name]) for name in TEXT if name in whole}


def _fill(parent: dict[str, Any], name: str, section: type) -> None:
    if isinstance(parent.get(name), dict):
        parent[name] = parent[name] | {k: v for k, v in _neutral(section).items() if k not in parent[name]}


def _neutral(section: type) -> dict[str, Any]:
    defaults = {item.name: item.default for item in fields(section) if item.default is not MISSING}
    made = {item.name: item.default_factory() for item in fields(section) if item.default_factory is not MISSING}
    return defaults | {name: dict(vars(value)) if is_dataclass(value) else value for name, value in made.items()}


def _as_text(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_text(item) for item in value]
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
