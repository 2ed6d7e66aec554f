"""The trials of a study, with runs that only pretend: what is run, pruned, told and left for another start."""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from src.config import compose
from src.search import trials
from src.search.space import complete
from src.search.summary import summarize
from src.search.trials import Search

LR = {"optimizer.lr": {"low": 1e-4, "high": 1e-1, "log": True}}
FOUR = {"optimizer.lr": [0.1, 0.2, 0.3, 0.4]}


@dataclass
class Run:
    """Pretends to train an epoch at each poll."""

    folder: Path
    curve: list[float]
    ending: dict[str, Any]
    epoch: int = 0
    is_dead: bool = False

    def write(self, state: str, **values: Any) -> None:
        self.folder.mkdir(exist_ok=True)
        status = {"state": state, "run_id": "x", "epoch": self.epoch, "seconds": 1.0, "best": None, **values}
        (self.folder / "status.json").write_text(json.dumps(status), encoding="utf-8")

    def poll(self) -> int | None:
        if self.is_dead:
            return 143
        if self.epoch < len(self.curve):
            self.write("running")
            row = {"step": self.epoch, "epoch": self.epoch, "val/acc": self.curve[self.epoch]}
            with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            self.epoch += 1
            return None
        if self.ending.get("state", "finished") is not None:
            self.write(**{"state": "finished", "best": {"value": max(self.curve, default=None)}, **self.ending})
        return 0 if not self.ending else 1

    def terminate(self) -> None:
        self.is_dead = True
        self.write("interrupted")


@dataclass
class Launcher:
    """Starts such runs: by the last part of their folder, how they learn and end; else one epoch of their number."""

    curves: dict[str, list[float]] = field(default_factory=dict)
    endings: dict[str, dict[str, Any]] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    words: list[list[str]] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)

    def launch(self, overrides: list[str], folder: Path, slot: int, n_jobs: int) -> Run:
        folder.parent.mkdir(exist_ok=True)
        folder.with_suffix(".log").write_text("first\nerror: no\n\n", encoding="utf-8")
        self.started.append(folder.name)
        self.words.append(overrides)
        self.slots.append(slot)
        curve = self.curves.get(folder.name, [int(folder.name[:3]) / 10])
        return Run(folder, curve, self.endings.get(folder.name, {}))

    def find(self, folder: Path) -> None:
        return None


