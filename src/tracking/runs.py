"""Runs as their folders tell of them, and what sets them apart; without torch."""

import csv
import json
import math
import os
import socket
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import psutil
import yaml

from src.config import ConfigError
from src.config.errors import hint
from src.config.resume import differences
from src.config.sources import written
from src.tracking.files import complete_lines, merged_rows
from src.tracking.text import BEST, reading_order

LABELS = ("name", "notes", "tags", "group", "runs_dir", "logger", "pictures", "black_box")
"""Sections of the configuration that do not change what a run computes."""
REPEATS = ("seed", "data.fold", "data.split_seed")
"""Keys by which one experiment is repeated."""
FACTS = ("run", "experiment", "n", "state", "reason", "best epoch", "key")
"""Columns that say what a line is."""
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
T = TypeVar("T")
Row = dict[str, Any]


class StoredRun:
    """A run as its folder tells of it.

    Attributes:
        status: ``status.json``.
        config: ``config.yaml``.
        faults: Which files could not be read, and why; what they hold is empty here.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.faults = folder, list[str]()
        self.status = self.json("status.json")
        self.config: dict[str, Any] = self.read("config.yaml", lambda text: yaml.load(text, Loader), {})
        own = folder.absolute()
        self.name = str(self.status.get("name") or own.name)
        if self.name == own.name and (own.parent.parent / "sweep.yaml").is_file():
            self.name = f"{own.parent.parent.name}/{own.name}"  # every study has a trial 000
        self.experiment = str(self.config.get("experiment") or self.status.get("experiment"))
        monitor = self.config.get("monitor") or self.status.get("monitor")
        self.monitor = {"metric": "val/loss", "mode": "min"}
        if isinstance(monitor, dict) and monitor.keys() >= self.monitor.keys():
            self.monitor = monitor
        self.tested: dict[str, float] = self.status.get("metrics") or {}
        self.state, self.reason = self._state()

    def read(self, name: str, parse: Callable[[str], T], default: T) -> T:
        """The content of a file; where there is none, or it is damaged, the default."""
        try:
            content = parse((self.folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return default
        except (ValueError, TypeError, LookupError, AttributeError, yaml.YAMLError) as error:
            self.faults.append(f"{name} is damaged: {' '.join(str(error).split())}")
            return default
        if type(content) is not type(default):
            self.faults.append(f"{name} is damaged: it holds no {type(default).__name__}")
            return default
        return content

    def json(self, name: str) -> dict[str, Any]:
        """The content of a JSON file."""
        return self.read(name, json.loads, {})

    def rows(self) -> list[dict[str, float | None]]:
        """The metrics by step."""
        return self.read("metrics.jsonl", merged_rows, [])

    def events(self) -> list[dict[str, Any]]:
        """The timeline."""
        return self.read("events.jsonl", lambda text: list(map(json.loads, complete_lines(text))), [])

    def perf(self) -> list[dict[str, float | None]]:
        """Wall-clock times and memory, a row for each value; by step; of a step taken again after a kill the last."""

        def parse(text: str) -> dict[tuple[int, str], float]:
            lines = list(csv.reader(complete_lines(text.replace("\0", ""))))[1:]
            return {(int(step), name): float(value) for step, name, value in lines}

        latest: dict[tuple[int, str], float] = self.read("perf.csv", parse, {})
        return [{"step": step, name: value} for (step, name), value in sorted(latest.items())]

    def best(self) -> tuple[float, int] | None:
        """The best value of the monitored metric and its epoch, counted from 1; None before the first validation."""
        scores = [(row.get(self.monitor["metric"]), row.get("epoch")) for row in self.rows()]
        finite = [(v, int(e) + 1) for v, e in scores if v is not None and e is not None and math.isfinite(v)]
        pick = min if self.monitor["mode"] == "min" else max
        return pick(finite, key=lambda score: score[0], default=None)

    def _state(self) -> tuple[str, str | None]:
        """The state and its reason; a run that was killed could not write down either."""
        status = self.status
        state, host = str(status.get("state", "unknown")), status.get("host")
        if state == "running" and host == socket.gethostname() and not self._alive():
            return "killed", f"no sign of life: process {status.get('pid')} on {host} is gone"
        reason = status.get("reason") if (self.folder / "status.json").is_file() else "no status.json"
        return state, "; ".join(filter(None, [reason, *self.faults])) or None

    def _alive(self) -> bool:
        try:  # a process that is younger than the run has taken over its number
            began = [self.status["started"], *(entry["time"] for entry in self.status["resumes"])][-1]
            return psutil.Process(self.status["pid"]).create_time() < datetime.fromisoformat(began).timestamp() + 1
        except (psutil.Error, LookupError, TypeError, ValueError):  # gone, or the status is damaged
            return False


def find_runs(runs_dir: Path) -> list[StoredRun]:
    """The runs in a folder and in those below, oldest first.

    Raises:
        ConfigError: There is no such folder, or no run in it.
    """
    if not runs_dir.is_dir():
        raise ConfigError(f"{runs_dir}: there is no such folder")
    found = []
    for folder, below, files in os.walk(runs_dir):
        if "config.yaml" in files:
            found.append(StoredRun(Path(folder)))
            below.clear()
    if not found:
        raise ConfigError(f"{runs_dir}: there is no run in it (a folder with a config.yaml)")
    return sorted(found, key=lambda run: (str(run.status.get("started", "")), run.folder.name))


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted keys of a configuration with their values."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}".lstrip("."))
    else:
        yield path, value


def summary(run: StoredRun, keys: Iterable[str] = ()) -> Row:
    """A line of the table: what became of a run, its best and test scores, and some keys of its configuration."""
    score, epoch = run.best() or (None, None)
    config = dict(leaves(run.config))
    return {
        "run": run.name,
        "experiment": run.experiment,
        "state": run.state,
        "reason": (run.reason or "").partition("\n")[0],
        "best epoch": epoch,
        run.monitor["metric"]: score,
        **{name: run.tested[name] for name in sorted(run.tested, key=reading_order)},
        "seconds": run.status.get("seconds"),
        **{key: config.get(key) for key in keys},
    }


def _computes(key: str) -> bool:
    """Whether a key can change what a run computes."""
    return key.partition(".")[0] not in LABELS


def differing_keys(runs: Sequence[StoredRun]) -> list[str]:
    """The keys of the configuration that differ among runs of one experiment, which itself says the rest.

    Not those that only some of the runs have: each data set or optimizer would bring all of its own.
    """
    configs: dict[str, list[Row]] = {}
    for run in runs:
        configs.setdefault(run.experiment, []).append(dict(leaves(run.config)))
    found = [
        key
        for first, *others in configs.values()
        for key, value in first.items()
        if _computes(key) and all(key in other for other in others) and any(other[key] != value for other in others)
    ]
    return list(dict.fromkeys(found))


def chosen(runs: Sequence[StoredRun], conditions: Sequence[str]) -> list[StoredRun]:
    """The runs that meet every condition ``key=value``: a key of the configuration, or of the status.

    Raises:
        ConfigError: No run has such a key, or none meets the conditions.
    """
    for condition in conditions:
        key, _, text = condition.partition("=")
        values = [{**dict(leaves(run.config)), **run.status, "state": run.state} for run in runs]
        _known("--filter", key, [name for one in values for name in one])
        runs = [run for run, one in zip(runs, values, strict=True) if _equal(one.get(key), text)]
        if not runs:
            there = ", ".join(sorted({written(one.get(key)) for one in values})[:12])
            raise ConfigError(f"--filter {condition}: no run has this value; there are: {there}")
    return list(runs)


def _known(flag: str, name: str, choices: Iterable[str]) -> None:
    if name not in (choices := list(choices)):
        raise ConfigError(f"{flag} {name}: there is none of that name{hint(name, choices)}")


def _equal(value: Any, text: str) -> bool:
    try:
        return float(value) == float(text)
    except (TypeError, ValueError):
        return text in (value, written(value))


def grouped(runs: Sequence[StoredRun], keys: Sequence[str]) -> list[Row]:
    """A line for all finished runs that repeat one another: mean and standard deviation of their scores.

    Of two runs with the same seed and fold the later counts.

    Raises:
        ConfigError: No run is finished.
    """
    groups: dict[str, dict[str, Row]] = {}
    kept = [key for key in keys if key not in REPEATS]
    for run in runs:
        if run.state == "finished":
            config = {key: value for key, value in leaves(run.config) if _computes(key)}
            repeat = {key: config.pop(key, None) for key in REPEATS}
            groups.setdefault(json.dumps(config, sort_keys=True), {})[json.dumps(repeat)] = summary(run, kept)
    if not groups:
        raise ConfigError("--group: no run is finished")
    rows = []
    for each in [[*group.values()] for group in groups.values()]:
        row: Row = {"experiment": each[0]["experiment"], "n": len(each)}
        for name in columns_of(each):
            values = [one[name] for one in each if one.get(name) is not None]
            if "/" in name:
                row[name] = statistics.fmean(values)
                spread = len(values) > 1 and all(map(math.isfinite, values))
                row[f"{name} ±"] = statistics.stdev(values) if spread else None
            elif name == "seconds":
                row[name] = round(statistics.fmean(values), 1)
        rows.append(row | {key: each[0][key] for key in kept})
    return rows


def columns_of(rows: Sequence[Row], wanted: str | None = None) -> list[str]:
    """The columns in which any row has a value, first what a run is, then its scores and keys; or those `wanted`.

    Raises:
        ConfigError: A column that is wanted does not exist.
    """
    if wanted is not None:
        for name in wanted.split(","):
            _known("--columns", name, [name for row in rows for name in row])
        return wanted.split(",")
    filled = {name for row in rows for name, value in row.items() if value not in (None, "")}
    names = dict.fromkeys(name for row in rows for name in row if name in filled)
    return sorted(names, key=lambda name: FACTS.index(name) if name in FACTS else 99 + ("/" not in name))


def sort_rows(rows: Sequence[Row], by: str, runs: Iterable[StoredRun]) -> list[Row]:
    """The rows by a column: of a metric the best first, which the runs' monitors tell; those without a value last.

    Raises:
        ConfigError: There is no such column.
    """
    _known("--sort", by, columns_of(rows))
    modes = BEST | {run.monitor["metric"].rpartition("/")[2]: run.monitor["mode"] for run in runs}
    sign = -1 if "/" in by and modes.get(by.rpartition("/")[2]) == "max" else 1

    def rank(row: Row) -> tuple[int, float, str]:
        value = row.get(by)
        if isinstance(value, int | float) and not math.isnan(value):
            return 0, sign * value, ""
        return 2 if value is None else 1, 0.0, str(value)

    return sorted(rows, key=rank)


def compared(runs: Sequence[StoredRun], one: str, other: str) -> list[Row]:
    """Two of the runs, each given by name, id or folder, side by side: scores, and keys of the config that differ.

    Raises:
        ConfigError: There is no such run, or several.
    """
    pair = _named(runs, one), _named(runs, other)
    lines = [summary(run) for run in pair]
    facts = [(name, tuple(line.get(name) for line in lines)) for name in columns_of(lines)]
    changed = dict(differences(dict(leaves(pair[0].config)), dict(leaves(pair[1].config))))
    return [{"key": key, one: first, other: second} for key, (first, second) in (dict(facts) | changed).items()]


def _named(runs: Sequence[StoredRun], name: str) -> StoredRun:
    folder = Path(name).absolute()
    found = [run for run in runs if name in (run.name, run.status.get("run_id")) or run.folder.absolute() == folder]
    if len(found) > 1:
        folders = ", ".join(str(run.folder) for run in found)
        raise ConfigError(f"--diff {name}: several runs are called so; name the folder of one: {folders}")
    _known("--diff", name, [name] if found else [run.name for run in runs])
    return found[0]
