"""What W&B shows of a run besides its curves: charts and tables of the results, and the checkpoints, each with a card.

A chart is a table that one of W&B's presets draws in the browser, where it can be zoomed and filtered.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from src.config.resume import digest_of
from src.tracking.plots import LABELS

if TYPE_CHECKING:
    from wandb import Artifact

MOST_ROWS = 10_000
"""Of a chart: W&B draws no more. The confusion matrix of 100 classes has as many cells."""

TARGET, PREDICTION, ERROR = "target", "prediction", "prediction - target"


class Panel(NamedTuple):
    """A table, and the preset that draws it, if one does: its name, the columns that it asks for, its texts."""

    key: str
    rows: Sequence[Mapping[str, Any]]
    preset: str | None = None
    fields: Mapping[str, str] = {}
    text: Mapping[str, str] = {}


def charts(results: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The charts and tables of a test, by the key that each is logged under; those without rows are left out.

    Args:
        results: What ``results/test.json`` holds.
        folder: The run folder, where the paths of pictures begin.
    """
    import wandb

    made: dict[str, Any] = {}
    panels = _of_classes(results) if results["task"] == "classification" else _of_targets(results)
    for panel in (*panels, Panel("worst", [_cells(row, results, folder) for row in results["worst"]])):
        columns = [name for name in (panel.rows or [{}])[0] if any(row[name] is not None for row in panel.rows)]
        if columns:
            table = wandb.Table(list(columns), [[row[name] for name in columns] for row in panel.rows])
            chart = panel.preset and wandb.plot_table(panel.preset, table, dict(panel.fields), dict(panel.text))
            made[f"results/{panel.key}"] = chart or table
    return made


def checkpoints(run_dir: Path, info: Mapping[str, Any], project: str) -> "Iterator[tuple[Artifact, str]]":
    """The best and the last checkpoint of a run, as far as there are any, each with its card and its alias.

    Nothing is copied: a link keeps each file as it is, even where the run goes on before ``wandb sync`` has sent it.

    Args:
        run_dir: The run folder.
        info: What `WandbTracker` knows of the run.
        project: W&B project, for the card.
    """
    import torch
    import wandb

    for alias, path in (("best", run_dir / "checkpoints/best.ckpt"), ("latest", run_dir / "checkpoints/last.ckpt")):
        if path.is_file():
            facts = describe(torch.load(path, map_location="cpu", weights_only=True, mmap=True), info)
            link = run_dir / "wandb/checkpoints" / f"step-{facts['step']}-{path.name}"
            link.parent.mkdir(exist_ok=True)
            link.unlink(missing_ok=True)
            os.link(path, link)
            name = f"checkpoint-{info['id']}"
            lines = [f"- {key.replace('_', ' ')}: {_text(value)}" for key, value in facts.items()]
            get = f"wandb artifact get {project}/{name}:{alias} --root ."
            use = f"{get}\npython -m src.predict ckpt={path.name} inputs=PATH"
            card = "\n".join([f"# {info['name']}: {alias} checkpoint", "", *lines, "", "```", use, "```"])
            artifact = wandb.Artifact(name, "model", card, facts)
            artifact.add_file(str(link), path.name, skip_cache=True, policy="immutable")
            yield artifact, alias


def score_of(checkpoint: Mapping[str, Any]) -> float | None:
    """What a checkpoint scored in the run's metric, whether it is the best or not; None before the first validation."""
    if point := checkpoint.get("point"):
        score = point["callback_metrics"].get(checkpoint["config"]["monitor"]["metric"])
    else:
        score = checkpoint["callbacks"]["best"]["best_model_score"]
    return None if score is None else float(score)


