"""Several real processes with gloo: the same numbers, one run, and one end for all."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from ase.io import write

from src.config import ConfigError
from tests.conftest import QUICK, ROOT, Train, metric_rows, status
from tests.fake_crystals import crystals
from tests.forked import fingerprint, killed_after, run_forked, run_ranks, train_task

SMALL = [*QUICK, "data.val_size=200", "data.test_size=3800", "data.batch_size=60", "trainer.log_every_n_steps=3"]
TWO = ["trainer.devices=2", "trainer.strategy=ddp"]


def ranks(
    world_size: int, overrides: list[str], folder: Path, before: dict[int, Callable[[], None]] | None = None
) -> list[int]:
    """Trains on several processes; `before` holds what is done first, by rank."""
    devices = [] if overrides[0].startswith("resume=") else [f"trainer.devices={world_size}", "trainer.strategy=ddp"]
    arranged = before or {}
    return run_ranks(
        world_size, lambda rank: train_task([*overrides, *devices], arranged.get(rank, lambda: None)), folder
    )


def prints(folder: Path) -> str:
    return "".join(path.read_text() for path in sorted(folder.glob("rank-*")))


def with_samples(evaluated: int) -> Callable[[], None]:
    """Gives the data set random images: 120 to train on and `evaluated` in each of the other parts."""

    def arrange() -> None:
        from src.data.images import TensorSplit
        from src.data.mnist import MNISTSubsetDataModule

        def load(self: MNISTSubsetDataModule) -> dict[str, TensorSplit]:
            generator = torch.Generator().manual_seed(0)
            sizes = {"train": 120, "val": evaluated, "test": evaluated}
            return {
                part: TensorSplit(
                    torch.randint(256, (size, 1, 28, 28), generator=generator, dtype=torch.uint8),
                    torch.randint(10, (size,), generator=generator),
                )
                for part, size in sizes.items()
            }

        MNISTSubsetDataModule.load = load  # type: ignore[method-assign]

    return arrange


@pytest.mark.parametrize("samples", [5, 7, 1000])
def test_metrics_and_gradients_do_not_depend_on_the_processes(samples: int, tmp_path: Path) -> None:
    overrides = [
        *QUICK, "data.batch_size=60", "optimizer=sgd", "optimizer.lr=1.0", "optimizer.momentum=0",
        "optimizer.nesterov=false", "optimizer.weight_decay=0", "trainer.max_epochs=1", "trainer.log_every_n_steps=1",
    ]  # fmt: skip
    rows, weights = {}, {}
    for world_size in (1, 2, 3):
        folder = tmp_path / str(world_size)
        folder.mkdir()
        before = dict.fromkeys(range(world_size), with_samples(samples))
        assert ranks(world_size, [*overrides, f"runs_dir={folder}"], folder, before) == [0] * world_size, prints(folder)
        (run,) = folder.glob("*/*")
        rows[world_size] = metric_rows(run)
        weights[world_size] = torch.load(max((run / "checkpoints").glob("step-*.ckpt")), weights_only=True)[
            "state_dict"
        ]
    expected = {name: value for row in rows[1] for name, value in row.items() if name.startswith(("val/", "test/"))}
    assert set(expected) == {"val/loss", "val/acc", "val/f1", "test/loss", "test/acc", "test/f1", "test/ece"}
    for world_size in (2, 3):
        got = {name: value for row in rows[world_size] for name, value in row.items() if name in expected}
        assert got == pytest.approx(expected, rel=1e-6)
        norms = [[row["train/grad_norm"] for row in rows[n] if "train/grad_norm" in row] for n in (1, world_size)]
        assert norms[1] == pytest.approx(norms[0], rel=1e-5) and len(norms[0]) == 2
        # Two steps of plain gradient descent with rate 1: the difference of the weights is that of the gradients.
        for name, value in weights[1].items():
            torch.testing.assert_close(weights[world_size][name], value, rtol=0, atol=1e-5)


def test_the_sample_count_is_asserted(tmp_path: Path) -> None:
    def padded() -> None:
        from src.data.sampler import EvalSampler

        original = EvalSampler.__iter__
        EvalSampler.__iter__ = lambda self: (torch.cat([p, p[-1:]]) for p in original(self))  # type: ignore[method-assign, assignment]

    assert run_forked([*SMALL, "trainer.max_epochs=1"], tmp_path / "output", padded) == 1
    assert "val: 204 samples were measured, there are 200" in (tmp_path / "output").read_text()


def test_killed_on_two_processes_and_resumed(tmp_path: Path) -> None:
    overrides = [*SMALL, "model=mlp", "trainer.max_epochs=3", "checkpoint.every_n_steps=4"]
    for name, kills in (("whole", []), ("killed", [21, 37])):
        command = [*overrides, f"runs_dir={tmp_path / name}"]
        for kill in kills:
            codes = ranks(2, command, tmp_path, {0: killed_after(kill), 1: killed_after(kill)})
            assert codes == [-signal.SIGKILL] * 2, prints(tmp_path)
            command = ["resume=last", f"runs_dir={tmp_path / name}"]
        assert ranks(2, command, tmp_path) == [0, 0], prints(tmp_path)
    (whole,), (killed,) = ((tmp_path / name).glob("*/*") for name in ("whole", "killed"))
    assert fingerprint(killed) == fingerprint(whole)
    assert len(status(killed)["resumes"]) == 2


def test_begun_on_two_processes_and_ended_on_one(tmp_path: Path) -> None:
    overrides = [*SMALL, "trainer.max_epochs=2", "checkpoint.every_n_steps=4"]
    assert run_forked([*overrides, f"runs_dir={tmp_path / 'one'}"], tmp_path / "output") == 0
    codes = ranks(2, [*overrides, f"runs_dir={tmp_path / 'two'}"], tmp_path, {0: killed_after(21), 1: killed_after(21)})
    assert codes == [-signal.SIGKILL] * 2, prints(tmp_path)
    resume = ["resume=last", f"runs_dir={tmp_path / 'two'}", "trainer.devices=1", "trainer.strategy=auto"]
    assert run_forked(resume, tmp_path / "output") == 0, (tmp_path / "output").read_text()
    (one,), (two,) = ((tmp_path / name).glob("*/*") for name in ("one", "two"))
    assert status(two)["metrics"] == pytest.approx(status(one)["metrics"], rel=1e-4)
    tables = [(folder / "metrics.csv").read_text().splitlines() for folder in (one, two)]
    assert len(tables[0]) == len(tables[1])
    for row, other in zip(*tables, strict=True):  # train/acc among them: the sums of both processes were dealt out
        numbers = (
            [[float(v or "nan") for v in line.split(",")] for line in (row, other)] if row != tables[0][0] else [[]] * 2
        )
        assert numbers[1] == pytest.approx(numbers[0], rel=1e-4, nan_ok=True)


@pytest.fixture(scope="module")
def trained_on_crystals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crystals")
    overrides = [*QUICK, "experiment=emt_cgcnn", "data.num_structures=60", "data.batch_size=8", "trainer.max_epochs=1"]
    output = folder / "output"
    code = run_forked([*overrides, f"data.root={folder}", f"runs_dir={folder / 'runs'}"], output)
    assert code == 0, output.read_text()
    (run,) = (folder / "runs").glob("*/*")
    return run


@pytest.mark.parametrize("samples", [5, 20])
def test_predictions_come_in_the_order_of_the_inputs(samples: int, trained_on_crystals: Path, tmp_path: Path) -> None:
    inputs = tmp_path / "inputs.extxyz"
    write(inputs, crystals(samples))
    tables = {}
    for world_size in (1, 2, 3):
        output = tmp_path / f"{world_size}.csv"
        arguments = [f"ckpt={trained_on_crystals}", f"inputs={inputs}", f"output={output}"]
        arguments += [f"trainer.devices={world_size}", "trainer.strategy=ddp"]

        def task(rank: int, arguments: list[str] = arguments) -> Callable[[], object]:
            from src.predict import main

            return lambda: main(arguments)

        assert run_ranks(world_size, task, tmp_path) == [0] * world_size, prints(tmp_path)
        tables[world_size] = [line.split(",") for line in output.read_text().splitlines()]
    assert [row[0] for row in tables[1]] == ["id", *map(str, range(samples))]
    for world_size in (2, 3):
        assert [row[0] for row in tables[world_size]] == [row[0] for row in tables[1]]
        values = [[float(row[1]) for row in tables[n][1:]] for n in (world_size, 1)]
        assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert len({row[1] for row in tables[1]}) > samples / 2  # not all alike


def failing_at(batch: int, message: str) -> Callable[[], None]:
    def arrange() -> None:
        from src.modules.base import BaseModule

        step = BaseModule.step

        def broken(self: BaseModule, *arguments: object) -> torch.Tensor:
            if self._trainer is not None and self.trainer.fit_loop.total_batch_idx == batch:
                raise ValueError(message)
            return step(self, *arguments)  # type: ignore[arg-type]

        BaseModule.step = broken  # type: ignore[method-assign, assignment]

    return arrange


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_one_that_fails_ends_all_with_its_error(rank: int, tmp_path: Path) -> None:
    codes = ranks(3, SMALL, tmp_path, {rank: failing_at(5, "the cat is not in the box")})
    assert codes == [1, 1, 1]
    (folder,) = (tmp_path / "runs").glob("*/*")
    error = "ValueError: the cat is not in the box"
    assert status(folder)["state"] == "failed"
    assert status(folder)["reason"] == (error if rank == 0 else f"process {rank} failed: {error}")
    assert error in (tmp_path / f"rank-{rank}").read_text()
    other = (tmp_path / f"rank-{(rank + 1) % 3}").read_text().splitlines()
    assert other[-1] == f"error: process {rank} failed: {error}"


def test_processes_must_agree_on_the_configuration(tmp_path: Path) -> None:
    def task(rank: int) -> Callable[[], object]:
        return train_task([*SMALL, *TWO, f"optimizer.lr=0.{rank + 1}"])

    assert run_ranks(2, task, tmp_path) == [1, 2], prints(tmp_path)
    problem = "process 1 of this run has another configuration: optimizer.lr: 0.1 in process 0, 0.2 here"
    assert problem in (tmp_path / "rank-1").read_text()
    (folder,) = (tmp_path / "runs").glob("*/*")
    assert (status(folder)["state"], status(folder)["reason"]) == ("failed", f"process 1 failed: {problem}")


def test_a_signal_to_one_process_stops_all_at_one_batch(tmp_path: Path) -> None:
    codes = ranks(2, [*SMALL, "trainer.max_epochs=50"], tmp_path, {1: killed_after(23, signal.SIGTERM)})
    assert codes == [143, 143], prints(tmp_path)
    (folder,) = (tmp_path / "runs").glob("*/*")
    assert (status(folder)["state"], status(folder)["reason"]) == ("interrupted", "stopped by SIGTERM")
    assert ranks(2, [f"resume={folder}", "trainer.max_epochs=3"], tmp_path) == [0, 0], prints(tmp_path)


def test_sgd_that_cannot_be_sharded(train: Train) -> None:
    sharded = ["trainer=ddp_sim", "trainer.strategy=fsdp", "optimizer=sgd"]
    with pytest.raises(ConfigError, match="fused SGD takes no split weights"):
        train(*sharded)
    with pytest.raises(ConfigError, match="SGD without momentum cannot be restored"):
        train(*sharded, "optimizer.fused=false", "optimizer.momentum=0", "optimizer.nesterov=false")


def test_sharded_weights_are_those_of_one_process(tmp_path: Path) -> None:
    """FSDP: trained, killed, resumed on two processes; its checkpoint is like any other."""
    from src.evaluate import main as evaluate

    overrides = [*SMALL, "trainer.max_epochs=2", "checkpoint.every_n_steps=4"]
    assert run_forked([*overrides, f"runs_dir={tmp_path / 'one'}"], tmp_path / "output") == 0
    sharded = ["trainer.strategy=fsdp", "trainer.devices=2", f"runs_dir={tmp_path / 'two'}"]

    def task(command: list[str], kill: int | None) -> Callable[[int], Callable[[], object]]:
        return lambda rank: train_task(command, killed_after(kill) if kill else lambda: None)

    codes = run_ranks(2, task([*overrides, *sharded], 21), tmp_path)
    assert codes == [-signal.SIGKILL] * 2, prints(tmp_path)
    assert run_ranks(2, task(["resume=last", sharded[-1]], None), tmp_path) == [0, 0], prints(tmp_path)
    (one,), (two,) = ((tmp_path / name).glob("*/*") for name in ("one", "two"))
    assert "from step-" in prints(tmp_path)
    states = [
        torch.load(max((f / "checkpoints").glob("step-*.ckpt")), weights_only=True)["state_dict"] for f in (one, two)
    ]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=0, atol=1e-5)
    norms = [
        [row["train/grad_norm"] for row in metric_rows(folder) if "train/grad_norm" in row] for folder in (one, two)
    ]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4) and norms[0]
    metrics = evaluate([f"ckpt={two}", "trainer.strategy=auto", "trainer.devices=1"])
    assert metrics == pytest.approx(status(two)["metrics"], rel=1e-6)


@pytest.mark.slow
def test_what_was_unfrozen_stays_so_where_weights_are_split(tmp_path: Path) -> None:
    frozen = ["model=mlp", "model.freeze=backbone", "model.unfreeze_epoch=1", "trainer.max_epochs=3", "test=false"]
    overrides = [*SMALL, *frozen, "trainer.strategy=fsdp", "trainer.devices=2"]

    def task(*command: str, kill: int | None = None) -> Callable[[int], Callable[[], object]]:
        return lambda rank: train_task([*command], killed_after(kill) if kill else lambda: None)

    assert run_ranks(2, task(*overrides, f"runs_dir={tmp_path / 'one'}"), tmp_path) == [0, 0], prints(tmp_path)
    runs_dir = f"runs_dir={tmp_path / 'two'}"
    assert run_ranks(2, task(*overrides, runs_dir, kill=47), tmp_path) == [-signal.SIGKILL] * 2
    assert run_ranks(2, task("resume=last", runs_dir), tmp_path) == [0, 0], prints(tmp_path)
    (one,), (two,) = ((tmp_path / name).glob("*/*") for name in ("one", "two"))
    points = [torch.load(max((f / "checkpoints").glob("step-*.ckpt")), weights_only=True) for f in (one, two)]
    for name, value in points[0]["state_dict"].items():
        torch.testing.assert_close(points[1]["state_dict"][name], value, rtol=0, atol=1e-5)


def test_channels_last_filters_can_be_split(tmp_path: Path) -> None:
    overrides = ["logger=none", "trainer=cpu", "model=resnet20", "trainer.max_epochs=1"]
    limits = [f"trainer.limit_{split}_batches=2" for split in ("train", "val", "test")]
    sharded = ["trainer.strategy=fsdp", "trainer.devices=2", f"runs_dir={tmp_path / 'runs'}"]
    codes = run_ranks(2, lambda rank: train_task([*overrides, *limits, *sharded]), tmp_path)
    assert codes == [0, 0], prints(tmp_path)
    (folder,) = (tmp_path / "runs").glob("*/*")
    state = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.is_tensor(value) and value.is_contiguous() for value in state.values())


def test_lightnings_launcher_ends_with_a_killed_child(tmp_path: Path) -> None:
    process = psutil.Popen(
        [
            *(sys.executable, "-m", "src.train", "logger=none", "trainer=ddp_sim", "trainer.max_epochs=1000000"),
            *("early_stopping.patience=null", "data.val_size=200", "data.test_size=3800"),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        folder = None
        while folder is None or not list(folder.glob("checkpoints/step-*.ckpt")):
            assert process.poll() is None
            folder = next(iter((tmp_path / "runs").glob("*/*")), None)
            time.sleep(0.2)
        (child,) = [one for one in process.children() if "src.train" in " ".join(one.cmdline())]
        child.kill()
        assert process.wait(timeout=60) != 0
    finally:
        if process.is_running():
            process.kill()
    assert status(folder)["state"] == "failed"
