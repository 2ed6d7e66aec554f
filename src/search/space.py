"""What a sweep tries: `configs/sweep/NAME.yaml`, or the values of a command line."""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, Quote, QuotedString, RangeSweep
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from src.config import Composed, ConfigError, compose
from src.config.check import place
from src.config.errors import hint
from src.config.schema import plain, typed
from src.config.sources import ConfigFolder, Setting, escaped, parse_override, take_arguments, written
from src.search.slurm import Cluster

SETTINGS = ("sampler", "pruner", "n_trials", "n_jobs", "seeds", "launcher")
"""Keys of a sweep that a command line may give."""

Distribution = CategoricalDistribution | FloatDistribution | IntDistribution
Space = dict[str, Distribution]

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
    values = _read("sweep", name)
    lines = {key: [setting] for key, setting in ConfigFolder().settings(f"sweep/{name}", "")}

    def where(key: str) -> str:
        at = place(key, lines) or place(key.rpartition(".")[0], lines) or f"configs/sweep/{name}.yaml: "
        return f"{'' if key in own else at}{key}: "

    sweep = complete({**values, **own}, where)
    sweep["overrides"] += overrides
    return sweep


def _read(group: str, name: str) -> dict[str, Any]:
    files = ConfigFolder()
    if faults := list(files.faults(group, Setting(f"{group}={name}", name))):
        raise ConfigError(*faults)
    values: Any = OmegaConf.to_container(OmegaConf.load(files.path / f"{group}/{name}.yaml"))
    return dict(values)


