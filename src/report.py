"""Compares runs: ``python -m src.report RUNS_DIR [--diff A B] ...``."""

import sys
from argparse import ArgumentParser
from pathlib import Path

from src.config import ConfigError, compose
from src.config.cli import run_entry
from src.tracking import runs
from src.tracking.pages import write_index
from src.tracking.text import FORMATS, table

parser = ArgumentParser("python -m src.report", description="A table of runs, and their pages in RUNS_DIR/index.html.")
parser.add_argument("runs_dir", nargs="?", metavar="RUNS_DIR", help="default: the runs_dir of configs/train.yaml")
parser.add_argument("--diff", nargs=2, metavar=("A", "B"), help="two runs (name, id or folder) side by side instead")
parser.add_argument(
    "--filter", action="append", default=[], metavar="KEY=VALUE", help="by setting or state; repeatable"
)
parser.add_argument("--sort", metavar="COLUMN", help="a metric, the best first, or another column")
parser.add_argument("--group", action="store_true", help="mean and deviation over the seeds and folds of finished runs")
parser.add_argument("--columns", metavar="A,B,...", help="these alone, also keys of the config")
parser.add_argument("--format", choices=FORMATS, default="table")
parser.add_argument("--output", type=Path, metavar="FILE", help="write the table there instead of printing it")


def main(arguments: list[str]) -> str:
    """Prints the table, writes the pages that are missing or out of date, and returns the table.

    Raises:
        ConfigError: There is no such folder, run, key or column.
    """
    options = parser.parse_args(arguments)
    runs_dir = Path(options.runs_dir or compose([]).cfg["runs_dir"]).expanduser()
    every = runs.find_runs(runs_dir)
    wanted = runs.chosen(every, options.filter)
    if options.diff:
        rows = runs.compared(wanted, *options.diff)
        columns = list(rows[0])
    else:
        all_keys = dict.fromkeys(key for run in wanted for key, _ in runs.leaves(run.config))
        keys = [*all_keys] if options.columns else runs.differing_keys(wanted)
        rows = runs.grouped(wanted, keys) if options.group else [runs.summary(run, keys) for run in wanted]
        rows = runs.sort_rows(rows, options.sort, wanted) if options.sort else rows
        columns = runs.columns_of(rows, options.columns)
    text = table(columns, rows, options.format)
    try:
        if options.output is None:
            print(text)
        else:
            options.output.write_text(f"{text}\n", encoding="utf-8")
        print(f"pages: {write_index(runs_dir, every)}", file=sys.stderr)
    except OSError as error:
        raise ConfigError(f"cannot be written: {error}") from error
    return text


if __name__ == "__main__":
    run_entry(main, None)
