"""The top level of a configuration: its sections, their types, and what the program fills in by itself."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from enum import Enum, EnumType
from functools import cache, partial
from inspect import formatannotation
from math import inf
from typing import Any, get_args

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.config.signature import Argument, Signature
from src.config.sources import escaped

Mode = Enum("Mode", ["min", "max"])
Interval = Enum("Interval", ["step", "epoch"])
Frozen = Enum("Frozen", ["backbone"])


@dataclass
class Monitor:
    """The metric that picks the best checkpoint, stops early and drives plateau schedules."""

    metric: str
    mode: Mode


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
    """Which parameters are treated apart."""

    decay_bias_and_norm: bool = True
    head_lr: float | None = None


@dataclass
class OptimizerExtras:
    """Keys of `optimizer` that are not the optimizer's own."""

    param_groups: ParamGroups = field(default_factory=ParamGroups)


@dataclass
class SchedulerExtras:
    """Keys of `scheduler` that are not the scheduler's own: when it steps, and epochs of linear warm-up before it."""

    interval: Interval = Interval["epoch"]
    warmup_epochs: float = 0.0


@dataclass
class ModelExtras:
    """Keys of `model` that are not the module's own: where its weights come from, and which of them stay."""

    weights: str | None = None
    freeze: Frozen | None = None
    unfreeze_epoch: int | None = None


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
    black_box: bool = True
    pictures: bool = True


GROUPS = tuple(item.name for item in fields(Config) if item.type == dict[str, Any])
"""Sections that come from a file of `configs/<section>/`."""

TYPED: dict[str, Any] = {"": Config, "optimizer.param_groups": ParamGroups} | {
    item.name: item.type for item in fields(Config) if is_dataclass(item.type)
}
"""Sections with a fixed set of keys."""

EXTRAS: dict[str, type] = {"model": ModelExtras, "optimizer": OptimizerExtras, "scheduler": SchedulerExtras}
"""Keys beyond a target's own arguments, which the program reads itself."""

TRAINER = "lightning.pytorch.Trainer"

INJECTED: dict[str, dict[str, str]] = {
    "data": {"seed": "seed"},
    "model": {"facts": "the data", **{name: f"the section {name}" for name in ("optimizer", "scheduler", "monitor")}},
    "model.net": dict.fromkeys(("input_shape", "num_classes", "target_names", "cutoff", "atom_features"), "the data"),
    "optimizer": {"params": "the net"},
    "scheduler": {"optimizer": "the section optimizer", "max_lr": "optimizer.lr", "mode": "monitor.mode"}
    | dict.fromkeys(("T_max", "total_steps"), "the length of the run"),
    "logger": {"save_dir": "the run folder", "run": "the run folder"},
    "trainer": {
        "callbacks": "the section callbacks",
        "logger": "the section logger",
        "default_root_dir": "runs_dir",
        "plugins": "the program, for the cluster at hand",
        "use_distributed_sampler": "the program: evaluation never pads",
        "enable_checkpointing": "the program: every run keeps its best state and points to go on from",
        "enable_progress_bar": "the program: a bar in a terminal, a line per epoch elsewhere",
        "num_sanity_val_steps": "the program: one batch is tried before the first step",
        "barebones": "the program: it would switch checkpoints and metrics off",
    },
}
"""Arguments that the program fills in, by section, and where each comes from."""

_RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("from 0 to 2**32 - 1", lambda value: 0 <= value < 2**32, "seed"),
    ("at least 1", lambda value: value >= 1, "data.batch_size early_stopping.patience checkpoint.every_n_steps"),
    ("at least 1", lambda value: value >= 1, "trainer.accumulate_grad_batches"),
    ("at least 1", lambda value: value >= 1, "trainer.log_every_n_steps model.unfreeze_epoch scheduler.step_size"),
    ("at least 1, or -1 for no limit", lambda value: value >= 1 or value == -1, "trainer.max_epochs trainer.max_steps"),
    ("at least 1", lambda value: value >= 1, "data.num_structures data.num_neighbors data.image_size data.store_size"),
    ("at least 1", lambda value: value >= 1, "trainer.num_nodes trainer.check_val_every_n_epoch"),
    ("above 0", lambda value: 0 < value < inf, "data.val_size data.test_size data.cutoff checkpoint.every_minutes"),
    ("above 0", lambda value: 0 < value < inf, "optimizer.lr optimizer.param_groups.head_lr"),
    ("above 0", lambda value: 0 < value < inf, "trainer.val_check_interval trainer.gradient_clip_val"),
    ("0 or more", lambda value: 0 <= value < inf, "data.split_seed data.num_workers optimizer.weight_decay"),
    ("0 or more", lambda value: 0 <= value < inf, "data.dataset_seed scheduler.warmup_epochs early_stopping.min_delta"),
    ("0 or more", lambda value: 0 <= value < inf, "data.crop_padding model.mixup model.cutmix data.fold"),
    ("at least 2", lambda value: value >= 2, "data.num_folds"),
    ("at least 0 and below 1", lambda value: 0 <= value < 1, "model.label_smoothing data.jitter"),
    ("at least 1", lambda value: value >= 1, "callbacks.find_lr.num_steps callbacks.find_batch_size.repeats"),
    ("0 or more", lambda value: 0 <= value < inf, "data.memory_budget_mb data.disk_budget_mb"),
    ("above 0 and at most 1", lambda value: 0 < value <= 1, "data.crop_scale"),
)
RULES = {key: (text, test) for text, test, keys in _RULES for key in keys.split()}
"""What a number must be, beyond its type: in words, and as a test."""


@cache
def typed(section: type, path: str = "") -> Signature:
    """Returns the keys of a dataclass; OmegaConf says what each takes."""
    arguments = {}
    for item in fields(section):
        kinds = [kind for kind in (item.type, *get_args(item.type)) if isinstance(kind, EnumType)]
        text = formatannotation(item.type)
        for kind in kinds:
            text = text.replace(formatannotation(kind), " or ".join(kind.__members__))
        default = None if item.default is MISSING and item.default_factory is MISSING else repr(item.default)
        arguments[item.name] = Argument(default, partial(_expected, section, item.name, text))
    return Signature(path, arguments)


def _expected(section: type, name: str, text: str, value: Any) -> str | None:
    """What OmegaConf expects, where it refuses the value; a text such as "3" is no number."""
    try:
        box = OmegaConf.structured(section)
        box[name] = value.replace("${", "") if isinstance(value, str) else escaped(value)
        fits = not isinstance(value, str) or isinstance(box[name], str | Enum)
    except OmegaConfBaseException:
        fits = False
    return None if fits else text.replace(" | None", " or null")


def complete(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Merges a right configuration into the schema, so that a key that an older run lacks reads as if it was off."""
    whole = dict(cfg)
    for path, extras in EXTRAS.items():
        if "_target_" in (node := whole.get(path, {})):
            names = {item.name for item in fields(extras)}
            whole[path] = node | _merged(extras, {name: value for name, value in node.items() if name in names})
    return _merged(Config, whole)


def _merged(section: type, values: Mapping[str, Any]) -> dict[str, Any]:
    return plain(OmegaConf.merge(OmegaConf.structured(section), escaped(values)))


def plain(tree: Any) -> dict[str, Any]:
    """Returns OmegaConf's tree as plain containers, its interpolations resolved."""
    container: Any = OmegaConf.to_container(tree, resolve=True, enum_to_str=True)
    return dict(container)
