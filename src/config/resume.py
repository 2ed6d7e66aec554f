"""`resume=last|RUN_DIR`: the stored configuration of a run, and which of its settings may still change."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from src.config.check import section_signature
from src.config.compose import Composed, Resumed, apply_overrides, compose
from src.config.errors import ConfigError
from src.config.slurm import slurm_job
from src.config.sources import take_arguments, written

INHERITED = "RESEARCH_TEMPLATE_RUN"
"""Environment variable by which the processes of one run share its folder."""

TRIAL = "RESEARCH_TEMPLATE_TRIAL"
"""Environment variable by which a sweep names the folder of a run."""

EXTENDING = {
    *("trainer.max_epochs", "trainer.max_steps", "trainer.max_time", "trainer.min_epochs"),
    *("early_stopping.patience", "early_stopping.min_delta", "test"),
}
"""Keys that give a finished run something to do."""

APPLIED = EXTENDING | {
    *("trainer.devices", "trainer.num_nodes", "trainer.accelerator", "trainer.strategy"),
    *("trainer.log_every_n_steps", "trainer.enable_model_summary", "data.root", "data.cache_dir", "data.num_workers"),
    *("checkpoint.every_n_steps", "checkpoint.every_minutes", "black_box", "pictures"),
    *("name", "tags", "group", "notes", "logger"),
}
"""Keys and sections that a resumed run takes new values of."""


def compose_run(overrides: Sequence[str]) -> Composed:
    """Composes a new run, or what `resume=` continues: the stored configuration with the overrides that it can take.

    Raises:
        ConfigError: With every problem.
    """
    own, rest = take_arguments(overrides, ("resume",))
    if "resume" not in own:
        composed = compose(rest)
        folder = slurm_folder(composed.cfg)
        is_requeued = folder is not None and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
        for earlier in [folder, *sorted(folder.parent.glob(f"{folder.name}-*"))] if folder and is_requeued else []:
            if read_status(earlier).get("command", [])[3:] == list(composed.overrides):  # a job may have several runs
                return _continued(earlier, [])
        return composed
    if not own["resume"]:
        raise ConfigError("resume=last|RUN_DIR: say which run goes on")
    selection: dict[str, Any] = {}
    if own["resume"] == "last":
        selection, rest = take_arguments(rest, ("experiment", "runs_dir"))
    if shared := os.environ.get(INHERITED):  # "last" is what it was when the first process looked
        folder = Path(json.loads(shared)["folder"])
    else:
        folder = find_run("resume", str(own["resume"]), selection.get("runs_dir"), selection.get("experiment"))
    return _continued(folder.absolute(), rest)


def find_run(key: str, which: str, runs_dir: str | None = None, experiment: str | None = None) -> Path:
    """The run folder that `last` or a path means; `last` is the newest one under `runs_dir` (of `experiment`).

    Raises:
        ConfigError: There is none; the message names `key`.
    """
    if which != "last":
        return Path(which).expanduser()
    runs = Path(runs_dir or compose([]).cfg["runs_dir"]).expanduser().absolute()
    folders = [path.parent for path in runs.glob(f"{experiment or '*'}/*/config.yaml")]
    if not folders:
        raise ConfigError(f"{key}=last: there is no run in {runs / (experiment or '')}")
    return max(folders, key=lambda folder: (str(read_status(folder).get("started", "")), folder.name))


def read_status(folder: Path) -> dict[str, Any]:
    """What a run folder says of itself; nothing if it says nothing."""
    try:
        status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def digest_of(cfg: Mapping[str, Any]) -> str:
    """A checksum of a configuration."""
    return hashlib.sha256(json.dumps(cfg, sort_keys=True).encode()).hexdigest()


def _continued(folder: Path, overrides: Sequence[str]) -> Composed:
    if folder.is_file():
        raise ConfigError(f"resume={folder}: is a file; name the run folder that it lies in")
    try:
        stored = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"resume={folder}: is no run folder: its config.yaml cannot be read: {error}") from error
    status = read_status(folder)
    if not isinstance(stored, dict) or not {"state", "run_id"} <= status.keys():
        name = "status.json" if isinstance(stored, dict) else "config.yaml"
        raise ConfigError(f"resume={folder}: its {name} is missing or damaged")
    before = apply_overrides(stored, []).cfg
    if status.get("config_digest", digest_of(stored)) != digest_of(stored):
        raise ConfigError(
            f"resume={folder}: its config.yaml was changed by hand; undo that, and give what is to change as key=value"
        )
    composed = apply_overrides(stored, overrides)
    changes = dict(differences(before, composed.cfg))
    if problems := [reason for key, pair in changes.items() if (reason := _refusal(key, pair, composed.cfg, status))]:
        raise ConfigError(*problems)
    extends = any(_is_within(key, EXTENDING) for key in changes)
    return replace(composed, resumed=Resumed(folder, status, changes, extends))


def slurm_folder(cfg: Mapping[str, Any]) -> Path | None:
    """The folder of a run in a sweep or under Slurm, the same after the job was requeued; None elsewhere."""
    if trial := os.environ.get(TRIAL):
        return experiment_folder(cfg) / trial
    if (job := slurm_job()) is None:
        return None
    step = os.environ.get("SLURM_STEP_ID", "0")
    return experiment_folder(cfg) / f"slurm-{job}{f'.{step}' if step != '0' else ''}"


def experiment_folder(cfg: Mapping[str, Any]) -> Path:
    """Where the runs of the configuration's experiment are."""
    return Path(cfg["runs_dir"]).expanduser().absolute() / (cfg["experiment"] or "none")


def differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Yields the dotted keys whose values differ, with both; None stands for a key that is not there."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in {**old, **new}:
            yield from differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif old != new:
        yield path, (old, new)


def is_extended(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a configuration lets a run train on that has ended with another."""
    return any(_is_within(key, EXTENDING - {"test"}) for key, _ in differences(old, new))


def _is_within(key: str, names: Iterable[str]) -> bool:
    return any(f"{key}.".startswith(f"{name}.") for name in names)


def _refusal(key: str, pair: tuple[Any, Any], cfg: Mapping[str, Any], status: Mapping[str, Any]) -> str | None:
    """Why a changed key cannot take effect in a run that has begun; None where it can."""
    old, new = map(written, pair)
    if not _is_within(key, APPLIED):
        return (
            f"{key}={new}: this run began with {old} and keeps it; a new run can start from its weights: "
            f"model.weights=RUN_DIR {key}={new}"
        )
    if key in ("trainer.max_epochs", "trainer.max_steps"):
        schedule = section_signature("scheduler", cfg["scheduler"]) if cfg["scheduler"] else None
        if schedule and {"T_max", "total_steps"} & schedule.arguments.keys():
            return f"{key}={new}: {schedule.name} was laid out for {key}={old} and cannot be stretched"
    if key == "trainer.max_epochs" and pair[1] is not None and 0 <= pair[1] <= status.get("epoch", 0):
        return f"{key}={new}: the run is in epoch {status['epoch']} already (counted from 0)"
    if key == "trainer.max_steps" and pair[1] is not None and 0 <= pair[1] <= status.get("step", 0):
        return f"{key}={new}: the run has done {status['step']} steps already"
    return None
