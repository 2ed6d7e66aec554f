"""Metrics in the run folder: the files' bytes."""

import errno
import json
import math
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from src.tracking.files import read_rows
from src.tracking.local import LocalLogger

ROWS = [
    ({"val/acc": 0.5, "val/loss": 0.7, "epoch": 0}, 9),
    ({"train/loss": torch.tensor(0.25), "epoch": 0}, 9),
    ({"perf/epoch_seconds": 1.5, "epoch": 0}, 9),
    ({"train/loss": math.nan, "lr": 0.1, "epoch": 1}, 19),
    ({"val/acc": math.inf, "perf/memory_bytes": 1024, "epoch": 1}, 19),
    ({"test/acc": -math.inf, "epoch": 2}, 20),
]
JSONL = """\
{"epoch": 0, "step": 9, "val/acc": 0.5, "val/loss": 0.7}
{"epoch": 0, "step": 9, "train/loss": 0.25}
{"epoch": 1, "lr": 0.1, "step": 19, "train/loss": "NaN"}
{"epoch": 1, "step": 19, "val/acc": "Infinity"}
{"epoch": 2, "step": 20, "test/acc": "-Infinity"}
"""
CSV = """\
step,epoch,lr,test/acc,train/loss,val/acc,val/loss
9,0,,,0.25,0.5,0.7
19,1,0.1,,nan,inf,
20,2,,-inf,,,
"""
PERF = """\
step,name,value
9,perf/epoch_seconds,1.5
19,perf/memory_bytes,1024.0
"""


@pytest.fixture
def logger(tmp_path: Path) -> Iterator[LocalLogger]:
    logger = LocalLogger(tmp_path)
    yield logger
    logger._metrics.close()
    logger._perf.close()


def log(logger: LocalLogger, rows: list[tuple[dict, int]] = ROWS) -> LocalLogger:
    for metrics, step in rows:
        logger.log_metrics(metrics, step)
    return logger


def test_the_three_files_hold_exactly_what_was_logged(logger: LocalLogger, tmp_path: Path) -> None:
    log(logger).export_csv()
    assert (tmp_path / "metrics.jsonl").read_text() == JSONL
    assert (tmp_path / "metrics.csv").read_text() == CSV
    assert (tmp_path / "perf.csv").read_text() == PERF
    assert sorted(os.listdir(tmp_path)) == ["metrics.csv", "metrics.jsonl", "perf.csv"]


def test_a_row_is_in_the_file_when_log_metrics_returns(logger: LocalLogger, tmp_path: Path) -> None:
    for count, (metrics, step) in enumerate(ROWS[:2], start=1):
        logger.log_metrics(metrics, step)
        assert (tmp_path / "metrics.jsonl").read_text() == "".join(JSONL.splitlines(keepends=True)[:count])


def test_every_line_is_strict_json(logger: LocalLogger, tmp_path: Path) -> None:
    def refuse(constant: str) -> float:
        raise AssertionError(constant)

    log(logger)
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def test_read_rows_merges_a_step_and_gives_numbers_back(logger: LocalLogger, tmp_path: Path) -> None:
    log(logger)
    first, second, third = read_rows(tmp_path)
    assert first == {"step": 9, "epoch": 0, "val/acc": 0.5, "val/loss": 0.7, "train/loss": 0.25}
    assert math.isnan(second["train/loss"]) and second["val/acc"] == math.inf
    assert third == {"step": 20, "epoch": 2, "test/acc": -math.inf}


def test_steps_are_sorted_and_the_later_value_of_a_step_wins(logger: LocalLogger, tmp_path: Path) -> None:
    log(logger, [({"a": 1.0}, 10), ({"a": 2.0}, 2), ({"a": 3.0}, 10)]).export_csv()
    assert (tmp_path / "metrics.csv").read_text() == "step,a\n2,2.0\n10,3.0\n"


def test_a_number_survives_to_its_last_bit(logger: LocalLogger, tmp_path: Path) -> None:
    value = 0.1 + 0.2
    log(logger, [({"a": value}, 0)]).export_csv()
    assert read_rows(tmp_path)[0]["a"] == value
    assert (tmp_path / "metrics.csv").read_text().split(",")[-1] == "0.30000000000000004\n"


def test_a_name_with_a_comma_stays_one_column(logger: LocalLogger, tmp_path: Path) -> None:
    log(logger, [({'val/acc "cat", dog': 1.0}, 0)]).export_csv()
    assert (tmp_path / "metrics.csv").read_text() == 'step,"val/acc ""cat"", dog"\n0,1.0\n'


def test_cut_back_and_logged_again_the_bytes_are_those_of_an_uninterrupted_run(tmp_path: Path) -> None:
    logger = log(LocalLogger(tmp_path), ROWS[:2])
    size = logger.size()
    log(logger, [({"val/acc": 0.123, "epoch": 0}, 13)])
    resumed = LocalLogger(tmp_path)
    resumed.truncate(size)
    assert (tmp_path / "metrics.csv").read_text() == "step,epoch,train/loss,val/acc,val/loss\n9,0,0.25,0.5,0.7\n"
    log(resumed, ROWS[3:]).finalize("success")
    assert (tmp_path / "metrics.jsonl").read_text() == JSONL
    assert (tmp_path / "metrics.csv").read_text() == CSV


def test_cut_back_to_nothing_leaves_no_stale_table(logger: LocalLogger, tmp_path: Path) -> None:
    log(logger).export_csv()
    logger.truncate(0)
    assert (tmp_path / "metrics.csv").read_text() == "step\n" and (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_rows_that_the_checkpoint_has_seen_must_be_there(logger: LocalLogger) -> None:
    log(logger)
    with pytest.raises(ValueError, match=rf"has {len(JSONL)} bytes, but the checkpoint was saved after 10000"):
        logger.truncate(10_000)


def test_a_line_torn_by_a_crash_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"a": 1.0, "step": 0}\n{"a": 2.0, "st')
    assert read_rows(tmp_path) == [{"a": 1.0, "step": 0}]


def test_logging_goes_on_after_finalize(logger: LocalLogger, tmp_path: Path) -> None:
    log(logger, ROWS[:5]).finalize("success")
    log(logger, ROWS[5:]).finalize("success")
    assert (tmp_path / "metrics.csv").read_text() == CSV


def test_a_full_disk_is_an_error_and_leaves_whole_lines(logger: LocalLogger, tmp_path: Path) -> None:
    log(logger, ROWS[:1])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (logger.size() + 7, hard))  # part of a row still fits
    try:
        with pytest.raises(OSError, match="File too large"):
            logger.log_metrics({"a": 1.0}, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "metrics.jsonl").read_text() == JSONL.splitlines(keepends=True)[0]
    logger.log_metrics({"a": 1.0}, 1)
    assert [row["step"] for row in read_rows(tmp_path)] == [1, 9]
    logger.finalize("failed")


def test_a_device_that_is_full_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        LocalLogger(tmp_path).log_metrics({"a": 1.0}, 1)


def test_a_missing_run_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LocalLogger(tmp_path / "missing").log_metrics({"a": 1.0}, 1)


def test_a_failed_export_keeps_the_old_table(
    logger: LocalLogger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log(logger, ROWS[:1]).export_csv()
    before = (tmp_path / "metrics.csv").read_text()
    log(logger, ROWS[1:])

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        logger.export_csv()
    assert (tmp_path / "metrics.csv").read_text() == before


def test_only_rank_zero_writes(logger: LocalLogger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.utilities import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    log(logger).finalize("success")
    assert list(tmp_path.iterdir()) == []