def read_grid(own: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Reads a command line on which keys have several values: `key=a,b`, `key=range(1,4)`.

    Raises:
        ConfigError: There is no such key, or one has values that cannot be counted.
    """
    space, common = dict[str, list[Any]](), list[str]()
    for text in overrides:
        override = parse_override(text, several=True)
        key = override.get_key_element()
        if not override.is_sweep_override() or key in space:  # twice: refused with the points
            common.append(text)
        elif isinstance(override.value(), ChoiceSweep | RangeSweep):
            space[key] = [parse_override(f"{key}={value}").value() for value in override.sweep_string_iterator()]
        else:
            raise ConfigError(f"{text}: values are written key=a,b or key=range(1,4); an interval needs a sweep=NAME")
    if not space and not own.get("seeds") and own.get("launcher") != "slurm":  # there, one run is a job as well
        raise ConfigError(
            "nothing to sweep over: give a key several values, optimizer.lr=0.1,0.2, or choose a file of "
            f"configs/sweep/ by sweep=NAME{hint('', ConfigFolder().options('sweep'))}"
        )
    return complete({"space": space, "overrides": common, "sampler": "grid", **own})


def read_cluster(
    name: str | None, own: Mapping[str, Any], overrides: Sequence[str]
) -> tuple[dict[str, Any], list[str], bool]:
    """Takes `cluster=NAME` and `cluster.KEY=VALUE` off a command line; reads `configs/cluster/NAME.yaml` for Slurm.

    Args:
        name: The file of the sweep, whose own `cluster` goes before that file, and after the command line.
        own: What the command line says of the sweep.
        overrides: The rest of the command line.

    Returns:
        The sweep's own arguments with what jobs ask for, the other overrides, and whether it is a dry run.

    Raises:
        ConfigError: There is no such file, it cannot be read, or no Slurm is wanted.
    """
    names = [text.partition("=")[0] for text in overrides if re.match(r"cluster[.=]", text)]
    given, rest = take_arguments(overrides, names)
    settings = {key: value for key, value in own.items() if key != "dry_run"}
    sweep = {**(_read("sweep", name) if name else {}), **own}
    if sweep.get("launcher") != "slurm":
        for key in [*names, *(own.keys() - settings.keys())]:
            raise ConfigError(f"{key}: is for launcher=slurm")
        return settings, rest, False
    if not isinstance(is_dry := own.get("dry_run", False), bool):
        raise ConfigError(f"dry_run={is_dry}: expected true or false")
    cluster = _read("cluster", str(given.pop("cluster", "default")))
    if isinstance(stated := sweep.get("cluster", {}), dict):  # else the checks say so
        cluster |= stated | {key.removeprefix("cluster."): value for key, value in given.items()}
        settings["cluster"] = cluster
    return settings, rest, is_dry


def _named(key: str) -> str:
    return f"{key.removeprefix('space.')}: "


def complete(values: Mapping[str, Any], where: Callable[[str], str] = _named) -> dict[str, Any]:
    """Checks keys, types and intervals, and fills in what is not said.

    Args:
        values: The sweep as it is written.
        where: From a dotted key to the place that sets it and its name, as the beginning of a message.

    Raises:
        ConfigError: With every problem.
    """
    space, cluster, is_grid = values.get("space"), values.get("cluster", {}), values.get("sampler") == "grid"
    problems = list(_faults(Sweep, {key: value for key, value in values.items() if key != "cluster"}, "", where))
    if isinstance(cluster, Mapping):
        problems += _faults(Cluster, cluster, "cluster.", where)
    else:
        problems.append(f"{where('cluster')}expected the keys of a file of configs/cluster/, got {written(cluster)}")
    for name in ("n_trials", "n_jobs"):
        if isinstance(values.get(name), int) and values[name] < 1:
            problems.append(f"{where(name)}must be at least 1, not {values[name]}")
    if not problems and values.get("n_trials") is None and not is_grid:
        problems.append("n_trials=N: say how many trials there are to be")
    if isinstance(values.get("seeds"), list):
        problems += _twice(values["seeds"], where("seeds"))
    for key, given in space.items() if isinstance(space, Mapping) else ():
        problems += _space_faults(f"space.{key}", given, is_grid, where)
    if problems:
        raise ConfigError(*problems)
    return plain(OmegaConf.merge(OmegaConf.structured(Sweep), escaped(dict(values))))


def _faults(section: type, values: Mapping[str, Any], path: str, where: Callable[[str], str]) -> Iterator[str]:
    known = typed(section).arguments
    for name, value in values.items():
        if name not in known:
            yield f"{where(f'{path}{name}')}there is no such key{hint(str(name), known)}"
        elif expected := known[name].expected(value):
            yield f"{where(f'{path}{name}')}expected {expected.replace('typing.', '')}, got {written(value)}"
    for name, argument in known.items():
        if argument.default is None and name not in values:
            yield f"{where(f'{path}{name}')}missing"


def _space_faults(path: str, given: Any, is_grid: bool, where: Callable[[str], str]) -> Iterator[str]:
    if isinstance(given, list) and given:
        yield from _twice(given, where(path))
    elif not isinstance(given, Mapping):
        yield f"{where(path)}expected a list of values, or low and high, got {written(given)}"
    elif faults := list(_faults(Interval, given, f"{path}.", where)):
        yield from faults
    else:
        try:
            values = _distribution(given)
            if is_grid and isinstance(values, FloatDistribution) and values.step is None:
                yield f"{where(path)}a grid needs a list of values, or a step"
        except ValueError as error:
            yield f"{where(path)}{error}"


def _twice(values: Sequence[Any], at: str) -> Iterator[str]:
    texts = [_text(value) for value in values]
    yield from (f"{at}{text} is given twice" for text in dict.fromkeys(texts) if texts.count(text) > 1)


def distributions(space: Mapping[str, Any]) -> Space:
    """Returns a checked space as Optuna's; a value of a list is the text that stands in an override."""
    return {key: _distribution(given) for key, given in space.items()}


def _distribution(given: Any) -> Distribution:
    if isinstance(given, list):
        return CategoricalDistribution([_text(value) for value in given])
    interval = {name: value for name, value in given.items() if value is not None}
    is_whole = all(isinstance(value, int) for value in interval.values())
    return (IntDistribution if is_whole else FloatDistribution)(**interval)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value if _WORD.fullmatch(value) else QuotedString(value, Quote.single).with_quotes()
    return written(value)


def grid(space: Space) -> list[dict[str, Any]]:
    """Returns every combination of the values, the last key changing fastest."""
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*map(_values, space.values()))]


def _values(distribution: Distribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    low, step = distribution.low, distribution.step
    assert step is not None
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
    ends = {key: d.choices if isinstance(d, CategoricalDistribution) else (d.low, d.high) for key, d in space.items()}
    first = {key: values[0] for key, values in ends.items()}
    points = [first, *(first | {key: value} for key, values in ends.items() for value in values[1:])]
    points += [first | {"seed": seed} for seed in sweep["seeds"]]
    varied = [*(key.lstrip("+") for key in space), *(["seed"] if sweep["seeds"] else [])]
    keys = [*varied, *(text.lstrip("+").partition("=")[0] for text in overrides)]
    if twice := [key for key in varied if keys.count(key) > 1]:
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
