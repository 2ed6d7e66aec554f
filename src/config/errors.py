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
    scores = {choice: _likeness(name, choice) for choice in choices}
    beside = [choice for choice in scores if choice.rpartition(".")[0] == name.rpartition(".")[0]]
    for pool, cutoff in ((scores, 1.0), (beside, 0.6), (scores, 0.75)):
        best = max(pool, key=scores.__getitem__, default=None)
        if best is not None and scores[best][0] >= cutoff:
            return best
    return None


def _likeness(name: str, other: str) -> tuple[float, float]:
    """Of the last parts, then of the whole names."""
    last, other_last = (dotted.rpartition(".")[2].lower() for dotted in (name, other))
    return SequenceMatcher(None, last, other_last).ratio(), SequenceMatcher(None, name, other).ratio()


def hint(name: str, choices: Iterable[str], what: str = "choices") -> str:
    """Returns '; did you mean X?', or the choices where none is near, or nothing where there are too many."""
    choices = list(dict.fromkeys(choices))
    if near := nearest(name, choices):
        return f"; did you mean {near}?"
    return f"; {what}: {', '.join(choices)}" if 0 < len(choices) <= 24 else ""
