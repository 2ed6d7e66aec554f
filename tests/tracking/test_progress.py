"""What is printed while a run goes on."""

import math
import re
import sys
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from src.tracking.progress import Progress, duration, epoch_line, number, results_table


class Tiny(pl.LightningModule):
    """Logs a known training loss where the real modules do, at the epoch's end, and validation metrics on the way."""

    def __init__(self, fail_in_epoch: int = -1) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.fail_in_epoch = fail_in_epoch

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.current_epoch == self.fail_in_epoch:
            raise RuntimeError("as asked")
        return (self.weight * batch[0]).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/acc", 0.5 + self.current_epoch / 8, batch_size=1)
        self.log("perf/seconds", 3.0, batch_size=1)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/acc", 0.75, batch_size=1)

    def on_train_epoch_end(self) -> None:
        self.log("train/loss", 1.0 / (self.current_epoch + 1))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def loader() -> DataLoader:
    return DataLoader(TensorDataset(torch.ones(3, 1)))


def trainer(progress: Progress, **arguments: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        callbacks=[progress],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **arguments,
    )


def lines(text: str) -> list[str]:
    return [re.sub(r"\d+\.\d s$", "T s", line) for line in text.splitlines()]


@pytest.mark.filterwarnings("ignore")
def test_a_line_an_epoch_with_that_epochs_metrics_and_one_for_the_test(capsys: pytest.CaptureFixture[str]) -> None:
    fit = trainer(Progress(), max_epochs=3)
    fit.fit(Tiny(), loader(), loader())
    fit.test(Tiny(), loader(), verbose=False)
    assert lines(capsys.readouterr().out) == [
        "epoch 1/3  train/loss 1.000     val/acc 0.5000    T s",
        "epoch 2/3  train/loss 0.5000    val/acc 0.6250    T s",
        "epoch 3/3  train/loss 0.3333    val/acc 0.7500    T s",
        "test on 3 batches",
    ]


@pytest.mark.filterwarnings("ignore")
def test_without_validation_and_without_an_end(capsys: pytest.CaptureFixture[str]) -> None:
    trainer(Progress(), max_epochs=-1, max_steps=6).fit(Tiny(), loader())
    assert lines(capsys.readouterr().out) == ["epoch 1  train/loss 1.000     T s", "epoch 2  train/loss 0.5000    T s"]


@pytest.mark.filterwarnings("ignore")
def test_an_epoch_without_validation_shows_none(capsys: pytest.CaptureFixture[str]) -> None:
    trainer(Progress(), max_epochs=3, check_val_every_n_epoch=2).fit(Tiny(), loader(), loader())
    assert lines(capsys.readouterr().out) == [
        "epoch 1/3  train/loss 1.000     T s",
        "epoch 2/3  train/loss 0.5000    val/acc 0.6250    T s",
        "epoch 3/3  train/loss 0.3333    T s",
    ]


@pytest.mark.filterwarnings("ignore")
def test_the_line_of_a_finished_epoch_is_printed_before_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="as asked"):
        trainer(Progress(), max_epochs=3).fit(Tiny(fail_in_epoch=1), loader(), loader())
    assert lines(capsys.readouterr().out) == ["epoch 1/3  train/loss 1.000     val/acc 0.5000    T s"]


@pytest.mark.filterwarnings("ignore")
def test_other_ranks_print_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pl.Trainer, "is_global_zero", property(lambda _: False))
    trainer(Progress(), max_epochs=1).fit(Tiny(), loader(), loader())
    assert capsys.readouterr().out == ""


@pytest.mark.filterwarnings("ignore")
def test_on_a_terminal_a_bar_runs_below_the_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("src.tracking.progress.REFRESH_SECONDS", 0.0)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    fit = trainer(Progress(), max_epochs=2)
    fit.fit(Tiny(), loader(), loader())
    fit.test(Tiny(), loader(), verbose=False)
    shown = capsys.readouterr().out
    assert "epoch 1/2:  33%" in shown and "epoch 2/2: 100%" in shown and "test: 100%" in shown and "3/3" in shown
    # What a terminal still shows at the end: the bars have been wiped off again.
    left = [re.sub(r"\d+\.\d s$", "T s", line.rpartition("\r")[2]) for line in shown.split("\n")]
    assert [line for line in left if line.strip()] == [
        "epoch 1/2  train/loss 1.000     val/acc 0.5000    T s",
        "epoch 2/2  train/loss 0.5000    val/acc 0.6250    T s",
        "test on 3 batches",
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_the_bar_is_drawn_by_the_clock_and_not_by_the_step(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr("src.tracking.progress.REFRESH_SECONDS", 3600.0)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    progress, steps = Progress(), 100_000
    fake: Any = SimpleNamespace(current_epoch=0, max_epochs=1, num_training_batches=steps, callback_metrics={})
    progress.on_train_epoch_start(fake, fake)
    for batch_idx in range(steps):
        progress.on_train_batch_end(fake, fake, None, None, batch_idx)
    drawn = capsys.readouterr().out.count("epoch 1/1:")
    assert drawn == (1 if terminal else 0)


def test_lines_keep_their_columns() -> None:
    metrics = {"val/loss": 0.25, "val/acc": 0.861, "train/loss": 0.51234, "test/acc": 0.5, "lr": 0.1, "perf/x": 1.0}
    first = epoch_line(2, 30, metrics, 0.44)
    assert first == "epoch  3/30  train/loss 0.5123    val/loss 0.2500    val/acc 0.8610    0.4 s"
    last = epoch_line(29, 30, {**metrics, "train/loss": 1.5e-7, "val/loss": math.nan, "val/acc": 1.0}, 75)
    assert last == "epoch 30/30  train/loss 1.5e-07   val/loss nan       val/acc 1.000     0:01:15"
    assert [first.index(name) for name in ("train/loss", "val/loss", "val/acc")] == [
        last.index(name) for name in ("train/loss", "val/loss", "val/acc")
    ]
    assert epoch_line(4, None, {}, 1.0) == epoch_line(4, -1, {}, 1.0) == "epoch 5  1.0 s"


def test_results_table() -> None:
    metrics = {"test/f1": 0.91234, "test/loss": 0.312, "test/acc": 0.913, "test/mae": math.inf}
    assert results_table(metrics) == "\n".join(
        ["test/loss     0.3120", "test/acc      0.9130", "test/f1       0.9123", "test/mae         inf"]
    )
    assert results_table({}) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.5000"), (12.3456, "12.35"), (9999.0, "9999."), (123456.0, "1.235e+05"), (0.0, "0"), (-0.25, "-0.2500"),
     (1e-9, "1e-09"), (math.nan, "nan"), (-math.inf, "-inf")],
)  # fmt: skip
def test_number(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (59.96, "0:01:00"), (60, "0:01:00"), (3599.6, "1:00:00"), (7384, "2:03:04")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
