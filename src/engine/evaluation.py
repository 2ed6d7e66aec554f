"""From a checkpoint to metrics: the path alone is enough."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.config import ConfigError, apply_overrides, find_run
from src.config.errors import hint
from src.engine.checkpoint import read_checkpoint, restore_module
from src.engine.plan import bare_trainer, prepare_data, quiet
from src.tracking.files import write_json
from src.tracking.progress import Progress, results_table

SPLITS = ("test", "val")
PARTIAL = ("fast_dev_run", "overfit_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches")
"""Trainer arguments by which a run saw only a part of the samples, as with ``debug=limit``."""


def evaluate(path: Path, split: str, output: Path | None, overrides: Sequence[str]) -> dict[str, float]:
    """Computes the metrics of a checkpoint and writes ``evaluate-<split>.json`` into its run folder.

    Args:
        path: The checkpoint.
        split: ``test`` or ``val``.
        output: The file to write instead; a checkpoint outside a run folder has no other.
        overrides: Changes to the stored config; ``data``, ``trainer`` and ``logger`` can be replaced.

    Raises:
        ConfigError: The checkpoint cannot be used, or the data is not what the model was trained for.
    """
    if split not in SPLITS:
        raise ConfigError(f"split={split}: there is no such split{hint(split, SPLITS)}")
    if output is None and (folder := run_of(path)) is not None:
        output = folder / f"evaluate-{split}.json"
    if output is not None:
        check_output(output)
    quiet()
    checkpoint = read_checkpoint(path)
    cfg = apply_overrides(for_all_samples(checkpoint), overrides, allowed_groups=("data", "trainer", "logger")).cfg
    trainer = bare_trainer(cfg["trainer"], [Progress()])
    module = restore_module(checkpoint, path)
    datamodule, facts = prepare_data(cfg), checkpoint["hyper_parameters"]["facts"]
    if not len(datamodule.splits[split]):
        raise ConfigError(f"split={split}: the data has no samples for it")
    if trainer.is_global_zero and datamodule.facts.get("fingerprint") != facts.get("fingerprint"):
        print(
            "other data, or another split of it, than the model was trained with: it may know samples", file=sys.stderr
        )
    datamodule.adopt(facts)
    run = trainer.test if split == "test" else trainer.validate
    run(module, datamodule=datamodule, verbose=False)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    if trainer.is_global_zero:
        print(results_table(metrics))
        if output is not None:
            try:
                write_json(output, {"checkpoint": str(path), "metrics": metrics})
            except OSError as error:
                raise ConfigError(f"output={output}: cannot be written: {error}") from error
            print(f"written: {output}", flush=True)
    return metrics


def for_all_samples(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the configuration of a checkpoint without what kept its run from seeing all samples."""
    trainer = {name: value for name, value in checkpoint["config"]["trainer"].items() if name not in PARTIAL}
    return {**checkpoint["config"], "trainer": trainer}


def run_of(path: Path) -> Path | None:
    """The run folder that a checkpoint lies in; None for a lone file."""
    folder = path.parent.parent
    return folder if (folder / "status.json").is_file() else None


def check_output(output: Path) -> None:
    """Finds out before any work whether a file can be written.

    Raises:
        ConfigError: It cannot.
    """
    try:
        there = output.exists()
    except OSError as error:
        raise ConfigError(f"output={output}: {error.strerror}") from error
    if (there and not output.is_file()) or output.absolute().parts[1:2] in (("dev",), ("proc",)):
        raise ConfigError(f"output={output}: is a folder or a device, not a file")
    if not os.access(folder := output.absolute().parent, os.W_OK | os.X_OK):
        raise ConfigError(f"output={output}: {folder} {'cannot be written' if folder.is_dir() else 'is no folder'}")


def find_checkpoint(which: str, runs_dir: str | None = None, experiment: str | None = None) -> Path:
    """The checkpoint that ``ckpt=`` means: a file, the best one of a run folder, or that of the newest run (``last``).

    The newest run is looked for where this command would put one, under ``runs_dir``.

    Raises:
        ConfigError: There is none.
    """
    path = find_run("ckpt", which, runs_dir, experiment)
    if not path.is_dir():
        return path
    best = path / "checkpoints" / "best.ckpt"
    if not best.is_file():
        raise ConfigError(f"ckpt={which}: {path} holds no checkpoints/best.ckpt")
    return best