def describe(checkpoint: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint was trained on, how far and how well, as plain values."""
    config, facts = checkpoint["config"], info["facts"]
    return {
        "experiment": config["experiment"],
        "net": config["model"]["net"]["_target_"],
        "parameters": info["parameters"],
        "data": facts["name"],
        "num_samples": facts["num_samples"],
        config["monitor"]["metric"]: score_of(checkpoint),
        "epoch": checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["ready"],  # counted from 1
        "step": checkpoint["global_step"],
        "config_digest": digest_of(config),
        **{key: facts[key] for key in ("class_names", "target_names", "target_units") if key in facts},
    }


def _text(value: Any) -> str:
    """A value for people; of long lists the beginning."""
    parts = [f"{n:,} {name}" for name, n in value.items()] if isinstance(value, dict) else value
    return f"{', '.join(parts[:20])}{', ...' * (len(parts) > 20)}" if isinstance(parts, list) else str(value)


def _of_classes(results: Mapping[str, Any]) -> Iterator[Panel]:
    names, counts = results["class_names"], {(true, given): count for true, given, count in results["confusion"]}
    if len(names) ** 2 <= MOST_ROWS:
        cells = [
            {"Actual": true, "Predicted": given, "nPredictions": counts.get((i, j), 0)}
            for i, true in enumerate(names)
            for j, given in enumerate(names)
        ]
        fields, text = {key: key for key in cells[0]}, {"title": "Confusion matrix"}
        yield Panel("confusion_matrix", cells, "wandb/confusion_matrix/v1", fields, text)
    else:
        mistakes = sorted((-count, true, given) for (true, given), count in counts.items() if true != given)
        rows = [{"true": names[i], "predicted": names[j], "count": -count} for count, i, j in mistakes[:MOST_ROWS]]
        yield Panel("most_confused", rows)
    yield Panel("classes", results["classes"])
    for key, title, x, y in (("precision_recall", "PR curves", "recall", "precision"), ("roc", "ROC", "fpr", "tpr")):
        rows = [
            {"class": curve["name"], x: a, y: b}
            for curve in results["curves"]
            for a, b in _thinned(list(zip(curve[x], curve[y], strict=True)), MOST_ROWS // len(results["curves"]))
        ]
        text = {"title": title, "x-axis-title": LABELS.get(x, x), "y-axis-title": LABELS.get(y, y)}
        yield Panel(key, rows, "wandb/area-under-curve/v0", {"x": x, "y": y, "class": "class"}, text)
    bins = [row for row in results["calibration"]["bins"] if row["count"]]
    text = {"title": "Accuracy by confidence"}
    yield Panel("calibration", bins, "wandb/scatter/v0", {"x": "confidence", "y": "accuracy"}, text)


def _of_targets(results: Mapping[str, Any]) -> Iterator[Panel]:
    yield Panel("targets", results["targets"])
    for number, (target, name) in enumerate(zip(results["targets"], _names(results), strict=True)):
        pairs = [(prediction[number], value[number]) for prediction, value in results["pairs"]]
        rows = [{TARGET: b, PREDICTION: a, ERROR: a - b} for a, b in pairs if a is not None and b is not None]
        rows, text = _thinned(rows, MOST_ROWS), {"title": name}
        yield Panel(f"parity/{target['name']}", rows, "wandb/scatter/v0", {"x": TARGET, "y": PREDICTION}, text)
        errors = [{ERROR: row[ERROR]} for row in rows]
        yield Panel(f"residuals/{target['name']}", errors, "wandb/histogram/v0", {"value": ERROR}, text)


def _names(results: Mapping[str, Any]) -> list[str]:
    return [f"{one['name']} ({one['unit']})" if one["unit"] else one["name"] for one in results["targets"]]


def _cells(row: Mapping[str, Any], results: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A row of the worst samples, with its pictures, and a column for each target."""
    from wandb import Image

    cells: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, list):
            cells |= {f"{key} of {name}": one for name, one in zip(_names(results), value, strict=True)}
        else:
            cells[key] = Image(str(folder / value)) if key in ("image", "explanation") and value else value
    return cells


def _thinned(rows: list[Any], most: int) -> list[Any]:
    """At most so many rows, evenly chosen, the first and the last among them."""
    return rows if len(rows) <= most else [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]
