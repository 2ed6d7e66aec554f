"""Pictures of a run, drawn on matplotlib's `Figure` alone: pyplot would keep global state and look for a display.

matplotlib is imported by the first picture: a run that draws none does not wait for it.
"""

import logging
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "Droid Sans Fallback", "Arial Unicode MS")
"""From these, as far as the machine has them, PNGs take the letters that matplotlib's own font lacks."""
# What none of them has is drawn as a box; pages leave the choice of the font to the browser.
warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")

LINES = {"train": ("training", "#4c78a8"), "val": ("validation", "#e4572e")}
COLOURS = dict(LINES.values())
LABELS = {
    "acc": "accuracy", "f1": "macro F1", "mae": "mean absolute error", "fpr": "false positive rate",
    "tpr": "true positive rate", "average_precision": "average precision", "auroc": "area under the curve",
    "lr": "learning rate", "loss_step": "loss of single steps", "grad_norm": "norm of the gradient", "r2": "R²",
    "rmse": "root mean squared error", "memory_mb": "memory (MB)", "gpu_memory_mb": "memory of the GPU (MB)",
    "epoch_seconds": "seconds an epoch", "checkpoint_seconds": "seconds a checkpoint",
    "data_wait_share": "share of the time spent waiting for data", "samples_per_second": "samples per second",
}  # fmt: skip
MEAN = "macro average"  # the name of a curve
POINT, LINE = "#4c78a8", "#e4572e"
LONGEST_NAME = 18  # characters of a class name on an axis
MOST_NAMES = 60  # classes up to which every one is named
SMALLEST_FONT = 5.5  # points

Rows = Sequence[Mapping[str, float | None]]
Curves = Sequence[Mapping[str, Any]]
Pixels = npt.NDArray[np.uint8]


def loss_curves(rows: Rows, monitor: str = "val/loss") -> "Figure":
    """The loss of training and validation, and the monitored metric where it is another, by epoch counted from 1.

    By optimizer step where there are several validations in an epoch.
    """
    kinds = list(dict.fromkeys(["loss", monitor.rpartition("/")[2]]))
    figure = _figure(5.2 * len(kinds), 3.9)
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        lines = {}
        for split, (name, _) in LINES.items():
            found = [(row.get("epoch"), row.get("step"), row.get(f"{split}/{kind}")) for row in rows]
            if points := [(epoch + 1, step or 0, y) for epoch, step, y in found if epoch is not None and y is not None]:
                lines[name] = points
        x = int(any(len({point[0] for point in line}) < len(line) for line in lines.values()))
        series = {name: [(point[x], point[2]) for point in line] for name, line in lines.items()}
        draw_lines(axes, series, ("epoch", "step")[x], LABELS.get(kind, kind))
    return figure


def draw_lines(axes: "Axes", series: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str = "") -> None:
    """Draws lines, logarithmic where values are far apart; NaN leaves a gap."""
    finite: list[float] = []
    for name, points in series.items():
        xs, ys = np.array(points, dtype=np.float64).T
        axes.plot(xs, ys, label=name, color=COLOURS.get(name), marker="." if len(points) < 60 else "", linewidth=1.3)
        finite += ys[np.isfinite(ys)].tolist()
    axes.locator_params(axis="y", nbins=6)
    axes.locator_params(axis="x", nbins=6, integer=True, min_n_ticks=1)
    axes.ticklabel_format(axis="y", useOffset=False)
    if finite and 0 < 1000 * min(finite) < max(finite):
        axes.set_yscale("log")
    if not finite:
        axes.text(0.5, 0.5, f"no finite {y or 'value'} was logged", ha="center", transform=axes.transAxes)
    _label(axes, x, y)
    if len(series) > 1 or (series and y):
        _legend(axes)