Start = Callable[..., Search]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Begins a sweep, or goes on with it, and runs it to its end or to `stop_after` looks at a run."""
    monkeypatch.setattr(trials, "POLL_SECONDS", 0)
    (tmp_path / "study").mkdir()
    common = compose(["trainer.max_epochs=9", f"runs_dir={tmp_path / 'study'}"]).cfg
    monkeypatch.setattr(
        trials, "compose", lambda _: SimpleNamespace(cfg=common)
    )  # the real one takes a tenth of a second

    def run(launcher: Launcher, stop_after: int = 10**9, **sweep: Any) -> Search:
        looks = iter(range(10**9))
        search = Search(tmp_path / "study", complete(sweep), common, launcher)
        search.run(lambda: next(looks) >= stop_after)
        return search

    return run


def states(search: Search) -> list[str]:
    return [trial.state.name for trial in search.study.trials]


def test_a_grid_in_order_two_at_a_time(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    launcher = Launcher()
    search = start(launcher, space=FOUR, sampler="grid", n_jobs=2, overrides=["test=false"])
    assert launcher.started == ["000", "001", "002", "003"]
    assert launcher.slots == [0, 1, 0, 1]
    assert launcher.words[2] == ["test=false", "optimizer.lr=0.3", f"runs_dir={search.folder}", "group=study"]
    assert [trial.value for trial in search.study.trials] == [0.0, 0.1, 0.2, 0.3]
    assert "[4/4] trial 3: optimizer.lr=0.4: val/acc 0.3, 1 s; best 0.3, trial 3" in capsys.readouterr().out
    assert summarize(search)
    out = capsys.readouterr().out.splitlines()
    assert [line.split() for line in out[1:4]] == [
        ["trial", "state", "val/acc", "seconds", "optimizer.lr"],
        ["3", "finished", "0.3000", "1.0", "0.4"],
        ["2", "finished", "0.2000", "1.0", "0.3"],
    ]
    assert out[-3:] == [f"best: {search.folder}/mnist_linear/003", "4 finished", f"study folder: {search.folder}"]
    with open(search.folder / "trials.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert (rows[0]["trial"], rows[0]["val/acc"], rows[0]["run"]) == ("3", "0.3", "mnist_linear/003")
    assert {path.name for path in (search.folder / "plots").iterdir()} == {"history.png", "parallel_coordinates.png"}


def test_nothing_is_run_twice(start: Start) -> None:
    start(Launcher(), space=FOUR, sampler="grid", n_trials=2)
    launcher = Launcher()
    search = start(launcher, space=FOUR, sampler="grid")
    assert (launcher.started, states(search)) == (["002", "003"], ["COMPLETE"] * 4)


def test_fewer_trials_than_have_begun(start: Start) -> None:
    start(Launcher(), stop_after=5, space=FOUR, sampler="grid", n_jobs=4)
    launcher = Launcher()
    search = start(launcher, space=FOUR, sampler="grid", n_trials=2)
    assert states(search) == ["COMPLETE"] * 4


def test_several_seeds_are_one_trial(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    launcher = Launcher({"000-seed-1": [0.4], "000-seed-2": [0.6], "000-seed-3": [0.8]})
    search = start(launcher, space={}, sampler="grid", seeds=[1, 2, 3], pruner="median")
    assert launcher.started == ["000-seed-1", "000-seed-2", "000-seed-3"]
    (trial,) = search.study.trials
    assert trial.value == pytest.approx(0.6)
    assert trial.user_attrs["deviation"] == pytest.approx(0.2)
    assert "val/acc 0.6 ± 0.2, 3 s" in capsys.readouterr().out


def test_the_mean_over_folds_is_told(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    space = {"data.fold": [0, 1, 2]}
    search = start(Launcher(), space=space, sampler="grid", overrides=["data.num_folds=3"])
    assert summarize(search)
    assert "val/acc 0.1 ± 0.1, mean and deviation of 3 trials" in capsys.readouterr().out


FAILURES: dict[str, dict[str, Any]] = {
    "a step was not finite": {"state": "failed", "reason": "a step was not finite"},
    "its process ended with code 1: error: no": {"state": None},
    "it has no score: val/acc is nan": {"state": "finished", "best": None},
}


@pytest.mark.parametrize("reason", FAILURES)
def test_a_failure_is_recorded_and_the_rest_goes_on(
    reason: str, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    search = start(Launcher(endings={"001": FAILURES[reason]}), space=FOUR, sampler="grid")
    assert states(search) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert search.study.trials[1].user_attrs["reason"] == reason
    assert f"[2/4] trial 1: optimizer.lr=0.2: failed: {reason}; best 0, trial 0" in capsys.readouterr().out
    assert not summarize(search)
    assert "3 finished, 1 failed" in capsys.readouterr().out
    again = Launcher()
    assert states(start(again, space=FOUR, sampler="grid"))[1] == "FAIL" and not again.started


def test_a_point_that_cannot_be_composed_fails_alone(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "compose", compose)
    space = {"model": ["mlp", "linear"], "model.net.hidden_sizes": [[8], [16]]}
    search = start(Launcher(), space=space, sampler="grid")
    assert states(search) == ["COMPLETE", "COMPLETE", "FAIL", "FAIL"]
    assert "has no argument hidden_sizes" in search.study.trials[2].user_attrs["reason"]


def test_what_a_signal_has_stopped_goes_on_in_its_folder(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    curves = {"000": [0.1] * 3, "001": [0.2] * 50, "002": [0.3] * 50}
    search = start(Launcher(curves), stop_after=20, space=FOUR, sampler="grid", n_jobs=2)
    assert states(search) == ["COMPLETE", "RUNNING", "RUNNING"]
    assert not summarize(search)
    out = capsys.readouterr().out
    assert "stopping: 2 of the trials are saving their state" in out
    assert "1 finished, 2 interrupted" in out and f"to go on: python -m src.sweep resume={search.folder}" in out
    launcher = Launcher()
    search = start(launcher, space=FOUR, sampler="grid", n_jobs=2)
    assert launcher.started == ["001", "002", "003"]
    assert launcher.words[0] == [f"resume={search.folder / 'mnist_linear/001'}"]
    assert states(search) == ["COMPLETE"] * 4


def test_a_run_that_someone_else_stopped_is_left_for_the_next_start(start: Start) -> None:
    search = start(Launcher(endings={"001": {"state": "preempted"}}), space=FOUR, sampler="grid")
    assert states(search) == ["COMPLETE", "RUNNING", "COMPLETE", "COMPLETE"]
    again = Launcher()
    assert states(start(again, space=FOUR, sampler="grid")) == ["COMPLETE"] * 4
    assert again.started == ["001"]


def test_a_kill_between_any_two_lines_of_the_ledger_loses_nothing(start: Start, tmp_path: Path) -> None:
    """The ledger is cut as a kill leaves it, in the middle of a line too; the study ends as if that had not been."""
    settings = {"space": LR | {"data.batch_size": {"low": 8, "high": 64, "step": 8}}, "n_trials": 4}
    whole = start(Launcher(), **settings)
    expected = [(trial.params["optimizer.lr"], trial.value) for trial in whole.study.trials]
    ledger = whole.folder / "journal.log"
    full = ledger.read_bytes()
    lines = full.splitlines(keepends=True)
    cuts = [len(b"".join(lines[:number])) for number in range(1, len(lines))]
    for cut in [*cuts, cuts[3] + 5, cuts[-1] + 1]:
        ledger.write_bytes(full[:cut])
        (whole.folder / "journal.log.lock").symlink_to(ledger)
        launcher = Launcher()
        again = start(launcher, **settings)
        assert [(trial.params["optimizer.lr"], trial.value) for trial in again.study.trials] == expected
        assert all("data.batch_size" in trial.params for trial in again.study.trials)
        assert not launcher.started  # their folders say that they are finished
    assert len(cuts) > 16


def test_a_folder_without_status_is_begun_anew(start: Start, tmp_path: Path) -> None:
    (tmp_path / "study/mnist_linear/000/checkpoints").mkdir(parents=True)
    launcher = Launcher()
    start(launcher, space={"seed": [1]}, sampler="grid")
    assert launcher.words[0][0] == "seed=1"
    assert not (tmp_path / "study/mnist_linear/000/checkpoints").exists()


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_a_bad_trial_is_pruned_and_stays_so(pruner: str, start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    space = {"optimizer.lr": [number / 100 for number in range(1, 13)]}
    bad = {f"{number:03d}-seed-1": [0.1] * 9 for number in range(6, 12)}
    good = {f"{number:03d}-seed-1": [0.5 + number / 100] * 9 for number in range(6)}
    launcher = Launcher({**good, **bad, "000-seed-2": [0.0] * 9})
    search = start(launcher, space=space, sampler="grid", pruner=pruner, seeds=[1, 2])
    found = states(search)
    assert found[0] == "COMPLETE" and "PRUNED" in found[6:] and set(found) <= {"COMPLETE", "PRUNED"}
    assert "pruned in epoch" in capsys.readouterr().out
    number = found.index("PRUNED")
    assert f"{number:03d}-seed-2" not in launcher.started
    assert len((search.folder / f"mnist_linear/{number:03d}-seed-1/metrics.jsonl").read_text().splitlines()) < 9
    assert summarize(search)
    again = Launcher()
    start(again, space=space, sampler="grid", pruner=pruner, seeds=[1, 2])
    assert not again.started


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_study_draws_the_same_points_again(sampler: str, start: Start, tmp_path: Path) -> None:
    first = start(Launcher(), space=LR, sampler=sampler, n_trials=12)
    points = [trial.params for trial in first.study.trials]
    assert len({point["optimizer.lr"] for point in points}) == 12
    first.folder.rename(tmp_path / "first")
    first.folder.mkdir()
    for number in (5, 12):
        again = start(Launcher(), space=LR, sampler=sampler, n_trials=number)
    assert [trial.params for trial in again.study.trials] == points
