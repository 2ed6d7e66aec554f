"""The YAML files of `configs/`: which choices there are, and which line sets what."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from src.config.errors import hint

CONFIG_DIR = Path(__file__).parents[2] / "configs"


@dataclass(frozen=True)
class Setting:
    """One place that sets a key: the file and line, or the override, and the value as it is written there."""

    where: str
    text: str
    kind: str = ""


Provenance = dict[str, list[Setting]]
"""Every place that sets a key, by dotted key, in the order in which they are merged: the last one wins."""


@dataclass(frozen=True)
class DefaultsEntry:
    """One line of a defaults list."""

    group: str
    option: str
    optional: bool
    where: str


@dataclass(frozen=True)
class ConfigFolder:
    """A folder of configuration files, one subfolder a group."""

    path: Path = CONFIG_DIR

    def groups(self) -> list[str]:
        """Returns the names of all groups."""
        return sorted(entry.name for entry in self.path.iterdir() if entry.is_dir() and not entry.name.startswith("."))

    def options(self, group: str) -> list[str]:
        """Returns the names of the group's files."""
        return sorted(file.stem for file in (self.path / group).glob("*.yaml"))

    def file(self, name: str) -> Path:
        """Returns the path of `train` or `group/option`."""
        return self.path / f"{name}.yaml"

    def about(self, name: str) -> str:
        """Returns the first comment of a file that is not for Hydra."""
        lines = self.file(name).read_text(encoding="utf-8").splitlines()
        comments = (line.lstrip("# ") for line in lines if line.startswith("#") and "@package" not in line)
        return next(comments, "")

    def where(self, name: str, node: yaml.Node) -> str:
        """Returns `configs/<name>.yaml:<line>`."""
        return f"{self.path.name}/{name}.yaml:{node.start_mark.line + 1}"

    def settings(self, name: str, package: str) -> Iterator[tuple[str, Setting]]:
        """Yields each dotted key that a file sets below `package`, with its line."""
        text = self.file(name).read_text(encoding="utf-8")
        for key, line, node in _leaves(yaml.compose(text), package):
            written = " ".join(text[node.start_mark.index : node.end_mark.index].split())
            if key.partition(".")[0] not in {"defaults", "hydra"}:
                yield key, Setting(self.where(name, line), written)

    def defaults(self, name: str) -> Iterator[DefaultsEntry]:
        """Yields the entries of a file's defaults list that name another file."""
        root = yaml.compose(self.file(name).read_text(encoding="utf-8"))
        pairs = root.value if isinstance(root, yaml.MappingNode) else []
        lists = [value for key, value in pairs if key.value == "defaults"]
        for entry in [item for node in lists for item in node.value]:
            own_group = str(Path(name).parent) if "/" in name else ""
            if isinstance(entry, yaml.ScalarNode) and entry.value != "_self_":
                yield DefaultsEntry(own_group, entry.value, False, self.where(name, entry))
            elif isinstance(entry, yaml.MappingNode):
                key, value = entry.value[0]
                words = key.value.split()
                group = words[-1].partition("@")[0].removeprefix("/")
                yield DefaultsEntry(group, value.value, "optional" in words, self.where(name, entry))

    def faults(self, names: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Yields (file, problem) for files that cannot be read, and for choices that do not exist, from `names` on."""
        waiting, seen = list(names), set()
        while waiting:
            name = waiting.pop(0)
            if name in seen or not self.file(name).is_file():
                continue
            seen.add(name)
            if (fault := self.unreadable(name)) is not None:
                yield name, fault
                continue
            for entry in self.defaults(name):
                waiting.append(f"{entry.group}/{entry.option}" if entry.group else entry.option)
                if (fault := self._no_choice(entry)) is not None:
                    yield name, fault

    def unreadable(self, name: str) -> str | None:
        """Returns why a file cannot be read, with the line; None where it can."""
        shown = f"{self.path.name}/{name}.yaml"
        try:
            text = self.file(name).read_text(encoding="utf-8")
            root = yaml.compose(text)
        except yaml.MarkedYAMLError as error:
            line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
            return f"{shown}{line}: not valid YAML: {error.problem}{f' ({error.context})' if error.context else ''}"
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            return f"{shown}: not valid YAML: {' '.join(str(error).split())}"
        if root is not None and not isinstance(root, yaml.MappingNode):
            found = text[root.start_mark.index :].split()[0]
            return f"{self.where(name, root)}: expected key: value lines, found {found!r}"
        return _duplicate(root, shown)

    def _no_choice(self, entry: DefaultsEntry) -> str | None:
        if entry.optional or entry.option in {"null", "~", ""}:
            return None
        if entry.group not in ["", *self.groups()]:
            return f"{entry.where}: there is no group {entry.group}{hint(entry.group, self.groups(), 'groups')}"
        options = self.options(entry.group)
        if entry.option in options:
            return None
        return f"{entry.where}: there is no {entry.group} called {entry.option}{hint(entry.option, options)}"


def _leaves(
    node: yaml.Node | None, prefix: str, line: yaml.Node | None = None
) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """Yields (dotted key, node of the key, node of the value) of everything that is not a section with keys."""
    if isinstance(node, yaml.MappingNode) and node.value:
        for key, value in node.value:
            yield from _leaves(value, f"{prefix}.{key.value}" if prefix else key.value, key)
    elif node is not None and prefix:
        yield prefix, line or node, node


def _duplicate(node: yaml.Node | None, shown: str) -> str | None:
    """Returns the problem of a key that one mapping has twice, which YAML forbids and its reader does not see."""
    if not isinstance(node, yaml.MappingNode):
        return None
    seen: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.value in seen:
            return f"{shown}:{line}: {key.value} is already set in line {seen[key.value]}"
        seen[key.value] = line
        if (fault := _duplicate(value, shown)) is not None:
            return fault
    return None
