"""What came of a study: a table, a CSV file, plots."""

import os
import statistics
from pathlib import Path

import optuna
from optuna.trial import TrialState

from src.search.trials import Search, say
from src.tracking.text import csv_text, table

NAMES = {
    TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed",
    TrialState.RUNNING: "interrupted",
}  # fmt: skip
"""How the states are called, in the order of the table."""

REPEATS = {"seed", "data.fold", "data.split_seed"}
"""Keys that repeat an experiment: over them, a mean says something."""


def summarize(search: Search) -> bool:
    """Prints the trials, the best first, and writes `trials.csv` and `plots/`.

    Returns:
        Whether at least one trial is finished, and none has failed or waits to go on.
    """
    study, order = search.study, [*NAMES]
    sign = -1 if study.direction.name == "MAXIMIZE" else 1
    trials = sorted(study.trials, key=lambda t: (order.index(t.state), sign * (t.value or 0), t.number))
    columns = ["trial", "state", search.metric, "deviation", "seconds", *search.space, "reason", "run"]
    rows = [
        {"trial": trial.number, "state": NAMES[trial.state], search.metric: trial.value}
        | trial.params | {name: value for name, value in trial.user_attrs.items() if value is not None}
        for trial in trials
    ]  # fmt: skip
    text = csv_text([columns, *([row.get(name) for name in columns] for row in rows)])
    (search.folder / "trials.csv").write_text(text, encoding="utf-8")
    say("\n" + table([name for name in columns[:-1] if any(row.get(name) is not None for row in rows)], rows))
    if done := [trial for trial in trials if trial.state == TrialState.COMPLETE]:
        scores = [trial.value or 0.0 for trial in done]
        if len(done) > 1 and search.space.keys() <= REPEATS:
            mean = f"{statistics.fmean(scores):.4g} ± {statistics.stdev(scores):.2g}"
            say(f"{search.metric} {mean}, mean and deviation of {len(done)} trials")
        draw(study, search.folder / "plots", search.metric)
        say(f"best: {search.folder / done[0].user_attrs['run']}")
    counts = {name: sum(trial.state == state for trial in trials) for state, name in NAMES.items()}
    say(", ".join(f"{count} {name}" for name, count in counts.items() if count))
    if counts["interrupted"] or len(trials) < search.count:
        say(f"to go on: python -m src.sweep resume={search.folder}")
    say(f"study folder: {search.folder}")
    return bool(done) and counts["failed"] == counts["interrupted"] == 0


def draw(study: optuna.Study, folder: Path, metric: str) -> None:
    """Writes Optuna's plots as PNG files, and says which make no sense here."""
    os.environ["MPLBACKEND"] = "agg"  # before Optuna imports pyplot, whose choice might be a window
    from matplotlib.ticker import MaxNLocator
    from optuna.visualization import matplotlib as plots

    done = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    varied = [name for name in done[0].params if len({str(trial.params[name]) for trial in done}) > 1]
    axes = {"history": plots.plot_optimization_history(study, target_name=metric)}
    axes["history"].xaxis.set_major_locator(MaxNLocator(integer=True))
    if varied:
        axes["parallel_coordinates"] = plots.plot_parallel_coordinate(study, params=varied, target_name=metric)
    if len(varied) > 1 and len({trial.value for trial in done}) > 1:
        from optuna.importance import FanovaImportanceEvaluator  # three seconds: it brings scikit-learn

        evaluator = FanovaImportanceEvaluator(seed=0)
        axes["importances"] = plots.plot_param_importances(study, evaluator, varied, target_name=metric)
    else:
        say("no plot of importances: it takes two parameters that were varied, and scores that differ")
    folder.mkdir(exist_ok=True)
    for name, axis in axes.items():
        axis.figure.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")  # type: ignore[union-attr]
