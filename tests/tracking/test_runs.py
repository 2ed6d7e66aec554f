"""The table of runs through the door that the command line uses."""

import math
import time
from pathlib import Path
from typing import Any

import pytest

from src.config import ConfigError
from src.report import main, parser
from tests.stored import write_run


def scored(folder: Path, score: float, *overrides: str, **status: Any) -> Path:
    write_run(folder, overrides, metrics={"test/loss": 1 - score, "test/acc": score}, **status)
    (folder / "report.html").touch()  # pages are another test's business
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three seeds of one setting, one run of another that scored between them, and one that failed."""
    folder = tmp_path / "runs"
    for day, (seed, score) in enumerate([(0, 0.90), (1, 0.94), (2, 0.92)], 1):
        scored(folder / f"x/seed{seed}", score, f"seed={seed}", started=f"2026-01-0{day}T00:00:00+00:00")
    scored(folder / "x/fast", 0.93, "optimizer.lr=0.5", started="2026-01-04T00:00:00+00:00", seconds=9.5)
    late = {"state": "failed", "reason": "NonFiniteLossError: a|b\nmore", "started": "2026-01-05T00:00:00+00:00"}
    (write_run(folder / "x/broken", ("seed=7", "notes=n"), rows=[], **late) / "report.html").touch()
    return folder


def table(runs: Path, *flags: str) -> list[str]:
    return main([str(runs), *flags]).splitlines()


def test_the_table(runs: Path, capsys: Any) -> None:
    lines = table(runs)
    assert lines[0].split("  ")[0] == "run" and [line.split()[0] for line in lines[1:]] == [
        *("seed0", "seed1", "seed2", "fast", "broken")
    ]  # oldest first
    head, fast, broken = (" ".join(lines[number].split()) for number in (0, 4, 5))
    assert head == "run experiment state reason best epoch val/acc test/loss test/acc seconds optimizer.lr seed"
    assert fast == "fast mnist_linear finished 2 0.7500 0.07000 0.9300 9.5 0.5 0"
    assert broken == "broken mnist_linear failed NonFiniteLossError: a|b 61.0 0.002 7"
    assert len({line.index("mnist_linear") for line in lines[1:]}) == 1
    printed = capsys.readouterr()
    assert printed.out.splitlines() == lines and printed.err == f"pages: {runs / 'index.html'}\n"


@pytest.mark.parametrize(
    ("by", "first", "last"),
    [
        ("test/acc", "seed1", "broken"),  # as the monitor, val/acc: more is better
        ("test/loss", "seed1", "broken"),
        ("seconds", "fast", "broken"),
        ("state", "broken", "fast"),
    ],
)
def test_sorting_puts_the_best_first_and_what_has_none_last(by: str, first: str, last: str, runs: Path) -> None:
    names = [line.split(",")[0] for line in table(runs, "--sort", by, "--format", "csv")[1:]]
    assert (names[0], names[-1]) == (first, last)


def test_the_monitor_says_which_way_is_better(tmp_path: Path) -> None:
    for name, error in (("a", 0.3), ("b", 0.1)):
        rows = [{"step": n, "epoch": n, "val/mae": error + n} for n in range(3)]
        write_run(tmp_path / name, ("experiment=emt_cgcnn",), rows, metrics={"test/mae": error})
    lines = table(tmp_path, "--sort", "test/mae", "--columns", "run,best epoch,val/mae,test/mae", "--format", "csv")
    assert lines == ["run,best epoch,val/mae,test/mae", "b,1,0.1,0.1", "a,1,0.3,0.3"]


def test_groups_are_seeds(runs: Path) -> None:
    scored(runs / "x/again", 0.96, "seed=0", "name=again", started="2026-01-06T00:00:00+00:00")
    columns = "n,test/acc,test/acc ±,optimizer.lr"
    lines = table(runs, "--group", "--columns", columns, "--sort", "test/acc", "--format", "csv")
    assert lines[0] == columns
    (n, mean, deviation, rate), single = (line.split(",") for line in lines[1:])
    assert (n, rate) == ("3", "0.002") and float(mean) == pytest.approx(0.94)  # 0.96, the later seed 0, 0.94 and 0.92
    assert float(deviation) == pytest.approx(0.02)
    assert single == ["1", "0.93", "", "0.5"]


def test_a_group_with_a_score_that_is_not_finite(tmp_path: Path) -> None:
    for seed, score in enumerate((0.5, math.nan)):
        scored(tmp_path / f"x/{seed}", score, f"seed={seed}")
    _, line = table(tmp_path, "--group", "--columns", "n,test/acc,test/acc ±", "--format", "csv")
    assert line == "2,nan,"


@pytest.mark.parametrize(
    ("conditions", "names"),
    [
        (["optimizer.lr=5e-1"], ["fast"]),
        (["state=failed"], ["broken"]),
        (["state=finished", "optimizer.lr=0.002", "seed=1"], ["seed1"]),
        (["experiment=mnist_linear"], ["seed0", "seed1", "seed2", "fast", "broken"]),
        (["early_stopping.min_delta=0", "name=seed2"], ["seed2"]),
        (["data._target_=src.data.mnist.MNISTSubsetDataModule", "notes=n"], ["broken"]),
    ],
)
def test_filters(conditions: list[str], names: list[str], runs: Path) -> None:
    flags = [word for condition in conditions for word in ("--filter", condition)]
    assert table(runs, *flags, "--columns", "run", "--format", "csv")[1:] == names


def test_markdown_and_a_file(runs: Path, tmp_path: Path, capsys: Any) -> None:
    flags = ("--filter", "seed=7", "--columns", "run,reason,trainer.max_epochs", "--format", "markdown")
    expected = [
        "| run | reason | trainer.max_epochs |",
        "| --- | --- | --- |",
        "| broken | NonFiniteLossError: a\\|b | 30 |",
    ]
    assert table(runs, *flags, "--output", str(tmp_path / "table.md")) == expected
    assert (tmp_path / "table.md").read_text().splitlines() == expected
    assert capsys.readouterr().out == ""


def test_two_runs_side_by_side(runs: Path) -> None:
    lines = [line.split(",") for line in table(runs, "--diff", "seed1", str(runs / "x/fast"), "--format", "csv")]
    assert lines[0] == ["key", "seed1", str(runs / "x/fast")]
    assert ["test/acc", "0.94", "0.93"] in lines
    assert lines[-2:] == [["optimizer.lr", "0.002", "0.5"], ["seed", "1", "0"]]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sort", "test/ac"], "--sort test/ac: there is none of that name; did you mean test/acc?"),
        (
            ["--columns", "run,optimiser.lr"],
            "--columns optimiser.lr: there is none of that name; did you mean optimizer.lr?",
        ),
        (["--filter", "sede=1"], "--filter sede: there is none of that name; did you mean seed?"),
        (["--filter", "seed=4"], "--filter seed=4: no run has this value; there are: 0, 1, 2, 7"),
        (["--diff", "seed0", "seed9"], "--diff seed9: there is none of that name; did you mean seed0?"),
        (["--group", "--filter", "state=failed"], "--group: no run is finished"),
    ],
)
def test_mistakes(flags: list[str], message: str, runs: Path) -> None:
    with pytest.raises(ConfigError) as error:
        main([str(runs), *flags])
    assert str(error.value) == message


def test_no_folder_no_run_and_two_of_a_name(tmp_path: Path, runs: Path) -> None:
    with pytest.raises(ConfigError, match=r"/none: there is no such folder$"):
        main([str(tmp_path / "none")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"/empty: there is no run in it \(a folder with a config.yaml\)$"):
        main([str(tmp_path / "empty")])
    write_run(runs / "y/seed0")
    with pytest.raises(
        ConfigError, match=r"--diff seed0: several runs are called so; name the folder of one: .*y/seed0"
    ):
        main([str(runs), "--diff", "seed0", "seed1"])


def test_a_folder_that_cannot_be_written_still_gives_a_table(runs: Path, capsys: Any) -> None:
    (runs / "index.html").mkdir()
    with pytest.raises(ConfigError, match=r"^cannot be written: .*index\.html"):
        table(runs)
    assert "seed2" in capsys.readouterr().out


@pytest.mark.parametrize(("here", "flag"), [("x", "."), ("x", "fast"), ("x/fast", "."), ("", "x/fast")])
def test_a_folder_may_be_named_from_anywhere(here: str, flag: str, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs / here)
    assert "fast" in main([flag, "--columns", "run"]).splitlines()
    assert list(runs.rglob("index.html")) == [(runs / here / flag).resolve() / "index.html"]


def test_the_default_folder_is_that_of_the_configuration(runs: Path) -> None:
    assert main(["--columns", "run"]).splitlines()[1] == "seed0"  # RUNS_DIR


def test_help_names_every_flag() -> None:
    flags = {flag for action in parser._actions for flag in action.option_strings}
    assert {"--diff", "--filter", "--sort", "--group", "--columns", "--format", "--output"} <= flags
    assert all(action.help for action in parser._actions if action.dest != "format")


def test_what_logs_a_run_is_no_other_experiment(tmp_path: Path) -> None:
    scored(tmp_path / "x/0", 0.5)
    write_run(
        tmp_path / "x/1", ("seed=1", "logger=csv", "pictures=false", "black_box=false"), metrics={"test/acc": 0.75}
    )
    _, line = table(tmp_path, "--group", "--columns", "n,test/acc", "--format", "csv")
    assert line == "2,0.625"


def test_a_thousand_runs_in_seconds(tmp_path: Path) -> None:
    first = scored(tmp_path / "x/0000", 0.9)
    files = {path.name: path.read_bytes() for path in sorted(first.iterdir()) if path.suffix != ".html"}
    for number in range(1, 1000):
        folder = tmp_path / f"x/{number:04}"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content.replace(b"seed: 0", b"seed: %d" % number))
        (folder / "report.html").touch()
    began = time.process_time()
    assert len(table(tmp_path, "--group")) == 2
    assert time.process_time() - began < 15
