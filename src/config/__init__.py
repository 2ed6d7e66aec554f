"""Composition and every check that needs neither torch nor data."""

from src.config.compose import Composed, apply_overrides, compose
from src.config.errors import ConfigError
from src.config.resume import compose_run, find_run
from src.config.sources import take_arguments
from src.config.targets import build, resolve_target

__all__ = [
    "Composed",
    "ConfigError",
    "apply_overrides",
    "build",
    "compose",
    "compose_run",
    "find_run",
    "resolve_target",
    "take_arguments",
]
