"""From overrides to a checked configuration, without torch: all problems at once."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as compose_files
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from src.config.check import check, place
from src.config.errors import ConfigError, hint, nearest
from src.config.files import CONFIG_DIR, ConfigFolder, DefaultsEntry, Provenance, Setting
from src.config.overrides import Override, escape_interpolation, parse_overrides
from src.config.schema import complete

PRIMARY = "train"


@dataclass(frozen=True)
class Composed:
    """A checked configuration in plain containers, the file chosen of each group, and who set what."""

    cfg: dict[str, Any]
    choices: dict[str, str | None]
    overrides: list[str]
    provenance: Provenance = field(repr=False)


def compose(overrides: Sequence[str] = (), config_dir: Path = CONFIG_DIR) -> Composed:
    """Composes `configs/train.yaml`, the files that it or the overrides choose, and the overrides; and checks it all.

    Raises:
        ConfigError: With every problem that can be found without torch and data.
    """
    draft = _Draft(ConfigFolder(config_dir.resolve()))
    chosen, changes = draft.sort(parse_overrides(overrides, draft.problems))
    tree, choices = draft.load(chosen)
    cfg = draft.finish(tree, changes, {"experiment": choices.get("experiment")})
    return Composed(cfg, choices, list(overrides), draft.provenance)


def apply_overrides(
    cfg: Mapping[str, Any],
    overrides: Sequence[str],
    allowed_groups: Sequence[str] = (),
    config_dir: Path = CONFIG_DIR,
) -> Composed:
    """Sets overrides on a stored configuration under the same checks; `configs/` is read for `group=name` alone.

    Args:
        cfg: A configuration as it was stored: plain containers, nothing to resolve.
        overrides: `a.b=value`, `~a.b`, and `group=name` for the groups that may be replaced.
        allowed_groups: Those groups.
        config_dir: Where their files are.

    Raises:
        ConfigError: With every problem, also of the stored part.
    """
    draft = _Draft(ConfigFolder(config_dir.resolve()))
    chosen, changes = draft.sort(parse_overrides(overrides, draft.problems))
    tree = OmegaConf.create(_escaped(dict(cfg)))
    choices: dict[str, str | None] = {"experiment": cfg.get("experiment")}
    for override in chosen:
        if override.key not in allowed_groups:
            allowed = f"; these can be replaced: {', '.join(allowed_groups)}" if allowed_groups else ""
            draft.problems.append(f"{override.text}: the stored run keeps its {override.key}{allowed}")
            continue
        tree[override.key] = draft.load_one(override)
        choices[override.key] = override.value
    return Composed(draft.finish(tree, changes, {}), choices, list(overrides), draft.provenance)


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return escape_interpolation(value) if isinstance(value, str) else value


class _Draft:
    """A configuration on its way: its problems, where each key was set, and the keys already known to be wrong."""

    def __init__(self, folder: ConfigFolder) -> None:
        self.folder = folder
        self.problems: list[str] = []
        self.provenance: Provenance = {}
        self.broken: set[str] = set()
        self.refusal = ""

    def sort(self, overrides: Sequence[Override]) -> tuple[list[Override], list[Override]]:
        """Splits into choices of a group's file and changes of single keys; what is neither becomes a problem."""
        groups = self.folder.groups()
        chosen, changes = [], []
        for override in overrides:
            if override.key in groups:
                chosen += self._choice(override)
            elif re.split(r"[./]", override.key)[0] == "hydra":
                self.problems.append(f"{override.text}: Hydra's own settings have no effect here")
            else:
                changes.append(override)
        return chosen, changes

    def _choice(self, override: Override) -> list[Override]:
        """The choice, or the nearest there is so that the rest can be checked, or none."""
        options, group = self.folder.options(override.key), override.key
        if override.deletes or override.value is None or override.value in options:
            return [override]
        near = nearest(str(override.value), options)
        tip = f"; did you mean {group}={near}?" if near else hint("", options)
        self.problems.append(f"{override.text}: there is no {group} called {override.value}{tip}")
        if near is None:
            self.broken.add(group)
        return [replace(override, value=near)] if near else []

    def load(self, chosen: Sequence[Override]) -> tuple[DictConfig, dict[str, str | None]]:
        """Lets Hydra compose `configs/train.yaml`; for a file that cannot be read another one stands in."""
        if (fault := self.folder.unreadable(PRIMARY)) is not None:
            raise ConfigError(*self.problems, fault)
        entries = {entry.group: entry for entry in self.folder.defaults(PRIMARY)}
        picks = {override.key: override for override in chosen}
        substitutes: list[str] = []
        while (loaded := self._load(PRIMARY, [*choice_lines(picks, entries), *substitutes])) is None:
            for group in self._blame([PRIMARY, *_files(picks)]):
                picks.pop(group, None)
                substitutes += self._substitute(group, entries)
        tree, choices = loaded
        self._record_experiment(entries.get("experiment"), picks.get("experiment"))
        return tree, choices

    def _record_experiment(self, entry: DefaultsEntry | None, pick: Override | None) -> None:
        settings = [Setting(entry.where, entry.option)] if entry else []
        settings += [Setting(pick.text, written(pick.value), "command line: ")] if pick else []
        self.provenance["experiment"] = settings

    def _substitute(self, group: str, entries: Mapping[str, DefaultsEntry]) -> list[str]:
        """Another file of the group, so that the rest can be checked: Hydra reads even what `~group` leaves out."""
        default = [entries[group].option] if group in entries else []
        readable = [
            name for name in default + self.folder.options(group) if not any(self.folder.faults([f"{group}/{name}"]))
        ]
        return [f"{group}={readable[0]}"] if readable and default else []

    def load_one(self, override: Override) -> Any:
        """Composes the one file that `group=name` chooses."""
        if override.deletes or override.value is None:
            return {}
        loaded = self._load(None, [f"+{override.key}={override.value}"])
        if loaded is None:
            self._blame(_files({override.key: override}))
            return {}
        return loaded[0].get(override.key, {})

    def _load(self, config_name: str | None, lines: list[str]) -> tuple[DictConfig, dict[str, str | None]] | None:
        """Returns what Hydra composes and the choices, and notes which line sets what; None where Hydra refuses."""
        try:
            with initialize_config_dir(str(self.folder.path), version_base="1.3"):
                loader = GlobalHydra.instance().config_loader()
                files = loader.compute_defaults_list(config_name, lines, RunMode.RUN).defaults
                tree = compose_files(config_name, lines, return_hydra_config=True)
        except (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError, ValueError) as error:
            self.refusal = " ".join(str(error).split("\n\n")[0].split())
            return None
        for file in files:
            if file.config_path is not None and not file.config_path.startswith("hydra/"):
                for key, setting in self.folder.settings(file.config_path, file.package or ""):
                    self.provenance.setdefault(key, []).append(setting)
        choices = {group: name for group, name in tree.hydra.runtime.choices.items() if not group.startswith("hydra/")}
        with open_dict(tree):
            del tree["hydra"]
        return tree, choices

    def _blame(self, files: list[str]) -> set[str]:
        """Notes which file is at fault; returns the groups to go on without.

        Raises:
            ConfigError: There is nothing to go on with.
        """
        faults = [(name, fault) for name, fault in self.folder.faults(files) if fault not in self.problems]
        self.problems += [fault for _, fault in faults]
        groups = {name.partition("/")[0] for name, _ in faults}
        if not groups or PRIMARY in groups:
            raise ConfigError(*self.problems, *([] if faults else [self.refusal]))
        self.broken |= groups
        return groups

    def finish(self, tree: DictConfig, changes: Sequence[Override], known: dict[str, Any]) -> dict[str, Any]:
        """Makes the changes, resolves the interpolations and checks the result."""
        for change in changes:
            self._delete(tree, change) if change.deletes else self._set(tree, change)
        self._resolve(tree, "")
        for name in {"local", *known} & {str(key) for key in tree}:
            inside = next((key for key in self.provenance if key.startswith(f"{name}.")), name)
            self.problems.append(
                f"{place(inside, self.provenance)}{name} is no section; "
                f"a file of {self.folder.path.name}/{name}/ begins with the line '# @package _global_'"
            )
            with open_dict(tree):
                del tree[name]
        plain = OmegaConf.to_container(tree, resolve=True)
        assert isinstance(plain, dict)
        cfg = complete({str(key): value for key, value in plain.items()} | known)
        problems = self.problems + check(cfg, self.provenance, frozenset(self.broken))
        if problems:
            raise ConfigError(*problems)
        return cfg

    def _set(self, tree: DictConfig, change: Override) -> None:
        for parent in _parents(change.key):
            value = OmegaConf.select(tree, parent, throw_on_resolution_failure=False)
            if value is not None and not isinstance(value, DictConfig):
                self.problems.append(f"{change.text}: {parent} is the value {value!r}, not a section")
                return
        OmegaConf.update(tree, change.key, change.value, merge=True, force_add=True)
        for key, value in _flat(change.key, change.value):
            self.provenance.setdefault(key, []).append(Setting(change.text, value, "command line: "))

    def _delete(self, tree: DictConfig, change: Override) -> None:
        parent, _, name = change.key.rpartition(".")
        section = OmegaConf.select(tree, parent, throw_on_resolution_failure=False) if parent else tree
        if not isinstance(section, DictConfig) or name not in section:
            known = [*self.provenance, *map(str, tree)]
            self.problems.append(f"{change.text}: there is no key {change.key}{hint(change.key, known)}")
            return
        with open_dict(section):
            del section[name]
        for key in [key for key in self.provenance if f"{key}.".startswith(f"{change.key}.")]:
            del self.provenance[key]

    def _resolve(self, node: DictConfig | ListConfig, path: str) -> None:
        """Tries every interpolation; one that fails becomes a problem, and its key null."""
        names: list[Any] = list(node) if isinstance(node, DictConfig) else list(range(len(node)))
        for name in names:
            key = f"{path}.{name}" if path else str(name)
            try:
                value = None if OmegaConf.is_missing(node, name) else node[name]
            except OmegaConfBaseException as error:
                reason = re.sub(r"^\w+ raised while resolving interpolation: ", "", str(error).splitlines()[0])
                self.problems.append(f"{place(key, self.provenance)}{key}: cannot be resolved: {reason}")
                self.broken.add(key if isinstance(node, DictConfig) else path)
                node[name] = None
                continue
            if isinstance(value, DictConfig | ListConfig) and not OmegaConf.is_interpolation(node, name):
                self._resolve(value, key)


def choice_lines(picks: Mapping[str, Override], entries: Mapping[str, DefaultsEntry]) -> Iterator[str]:
    """Yields the choices as Hydra takes them: `group=name` in the defaults list, `+group=name` beside it, `~group`."""
    for group, pick in picks.items():
        if not pick.deletes and pick.value is not None:
            yield f"{'' if group in entries else '+'}{group}={pick.value}"
        elif group in entries and not entries[group].optional:
            yield f"~{group}"


def _files(picks: Mapping[str, Override]) -> list[str]:
    return [f"{group}/{pick.value}" for group, pick in picks.items() if isinstance(pick.value, str)]


def _parents(key: str) -> Iterator[str]:
    parts = key.split(".")
    return (".".join(parts[:length]) for length in range(1, len(parts)))


def _flat(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _flat(f"{key}.{name}", item)
    else:
        yield key, written(value)


def written(value: Any) -> str:
    """Returns a plain value as a person would write it in YAML, on one line."""
    return yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6).removesuffix("...\n").strip()
