"""What a person writes: the YAML files of `configs/` and the overrides of a command line."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.config.errors import ConfigError, hint

CONFIG_DIR = Path(__file__).parents[2] / "configs"
PRIMARY = "train"

STARTING = {"sweep", "cluster"}
"""Folders whose files are about how runs start."""

PATH_KEYS = frozenset(
    {"data.root", "data.cache_dir", "runs_dir", "ckpt", "inputs", "output", "resume", "model.weights"}
)
"""Keys whose value may hold anything that a path may."""

TEXT_KEYS = PATH_KEYS | {"name", "group", "notes"}
"""Keys whose value is text, in whatever characters."""

_QUOTED = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\"""", re.DOTALL)
_INTERPOLATION = re.compile(r"\$\{[^{}]+\}")
_KEY_AND_VALUE = re.compile(r"(\+{0,2})([^=]*)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class Setting:
    """One place that sets a key: the file and line, or the override, and the value as it is written there."""

    where: str
    text: str


Provenance = dict[str, list[Setting]]
"""Every place that sets a key, by dotted key, in the order in which they are merged: the last one wins."""


@dataclass(frozen=True)
class ConfigFolder:
    """A folder of configuration files, one subfolder a group; a file's name is `train` or `group/option`."""

    path: Path = CONFIG_DIR

    def groups(self) -> list[str]:
        """Returns the names of a run's groups."""
        folders = {entry.name for entry in self.path.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
        return sorted(folders - STARTING)

    def options(self, group: str) -> list[str]:
        """Returns the names of the group's files."""
        return sorted(file.stem for file in (self.path / group).glob("*.yaml"))

    def text(self, name: str) -> str:
        """Returns the content of a file."""
        return (self.path / f"{name}.yaml").read_text(encoding="utf-8")

    def where(self, name: str, node: yaml.Node) -> str:
        """Returns `configs/<name>.yaml:<line>`."""
        return f"{self.path.name}/{name}.yaml:{node.start_mark.line + 1}"

    def settings(self, name: str, package: str) -> Iterator[tuple[str, Setting]]:
        """Yields each dotted key that a file sets below `package`, with its line."""
        for key, line, text in leaves(self.text(name), package):
            if key.partition(".")[0] not in {"defaults", "hydra"}:
                yield key, Setting(self.where(name, line), text)

    def defaults(self, name: str) -> Iterator[tuple[str, Setting]]:
        """Yields the group of each file that a file's defaults list asks for, and where it asks for which."""
        root = yaml.compose(self.text(name))
        pairs = root.value if isinstance(root, yaml.MappingNode) else []
        for entry in [item for key, entries in pairs if key.value == "defaults" for item in entries.value]:
            if isinstance(entry, yaml.ScalarNode) and entry.value != "_self_":
                yield name.rpartition("/")[0], Setting(self.where(name, entry), entry.value)
            elif isinstance(entry, yaml.MappingNode) and entry.value:
                *words, group = entry.value[0][0].value.partition("@")[0].split()
                group, value = group.removeprefix("/"), entry.value[0][1]
                for option in [node.value for node in (value.value if isinstance(value.value, list) else [value])]:
                    if option not in {"null", "~", ""} and ("optional" not in words or option in self.options(group)):
                        yield group, Setting(self.where(name, entry), option)

    def faults(self, group: str, choice: Setting, asking: tuple[str, ...] = ()) -> Iterator[str]:
        """Yields what is wrong with a choice: there is none of that name, or it or a file it asks for is broken."""
        if group not in STARTING.union(self.groups()):
            yield f"{choice.where}: there is no group {group}{hint(group, self.groups(), 'groups')}"
        elif choice.text not in self.options(group):
            yield f"{choice.where}: there is no {group} called {choice.text}{hint(choice.text, self.options(group))}"
        elif (name := f"{group}/{choice.text}") in asking:
            yield f"{choice.where}: {name} asks for itself"
        elif fault := self.unreadable(name):
            yield fault
        elif group in {"experiment", "local"} and "# @package _global_" not in self.text(name):
            yield f"{self.path.name}/{name}.yaml: its first line must be '# @package _global_'"
        else:
            for inner, asked in self.defaults(name):
                yield from self.faults(inner, asked, (*asking, name))

    def unreadable(self, name: str) -> str | None:
        """Returns why a file cannot be read, with the line; None where it can."""
        shown = f"{self.path.name}/{name}.yaml"
        try:
            content = OmegaConf.load(self.path / f"{name}.yaml")
        except yaml.MarkedYAMLError as error:
            line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
            return f"{shown}{line}: not valid YAML: {error.problem}{f' ({error.context})' if error.context else ''}"
        except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
            return f"{shown}: cannot be read: {' '.join(str(error).split())}"
        return None if isinstance(content, DictConfig) else f"{shown}: expected key: value lines, found a list"


def leaves(text: str, prefix: str) -> Iterator[tuple[str, yaml.Node, str]]:
    """Yields each dotted key of a YAML text that is not a section with keys: its node, and its value as written."""
    waiting = [(prefix, node, node) for node in [yaml.compose(text)] if node]
    while waiting:
        path, line, node = waiting.pop(0)
        if isinstance(node, yaml.MappingNode) and node.value:
            waiting[:0] = [(f"{path}.{key.value}".lstrip("."), key, value) for key, value in node.value]
        elif path:
            yield path, line, " ".join(text[node.start_mark.index : node.end_mark.index].split())


def written(value: Any) -> str:
    """Returns a plain value as a person would write it in YAML, on one line."""
    return yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6).removesuffix("...\n").strip()


def quote_path(override: str) -> str:
    """Puts the value of a path or text key in quotes, but for `null`, what is quoted already, and `${...}`."""
    match = _KEY_AND_VALUE.fullmatch(override)
    if match is None or match[2] not in TEXT_KEYS:
        return override
    plus, key, value = match.groups()
    if value in {"", "null"} or _QUOTED.fullmatch(value) or _INTERPOLATION.fullmatch(value):
        return override
    text = value if _INTERPOLATION.search(value) else escaped(value)
    return f"{plus}{key}={QuotedString(text, Quote.single).with_quotes()}"


def escaped(value: Any) -> Any:
    """Returns a plain value so that OmegaConf reads a `${` in it as two characters."""
    match value:
        case str():
            return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", value)
        case dict():
            return {key: escaped(item) for key, item in value.items()}
        case list():
            return [escaped(item) for item in value]
    return value


def parse_override(text: str, several: bool = False) -> Override:
    """Reads one override; a ConfigError where it is not key=value, not in Hydra's grammar, or has `several` values."""
    line = quote_path(text)
    if "=" not in line and not line.startswith("~"):
        raise ConfigError(f"{text}: an override is written key=value")
    try:
        parsed = OverridesParser.create().parse_override(line)
    except HydraException as error:
        raise ConfigError(
            f"{text}: cannot be read ({' '.join(str(error).split())}); text with other characters than letters, "
            f"digits and /-.+_ goes in quotes: {text.partition('=')[0]}=\"'...'\""
        ) from error
    if parsed.package is not None:
        raise ConfigError(f"{text}: a group always goes to the section of its name, write it without @")
    if parsed.is_sweep_override() and not several:
        raise ConfigError(
            f"{text}: several values mean several runs, which python -m src.sweep makes; "
            f"one list is written key=[a,b], text with a comma key=\"'a,b'\""
        )
    parsed.input_line = text  # as it was typed
    return parsed


def take_arguments(overrides: Sequence[str], names: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Splits off a command's own arguments, such as `resume=` and `ckpt=`: their values, and the other overrides."""
    own = [text for text in overrides if text.lstrip("+").partition("=")[0] in names]
    taken = {override.key_or_group: override.value() for override in map(parse_override, own)}
    try:
        values: Any = OmegaConf.to_container(OmegaConf.create(taken), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{' '.join(own)}: cannot be read ({str(error).splitlines()[0]})") from error
    return values, [text for text in overrides if text not in own]
