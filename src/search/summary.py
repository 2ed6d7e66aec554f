"""What came of a study: a table, a CSV file, plots."""

import csv
import os
import statistics
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from src.search.trials import Search, say

REPEATS = {"seed", "data.fold", "data.split_seed"}
"""Keys that repeat an experiment; over them, a mean says something."""


def summarize(search: Search) -> bool:
    """Prints the trials, the best first, and writes `trials.csv` and `plots/`.

    Returns:
        Whether at least one trial is finished, and none has failed or waits to go on.
    """
    sign = -1 if search.study.direction.name == "MAXIMIZE" else 1
    order = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING]
    trials = sorted(search.study.trials, key=lambda t: (order.index(t.state), sign * (t.value or 0), t.number))
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    header = ["trial", "state", search.metric, "deviation", "seconds", *search.space, "reason", "run"]
    rows = [row(trial, search) for trial in trials]
    with open(search.folder / "trials.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    say("\n" + table([header[:-1], *([short(cell) for cell in row[:-1]] for row in rows)]))
    if len(done) > 1 and search.space.keys() <= REPEATS:
        scores = [trial.value or 0.0 for trial in done]
        spread = f"{statistics.fmean(scores):.4g} ± {statistics.stdev(scores):.2g}"
        say(f"{search.metric} {spread}, mean and deviation of {len(scores)} trials")
    if done:
        draw(search.study, search.folder / "plots", search.metric)
        say(f"best: {search.folder / done[0].user_attrs['run']}")
    counts = {NAMES[state]: sum(trial.state == state for trial in trials) for state in order}
    say(", ".join(f"{count} {name}" for name, count in counts.items() if count))
    if counts["interrupted"] or len(trials) < search.count:
        say(f"to go on: python -m src.sweep resume={search.folder}")
    say(f"study folder: {search.folder}")
    return bool(done) and counts["failed"] == 0 and counts["interrupted"] == 0


NAMES = {
    TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed",
    TrialState.RUNNING: "interrupted",
}  # fmt: skip


def row(trial: FrozenTrial, search: Search) -> list[object]:
    """Returns the cells of a trial; None where there is nothing to say."""
    notes = trial.user_attrs
    point = [trial.params.get(name) for name in search.space]
    head = [trial.number, NAMES[trial.state], trial.value, notes.get("deviation"), notes.get("seconds")]
    return [*head, *point, notes.get("reason"), notes.get("run")]


def short(cell: object) -> str:
    """Returns a cell for a terminal."""
    text = "" if cell is None else f"{cell:.4g}" if isinstance(cell, float) else str(cell)
    return text.replace("\n", "; ")


def table(rows: list[list[str]]) -> str:
    """Returns rows as aligned columns, without those that are empty."""
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    lines = [
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in zip(*columns, strict=True)
    ]
    return "\n".join(line.rstrip() for line in lines)


def draw(study: optuna.Study, folder: Path, metric: str) -> None:
    """Writes Optuna's plots as PNG files, and says which make no sense here."""
    os.environ["MPLBACKEND"] = "agg"  # before Optuna imports pyplot, whose choice might be a window
    from optuna.importance import FanovaImportanceEvaluator
    from optuna.visualization import matplotlib as plots

    done = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    varied = [name for name in study.trials[0].params if len({str(trial.params[name]) for trial in done}) > 1]
    folder.mkdir(exist_ok=True)
    axes = {"history": plots.plot_optimization_history(study, target_name=metric)}
    if varied:
        axes["parallel_coordinates"] = plots.plot_parallel_coordinate(study, params=varied, target_name=metric)
    if len(varied) > 1 and len({trial.value for trial in done}) > 1:
        evaluator = FanovaImportanceEvaluator(seed=0)
        axes["importances"] = plots.plot_param_importances(study, evaluator, varied, target_name=metric)
    else:
        say("no plot of importances: it takes two parameters that were varied, and scores that differ")
    for name, axis in axes.items():
        figure = axis.get_figure(root=True)
        assert figure is not None
        figure.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")
