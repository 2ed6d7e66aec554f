"""What a sweep tries: `configs/sweep/NAME.yaml`, or the values of a command line."""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from src.config import Composed, ConfigError, compose
from src.config.check import place
from src.config.errors import hint
from src.config.schema import plain, typed
from src.config.sources import ConfigFolder, escaped, parse_override, take_arguments, written
from src.search.slurm import Cluster

SETTINGS = ("sampler", "pruner", "n_trials", "n_jobs", "seeds", "launcher")
"""Keys of a sweep that a command line may give."""

Space = dict[str, BaseDistribution]

Sampler = Enum("Sampler", ["tpe", "random", "grid"])
Pruner = Enum("Pruner", ["none", "median", "hyperband"])
Launcher = Enum("Launcher", ["local", "slurm"])

_WORD = re.compile(r"(?!(?:null|true|false|inf|nan)$)[A-Za-z_][\w./-]*", re.IGNORECASE)


@dataclass
class Sweep:
    """A file of `configs/sweep/`.

    Attributes:
        space: For each key or group what to try: a list of values, or the keys of `Interval`.
        overrides: What all trials have in common.
        sampler: How points are chosen; a grid takes all, in order.
        pruner: Which trials end early.
        n_trials: How many points; not needed for a grid.
        n_jobs: Trials at a time.
        seeds: Runs of a point, whose mean counts; none: one run with the seed of the configuration.
        launcher: Whether a run is a process of this machine or a Slurm job.
        cluster: What the jobs ask for.
    """

    space: dict[str, Any]
    overrides: list[str] = field(default_factory=list)
    sampler: Sampler = Sampler["tpe"]
    pruner: Pruner = Pruner["none"]
    n_trials: int | None = None
    n_jobs: int = 1
    seeds: list[int] = field(default_factory=list)
    launcher: Launcher = Launcher["local"]
    cluster: Cluster = field(default_factory=Cluster)


@dataclass
class Interval:
    """Numbers from `low` to `high`, both included; whole ones if all are written so."""

    low: float
    high: float
    log: bool = False
    step: float | None = None


