"""The command line: what is an override, what only prints, and how a mistake ends."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from src.config import ConfigError
from src.config.cli import message, parse_command_line, run_entry
from tests.conftest import ROOT


def printed(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as caught:
        parse_command_line(argv)
    assert caught.value.code == 0
    return capsys.readouterr().out


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Nothing depends on the working folder, and printing leaves nothing there."""
    monkeypatch.setattr(sys, "argv", ["train"])
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir())


def test_overrides_pass_as_they_are():
    assert parse_command_line(["a.b=c", "~x", "+y=1", "data.root=/a b=c"]) == [
        "a.b=c",
        "~x",
        "+y=1",
        "data.root=/a b=c",
    ]


def test_dashes_of_sweeps_are_taken_off():
    assert parse_command_line(["--optimizer.lr=0.1", "--seed=3", "-x.y=--z"]) == [
        "optimizer.lr=0.1",
        "seed=3",
        "x.y=--z",
    ]


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--lr", "3"], "--lr: there is no such flag; a setting is written key=value, --help lists the flags"),
        (["--resolve"], "--resolve: there is no such flag; a setting is written key=value, --help lists the flags"),
        (
            ["--cfg", "job", "optimizer.lrr=1"],
            "optimizer.lrr=1: torch.optim.Adam has no argument lrr; did you mean optimizer.lr?",
        ),
    ],
)
def test_mistakes(argv, text):
    with pytest.raises(ConfigError) as caught:
        parse_command_line(argv)
    assert str(caught.value) == text


def test_several_runs_are_for_training():
    with pytest.raises(ConfigError, match=r"--multirun: is for python -m src.train; src.evaluate runs once"):
        parse_command_line(["-m", "seed=1,2"], "src.evaluate")
    assert parse_command_line(["--multirun", "seed=1,2"], "src.sweep") == ["seed=1,2"]


def test_help_names_what_there_is(capsys):
    text = printed(capsys, "--help")
    assert text.startswith("usage: python -m src.train [experiment=NAME]")
    assert "\n  mnist_linear " in text
    assert "\n  optimizer " in text
    assert "adamw" in text
    assert "\nsweeps, for python -m src.sweep:\n  mnist_architecture, mnist_lr\n" in text
    assert printed(capsys, "-h") == text


def test_cfg_prints_the_composed_configuration(capsys):
    text = printed(
        capsys, "--cfg", "job", "--resolve", "trainer.accumulate_grad_batches=2", "data=mnist", "data.root=/a=b (é)"
    )
    cfg = yaml.safe_load(text)
    assert cfg["trainer"]["accumulate_grad_batches"] == 2
    assert cfg["data"]["root"] == "/a=b (é)"


def test_cfg_takes_choices_as_a_run_does(capsys):
    cfg = yaml.safe_load(printed(capsys, "--cfg=job", "scheduler=null", "+experiment=mnist_mlp", "data=mnist"))
    assert cfg["scheduler"] == {}
    assert cfg["model"]["net"]["_target_"] == "src.nets.linear.MLP"


def test_other_flags_of_hydra(capsys):
    assert "mode: RUN" in printed(capsys, "--cfg", "hydra", "-p", "hydra", "hydra.mode=RUN", "optimizer.lr=1")
    assert "configs" in printed(capsys, "--info", "searchpath")
    assert "Hydra 1.3" in printed(capsys, "--version")
    assert "--multirun" in printed(capsys, "--hydra-help")


def test_shell_completion(capsys, monkeypatch):
    monkeypatch.setenv("COMP_LINE", "train.py optimizer=ada")
    assert printed(capsys, "--shell-completion", "query=bash").split() == ["optimizer=adam", "optimizer=adamw"]


def test_one_problem_and_several():
    assert message(ConfigError("a")) == "error: a"
    assert message(ConfigError("a", "b", "a")) == "error: 2 problems:\n  a\n  b"


def test_a_mistake_ends_in_one_message(capsys, monkeypatch):
    def main(_: list[str]) -> None:
        raise ConfigError("a", "b")

    with pytest.raises(SystemExit) as caught:
        run_entry(main)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: 2 problems:\n  a\n  b\n"
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(SystemExit) as caught:
        run_entry(main)
    assert caught.value.code == 2
    assert "Traceback" in capsys.readouterr().err


def test_other_errors_are_not_touched():
    def main(_: list[str]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_entry(main)


def test_from_any_folder(tmp_path):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "src.explain", "optimizer.lrr"]
    done = subprocess.run(command, env={"PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: optimizer.lrr: there is no such key; did you mean optimizer.lr?\n"


@pytest.mark.parametrize(("code", "group"), [(0, True), (3, True), (3, False)])
def test_one_of_several_processes_ends_without_unwinding(code: int, group: bool) -> None:
    """What lives on in its threads could abort it then."""
    script = f"""
import atexit, sys
import torch.distributed as distributed
from src.config.cli import run_entry

def main(words):
    if {group}:
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    atexit.register(print, "unwound")
    print("done", words, end="")
    if {code}:
        sys.exit({code})

run_entry(main, None)
"""
    done = subprocess.run([sys.executable, "-c", script, "word"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout == "done ['word']" + ("" if group else "unwound\n")
