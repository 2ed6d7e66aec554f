"""The script of a job, and what is checked before one is submitted."""

import sys
from pathlib import Path

import pytest

from src.config import ConfigError
from src.search.slurm import job_script
from src.sweep import main

SCRIPT = """#!/bin/bash
#SBATCH --job-name=study/mnist_linear/003
#SBATCH --output='/my runs/study/mnist_linear/003.log'
#SBATCH --open-mode=append
#SBATCH --signal=USR1@120
#SBATCH --partition=gpu
#SBATCH --time=12:00:00
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --requeue
export RESEARCH_TEMPLATE_TRIAL=003
srun --kill-on-bad-exit=1 --cpus-per-task=8 \
bash -c 'trap "" USR1; exec "$@"' task \
PYTHON -m src.train trainer=ddp trainer.devices=4 trainer.num_nodes=2 'tags=[a b]'
"""


def test_the_script_of_a_job() -> None:
    cluster = dict.fromkeys(("account", "memory", "gpus")) | {
        "partition": "gpu",
        "time": "12:00:00",
        "cpus_per_task": 8,
    }
    words = ["trainer=ddp", "trainer.devices=4", "trainer.num_nodes=2", "tags=[a b]"]
    script = job_script(words, Path("/my runs/study/mnist_linear/003"), cluster)
    assert script == SCRIPT.replace("PYTHON", sys.executable)


@pytest.mark.parametrize(
    ("words", "problems"),
    [
        (
            ["launcher=slurm", "seed=1,2", "cluster.tmie=1:00", "cluster.cpus_per_task=many"],
            [
                "cluster.tmie: there is no such key; did you mean time?",
                "cluster.cpus_per_task: expected int or null, got many",
            ],
        ),
        (
            ["launcher=slurm", "cluster=defalt"],
            ["cluster=defalt: there is no cluster called defalt; did you mean default?"],
        ),
        (["launcher=slrum", "seed=1,2"], ["launcher: expected local or slurm, got slrum"]),
        (["seed=1,2", "cluster.time=1:00"], ["cluster.time: is for launcher=slurm"]),
        (["seed=1,2", "dry_run=true"], ["dry_run: is for launcher=slurm"]),
        (["launcher=slurm", "seed=1,2", "dry_run=1"], ["dry_run=1: expected true or false"]),
        (
            ["launcher=slurm", "trainer=ddp"],
            ["trainer.devices=auto: a Slurm job has a task for each device: write trainer.devices=N"],
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_written(words: list[str], problems: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        main(words)
    assert sorted(error.value.problems) == sorted(problems)
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_of_a_single_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["launcher=slurm", "experiment=mnist_mlp", "trainer=cpu", "cluster.memory=16G", "dry_run=true"])
    script = capsys.readouterr().out
    assert script.endswith("-m src.train experiment=mnist_mlp trainer=cpu\n")
    assert "--time=04:00:00\n" in script and "--mem=16G\n" in script and "gpus" not in script
    assert not (tmp_path / "runs").exists()
