"""What is left of a run for people: the score, plots and a table."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from torch import Tensor

from src.config import Composed, ConfigError
from src.engine.analysis import analyse
from src.engine.pictures import save_worst
from src.engine.plan import Plan
from src.engine.run import Run
from src.tracking.figures import log_figure
from src.tracking.files import read_rows, write_json
from src.tracking.progress import results_table
from src.tracking.wandb import WandbTracker

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def announce(plan: Plan, run: Run) -> None:
    """Prints what is about to be trained, on what; writes down the files that cannot be used."""
    if run.owner:
        sizes = ", ".join(f"{count:,} {split}" for split, count in plan.datamodule.facts["num_samples"].items())
        net = type(plan.module.net).__name__
        print(f"{net}, {plan.parameters:,} parameters, on {plan.datamodule.facts['name']} ({sizes})", flush=True)
        if not (run.folder / "facts.json").is_file():
            write_json(run.folder / "facts.json", plan.datamodule.facts)
        if run.resumed is not None:
            where = f"from {run.point.stem}" if run.point else "from the beginning: it had not come to a checkpoint"
            print(f"going on in {run.folder} {where}", flush=True)
            for key, (old, new) in run.resumed.changes.items():
                print(f"changed: {key}: {old} -> {new}", flush=True)
        if bad_files := plan.datamodule.bad_files:
            text = "".join(f"{path}\t{fault}\n" for path, fault in bad_files)
            (run.folder / "bad_files.txt").write_text(text, encoding="utf-8", errors="surrogateescape")
            print(f"bad files, left out: {len(bad_files)}, see {run.folder / 'bad_files.txt'}", flush=True)


def finished_before(composed: Composed) -> dict[str, float] | None:
    """The test metrics of a run that is resumed but has nothing left to do, and says so; None otherwise."""
    resumed = composed.resumed
    if resumed is None or resumed.status.get("state") != "finished" or resumed.extends:
        return None
    trainer, patience = composed.cfg["trainer"], composed.cfg["early_stopping"]["patience"]
    names = ("max_epochs", "max_steps", "max_time", "fast_dev_run")
    limits = [f"trainer.{name}={trainer[name]}" for name in names if trainer.get(name) not in (None, -1, False)]
    limits += [f"early_stopping.patience={patience}"] * (patience is not None)
    best = (resumed.folder / "checkpoints/best.ckpt").is_file()
    way_out = f", or start a new run from its weights with model.weights={resumed.folder}" if best else ""
    print(f"this run is finished already ({', '.join(limits)}): raise what ended it to train on{way_out}")
    print(f"run folder: {resumed.folder}", flush=True)
    return {name: float(value) for name, value in resumed.status["metrics"].items()}


def tested_checkpoint(plan: Plan, run: Run) -> Path | None:
    """The checkpoint that is tested; None where the weights are, as they are.

    Raises:
        ConfigError: The run has ended before anything was measured, as ``trainer.max_time`` can have it.
    """
    if not plan.cfg["train"] or plan.cfg["trainer"].get("fast_dev_run"):
        return None
    best = run.checkpoints / "best.ckpt"
    if not best.is_file():
        metric = plan.cfg["monitor"]["metric"]
        raise ConfigError(f"monitor.metric={metric}: the training ended before it was measured: nothing to test")
    return best


def finish(trainer: Trainer, plan: Plan, run: Run) -> dict[str, float]:
    """Writes and prints the results; the last line names the run folder.

    Returns:
        The last value of every metric, as floats.
    """
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    tested = {name: value for name, value in metrics.items() if name.startswith("test/")}
    run.update(metrics=tested)
    if trainer.is_global_zero:
        describe(trainer, plan, run)
        if tested:
            print(results_table(tested))
        print(f"run folder: {run.folder}", flush=True)
    return metrics


def describe(trainer: Trainer, plan: Plan, run: Run) -> None:
    """Writes ``results/`` and draws the run, to ``plots/`` and to the trackers."""
    from src.tracking import plots  # matplotlib takes a second to import

    figures: dict[str, Figure] = {}
    if tables := plan.module.tables.get("test"):
        result = analyse(tables, run.status["metrics"], plan.datamodule)
        result["checkpoint"] = "checkpoints/best.ckpt" if tested_checkpoint(plan, run) else None
        (run.folder / "results").mkdir(exist_ok=True)
        if plan.cfg["pictures"]:
            figures = draw_test(result, tables, trainer, plan, run)
        write_json(run.folder / "results" / "test.json", result)
        for logger in trainer.loggers:
            if isinstance(logger, WandbTracker):
                logger.log_results(result, run.folder, trainer.global_step)
    if plan.cfg["pictures"] and (rows := read_rows(run.folder)):
        figures["loss_curves"] = plots.loss_curves(rows, plan.cfg["monitor"]["metric"])
    for name, figure in figures.items():
        plots.save_png(figure, run.folder / "plots" / f"{name}.png")
        log_figure(trainer.loggers, f"plots/{name}", figure, trainer.global_step)


def draw_test(
    result: dict[str, Any], tables: Mapping[str, Tensor], trainer: Trainer, plan: Plan, run: Run
) -> dict[str, "Figure"]:
    """Returns the pictures of a test by name; saves those of its worst samples and notes in `result` where."""
    from src.tracking import plots

    drawn = dict(result)
    if "pairs" in result:  # all of them
        drawn["pairs"] = tables["samples"][:, 1:].numpy().reshape(result["num_samples"], 2, -1)
    figures = {name: draw() for name, draw in plots.of_test(drawn).items()}
    if "mean" in plan.datamodule.facts:
        figures["worst"] = plots.worst(save_worst(result["worst"], trainer, plan, run), result["worst"])
    return figures
