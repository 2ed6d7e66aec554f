"""What a signal means in a Slurm job, and what is asked of Slurm then; `scontrol` is a script here."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from src.engine.preemption import is_preemption, requeued
from src.engine.signals import Interrupted
from tests.conftest import status
from tests.forked import fingerprint, killed_after, run_forked

RUNNING = {"BatchFlag": "1", "JobState": "RUNNING", "Requeue": "1", "Restarts": "0", "Reason": "None"}
Scontrol = Callable[..., Path]


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scontrol:
    """Puts a `scontrol` on the PATH that knows one job, and returns the file of what it was asked to do."""

    def install(refusal: str = "", **facts: str) -> Path:
        program, asked = tmp_path / "bin/scontrol", tmp_path / "asked"
        line = " ".join(f"{name}={value}" for name, value in {**RUNNING, **facts}.items())
        answer = f"echo '{refusal}' >&2; exit 1" if refusal else "exit 0"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\n[ "$1" = show ] && echo "{line}" && exit\necho "$@" >> {asked}\n{answer}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent), prepend=":")
        return asked

    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    return install


def stop(signum: int) -> None:
    with pytest.raises(Interrupted), requeued():
        raise Interrupted(signum)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, True),  # it has some time left before others get the nodes
        ({"JobState": "COMPLETING"}, False),  # scancel
        ({"JobState": "COMPLETING", "Reason": "TimeLimit"}, True),
        ({"JobState": "COMPLETING", "Restarts": "1"}, True),  # Slurm has put it back already
        ({"BatchFlag": "0"}, False),
    ],
)
def test_sigterm_is_a_preemption_unless_somebody_cancelled(
    facts: dict[str, str], expected: bool, scontrol: Scontrol
) -> None:
    scontrol(**facts)
    assert is_preemption(signal.SIGTERM) is expected
    assert is_preemption(signal.SIGUSR1) and not is_preemption(signal.SIGINT)


def test_the_first_process_asks_once(scontrol: Scontrol, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = scontrol()
    monkeypatch.setenv("SLURM_NTASKS", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("SLURM_PROCID", rank)
        stop(signal.SIGUSR1)
    assert asked.read_text() == "requeue 12\n"
    stop(signal.SIGINT)
    assert asked.read_text() == "requeue 12\n"


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"Requeue": "0"}, "it was submitted without --requeue"),
        ({"BatchFlag": "0"}, "sbatch has not submitted it"),
        ({"refusal": "Requested operation is presently disabled"}, "Requested operation is presently disabled"),
        ({"Restarts": "1"}, None),
    ],
)
def test_a_job_that_cannot_be_put_back(
    facts: dict[str, str], reason: str | None, scontrol: Scontrol, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = scontrol(**facts)
    stop(signal.SIGUSR1)
    assert asked.exists() == ("refusal" in facts)
    line = capfd.readouterr().out.splitlines()[-1:]
    assert line == ([f"Slurm job 12 is not requeued: {reason}"] if reason else [])


def test_no_scontrol(scontrol: Scontrol, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "")
    stop(signal.SIGUSR1)
    assert "Slurm job 12 is not requeued: [Errno 2]" in capfd.readouterr().out
    assert not is_preemption(signal.SIGTERM)


@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGTERM])
def test_the_requeued_job_ends_where_it_would_have_ended(
    signum: signal.Signals, scontrol: Scontrol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, output = scontrol(), tmp_path / "output"
    words = ["logger=none", "trainer=cpu", "data.val_size=200", "data.test_size=3800", "data.batch_size=50"]
    words += ["trainer.max_epochs=3"]
    assert run_forked(words, output, killed_after(27, signum)) == 128 + signum, output.read_text()
    folder = tmp_path / "runs/mnist_linear/slurm-12"
    assert (status(folder)["state"], asked.read_text()) == ("preempted", "requeue 12\n")
    other = [*words, "seed=1"]  # a second run of the same job, which has got no further than this
    assert run_forked(other, output, killed_after(7, signum)) == 128 + signum, output.read_text()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert run_forked(words, output) == 0, output.read_text()
    assert run_forked(other, output) == 0, output.read_text()
    (second,) = folder.parent.glob("slurm-12-*")
    assert [len(status(one)["resumes"]) for one in (folder, second)] == [1, 1]
    assert status(second)["state"] == "finished"
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    monkeypatch.setenv("SLURM_JOB_ID", "13")
    assert run_forked(words, output) == 0, output.read_text()
    assert fingerprint(folder) == fingerprint(folder.with_name("slurm-13"))
    assert asked.read_text() == "requeue 12\n" * 2
