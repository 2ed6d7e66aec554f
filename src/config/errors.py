"""The error for a person's mistake, and the nearest right name for a misspelt one."""

from collections.abc import Iterable
from difflib import SequenceMatcher


class ConfigError(ValueError):
    """Mistakes in what the person wrote: configuration, command line or data.

    An entry prints it as one short message and exits with code 2, without a traceback.

    Attributes:
        problems: Each one message: where, what is wrong, and what would be right.
    """

    def __init__(self, *problems: str) -> None:
        """Takes one message a problem; the same twice counts once."""
        super().__init__(*problems)
        self.problems: tuple[str, ...] = tuple(dict.fromkeys(problems))

    def __str__(self) -> str:
        """Returns the problems, one a line."""
        return "\n".join(self.problems)


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """Returns the dotted choice that `name` probably means; None where none is spelt like it.

    The same last part elsewhere (`lr` for `optimizer.lr`), else a similar one in the same section, else a similar one
    anywhere.
    """
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
    near = nearest(name, choices)
    if near is not None:
        return f"; did you mean {near}?"
    return f"; {what}: {', '.join(choices)}" if 0 < len(choices) <= 20 else ""
