"""Who set a value: the answer of `python -m src.explain`."""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from src.config.check import known_keys, section_signature
from src.config.compose import Composed, written
from src.config.errors import ConfigError, hint, nearest
from src.config.files import Setting
from src.config.schema import INJECTED

_YAML_NAMES = {"None": "null", "True": "true", "False": "false"}
_ENVIRONMENT = re.compile(r"\$\{oc\.env:\s*(\w+)")


def explain(composed: Composed, key: str) -> str:
    """Returns the value of a dotted key, what set it and what that replaced; for a section, of each key in it.

    Raises:
        ConfigError: There is no such key.
    """
    found, value = _select(composed.cfg, key)
    if isinstance(value, Mapping) and value:
        return "\n".join(explain(composed, f"{key}.{name}") for name in value)
    settings = composed.provenance.get(key, [])
    if not found or not settings:
        return "\n".join(_unset(composed.cfg, key, found, value))
    last, *replaced = reversed(settings)
    return "\n".join([f"{key} = {written(value)}", f"  {_source(last)}", *(f"  replaced {_full(s)}" for s in replaced)])


def _select(cfg: Mapping[str, Any], key: str) -> tuple[bool, Any]:
    node: Any = cfg
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return False, None
        node = node[part]
    return True, node


def _source(setting: Setting) -> str:
    name = _ENVIRONMENT.search(setting.text)
    where = f"{setting.kind}{setting.where}"
    if name is None:
        return where
    state = "the value of" if name[1] in os.environ else "the default, as nothing sets"
    return f"{where}  {setting.text}, {state} the environment variable {name[1]}"


def _full(setting: Setting) -> str:
    return f"{setting.text}  {setting.kind}{setting.where}"


def _unset(cfg: Mapping[str, Any], key: str, found: bool, value: Any) -> Iterator[str]:
    """What the program or the signature gives a key that no file and no override sets."""
    path, _, name = key.rpartition(".")
    section = _select(cfg, path)[1] if path else cfg
    signature = section_signature(path, section) if isinstance(section, Mapping) else None
    argument = signature.arguments.get(name) if signature else None
    if argument is not None and name in INJECTED.get(path, {}):
        yield f"{key}\n  comes from {INJECTED[path][name]}"
    elif found:
        yield f"{key} = {written(value)}\n  {'default' if argument else 'nothing is chosen'}"
    elif argument is not None and signature is not None:
        yield f"{key} = {_YAML_NAMES.get(str(argument.default), argument.default)}\n  default of {signature.name}"
    else:
        known = known_keys(cfg)
        beside = [other for other in known if other.rpartition(".")[0] == path]
        raise ConfigError(f"{key}: there is no such key{hint(key, known if nearest(key, known) else beside)}")
