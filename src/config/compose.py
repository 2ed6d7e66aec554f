"""From overrides to a checked configuration, without torch: all problems at once."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as compose_files
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from src.config.check import check, key_hint, place, section_signature
from src.config.errors import ConfigError, hint
from src.config.schema import GROUPS, INJECTED, complete, plain
from src.config.sources import CONFIG_DIR, PRIMARY, ConfigFolder, Setting, escaped, leaves, parse_override, written


@dataclass(frozen=True)
class Resumed:
    """A run that goes on: its folder and last status, the changed keys with old and new value.

    `extends` says whether a change gives the run more to do once it is finished.
    """

    folder: Path
    status: dict[str, Any]
    changes: dict[str, tuple[Any, Any]]
    extends: bool


@dataclass(frozen=True)
class Composed:
    """A checked configuration in plain containers, who set what, and what goes on."""

    cfg: dict[str, Any]
    overrides: list[str]
    provenance: dict[str, list[Setting]] = field(repr=False)
    resumed: Resumed | None = None


def compose(overrides: Sequence[str] = (), config_dir: Path = CONFIG_DIR) -> Composed:
    """Composes `configs/train.yaml`, the files it or the overrides choose, and the overrides; all problems at once."""
    draft = _Draft(ConfigFolder(config_dir.resolve()))
    picks, changes = draft.sort(overrides)
    if fault := draft.folder.unreadable(PRIMARY):
        raise ConfigError(*draft.problems, fault)
    tree = draft.load(PRIMARY, dict(draft.folder.defaults(PRIMARY)), picks)
    return Composed(draft.finish(tree, changes), list(overrides), draft.provenance)


def apply_overrides(
    cfg: Mapping[str, Any], overrides: Sequence[str], allowed_groups: Sequence[str] = (), config_dir: Path = CONFIG_DIR
) -> Composed:
    """Sets overrides on a plain stored configuration under the same checks; `configs/` only serves `group=name`."""
    draft = _Draft(ConfigFolder(config_dir.resolve()))
    picks, changes = draft.sort(overrides)
    tree = OmegaConf.create(escaped(dict(cfg)))
    allowed = f"; these can be replaced: {', '.join(allowed_groups)}" if allowed_groups else ""
    for group in [group for group in picks if group not in allowed_groups]:
        draft.problems.append(f"{picks.pop(group).where}: the stored run keeps its {group}{allowed}")
    fresh = draft.load(None, {}, picks)
    for group in picks:
        tree[group] = fresh.get(group, {})
    return Composed(draft.finish(tree, changes), list(overrides), draft.provenance)


class _Draft:
    """A configuration on its way: its problems, where each key was set, and the keys already known to be wrong."""

    def __init__(self, folder: ConfigFolder) -> None:
        self.folder = folder
        self.problems: list[str] = []
        self.provenance: dict[str, list[Setting]] = {}
        self.broken: set[str] = set()

    def sort(self, overrides: Iterable[str]) -> tuple[dict[str, Setting], list[Override]]:
        """Reads the overrides: choices of a group's file, and changes of single keys."""
        groups, picks, changes = self.folder.groups(), {}, []
        for text in overrides:
            try:
                override = parse_override(text)
            except ConfigError as error:
                meant = [group for group in groups if text in self.folder.options(group)]
                self.problems.append(f"{error}{''.join(f'; did you mean {group}={text}?' for group in meant)}")
                continue
            if (group := override.key_or_group) in groups:
                option = None if override.is_delete() else override.value()
                picks[group] = Setting(text, str(option or "null"))
            else:
                changes.append(override)
        return picks, changes

    def load(self, config_name: str | None, listed: Mapping[str, Setting], picks: Mapping[str, Setting]) -> DictConfig:
        """Lets Hydra compose the picks and the rest of the list, without what is broken; notes which line sets what."""
        lines = []
        for group, choice in {**listed, **picks}.items():
            faults = list(self.folder.faults(group, choice)) if choice.text != "null" else []
            self.problems += faults
            if faults:
                self.broken.add(group)
            if group in picks or faults:  # an empty list leaves the group out
                option = "[]" if faults or choice.text == "null" else choice.text
                lines.append(f"{'' if group in listed else '+'}{group}={option}")
        self.provenance["experiment"] = [some["experiment"] for some in (listed, picks) if "experiment" in some]
        try:
            with initialize_config_dir(str(self.folder.path), version_base="1.3"):
                loader = GlobalHydra.instance().config_loader()
                files = loader.compute_defaults_list(config_name, lines, RunMode.RUN).defaults
                tree = compose_files(config_name, lines, return_hydra_config=True)
        except (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError, ValueError) as error:
            raise ConfigError(*self.problems, " ".join(str(error).split("\n\n")[0].split())) from error
        for file in files:
            if file.config_path is not None and not file.config_path.startswith("hydra/"):
                for key, setting in self.folder.settings(file.config_path, file.package or ""):
                    self.provenance.setdefault(key, []).append(setting)
        with open_dict(tree):
            tree.experiment = tree.pop("hydra").runtime.choices.get("experiment")
        return tree

    def finish(self, tree: DictConfig, changes: Sequence[Override]) -> dict[str, Any]:
        """Makes the changes, resolves the interpolations, checks the result and merges it into the schema."""
        for change in changes:
            self._delete(tree, change) if change.is_delete() else self._set(tree, change)
        cfg = self._resolve(tree)
        skip = self.broken | ({*GROUPS} - {"trainer"} if "experiment" in self.broken else set())
        if problems := self.problems + check(cfg, self.provenance, frozenset(skip)):
            raise ConfigError(*problems)
        return complete(cfg)

    def _set(self, tree: DictConfig, change: Override) -> None:
        key, value, typed = change.key_or_group, change.value(), str(change.input_line)
        for parent in accumulate(key.split(".")[:-1], "{}.{}".format):
            section = OmegaConf.select(tree, parent, throw_on_resolution_failure=False)
            if section is not None and not isinstance(section, DictConfig):
                self.problems.append(f"{typed}: {parent} is the value {section!r}, not a section")
                return
        try:
            OmegaConf.update(tree, key, value, merge=True, force_add=True)
        except OmegaConfBaseException as error:
            self.problems.append(f"{typed}: cannot be read ({str(error).splitlines()[0]})")
            return
        for leaf, _, text in leaves(written(value), key):
            self.provenance.setdefault(leaf, []).append(Setting(typed, text))

    def _delete(self, tree: DictConfig, change: Override) -> None:
        key = change.key_or_group
        parent, _, name = key.rpartition(".")
        section = OmegaConf.select(tree, parent, throw_on_resolution_failure=False) if parent else tree
        if not isinstance(section, DictConfig) or name not in section:
            tip = hint(key, [*self.provenance, *map(str, tree)])
            self.problems.append(f"{change.input_line}: there is no key {key}{tip}")
            return
        with open_dict(section):
            del section[name]
        self.provenance = {leaf: who for leaf, who in self.provenance.items() if not f"{leaf}.".startswith(f"{key}.")}

    def _resolve(self, tree: DictConfig) -> dict[str, Any]:
        """Resolves every interpolation; one that fails becomes a problem, and its key null."""
        while True:
            try:
                return plain(tree)
            except OmegaConfBaseException as error:
                key = str(error.full_key).partition("[")[0]
                if key in self.broken:
                    raise ConfigError(*self.problems) from error
                reason = re.sub(r"^\w+ raised while resolving interpolation: ", "", str(error).splitlines()[0])
                self.problems.append(f"{place(key, self.provenance)}{key}: cannot be resolved: {reason}")
                self.broken.add(key)
                OmegaConf.update(tree, key, None)