def of_test(results: Mapping[str, Any]) -> dict[str, Callable[[], "Figure"]]:
    """What draws each picture of a test, by its name; `results` as in ``results/test.json``."""
    drawings: dict[str, Callable[[], Figure]] = {}
    if "confusion" in results:
        names = results["class_names"]
        counts = np.zeros((len(names), len(names)), dtype=np.int64)
        for true, predicted, count in results["confusion"]:
            counts[true, predicted] = count
        drawings["confusion_matrix"] = partial(confusion_matrix, counts, names)
    if curves := results.get("curves"):  # none where only one class was tested
        drawings |= {"precision_recall": partial(precision_recall, curves), "roc": partial(roc, curves)}
    if "calibration" in results:
        drawings["calibration"] = partial(calibration, results["calibration"])
    if "pairs" in results:
        names, units = ([target[key] for target in results["targets"]] for key in ("name", "unit"))
        for draw in (parity, residuals):
            drawings[draw.__name__] = partial(draw, results["pairs"], names, units)
    return drawings


def confusion_matrix(counts: npt.ArrayLike, class_names: Sequence[str]) -> "Figure":
    """Counts of (true class, predicted class); the colour is the share of the true class, so rare classes show as well.

    `counts` has shape (num_classes, num_classes). Numbers and names are drawn as far as they can be read.
    """
    from matplotlib.colors import PowerNorm

    matrix, n = np.asarray(counts, dtype=np.int64), len(class_names)
    assert matrix.shape == (n, n), f"a confusion matrix of {n} classes has shape ({n}, {n}), not {matrix.shape}"
    inches = min(max(4.5, 2.2 + 0.42 * n), 11.0)
    figure = _figure(inches + 0.9, inches)
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    scale = PowerNorm(0.5, vmin=0, vmax=1)  # the square root: one mistake among a hundred is seen
    image = axes.imshow(shares, cmap="Blues", norm=scale, interpolation="nearest", aspect="auto")
    figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, label="share of the true class")
    _name_classes(axes, class_names)
    cell = 72 * 0.7 * inches / n  # points
    size = min(11.0, 0.7 * cell, 1.45 * cell / len(str(matrix.max())))
    for row, column in zip(*np.nonzero(matrix), strict=True) if size >= SMALLEST_FONT else ():
        colour = "white" if shares[row, column] > 0.35 else "black"
        axes.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=size, color=colour)
    total = int(matrix.sum())
    correct = f", {np.trace(matrix) / total:.2%} correct" if total else ""
    axes.set_title(f"Confusion matrix\n{total:,} samples{correct}", fontsize=11, parse_math=False)
    return figure


def parity(pairs: npt.ArrayLike, names: Sequence[str], units: Sequence[str]) -> "Figure":
    """Predictions against targets, a panel for each target; on the line they agree.

    `pairs` has shape (num_samples, 2, num_targets): prediction, target. Missing targets are NaN.
    """
    figure, panels = _panels(pairs, names)
    for (axes, prediction, target), name, unit in zip(panels, names, units, strict=True):
        ends = [min([*prediction, *target], default=0.0), max([*prediction, *target], default=1.0)]
        axes.axline((ends[0], ends[0]), slope=1, color=LINE, linewidth=1)
        size, alpha = (14, 0.6) if len(target) < 1000 else (5, 0.3)
        axes.scatter(target, prediction, s=size, alpha=alpha, color=POINT, edgecolors="none")
        margin = 0.04 * (ends[1] - ends[0]) or 0.5
        axes.set(xlim=(ends[0] - margin, ends[1] + margin), ylim=(ends[0] - margin, ends[1] + margin), aspect="equal")
        _label(axes, f"target{_in(unit)}", f"prediction{_in(unit)}", f"{name}\n{_errors(prediction - target, unit)}")
    return figure


