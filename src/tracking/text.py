"""Numbers, times and tables as a person reads them."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from src.config.sources import written

SPLITS = ("train", "val")
BEST = {
    **dict.fromkeys(("loss", "mae", "mse", "rmse", "ece"), "min"),
    **dict.fromkeys(("acc", "f1", "auroc", "r2", "precision", "recall", "average_precision"), "max"),
}
"""Which value of a metric is the best, where the monitor does not say."""
FORMATS = ("table", "markdown", "csv")
LONGEST_CELL = 60  # characters, in a terminal


def number(value: float) -> str:
    """Returns four significant digits; a trailing zero stays, so that columns keep their width."""
    return f"{value:#.4g}" if 1e-3 <= abs(value) < 1e4 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Returns ``0.4 s`` or, from a minute on, ``0:03:05``."""
    return f"{seconds:.1f} s" if seconds < 59.95 else str(timedelta(seconds=round(seconds)))


def reading_order(name: str) -> tuple[int, bool, str]:
    """Sorts metrics: training before validation before the rest; in each the loss first."""
    split = name.partition("/")[0]
    return SPLITS.index(split) if split in SPLITS else len(SPLITS), not name.endswith("/loss"), name


def cell(value: Any, measured: bool = True) -> str:
    """Returns a value of a table on one line, nothing for None; of a measured number four digits."""
    if isinstance(value, str):
        return " ".join(value.split())
    if measured and isinstance(value, list):
        return ", ".join(cell(one) or "none" for one in value)
    return "" if value is None else number(value) if isinstance(value, float) and measured else written(value)


def numeric(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the columns that hold nothing but numbers."""
    return [name for name in columns if all(isinstance(row.get(name), int | float | None) for row in rows)]


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Returns the rows as lines of CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], style: str = "table") -> str:
    """Returns the rows in aligned columns, as Markdown, or as CSV, which alone keeps every digit."""
    if style == "csv":
        values = ([row.get(name) for name in columns] for row in rows)
        exact = ([value if isinstance(value, float) else cell(value) for value in line] for line in values)
        return csv_text([columns, *exact]).rstrip("\n")
    measured = ([(row.get(name), "/" in row.get("key", name)) for name in columns] for row in rows)
    lines = [[*columns], *([cell(*value) for value in line] for line in measured)]
    if style == "markdown":
        lines = [[text.replace("|", "\\|") for text in line] for line in lines]
        lines.insert(1, ["---"] * len(columns))
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    lines = [[text if len(text) <= LONGEST_CELL else f"{text[: LONGEST_CELL - 1]}…" for text in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = [">" if name in numeric(columns, rows) else "<" for name in columns]
    return "\n".join(
        "  ".join(f"{text:{side}{width}}" for text, side, width in zip(line, sides, widths, strict=True)).rstrip()
        for line in lines
    )
