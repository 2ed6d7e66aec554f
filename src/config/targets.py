"""The one list of what a `_target_` may name, and how such a name becomes an object."""

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from src.config.errors import ConfigError

ALLOWED = (
    "src.",
    "torch.nn.",
    "torch.optim.",
    "torchvision.models.",
    "torch_geometric.nn.",
    "lightning.pytorch.callbacks.",
    "lightning.pytorch.loggers.",
)
"""Prefixes (ending in a dot) and exact names; pyproject.toml may add to them, a checkpoint may not."""

_MODELS = ("resnet18", "resnet34", "resnet50", "convnext_tiny", "efficientnet_b0", "mobilenet_v3_small", "vit_b_16")
FACTORIES = {"torch.nn.modules.module.Module": frozenset(f"torchvision.models.{name}" for name in _MODELS)}
"""Functions that may stand for a class, by the base of what they return."""

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
_PUBLIC_NAME = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+")

T = TypeVar("T")


@cache
def allowed_targets(pyproject: Path = PYPROJECT) -> tuple[str, ...]:
    """Returns the allow-list: `ALLOWED` and `[tool.research-template] allowed-targets` of pyproject.toml."""
    tool = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("tool", {}) if pyproject.is_file() else {}
    return ALLOWED + tuple(tool.get("research-template", {}).get("allowed-targets", ()))


def is_allowed(dotted: str) -> bool:
    """Whether the allow-list holds this name; nothing is imported."""
    prefixes = tuple(entry for entry in allowed_targets() if entry.endswith("."))
    return _PUBLIC_NAME.fullmatch(dotted) is not None and (dotted.startswith(prefixes) or dotted in allowed_targets())


def resolve_target(dotted: str, base: type) -> Any:
    """Imports what `_target_` names: a class derived from `base`, or a listed factory of one; else a ConfigError.

    A name outside the allow-list imports nothing. A name is a module and one attribute of it, never a walk through
    attributes, and what a listed module merely imports from elsewhere is not a target.
    """
    if not is_allowed(dotted):
        raise ConfigError(not_allowed(dotted))
    module_name, _, name = dotted.rpartition(".")
    try:
        found = getattr(import_module(module_name), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ConfigError(f"_target_ {dotted} names nothing: {error}") from error
    if dotted in FACTORIES.get(f"{base.__module__}.{base.__qualname__}", ()):
        return found
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"_target_ {dotted} is not a {base.__module__}.{base.__qualname__}")
    if dotted not in allowed_targets() and not is_allowed(f"{found.__module__}.{found.__qualname__}"):
        raise ConfigError(f"_target_ {dotted} is {found.__module__}.{found.__qualname__}, which is not allowed")
    return found


def not_allowed(dotted: str) -> str:
    """Returns the message for a name outside the allow-list."""
    added = "what [tool.research-template] allowed-targets in pyproject.toml adds"
    return f"{dotted} is not an allowed target: those are public names of {', '.join(allowed_targets())} and {added}"


def build(node: Mapping[str, Any], base: type[T], **injected: Any) -> T:
    """Calls the node's `_target_` with its other keys, which stay plain, and `injected`, which it must not set."""
    if "_target_" not in node:
        raise ConfigError(f"a section that is to become a {base.__qualname__} has no _target_")
    arguments = {key: value for key, value in node.items() if key != "_target_"}
    for name in sorted(arguments.keys() & injected.keys()):
        raise ConfigError(f"{node['_target_']}: {name} is set by the program, not by the configuration")
    made = resolve_target(node["_target_"], base)(**arguments, **injected)
    assert isinstance(made, base)
    return made
