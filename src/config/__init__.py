"""Composition and every check that needs neither torch nor data."""

from src.config.check import check
from src.config.compose import Composed, apply_overrides, compose
from src.config.errors import ConfigError
from src.config.overrides import take_arguments
from src.config.signature import signature_of
from src.config.targets import build, resolve_target

__all__ = [
    "Composed",
    "ConfigError",
    "apply_overrides",
    "build",
    "check",
    "compose",
    "resolve_target",
    "signature_of",
    "take_arguments",
]
