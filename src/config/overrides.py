"""Command-line overrides: path values quoted for Hydra's grammar, then read one by one."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from src.config.errors import ConfigError

PATH_KEYS = frozenset({"data.root", "runs_dir", "ckpt", "inputs", "output", "resume", "model.weights"})
"""Keys whose value may hold anything that a path may."""

TEXT_KEYS = PATH_KEYS | {"name", "group", "notes"}
"""Keys whose value is text, in whatever characters."""

_QUOTED = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\"""", re.DOTALL)
_INTERPOLATION = re.compile(r"\$\{[^{}]+\}")
_KEY_AND_VALUE = re.compile(r"(\+{0,2})([^=]*)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class Override:
    """One override: as it was typed, as Hydra can read it, and what it says."""

    text: str
    line: str
    key: str
    value: Any
    deletes: bool

    @property
    def forced(self) -> str:
        """The override so that Hydra also accepts keys that the YAML files do not set."""
        return self.line if self.deletes else f"++{self.line.lstrip('+')}"


def quote_path(override: str) -> str:
    """Returns the override with the value of a path or text key in quotes.

    `null`, values in quotes and `${...}` interpolations mean what they mean to Hydra.
    """
    match = _KEY_AND_VALUE.fullmatch(override)
    if match is None or match[2] not in TEXT_KEYS:
        return override
    plus, key, value = match.groups()
    if value in {"", "null"} or _QUOTED.fullmatch(value) or _INTERPOLATION.fullmatch(value):
        return override
    text = value if _INTERPOLATION.search(value) else escape_interpolation(value)
    return f"{plus}{key}={QuotedString(text, Quote.single).with_quotes()}"


def escape_interpolation(text: str) -> str:
    """Returns `text` so that OmegaConf reads a `${` in it as two characters."""
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)


def parse_override(text: str) -> Override:
    """Reads one override.

    Raises:
        ConfigError: It is not of the form key=value, not in Hydra's grammar, or means several runs.
    """
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
    if parsed.is_sweep_override():
        raise ConfigError(
            f"{text}: several values mean several runs, which python -m src.sweep makes; "
            f"one list is written key=[a,b], text with a comma key=\"'a,b'\""
        )
    return Override(text, line, parsed.key_or_group, parsed.value(), parsed.is_delete())


def parse_overrides(texts: Iterable[str], problems: list[str]) -> list[Override]:
    """Reads all that can be read; what cannot is added to `problems`."""
    parsed = []
    for text in texts:
        try:
            parsed.append(parse_override(text))
        except ConfigError as error:
            problems.extend(error.problems)
    return parsed


def take_arguments(overrides: Sequence[str], names: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Splits off a command's own arguments, such as `resume=` and `ckpt=`: their values, and the other overrides.

    Raises:
        ConfigError: The value of one cannot be read.
    """
    own = {text: text.lstrip("+").partition("=")[0] for text in overrides}
    taken = [parse_override(text) for text in overrides if own[text] in names]
    return {override.key: override.value for override in taken}, [t for t in overrides if own[t] not in names]