def residuals(pairs: npt.ArrayLike, names: Sequence[str], units: Sequence[str]) -> "Figure":
    """Histograms of prediction minus target, a panel for each target; arguments as of `parity`."""
    figure, panels = _panels(pairs, names)
    for (axes, prediction, target), name, unit in zip(panels, names, units, strict=True):
        error = prediction - target
        middle, spread = (error.mean(), np.ptp(error)) if len(error) else (0.0, 0.0)
        width = max(spread, 1e-6 * max(abs(middle), 1.0))  # errors may differ by rounding alone
        ends = (middle - width, middle + width) if spread < width else None
        axes.hist(error, bins=min(60, max(10, round(len(error) ** 0.5))), range=ends, color=POINT)
        axes.axvline(0, color=LINE, linewidth=1)
        _label(axes, f"prediction - target{_in(unit)}", "samples", f"{name}\n{_errors(error, unit)}")
    return figure


def precision_recall(curves: Curves) -> "Figure":
    """Precision over recall of each class against the others; `curves` as in ``results/test.json``."""
    return _class_curves(curves, "recall", "precision", "average_precision", "Precision and recall")


def roc(curves: Curves) -> "Figure":
    """The true over the false positive rate of each class against the others; `curves` as in ``results/test.json``."""
    return _class_curves(curves, "fpr", "tpr", "auroc", "ROC")


def calibration(content: Mapping[str, Any]) -> "Figure":
    """Accuracy by confidence, and how often each confidence is; `content` as in ``results/test.json``."""
    figure, bins = _figure(5.2, 5.6), content["bins"]
    above, below = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    for axes, name, colour in ((above, "accuracy", POINT), (below, "count", "0.6")):
        left, heights = [one["lower"] for one in bins], [one[name] or 0 for one in bins]
        axes.bar(left, heights, 0.94 / len(bins), align="edge", color=colour)
    above.plot([0, 1], [0, 1], color=LINE, linewidth=1)
    above.set(xlim=(0, 1), ylim=(0, 1))
    below.locator_params(axis="y", integer=True, nbins=4)
    total = sum(one["count"] for one in bins)
    _label(above, "", "accuracy", f"Calibration\n{total:,.0f} samples, expected calibration error {content['ece']:.2%}")
    _label(below, "confidence of the prediction", "samples")
    return figure


def worst(pictures: Iterable[Pixels], samples: Sequence[Mapping[str, Any]]) -> "Figure":
    """The samples of the largest loss; `samples` as in ``results/test.json``."""
    pairs = [(_shorten(one["true"]), f"{_shorten(one['predicted'])} ({one['confidence']:.0%})") for one in samples]
    captions = [f"{true}\n\N{RIGHTWARDS ARROW} {predicted}" for true, predicted in pairs]
    return _gallery(pictures, captions, "Largest losses: true class \N{RIGHTWARDS ARROW} prediction (its confidence)")


def training_batch(pictures: Iterable[Pixels], class_names: Sequence[str]) -> "Figure":
    """Images of a training batch and the class of each."""
    return _gallery(pictures, [_shorten(name) for name in class_names], "Images of the first training batch")


def trial(x_name: str, x: Sequence[float], y_name: str, y: Sequence[float], title: str) -> "Figure":
    """What came of each value of a setting, on logarithmic axes."""
    figure = _figure(6.0, 3.9)
    axes = figure.subplots()
    axes.plot(x, y, color=POINT, marker=".")
    axes.loglog()
    _label(axes, x_name, y_name, title)
    return figure


