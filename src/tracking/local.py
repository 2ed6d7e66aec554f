"""Metrics in the run folder: an append-only log, and a table made from it.

Three files, by what may be expected of them:

- `metrics.jsonl`: one JSON object a logged row, `{"epoch": 0, "step": 39, "val/acc": 0.91}`, keys sorted. Reproducible
  values only, so two equal runs write equal bytes, and a resumed run can be cut back to its checkpoint's length.
  JSON has no word for a number that is not finite: those are the strings "NaN", "Infinity" and "-Infinity", which
  `float()` reads.
- `perf.csv`: wall-clock times and memory (`perf/...`), in the long form `step,name,value`: a name that first appears in
  the middle of a run is one more row, where a wide table would have to be rewritten (and lost, if killed meanwhile).
- `metrics.csv`: the table for people, each step once, rewritten as a whole by `LocalLogger.export_csv`.
"""

import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from src.tracking.files import AppendOnlyFile, csv_lines, plain_number, read_rows, replace_file

PERF_PREFIX = "perf/"


class LocalLogger(Logger):
    """Writes the metrics of one run into its folder, from rank 0.

    Every row has reached the operating system when `log_metrics` returns, so a killed process loses none. A full disk
    or an unwritable folder raises `OSError`.

    Args:
        run_dir: the run folder; it must exist.
    """

    def __init__(self, run_dir: str | Path) -> None:
        super().__init__()
        self.run_dir = Path(run_dir)
        self._metrics = AppendOnlyFile(self.run_dir / "metrics.jsonl")
        self._perf = AppendOnlyFile(self.run_dir / "perf.csv", header=b"step,name,value\n")

    @property
    def name(self) -> str:
        """Empty: the run folder is the run, nothing is nested in it by name."""
        return ""

    @property
    def version(self) -> str:
        """Empty, as `name`."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self.run_dir)

    @property
    def log_dir(self) -> str:
        """The run folder."""
        return str(self.run_dir)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: `config.yaml` holds the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one row; values named `perf/...` go to `perf.csv`."""
        perf = {name: value for name, value in metrics.items() if name.startswith(PERF_PREFIX)}
        row = {name: plain_number(value) for name, value in metrics.items() if name not in perf}
        if row.keys() - {"epoch"}:
            self._metrics.append(json.dumps({"step": step, **row}, sort_keys=True, allow_nan=False) + "\n")
        if perf:
            self._perf.append(csv_lines([step, name, plain_number(perf[name])] for name in sorted(perf)))

    def size(self) -> int:
        """Bytes of `metrics.jsonl`: what a checkpoint keeps so that `truncate` can return to this moment."""
        return self._metrics.size()

    @rank_zero_only
    def truncate(self, size: int) -> None:
        """Cut `metrics.jsonl` back to `size` bytes and write `metrics.csv` anew.

        Raises:
            ValueError: the file is shorter than that: rows which the checkpoint has seen are gone.
        """
        self._metrics.truncate(size)
        self.export_csv()

    @rank_zero_only
    def export_csv(self) -> None:
        """Replace `metrics.csv` by what `metrics.jsonl` holds now; without a row there is none.

        Called once an epoch, not from `save`, which Lightning calls after every row.
        """
        path = self.run_dir / "metrics.csv"
        if not (rows := read_rows(self.run_dir)):
            path.unlink(missing_ok=True)
            return
        columns = _columns(rows)
        table = csv_lines([columns, *([row.get(name) for name in columns] for row in rows)])
        replace_file(path, table.encode())  # no fsync: it can be made again from the jsonl beside it

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Export the table and close the files; a later row opens them again."""
        self.export_csv()
        self._metrics.close()
        self._perf.close()


def _columns(rows: list[dict[str, float | None]]) -> list[str]:
    names = {name for row in rows for name in row}
    first = [name for name in ("step", "epoch") if name in names]
    return first + sorted(names - set(first))
