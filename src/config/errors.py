"""The error for a person's mistake, and the nearest right name for a misspelt one."""

from collections.abc import Iterable
from difflib import SequenceMatcher


class ConfigError(ValueError):
    """Mistakes in what the person wrote, a message each; an entry prints them without a traceback and exits with 2."""

    @property
    def problems(self) -> tuple[str, ...]:
        """Each one message: where, what is wrong, and what would be right; the same twice counts once."""
        return tuple(dict.fromkeys(map(str, self.args)))

    def __str__(self) -> str:
        return "\n".join(self.problems)


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """Returns the dotted choice with the same last part, else a similar one in the same section, else anywhere."""
    leaf, parent = name.rpartition(".")[2].lower(), name.rpartition(".")[0]
    leaves: dict[str, list[str]] = {}
    for choice in choices:
        leaves.setdefault(choice.rpartition(".")[2].lower(), []).append(choice)
    beside = {key: [c for c in found if c.rpartition(".")[0] == parent] for key, found in leaves.items()}
    for pool, cutoff in ((leaves, 1.0), ({k: found for k, found in beside.items() if found}, 0.6), (leaves, 0.75)):
        best = max(pool, key=lambda other: _likeness(leaf, other), default="")
        if best and _likeness(leaf, best) >= cutoff:
            return max(pool[best], key=lambda choice: _likeness(name, choice))
    return None


def _likeness(name: str, other: str) -> float:
    return SequenceMatcher(None, name, other).ratio()


def hint(name: str, choices: Iterable[str], what: str = "choices") -> str:
    """Returns '; did you mean X?', or the choices where none is near, or nothing where there are too many."""
    choices = list(dict.fromkeys(choices))
    if near := nearest(name, choices):
        return f"; did you mean {near}?"
    return f"; {what}: {', '.join(choices)}" if 0 < len(choices) <= 24 else ""