def pixels(figure: "Figure") -> Pixels:
    """The picture as RGB, shape (height, width, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba(), dtype=np.uint8)[..., :3]


def save_png(figure: "Figure", path: Path) -> None:
    """Writes the picture; equal figures give equal bytes."""
    figure.savefig(path, format="png", metadata={"Software": None})  # no version of matplotlib in the file


def _figure(width: float, height: float) -> "Figure":
    from matplotlib import font_manager, rcParams
    from matplotlib.figure import Figure

    # matplotlib takes each letter from the first font that has it, and warns of every font that is not there.
    there = font_manager.get_font_names()
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it tells of a font that is a shade bolder
    rcParams["font.family"] = ["sans-serif", *(name for name in FONTS if name in there)]
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def _class_curves(curves: Curves, x: str, y: str, area: str, title: str) -> "Figure":
    figure = _figure(7.0, 4.4)
    axes = figure.subplots()
    for curve in curves:
        style: dict[str, Any] = {"color": "0.5", "linewidth": 2.6} if curve["name"] == MEAN else {}
        axes.plot(curve[x], curve[y], label=f"{curve[area]:.3f}  {_shorten(curve['name'])}", **style)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    which = "worst classes" if curves[-1]["name"] == MEAN else "each class"
    _label(axes, LABELS.get(x, x), LABELS.get(y, y), f"{title}, {which} against the others")
    _legend(axes, loc="upper left", bbox_to_anchor=(1, 1), title=LABELS[area])
    return figure


def _gallery(pictures: Iterable[Pixels], captions: Sequence[str], title: str) -> "Figure":
    """Pictures of one size under their captions, on one pair of axes: a pair for each would take ten times as long."""
    columns, above = min(4, len(captions)), 0.07 * (1 + captions[0].count("\n"))
    figure = _figure(1.8 * columns, 1.8)
    axes = figure.subplots()
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        tall = 0.95 * picture.shape[0] / picture.shape[1]
        x, y = number % columns, -(tall + above + 0.05) * (number // columns)
        axes.imshow(picture, extent=(x, x + 0.95, y - tall, y), interpolation="nearest")
        axes.text(x, y + 0.02, caption, fontsize=7, va="bottom", parse_math=False)
    axes.set(xlim=(0, columns), ylim=(y - tall, above), aspect="equal")
    figure.set_figheight(1.8 * (above + tall - y) + 0.4)
    figure.suptitle(title, fontsize=10)
    axes.set_axis_off()
    return figure


def _panels(pairs: npt.ArrayLike, names: Sequence[str]) -> tuple["Figure", list[tuple[Any, ...]]]:
    """A figure, and for each target a panel of it, with the predictions and targets that are there."""
    values = np.asarray(pairs, dtype=np.float64).reshape(-1, 2, len(names))
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = _figure(4.6 * columns, 4.6 * rows)
    every = figure.subplots(rows, columns, squeeze=False).flat
    for axes in every[len(names) :]:
        axes.set_axis_off()
    there = [values[~np.isnan(values[:, 1, number]), :, number].T for number in range(len(names))]
    return figure, [(axes, *part) for axes, part in zip(every, there, strict=False)]


def _errors(error: npt.NDArray[np.float64], unit: str) -> str:
    if not len(error):
        return "no samples"
    return f"{len(error):,} samples, MAE {np.abs(error).mean():.3g}, bias {error.mean():+.2g} {unit}".rstrip()


def _in(unit: str) -> str:
    return f" ({unit})" if unit else ""


def _legend(axes: "Axes", **style: Any) -> None:
    for text in axes.legend(frameon=False, **style).get_texts():
        text.set_parse_math(False)  # "$" is a character


def _label(axes: "Axes", x: str, y: str, title: str = "") -> None:
    for setter, text in ((axes.set_xlabel, x), (axes.set_ylabel, y), (axes.set_title, title)):
        setter(text, fontsize=10, parse_math=False)  # "$" is a character
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _name_classes(axes: "Axes", class_names: Sequence[str]) -> None:
    n = len(class_names)
    every = 1 if n <= MOST_NAMES else math.ceil(n / 20)
    ticks = range(0, n, every)
    names = [_shorten(class_names[tick]) for tick in ticks]
    size = 6 if 30 < n <= MOST_NAMES else 9
    turn = 0 if n <= 30 and max(map(len, names)) <= 3 else 90
    axes.set_xticks(ticks, names, fontsize=size, rotation=turn, parse_math=False)  # "$" is a character
    axes.set_yticks(ticks, names, fontsize=size, parse_math=False)
    note = "" if every == 1 else f" (one in {every} is named)"
    axes.set(xlabel="predicted class", ylabel=f"true class{note}")


def _shorten(name: str) -> str:
    """Cuts the middle out of a long name: names often differ at the end."""
    name, half = " ".join(name.split()), LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[: half - 1]}…{name[-half:]}"