def explain(composed: Composed, key: str) -> str:
    """Returns the value of a dotted key, what set it and what that replaced; for a section, of each key in it."""
    path, _, name = key.rpartition(".")
    section = _section(composed.cfg, path)
    if isinstance(value := section.get(name), Mapping) and value:
        return "\n".join(explain(composed, f"{key}.{inner}") for inner in value)
    settings = composed.provenance.get(key, [])
    if name not in section or not settings:
        return _unset(composed.cfg, key, section)
    last, *replaced = reversed(settings)
    source = f"{_source(last)}  {last.text}" if "${" in last.text else _source(last)
    replacements = [f"  replaced {setting.text}  {_source(setting)}" for setting in replaced]
    return "\n".join([f"{key} = {written(value)}", f"  {source}", *replacements])


def _source(setting: Setting) -> str:
    return setting.where if re.search(r"\.yaml:\d+$", setting.where) else f"command line: {setting.where}"


def _section(node: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    for part in path.split(".") if path else []:
        inner = node.get(part)
        node = inner if isinstance(inner, Mapping) else {}
    return node


def _unset(cfg: Mapping[str, Any], key: str, section: Mapping[str, Any]) -> str:
    """What the program or the signature gives a key that no file and no override sets."""
    path, _, name = key.rpartition(".")
    signature = section_signature(path, section)
    argument = signature.arguments.get(name) if signature else None
    if argument and name in INJECTED.get(path, {}):
        return f"{key}\n  comes from {INJECTED[path][name]}"
    if name in section:
        return f"{key} = {written(section[name])}\n  {'default' if argument else 'nothing is chosen'}"
    if argument and signature:
        default = {"None": "null", "True": "true", "False": "false"}.get(str(argument.default), argument.default)
        return f"{key} = {default}\n  default of {signature.name}"
    raise ConfigError(f"{key}: there is no such key{key_hint(cfg, key)}")
