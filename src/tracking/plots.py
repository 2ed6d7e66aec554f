"""Pictures of a run, drawn on matplotlib's `Figure` alone: pyplot would keep global state and look for a display.

matplotlib is imported by the first picture, not with this module: a run that draws none does not wait for it.
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from src.tracking.files import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
COLOURS = {"train": "#4c78a8", "val": "#e4572e", "test": "#54a24b"}
SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test"}
LABELS = {"acc": "accuracy", "f1": "macro F1", "mae": "mean absolute error"}
LONGEST_NAME = 18  # characters of a class name on an axis
SMALLEST_FONT = 5.5  # points
MOST_NAMES = 60  # classes up to which every one is named on the axes

Rows = Sequence[Mapping[str, float | None]]


def loss_curves(rows: Rows, monitor: str | None = None, units: Mapping[str, str] | None = None) -> "Figure":
    """Training and validation loss, and the monitored metric with its training counterpart, by epoch.

    Args:
        rows: logged rows, as `files.read_rows` gives them; epochs are counted from 0 there, from 1 in the picture.
        monitor: the monitored metric, such as "val/acc"; None, or a loss: the losses alone.
        units: unit by the last part of a metric's name, such as {"mae": "eV"}.
    """
    from matplotlib.figure import Figure

    kinds = ["loss"]
    if monitor is not None and _kind(monitor) != "loss":
        kinds.append(_kind(monitor))
    figure = Figure(figsize=(5.2 * len(kinds), 3.9), dpi=DPI, layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        _draw_curves(axes, rows, kind, (units or {}).get(kind))
    return _laid_out(figure)


def confusion_matrix(counts: npt.ArrayLike, class_names: Sequence[str], title: str = "Confusion matrix") -> "Figure":
    """Counts of (true class, predicted class); the colour is the share of the true class, so rare classes show as well.

    Numbers and names are drawn as far as they can be read.

    Args:
        counts: non-negative integers, shape (num_classes, num_classes), rows true, columns predicted.
        class_names: one a class.
        title: above the picture.

    Raises:
        ValueError: the shape does not belong to the names.
    """
    from matplotlib.figure import Figure

    matrix = np.asarray(counts, dtype=np.int64)
    n = len(class_names)
    if matrix.shape != (n, n):
        raise ValueError(f"a confusion matrix of {n} classes has shape ({n}, {n}), not {matrix.shape}")
    inches = min(max(4.5, 2.2 + 0.42 * n), 11.0)
    figure = Figure(figsize=(inches + 0.9, inches), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(_shade(shares), cmap="Blues", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    ticks = np.array([0, 0.01, 0.1, 0.25, 0.5, 1])
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, label="share of the true class")
    bar.set_ticks(_shade(ticks).tolist(), labels=[f"{tick:g}" for tick in ticks])
    _name_classes(axes, class_names)
    _write_counts(axes, matrix, shares, cell_points=72 * 0.7 * inches / max(n, 1))
    total = int(matrix.sum())
    correct = f", {np.trace(matrix) / total:.2%} correct" if total else ""
    axes.set_title(f"{title}\n{total:,} samples{correct}", fontsize=11, parse_math=False)
    return _laid_out(figure)


def pixels(figure: "Figure") -> npt.NDArray[np.uint8]:
    """The picture as RGB, shape (height, width, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    rgba = np.asarray(canvas.buffer_rgba(), dtype=np.uint8)  # type: ignore[no-untyped-call]
    return rgba[..., :3].copy()


def save_png(figure: "Figure", path: Path) -> None:
    """Write the picture, atomically; equal figures give equal bytes."""
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})  # no version of matplotlib in the file
    replace_file(path, content.getvalue())


def _laid_out(figure: "Figure") -> "Figure":
    """The layout is computed once: computed again by every drawing, it would shift by a pixel."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def _kind(metric: str) -> str:
    return metric.rpartition("/")[2]


def _draw_curves(axes: "Axes", rows: Rows, kind: str, unit: str | None) -> None:
    from matplotlib.ticker import MaxNLocator

    for split in ("train", "val"):
        epochs, values = _by_epoch(rows, f"{split}/{kind}")
        if any(map(math.isfinite, values)):
            marker = "o" if len(values) <= 30 else None
            axes.plot(epochs, values, color=COLOURS[split], label=SPLIT_NAMES[split], marker=marker, markersize=3.5)
    axes.set_xlabel("epoch")
    label = LABELS.get(kind, kind)
    axes.set_ylabel(f"{label} ({unit})" if unit else label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, f"no finite {label} was logged", transform=axes.transAxes, ha="center", va="center")


def _by_epoch(rows: Rows, metric: str) -> tuple[list[int], list[float]]:
    """Epochs, counted from 1, and the last value logged in each."""
    values: dict[int, float] = {}
    for row in rows:
        epoch, value = row.get("epoch"), row.get(metric)
        if epoch is not None and value is not None:
            values[int(epoch) + 1] = value
    return list(values), list(values.values())


def _name_classes(axes: "Axes", class_names: Sequence[str]) -> None:
    n = len(class_names)
    every = 1 if n <= MOST_NAMES else _round_step(n / 20)
    ticks = range(0, n, every)
    names = [_shorten(class_names[tick]) for tick in ticks]
    size = 9 if n <= 30 else 6 if n <= MOST_NAMES else 8
    flat = n <= 30 and max(map(len, names), default=0) <= 3
    axes.set_xticks(ticks, names, fontsize=size, rotation=0 if flat else 90, parse_math=False)  # "$" is a character
    axes.set_yticks(ticks, names, fontsize=size, parse_math=False)
    note = "" if every == 1 else f" (every {every}th of {n:,} named)"
    axes.set_xlabel("predicted class")
    axes.set_ylabel(f"true class{note}")


def _round_step(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, ... that is at least `least`."""
    power = 10 ** math.floor(math.log10(least))
    return int(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least))


def _shorten(name: str) -> str:
    """At most `LONGEST_NAME` characters; the middle goes, as names often differ at the end."""
    name = " ".join(name.split())
    if len(name) <= LONGEST_NAME:
        return name
    tail = LONGEST_NAME // 2
    return f"{name[: LONGEST_NAME - 1 - tail]}…{name[-tail:]}"


def _shade(shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Colour of a share, 0 to 1: the square root, and never so light that a single mistake among many goes unseen."""
    return np.where(shares > 0, 0.12 + 0.88 * np.sqrt(shares), 0.0)


def _write_counts(
    axes: "Axes", matrix: npt.NDArray[np.int64], shares: npt.NDArray[np.float64], cell_points: float
) -> None:
    """Write the counts into their cells, or none of them where they would be too small to read."""
    digits = len(str(matrix.max(initial=0)))
    size = min(11.0, 0.9 * cell_points / (0.62 * digits), 0.7 * cell_points)
    if size < SMALLEST_FONT:
        return
    for row, column in zip(*np.nonzero(matrix), strict=True):
        colour = "white" if shares[row, column] > 0.3 else "#222222"
        axes.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=size, color=colour)
