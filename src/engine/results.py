"""What is left of a run for people: the score, plots and a table."""

from lightning.pytorch import Trainer

from src.engine.plan import Plan
from src.engine.run import Run
from src.tracking.figures import log_figure
from src.tracking.files import read_rows
from src.tracking.progress import results_table


def announce(plan: Plan, run: Run) -> None:
    """Prints what is about to be trained, on what; writes down the files that cannot be used."""
    if run.owner:
        parameters = sum(parameter.numel() for parameter in plan.module.parameters())
        sizes = ", ".join(f"{count:,} {split}" for split, count in plan.datamodule.facts["num_samples"].items())
        net = type(plan.module.net).__name__
        print(f"{net}, {parameters:,} parameters, on {plan.datamodule.facts['name']} ({sizes})", flush=True)
        if bad_files := plan.datamodule.bad_files:
            text = "".join(f"{path}\t{fault}\n" for path, fault in bad_files)
            (run.folder / "bad_files.txt").write_text(text, encoding="utf-8", errors="surrogateescape")
            print(f"{len(bad_files)} bad files are left out: {run.folder / 'bad_files.txt'}", flush=True)


def finish(trainer: Trainer, plan: Plan, run: Run) -> dict[str, float]:
    """Writes and prints the results; the last line names the run folder.

    Returns:
        The last value of every metric, as floats.
    """
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    tested = {name: value for name, value in metrics.items() if name.startswith("test/")}
    run.update(metrics=tested)
    if trainer.is_global_zero:
        draw(trainer, plan, run)
        if tested:
            print(results_table(tested))
        print(f"run folder: {run.folder}", flush=True)
    return metrics


def draw(trainer: Trainer, plan: Plan, run: Run) -> None:
    """Draws the loss curves and the test part's confusion matrix, to ``plots/`` and to the trackers."""
    from src.tracking.plots import confusion_matrix, loss_curves, save_png  # matplotlib takes a second to import

    figures = {}
    if rows := read_rows(run.folder):
        figures["loss_curves"] = loss_curves(rows, plan.cfg["monitor"]["metric"])
    if (counts := plan.module.tables.get("test", {}).get("confusion")) is not None:
        classes = plan.datamodule.facts["class_names"]
        figures["confusion_matrix"] = confusion_matrix(counts.tolist(), classes, "Test part")
    for name, figure in figures.items():
        save_png(figure, run.folder / "plots" / f"{name}.png")
        log_figure(trainer.loggers, f"plots/{name}", figure, trainer.global_step)
