"""What the pictures show: texts, curves, colours; and that equal pictures are equal files."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from src.tracking.plots import (
    LONGEST_NAME,
    calibration,
    confusion_matrix,
    loss_curves,
    parity,
    pixels,
    precision_recall,
    residuals,
    roc,
    save_png,
    training_batch,
    worst,
)

ROWS = [
    {"step": 9, "epoch": 0, "train/loss": 2.0, "val/loss": 1.5, "val/acc": 0.5},
    {"step": 19, "epoch": 1, "train/loss": 1.0, "val/loss": math.nan, "val/acc": 0.75},
    {"step": 29, "epoch": 2, "train/loss": 0.5, "val/loss": 1.25, "val/acc": 0.875},
    {"step": 30, "epoch": 3, "test/acc": 0.9},
]


def texts(figure: Figure) -> set[str]:
    figure.draw_without_rendering()
    return {
        text.get_text() for axes in figure.axes for text in axes.findobj(lambda artist: hasattr(artist, "get_text"))
    }


def curves(figure: Figure, axes: int) -> dict[str, tuple[list[float], list[float]]]:
    return {
        str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata()))
        for line in figure.axes[axes].get_lines()
    }


def test_curves_hold_the_rows_by_epoch() -> None:
    figure = loss_curves(ROWS, "val/acc")
    loss, accuracy = curves(figure, 0), curves(figure, 1)
    assert loss["training"] == ([1, 2, 3], [2.0, 1.0, 0.5])
    assert loss["validation"][0] == [1, 2, 3]
    assert loss["validation"][1][::2] == [1.5, 1.25] and math.isnan(loss["validation"][1][1])
    assert accuracy == {"validation": ([1, 2, 3], [0.5, 0.75, 0.875])}


def test_several_validations_in_an_epoch_are_drawn_by_step() -> None:
    rows: list[dict[str, float | None]] = [
        {"step": 4, "epoch": 0, "val/loss": 3.0},
        {"step": 9, "epoch": 0, "train/loss": 2.0, "val/loss": 2.5},
        {"step": 14, "epoch": 1, "val/loss": 2.0},
        {"step": 19, "epoch": 1, "train/loss": 1.0, "val/loss": 1.5},
    ]
    figure = loss_curves(rows)
    assert curves(figure, 0) == {
        "training": ([9, 19], [2.0, 1.0]),
        "validation": ([4, 9, 14, 19], [3.0, 2.5, 2.0, 1.5]),
    }
    assert figure.axes[0].get_xlabel() == "step"


def test_axes_are_labelled_in_words() -> None:
    spelled = {"acc": "accuracy", "f1": "macro F1", "mae": "mean absolute error", "kappa": "kappa"}
    for kind, label in spelled.items():
        axes = loss_curves([{"epoch": 0, "train/loss": 1.0, f"val/{kind}": 0.1}], f"val/{kind}").axes
        assert [(one.get_xlabel(), one.get_ylabel()) for one in axes] == [("epoch", "loss"), ("epoch", label)]


def test_a_monitored_loss_is_not_drawn_twice() -> None:
    assert len(loss_curves(ROWS, "val/loss").axes) == len(loss_curves(ROWS).axes) == 1


@pytest.mark.parametrize("rows", [[], [{"epoch": 0, "train/loss": math.nan}], [{"epoch": None, "train/loss": 1.0}]])
def test_a_run_without_a_finite_value_says_so(rows: list[dict[str, float | None]]) -> None:
    assert {"no finite loss was logged", "no finite accuracy was logged"} <= texts(loss_curves(rows, "val/acc"))


def test_confusion_matrix_of_two_classes_is_complete() -> None:
    figure = confusion_matrix([[90, 10], [0, 5]], ["cat", "dog"])
    assert {"90", "10", "5", "cat", "dog", "true class", "predicted class", "share of the true class"} <= texts(figure)
    assert "0" not in {text.get_text() for text in figure.axes[0].texts}
    assert figure.axes[0].get_title() == "Confusion matrix\n105 samples, 90.48% correct"


def test_colour_is_the_share_of_the_true_class() -> None:
    """Rows of 1,000 and of 10 samples with equal shares look the same, and one mistake in a hundred is seen."""
    image = confusion_matrix([[900, 100], [1, 9]], ["a", "b"]).axes[0].get_images()[0]
    shade = np.asarray(image.get_array())
    assert shade[0, 0] == shade[1, 1] and shade[0, 1] == shade[1, 0]
    assert image.norm(0.0) == 0 and image.norm(0.01) == pytest.approx(0.1) and image.norm(1.0) == 1


@pytest.mark.parametrize(
    ("classes", "named", "numbers"), [(2, 2, True), (10, 10, True), (100, 20, False), (1000, 20, False)]
)
def test_names_and_numbers_as_far_as_they_can_be_read(classes: int, named: int, numbers: bool) -> None:
    figure = confusion_matrix(np.full((classes, classes), 12), [f"class {i}" for i in range(classes)])
    axes = figure.axes[0]
    assert len(axes.get_xticks()) == len(axes.get_yticks()) == named
    assert bool(axes.texts) is numbers
    assert all(text.get_fontsize() >= 5.5 for text in [*axes.texts, *axes.get_xticklabels(), *axes.get_yticklabels()])


def test_counts_that_do_not_fit_are_left_out_together() -> None:
    wide = np.eye(40, dtype=int) * 1_000_000 + 1
    assert not list(confusion_matrix(wide, [str(i) for i in range(40)]).axes[0].texts)


def test_no_text_leaves_the_picture_or_covers_another() -> None:
    names = [f"a rather long class name, number {i}" for i in range(25)]
    figure = confusion_matrix(np.full((25, 25), 7), names)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    labels = [*axes.get_xticklabels(), *axes.get_yticklabels(), axes.xaxis.label, axes.yaxis.label, axes.title]
    boxes = [label.get_window_extent() for label in labels]
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes)
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])


def test_long_names_keep_the_end_that_tells_them_apart() -> None:
    names = [f"an image of the digit number {i}" for i in range(3)]
    shown = [label.get_text() for label in confusion_matrix(np.eye(3, dtype=int), names).axes[0].get_yticklabels()]
    assert shown == ["an image… number 0", "an image… number 1", "an image… number 2"]
    assert max(map(len, shown)) == LONGEST_NAME


def test_names_are_not_formulas() -> None:
    figure = confusion_matrix(np.eye(2, dtype=int), ["$5_{", "a\nb $"])
    assert {"$5_{", "a b $"} <= texts(figure)
    pixels(figure)


def test_letters_come_from_the_first_font_that_has_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    hook, plain = "\u1d8a", "sum"  # a letter that matplotlib's own font lacks, and some that it has
    monkeypatch.setattr("src.tracking.plots.FONTS", ("No Such Font", "STIXGeneral"))
    shown, unchanged = (pixels(training_batch([np.zeros((9, 9, 3), np.uint8)], [name])) for name in (hook, plain))
    assert not list(recwarn) and not caplog.records
    monkeypatch.setattr("src.tracking.plots.FONTS", ())
    boxes, as_ever = (pixels(training_batch([np.zeros((9, 9, 3), np.uint8)], [name])) for name in (hook, plain))
    assert not np.array_equal(shown, boxes) and np.array_equal(unchanged, as_ever)


def test_no_samples_and_one_class_are_drawn() -> None:
    assert confusion_matrix([[0, 0], [0, 0]], ["a", "b"]).axes[0].get_title() == "Confusion matrix\n0 samples"
    assert confusion_matrix([[3]], ["a"]).axes[0].texts[0].get_text() == "3"


def test_a_matrix_of_another_size_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"of 3 classes has shape \(3, 3\), not \(2, 2\)"):
        confusion_matrix(np.eye(2), ["a", "b", "c"])


def test_equal_pictures_are_equal_files_without_a_version(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        save_png(loss_curves(ROWS, "val/acc"), tmp_path / name)
    content = (tmp_path / "one.png").read_bytes()
    assert content == (tmp_path / "two.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n") and b"atplotlib" not in content
    assert sorted(os.listdir(tmp_path)) == ["one.png", "two.png"]


def test_pixels_are_those_of_the_file(tmp_path: Path) -> None:
    from PIL import Image

    image = pixels(confusion_matrix([[1, 0], [0, 1]], ["a", "b"]))
    save_png(confusion_matrix([[1, 0], [0, 1]], ["a", "b"]), tmp_path / "figure.png")
    assert image.dtype == np.uint8 and image.min() < 60 and image.max() == 255
    assert np.array_equal(image, np.asarray(Image.open(tmp_path / "figure.png").convert("RGB")))


def test_the_module_needs_neither_torch_nor_matplotlib_to_be_imported() -> None:
    probe = "import sys; import src.tracking.plots; sys.exit(bool({'torch', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", probe], cwd=Path(__file__).parents[2]).returncode == 0


# --- regression

PAIRS = np.array([[[1.5, 7.0, 0.0], [1.0, 5.0, math.nan]], [[2.0, 4.0, 0.0], [3.0, math.nan, math.nan]]])
NAMES, UNITS = ["energy", "band_gap_$", "k"], ["eV/atom", "eV", ""]
"""Two samples, three targets; of the second target one value is missing, of the third all."""


def test_parity_shows_prediction_over_target() -> None:
    figure = parity(PAIRS, NAMES, UNITS)
    points = [axes.collections[0].get_offsets().tolist() for axes in figure.axes]
    assert points == [[[1.0, 1.5], [3.0, 2.0]], [[5.0, 7.0]], []]
    assert all(axes.get_xlim() == axes.get_ylim() for axes in figure.axes)
    shown = texts(figure)
    assert {"target (eV/atom)", "prediction (eV/atom)", "target", "prediction", "k\nno samples"} <= shown
    assert "energy\n2 samples, MAE 0.75, bias -0.25 eV/atom" in shown
    assert "band_gap_$\n1 samples, MAE 2, bias +2 eV" in shown


def test_residuals_are_prediction_minus_target() -> None:
    figure = residuals(PAIRS, NAMES, UNITS)
    for axes, errors in zip(figure.axes, ([0.5, -1.0], [2.0], []), strict=True):
        bars = [(bar.get_x(), bar.get_x() + bar.get_width(), bar.get_height()) for bar in axes.patches]
        assert sum(height for _, _, height in bars) == len(errors)
        assert all(any(low <= error <= high and height for low, high, height in bars) for error in errors)
    assert {"prediction - target (eV/atom)", "prediction - target"} <= texts(figure)


@pytest.mark.parametrize("size", [0.0, 0.1, 1e5])
def test_residuals_that_differ_by_rounding_alone(size: float, tmp_path: Path) -> None:
    pairs = np.stack([np.nextafter(np.full(20, size), 2e5), np.zeros(20)], axis=1)[:, :, None]
    pairs[::2, 0, 0] = size
    figure = residuals(pairs, ["energy"], ["eV"])
    assert sum(bar.get_height() for bar in figure.axes[0].patches) == 20
    save_png(figure, tmp_path / "residuals.png")


def test_more_targets_than_a_row_holds(tmp_path: Path) -> None:
    figure = parity(np.zeros((5, 2, 4)), list("abcd"), [""] * 4)
    assert [axes.axison for axes in figure.axes] == [True] * 4 + [False] * 2
    save_png(figure, tmp_path / "parity.png")  # equal values make no axis of zero length


# --- classification: what results/test.json holds

ODD = ["_cat of $5_{", "собака", "a rather long class name, number 3"]


def curve(name: str, area: float) -> dict[str, Any]:
    return {
        "name": name, "recall": [0, 0.5, 1], "precision": [1, 0.75, 0.5], "fpr": [0, 0.25, 1], "tpr": [0, 0.5, 1],
        "average_precision": area, "auroc": area / 2,
    }  # fmt: skip


def test_curves_of_the_classes_are_named_with_their_areas() -> None:
    shown = [curve(name, 0.9 - 0.1 * number) for number, name in enumerate(ODD)]
    for figure, (x, y), areas in (
        (precision_recall(shown), ("recall", "precision"), ["0.900", "0.800", "0.700"]),
        (roc(shown), ("fpr", "tpr"), ["0.450", "0.400", "0.350"]),
    ):
        lines = list(curves(figure, 0).values())
        assert lines == [(shown[0][x], shown[0][y])] * 3
        legend = figure.axes[0].get_legend()
        assert legend is not None
        names = [text.get_text().split("  ", 1) for text in legend.get_texts()]
        assert names == [[area, name] for area, name in zip(areas, map(shortened, ODD), strict=True)]
        assert "each class against the others" in figure.axes[0].get_title()
        pixels(figure)  # "$" is a character


def shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME // 2 - 1]}…{name[-LONGEST_NAME // 2 :]}"


def test_the_mean_of_many_classes_stands_out() -> None:
    figure = roc([curve("a", 0.5), curve("macro average", 0.9)])
    one, mean = figure.axes[0].get_lines()
    assert mean.get_color() == "0.5" and mean.get_linewidth() > one.get_linewidth()
    assert figure.axes[0].get_title() == "ROC, worst classes against the others"


def test_calibration_shows_accuracy_and_counts() -> None:
    bins = [
        {"lower": 0.0, "upper": 0.5, "count": 0, "confidence": None, "accuracy": None},
        {"lower": 0.5, "upper": 1.0, "count": 40, "confidence": 0.9, "accuracy": 0.75},
    ]
    figure = calibration({"ece": 0.15, "bins": bins})
    bars = [[(bar.get_x(), bar.get_height()) for bar in axes.patches] for axes in figure.axes]
    assert bars[0][1] == (0.5, 0.75) and bars[1] == [(0.0, 0), (0.5, 40)]
    assert "Calibration\n40 samples, expected calibration error 15.00%" in texts(figure)


def test_pictures_stand_under_their_captions() -> None:
    images = np.random.default_rng(0).integers(0, 255, (6, 20, 30, 3), dtype=np.uint8)
    samples = [{"true": ODD[n % 3], "predicted": ODD[(n + 1) % 3], "confidence": 0.5 + n / 20} for n in range(6)]
    captions = [
        f"{shortened(one['true'])}\n→ {shortened(one['predicted'])} ({one['confidence']:.0%})" for one in samples
    ]
    for figure, expected in (
        (worst(images, samples), captions),
        (training_batch(images, [ODD[n % 3] for n in range(6)]), [shortened(ODD[n % 3]) for n in range(6)]),
    ):
        axes = figure.axes[0]
        assert [text.get_text() for text in axes.texts] == expected
        figure.draw_without_rendering()
        boxes = [text.get_window_extent() for text in axes.texts]
        for image, given, box in zip(axes.get_images(), images, boxes, strict=True):
            left, right, bottom, top = image.get_extent()
            assert np.array_equal(np.asarray(image.get_array()), given)
            assert (right - left) / (top - bottom) == pytest.approx(30 / 20)
            place = image.get_window_extent()
            assert place.y1 <= box.y0 and abs(place.x0 - box.x0) < 2 and box.y1 <= figure.bbox.y1
        assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
        assert not any(box.overlaps(image.get_window_extent()) for box in boxes for image in axes.get_images())
