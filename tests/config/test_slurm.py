"""The tasks of a Slurm job against the processes that a run asks for; no Slurm is needed."""

import re
from pathlib import Path

import pytest

from src.config import ConfigError
from src.config.slurm import check_tasks, slurm_job
from src.train import main

STEP = {"SLURM_JOB_ID": "12", "SLURM_JOB_NAME": "train", "SLURM_STEP_ID": "0"}


def tasks(number: int, nodes: int = 1, **variables: str) -> dict[str, str]:
    per_node = {"SLURM_NTASKS_PER_NODE": str(number // nodes)}
    return {**STEP, "SLURM_NTASKS": str(number), "SLURM_NNODES": str(nodes), **per_node, **variables}


@pytest.mark.parametrize(
    ("environment", "trainer"),
    [
        (tasks(4), {"devices": 4}),
        (tasks(4), {"devices": [0, 1, 2, 3]}),
        (tasks(4), {"devices": "0,1,2,3"}),
        (tasks(4), {"devices": "auto", "accelerator": "gpu"}),
        (tasks(8, 2), {"devices": -1, "num_nodes": 2}),
        (tasks(1), {"devices": "auto", "accelerator": "cpu"}),
        ({**STEP, "SLURM_NTASKS": "1"}, {"devices": 1}),
        ({"SLURM_JOB_ID": "12", "SLURM_JOB_NAME": "train"}, {"devices": 2}),  # sbatch without tasks, no srun
        (tasks(2, SLURM_JOB_NAME="bash"), {"devices": 4}),
        (tasks(2, SLURM_JOB_NAME="interactive"), {"devices": 4}),
        ({}, {"devices": 4}),
    ],
)
def test_these_fit(environment: dict[str, str], trainer: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    check_tasks(trainer)


@pytest.mark.parametrize(
    ("environment", "trainer", "message"),
    [
        (
            tasks(2),
            {"devices": 4},
            "trainer.devices=4 trainer.num_nodes=1 takes 4 tasks, one for each device, and this Slurm job has 2 on 1 "
            "node: write #SBATCH --nodes=1 --ntasks-per-node=4, or trainer.num_nodes=1 trainer.devices=2",
        ),
        (tasks(4, 2), {"devices": 4}, "has 4 on 2 nodes: .* or trainer.num_nodes=2 trainer.devices=2"),
        (
            tasks(4, 2),
            {"devices": "auto", "accelerator": "gpu"},
            "--ntasks-per-node=2, or trainer.num_nodes=2",
        ),
        (tasks(2), {"devices": "auto", "accelerator": "cpu"}, "trainer.devices=1 .* takes 1 tasks?"),
        ({**STEP, "SLURM_NTASKS": "2"}, {"devices": 2}, "--ntasks-per-node=2"),
    ],
)
def test_these_do_not(
    environment: dict[str, str], trainer: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        check_tasks(trainer)


def test_tasks_without_srun_are_a_mistake_of_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in tasks(2).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_STEP_ID")
    with pytest.raises(ConfigError, match=re.escape("this Slurm job has 2 tasks, and only srun starts them")):
        main(["trainer.devices=2"])
    assert not (tmp_path / "runs").exists()


def test_a_task_of_an_array_is_a_job_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**STEP, "SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "2"}.items():
        monkeypatch.setenv(name, value)
    assert slurm_job() == "10_2"