def read_sweep(name: str, own: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Reads a file of `configs/sweep/`; what the command line says goes before it.

    Raises:
        ConfigError: With every problem of the file.
    """
    files, file = ConfigFolder(), f"sweep/{name}"
    if name not in files.options("sweep"):
        raise ConfigError(f"sweep={name}: there is no sweep called {name}{hint(name, files.options('sweep'))}")
    if fault := files.unreadable(file):
        raise ConfigError(fault)
    values: Any = OmegaConf.to_container(OmegaConf.load(files.path / f"{file}.yaml"))
    lines = {key: [setting] for key, setting in files.settings(file, "")}
    sweep = complete({**values, **own}, lambda key: "" if key in own else place(key, lines) or f"configs/{file}.yaml: ")
    sweep["overrides"] += overrides
    return sweep


def read_grid(own: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Reads a command line on which keys have several values: `key=a,b`, `key=range(1,4)`.

    Raises:
        ConfigError: There is no such key, or one has values that cannot be counted.
    """
    parsed = {text: parse_override(text, several=True) for text in overrides}
    several = {text: override for text, override in parsed.items() if override.is_sweep_override()}
    for text, override in several.items():
        if not (override.is_choice_sweep() or override.is_range_sweep()):
            raise ConfigError(f"{text}: values are written key=a,b or key=range(1,4); an interval needs a sweep=NAME")
    if not several and not own.get("seeds") and own.get("launcher") != "slurm":  # there, one run is a job as well
        raise ConfigError(
            "nothing to sweep over: give a key several values, optimizer.lr=0.1,0.2, or choose a file of "
            f"configs/sweep/ by sweep=NAME{hint('', ConfigFolder().options('sweep'))}"
        )
    keys = {override.get_key_element(): override.sweep_string_iterator() for override in several.values()}
    space = {key: [parse_override(f"{key}={value}").value() for value in values] for key, values in keys.items()}
    common = [text for text in overrides if text not in several]
    return complete({"space": space, "overrides": common, "sampler": "grid", **own})


def read_cluster(own: Mapping[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[str], bool]:
    """Takes `cluster=NAME` and `cluster.KEY=VALUE` off a command line; reads `configs/cluster/NAME.yaml` for Slurm.

    Returns:
        The sweep's own arguments with what jobs ask for, the other overrides, and whether it is a dry run.

    Raises:
        ConfigError: There is no such file, it cannot be read, or no Slurm is wanted.
    """
    names = [text.partition("=")[0] for text in overrides if re.match(r"cluster[.=]", text)]
    given, rest = take_arguments(overrides, names)
    settings = {key: value for key, value in own.items() if key != "dry_run"}
    if own.get("launcher") != "slurm":
        if names or own.keys() > settings.keys():
            raise ConfigError(f"{next(iter(names), 'dry_run')}: is for launcher=slurm")
        return settings, rest, False
    name, files = str(given.pop("cluster", "default")), ConfigFolder()
    if name not in files.options("cluster"):
        raise ConfigError(f"cluster={name}: there is no cluster called {name}{hint(name, files.options('cluster'))}")
    if fault := files.unreadable(f"cluster/{name}"):
        raise ConfigError(fault)
    values: Any = OmegaConf.to_container(OmegaConf.load(files.path / f"cluster/{name}.yaml"))
    settings["cluster"] = values | {key.removeprefix("cluster."): value for key, value in given.items()}
    return settings, rest, own.get("dry_run") is True


def complete(values: Mapping[str, Any], where: Callable[[str], str] = lambda key: "") -> dict[str, Any]:
    """Checks keys, types and intervals, and fills in what is not said.

    Args:
        values: The sweep as it is written.
        where: From a dotted key to the place that sets it, as the beginning of a message.

    Raises:
        ConfigError: With every problem.
    """
    problems = list(_faults(Sweep, {key: value for key, value in values.items() if key != "cluster"}, "", where))
    problems += _faults(Cluster, values.get("cluster", {}), "cluster.", where)
    for name in ("n_trials", "n_jobs"):
        if isinstance(values.get(name), int) and values[name] < 1:
            problems.append(f"{where(name)}{name}: must be at least 1, not {values[name]}")
    is_grid = values.get("sampler") == "grid"
    if not problems and values.get("n_trials") is None and not is_grid:
        problems.append("n_trials=N: say how many trials there are to be")
    if isinstance(values.get("space"), Mapping):
        for key, given in values["space"].items():
            problems += _space_faults(f"space.{key}", given, is_grid, where)
    if problems:
        raise ConfigError(*problems)
    return plain(OmegaConf.merge(OmegaConf.structured(Sweep), escaped(dict(values))))


def _faults(section: type, values: Mapping[str, Any], path: str, where: Callable[[str], str]) -> Iterator[str]:
    known = typed(section).arguments
    for name, value in values.items():
        at = f"{where(path + name)}{path}{name}: "
        if name not in known:
            yield f"{at}there is no such key{hint(name, known)}"
        elif expected := known[name].expected(value):
            yield f"{at}expected {expected.replace('typing.', '')}, got {written(value)}"
    missing = [name for name, argument in known.items() if argument.default is None and name not in values]
    yield from (f"{where(path.rstrip('.'))}{path}{name}: missing" for name in missing)


def _space_faults(path: str, given: Any, is_grid: bool, where: Callable[[str], str]) -> Iterator[str]:
    at = f"{where(path)}{path}: "
    if not isinstance(given, Mapping):
        if not isinstance(given, list) or not given:
            yield f"{at}expected a list of values, or low and high, got {written(given)}"
    elif faults := list(_faults(Interval, given, f"{path}.", where)):
        yield from faults
    else:
        try:
            if isinstance(_distribution(given), FloatDistribution) and is_grid and "step" not in given:
                yield f"{at}a grid needs a list of values, or a step"
        except ValueError as error:
            yield f"{at}{error}"


def distributions(space: Mapping[str, Any]) -> Space:
    """Returns a checked space as Optuna's; a value of a list is the text that stands in an override."""
    return {key: _distribution(given) for key, given in space.items()}


def _distribution(given: Any) -> BaseDistribution:
    if isinstance(given, list):
        return CategoricalDistribution(list(dict.fromkeys(map(_text, given))))
    return (IntDistribution if all(isinstance(value, int) for value in given.values()) else FloatDistribution)(**given)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value if _WORD.fullmatch(value) else QuotedString(value, Quote.single).with_quotes()
    return written(value)


def grid(space: Space) -> list[dict[str, Any]]:
    """Returns every combination of the values, the last key changing fastest."""
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*map(_values, space.values()))]


def _values(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution) and distribution.step is not None
    low, step = distribution.low, distribution.step
    return [low + number * step for number in range(round((distribution.high - low) / step) + 1)]


def as_overrides(point: Mapping[str, Any]) -> list[str]:
    """Returns a point as it is written on a command line."""
    return [f"{key}={value}" for key, value in point.items()]


def check_points(sweep: Mapping[str, Any]) -> list[Composed]:
    """Composes what all trials have in common, then every value of a list and both ends of an interval.

    Returns:
        The configurations, the common one first.

    Raises:
        ConfigError: With every problem, or keys that are varied and set, or trials that cannot be compared.
    """
    space, overrides = distributions(sweep["space"]), sweep["overrides"]
    ends = {key: list(getattr(values, "choices", ())) or [values.low, values.high] for key, values in space.items()}  # type: ignore[attr-defined]
    first = {key: values[0] for key, values in ends.items()}
    points = [first, *(first | {key: value} for key, values in ends.items() for value in values[1:])]
    points += [first | {"seed": seed} for seed in sweep["seeds"]]
    varied = [*space, *(["seed"] if sweep["seeds"] else [])]
    keys = [*varied, *(text.lstrip("+").partition("=")[0] for text in overrides)]
    if twice := {key for key in varied if keys.count(key) > 1}:
        raise ConfigError(*(f"{key}: this sweep varies it, and it is given twice" for key in twice))
    composed, problems = [compose(overrides)], list[str]()
    for point in points:
        try:
            composed.append(compose([*overrides, *as_overrides(point)]))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)
    for other in composed:
        if (now := other.cfg["monitor"]) != (was := composed[0].cfg["monitor"]):
            raise ConfigError(f"monitor: {written(now)} with {' '.join(other.overrides)}, but {written(was)} without")
    return composed
