"""Metrics in the run folder.

- ``metrics.jsonl``: one JSON object a logged row. Reproducible values only, so that equal runs write equal bytes and a
  resumed run can be cut back to its checkpoint. "NaN", "Infinity" and "-Infinity" are strings, as JSON has no such
  numbers; ``float()`` reads them.
- ``perf.csv``: wall-clock times and memory (``perf/...``) as ``step,name,value``: a name that first appears in the
  middle of a run is one more line, not a new column.
- ``metrics.csv``: the table for people, each step once, written anew at the end of each epoch.
"""

import json
import math
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from src.config import ConfigError
from src.tracking.files import AppendOnlyFile, read_rows, replacing
from src.tracking.text import csv_text

MEASURED = ("perf/", "DeviceStatsMonitor.", "train|", "validate|", "test|")
"""What the names of wall-clock times and memory begin with, those of Lightning's own monitors among them."""

NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


class LocalLogger(Logger):
    """Writes the metrics of one run into its folder, from rank 0.

    A row is in the file when `log_metrics` returns, so a killed process loses none. A full disk raises `OSError`.

    Args:
        run_dir: The run folder, which exists.
    """

    name = version = ""  # nothing is nested in the folder
    save_dir: str | None = None

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self.run_dir, self.save_dir = run_dir, str(run_dir)
        self._metrics = AppendOnlyFile(run_dir / "metrics.jsonl")
        self._perf = AppendOnlyFile(run_dir / "perf.csv", header="step,name,value\n")

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Has nothing to do: ``config.yaml`` holds the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Appends one row."""
        perf = sorted(name for name in metrics if name.startswith(MEASURED))
        row = {name: _plain(value) for name, value in metrics.items() if name not in perf}
        if row.keys() - {"epoch"}:
            self._metrics.append(json.dumps({"step": step, **row}, sort_keys=True) + "\n")
        if perf:
            self._perf.append(csv_text([step, name, float(metrics[name])] for name in perf))

    def size(self) -> int:
        """Bytes of ``metrics.jsonl``: what a checkpoint keeps so that `truncate` can return to this moment."""
        path = self._metrics.path
        return path.stat().st_size if path.exists() else 0

    def truncate(self, size: int) -> None:
        """Cuts ``metrics.jsonl`` back to a checkpoint's `size` and writes ``metrics.csv`` anew.

        Raises:
            ConfigError: The file is shorter: rows that the checkpoint has seen are gone.
        """
        path, present = self._metrics.path, self.size()
        if present < size:
            raise ConfigError(f"{path} has {present} bytes, but the checkpoint was saved after {size}: rows are gone")
        if present > size:
            os.truncate(path, size)
        self.export_csv()

    @rank_zero_only
    def export_csv(self) -> None:
        """Replaces ``metrics.csv`` by what ``metrics.jsonl`` holds now."""
        rows = read_rows(self.run_dir)
        names = {name for row in rows for name in row} | {"step"}
        columns = sorted(names, key=lambda name: (name != "step", name != "epoch", name))
        table = csv_text([columns, *([row.get(name) for name in columns] for row in rows)])
        with replacing(self.run_dir / "metrics.csv") as temporary:
            temporary.write_text(table, encoding="utf-8")

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Exports the table and closes the files; a later row opens them again."""
        self.export_csv()
        self._metrics.close()
        self._perf.close()


def _plain(value: Any) -> int | float | str:
    number = int(value) if isinstance(value, int) else float(value)
    return number if math.isfinite(number) else NOT_FINITE[str(number)]
