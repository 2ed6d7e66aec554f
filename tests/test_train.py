"""The main job, through the door that people use."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import QUICK, ROOT, Command, Folders, Train, metric_rows, status


def weights(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder / f"checkpoints/{name}.ckpt", weights_only=True)["state_dict"]
    return state


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_default_experiment_on_the_command_line(command: Command, run_folders: Folders, tmp_path: Path) -> None:
    done = command("src.train")
    assert done.returncode == 0, done.stderr
    (folder,) = run_folders()
    assert done.stdout.splitlines()[-1] == f"run folder: {folder}"
    assert "W&B offline" in done.stdout + done.stderr
    report = status(folder)
    assert (report["state"], report["exit_code"], report["reason"]) == ("finished", 0, None)
    assert report["metrics"]["test/acc"] >= 0.88
    assert f"test/acc {report['metrics']['test/acc']:>11.4f}" in done.stdout
    assert report["best"]["metric"] == "val/acc"
    assert {path.stem for path in (folder / "plots").iterdir()} == {
        "loss_curves", "confusion_matrix", "precision_recall", "roc", "calibration", "worst", "training_batch",
    }  # fmt: skip
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 1
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))


def test_best_score_is_that_of_the_tested_checkpoint(train: Train, run_folders: Folders) -> None:
    train("trainer.max_epochs=4", "optimizer.lr=0.05")
    (folder,) = run_folders()
    with open(folder / "metrics.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    scores = [float(row["val/acc"]) for row in rows if row["val/acc"]]
    assert len(scores) == 4
    assert status(folder)["best"]["value"] == max(scores)
    best = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
    assert best["epoch"] == scores.index(max(scores))


def test_best_score_of_the_last_epoch_counts(train: Train, run_folders: Folders) -> None:
    metrics = train("trainer.max_epochs=1", "test=false")
    assert status(run_folders()[0])["best"]["value"] == metrics["val/acc"]


def test_equal_runs_give_equal_weights_and_rows(train: Train, run_folders: Folders) -> None:
    for seed in (0, 0, 1):
        train("trainer.max_epochs=2", f"seed={seed}")
    first, again, other = run_folders()
    assert equal(weights(first), weights(again))
    assert (first / "metrics.csv").read_bytes() == (again / "metrics.csv").read_bytes()
    assert (first / "metrics.jsonl").read_bytes() == (again / "metrics.jsonl").read_bytes()
    assert not equal(weights(first), weights(other))


def test_preflight_leaves_no_trace(train: Train, run_folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("model=mlp", "trainer.max_epochs=1")
    train(*arguments)
    monkeypatch.setattr("src.engine.plan.preflight", lambda module, datamodule: None)
    train(*arguments)
    with_it, without = run_folders()
    assert equal(weights(with_it), weights(without))


def test_every_step_is_in_the_rows_once(train: Train, run_folders: Folders) -> None:
    train("trainer.max_epochs=2", "trainer.log_every_n_steps=10")
    (folder,) = run_folders()
    with open(folder / "metrics.csv", encoding="utf-8", newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == [9, 19, 29, 39, 49, 53, 63, 73, 83, 93, 103, 107, 108]
    assert "perf" not in (folder / "metrics.jsonl").read_text()
    assert "perf/epoch_seconds" in (folder / "perf.csv").read_text()


def test_learning_rate_rows_follow_the_schedule(train: Train, run_folders: Folders) -> None:
    train("trainer.max_epochs=2", "trainer.log_every_n_steps=1", "scheduler=cosine", "optimizer.lr=0.01")
    (folder,) = run_folders()
    rows = metric_rows(folder)
    rates = [row["train/lr"] for row in rows if "train/lr" in row]
    assert len(rates) == 108
    assert rates[0] == pytest.approx(0.01 / 55)
    assert rates[54] == pytest.approx(0.01)  # after one epoch of warm-up
    assert rates[-1] < 1e-4


def test_a_diverging_run_stops_and_names_the_step(train: Train, run_folders: Folders) -> None:
    from src.modules.metrics import NonFiniteLossError

    with pytest.raises(NonFiniteLossError, match=r"the train loss is not finite at step \d+ \(epoch 0\)"):
        train("model=mlp", "optimizer=sgd", "optimizer.lr=1e30", "trainer.log_every_n_steps=7")
    (folder,) = run_folders()
    report = status(folder)
    assert (report["state"], report["exit_code"]) == ("failed", 1)
    assert "NonFiniteLossError: the train loss is not finite at step " in report["reason"]


def test_the_step_of_a_non_finite_loss_is_exact(
    train: Train, run_folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    from src.modules.classification import ClassificationModule
    from src.modules.metrics import NonFiniteLossError

    computed = ClassificationModule.loss
    calls = iter(range(1000))

    def spoiled(self: ClassificationModule, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        loss = computed(self, output, target)
        # The preflight takes two calls.
        return loss * float("nan") if next(calls) == 2 + 37 else loss

    monkeypatch.setattr(ClassificationModule, "loss", spoiled)
    with pytest.raises(NonFiniteLossError, match=r"at step 37 \(epoch 0\)"):
        train()


def test_an_exception_is_a_failed_run(train: Train, run_folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the net fell over")

    monkeypatch.setattr("src.modules.classification.ClassificationModule.on_train_epoch_end", broken)
    with pytest.raises(RuntimeError, match="fell over"):
        train()
    (folder,) = run_folders()
    report = status(folder)
    assert (report["state"], report["exit_code"]) == ("failed", 1)
    assert report["reason"] == "RuntimeError: the net fell over"


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_in_order(signum: int, code: int, run_folders: Folders) -> None:
    process = start("trainer.max_epochs=-1", "early_stopping.patience=null", "logger=wandb")
    wait_for(lambda: rows_of(run_folders()) > 3, process)
    process.send_signal(signum)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    (folder,) = run_folders()
    report = status(folder)
    assert (report["state"], report["exit_code"]) == ("interrupted", code)
    assert report["reason"] == f"stopped by {signal.Signals(signum).name}"
    assert "Traceback" not in output
    saved = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    progress = saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]
    assert progress["ready"] == progress["completed"] == saved["global_step"]
    rows = metric_rows(folder)
    assert rows[-1]["step"] < saved["global_step"] <= rows[-1]["step"] + 50  # every logged step is in the checkpoint


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to see when the handler is there")
def test_a_signal_during_the_imports_leaves_no_run(run_folders: Folders) -> None:
    process = start()
    wait_for(lambda: catches(process.pid, signal.SIGTERM), process)
    time.sleep(0.5)  # torch takes seconds
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert run_folders() == []


def test_no_secret_reaches_the_run_folder(command: Command, run_folders: Folders) -> None:
    secrets = {"WANDB_API_KEY": "b" * 40, "AWS_SECRET_ACCESS_KEY": "s3cr3t-of-aws", "MY_TOKEN": "t0ken-of-mine"}
    done = command("src.train", "logger.mode=offline", "trainer.max_epochs=1", "trainer=cpu", **secrets)
    assert done.returncode == 0, done.stderr
    (folder,) = run_folders()
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        content = path.read_bytes()
        assert not [value for value in secrets.values() if value.encode() in content], path


def test_two_processes_make_one_run_with_the_same_numbers(command: Command, train: Train, run_folders: Folders) -> None:
    done = command("src.train", "trainer=ddp_sim", "trainer.max_epochs=2", "logger.mode=offline")
    assert done.returncode == 0, done.stderr
    (folder,) = run_folders()
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 1
    assert done.stdout.count("run folder: ") == 1
    alone = train("trainer.max_epochs=2")
    for name, value in status(folder)["metrics"].items():
        assert value == pytest.approx(alone[name], abs=1e-5), name


def test_torchrun_makes_one_run(command: Command, run_folders: Folders) -> None:
    arguments = ["--standalone", "--nproc-per-node=2", "-m", "src.train", "trainer=ddp_sim", "trainer.max_epochs=1"]
    done = command("torch.distributed.run", *arguments, "logger.mode=offline")
    assert done.returncode == 0, done.stderr
    (folder,) = run_folders()
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 1
    assert done.stdout.count("run folder: ") == 1
    assert status(folder)["state"] == "finished"


def test_accumulated_gradients_are_those_of_the_whole_batch(train: Train) -> None:
    common = ["trainer.max_epochs=2", "data.test_size=794", "optimizer=sgd", "optimizer.lr=0.01"]  # 3,456 = 54 x 64
    whole = train("data.batch_size=64", *common)
    accumulated = train("data.batch_size=32", "trainer.accumulate_grad_batches=2", *common)
    assert accumulated["test/loss"] == pytest.approx(whole["test/loss"], rel=1e-5)


@pytest.mark.parametrize(
    "override",
    ["trainer.precision=bf16-mixed", "trainer.precision=bf16-true", "trainer.precision=64-true", "clip"],
)
def test_precision_and_clipping(override: str, train: Train) -> None:
    override = "trainer.gradient_clip_val=0.1" if override == "clip" else override
    assert train("model=mlp", "trainer.max_epochs=2", override)["test/acc"] > 0.85


def test_deterministic(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def step(self: Any, batch: Any) -> torch.Tensor:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return self.step(batch, "train")

    monkeypatch.setattr("src.modules.base.BaseModule.training_step", step)
    try:
        train("trainer.deterministic=true", "trainer.max_epochs=1", "trainer.limit_train_batches=2")
    finally:
        torch.use_deterministic_algorithms(False)
    train("trainer.max_epochs=1", "trainer.limit_train_batches=1")
    assert seen == [True, True, False]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("monitor.metric=val/accuracy", "monitor.metric=val/accuracy: no metric of that name; did you mean val/acc?"),
        ("monitor.mode=min", "monitor.mode=min: val/acc is better when maximal; set max"),
        ("trainer.devices=3", "data.batch_size=64"),
        (
            "data.batch_size=3501",
            "data.batch_size=3501, the batch over all processes, is larger than the training part",
        ),
        ("trainer.strategy=teleport", "trainer: You selected an invalid strategy name: `strategy='teleport'`"),
        ("optimizer=sgd optimizer.momentum=0", "optimizer or scheduler: Nesterov momentum requires a momentum"),
        ("scheduler=cosine trainer.max_epochs=-1", "CosineAnnealingLR needs to know the run's end"),
        ("logger=wandb logger.mode=online", "logger.mode=online"),
        ("scheduler=plateau scheduler.warmup_epochs=1", "a plateau schedule has no warm-up"),
        ("scheduler=plateau scheduler.interval=step", "scheduler.interval=epoch"),
        (
            "scheduler=plateau trainer.check_val_every_n_epoch=null trainer.val_check_interval=55",
            "trainer.val_check_interval=55: a plateau schedule needs val/acc after every epoch",
        ),
        ("trainer.val_check_interval=55", "trainer.val_check_interval=55: an epoch has 54 batches"),
        ("trainer.max_steps=53", "would end after 53 batches, and its first validation comes after 54"),
        ("trainer.check_val_every_n_epoch=31", "end after 1620 batches, and its first validation comes after 1674"),
        ("trainer.limit_train_batches=0.001", "trainer.limit_train_batches=0.001: leaves none of 54 batches"),
        ("debug=find_lr callbacks.find_lr.num_steps=0", "callbacks.find_lr.num_steps=0: must be at least 1"),
        ("trainer.enable_checkpointing=false", "trainer.enable_checkpointing=false: comes from the program"),
        ("trainer=gpu trainer.devices='97,98'", "trainer.devices=97,98: this machine has"),
        ("trainer.sync_batchnorm=true", "PyTorch's synchronised batch norm runs on CUDA GPUs only"),
        ("trainer.precision=bf16-mixed trainer.gradient_clip_val=1.0", "needs optimizer.fused=false"),
        ("trainer.check_val_every_n_epoch=0", "trainer.check_val_every_n_epoch=0: must be at least 1"),
        ("trainer.val_check_interval=0.0", "trainer.val_check_interval=0.0: must be above 0"),
        (
            "trainer.limit_test_batches=0.01",
            "trainer.limit_test_batches=0.01: leaves none of the batches of the part test",
        ),
        ("scheduler=step scheduler.step_size=0", "must be at least 1, not 0"),
        ("optimizer.betas=[0.9]", "optimizer or scheduler: list index out of range"),
        ("callbacks=ema callbacks.ema.decay=2", "callbacks.ema: Invalid decay value 2"),
        ("callbacks=ema trainer=ddp_sim trainer.strategy=fsdp", "callbacks.ema: trainer.strategy=fsdp splits"),
    ],
)
def test_refused_before_a_run_folder_exists(override: str, message: str, train: Train, run_folders: Folders) -> None:
    from src.config import ConfigError

    with pytest.raises(ConfigError) as caught:
        train(*override.split())
    assert message in str(caught.value)
    assert run_folders() == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has GPUs to give")
def test_more_gpus_than_there_are(train: Train, run_folders: Folders) -> None:
    from src.config import ConfigError

    with pytest.raises(ConfigError) as caught:
        train("trainer=gpu", "trainer.devices=2")
    assert str(caught.value) == (
        "trainer.devices=2: this machine has 0 GPUs that torch can use; trainer=cpu runs without one"
    )
    assert run_folders() == []


def test_a_plateau_schedule_waits_for_the_next_validation(train: Train, run_folders: Folders) -> None:
    """At this rate no score is better than the first: the second validation, after epoch 4, lowers the rate."""
    schedule = ["scheduler=plateau", "scheduler.patience=0", "scheduler.eps=0", "trainer.check_val_every_n_epoch=2"]
    train(*schedule, "optimizer.lr=1e-9", "trainer.max_epochs=6", "trainer.limit_train_batches=2", "test=false")
    rows = [json.loads(line) for line in (run_folders()[0] / "metrics.jsonl").read_text().splitlines()]
    rates = [row["train/lr"] for row in rows if "train/lr" in row]
    assert rates == pytest.approx([1e-9] * 4 + [1e-10] * 2)


def test_a_training_metric_is_looked_at_after_each_epoch(train: Train, run_folders: Folders) -> None:
    """Not at the validation in the middle of one, when there is none yet."""
    monitor = ["monitor.metric=train/loss", "monitor.mode=min", "trainer.val_check_interval=0.5"]
    train(*monitor, "trainer.max_epochs=2", "trainer.limit_train_batches=4")
    (folder,) = run_folders()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert status(folder)["best"]["value"] == min(row["train/loss"] for row in rows if "train/loss" in row)


def test_a_run_that_ends_before_it_is_measured_says_so(train: Train, run_folders: Folders) -> None:
    from src.config import ConfigError

    with pytest.raises(ConfigError, match=r"monitor\.metric=val/acc: the training ended before it was measured"):
        train("trainer.max_time=00:00:00:00")
    assert status(run_folders()[0])["exit_code"] == 2


def test_problems_of_both_kinds_are_listed_together(train: Train) -> None:
    from src.config import ConfigError

    with pytest.raises(ConfigError) as caught:
        train("monitor.metric=val/accuracy", "trainer.strategy=teleport", "data.batch_size=100000")
    assert len(caught.value.problems) == 3


def test_a_mistake_is_one_line_and_exit_code_2(command: Command, run_folders: Folders) -> None:
    done = command("src.train", "monitor.metric=val/accuracy")
    assert done.returncode == 2
    assert done.stderr == "error: monitor.metric=val/accuracy: no metric of that name; did you mean val/acc?\n"
    assert done.stdout == ""
    assert run_folders() == []


def test_paths_may_hold_anything(train: Train, tmp_path: Path) -> None:
    from tests.fakes import write_mnist

    odd = tmp_path / "ünï cödé = (a, b) [c] {d} 'e' #f"
    write_mnist(odd / "data", train=300, test=50)
    arguments = ["data=mnist", "data.val_size=50", "trainer.max_epochs=1", "data.batch_size=50"]
    train(f"data.root={odd / 'data'}", f"runs_dir={odd / 'runs'}", *arguments)
    (folder,) = (odd / "runs").glob("*/*")
    assert status(folder)["state"] == "finished"
    assert (folder / "checkpoints/best.ckpt").is_file()


def test_compiled_and_plain_checkpoints_have_the_same_keys(train: Train, run_folders: Folders) -> None:
    arguments = ["model=mlp", "trainer.max_epochs=1", "trainer.limit_train_batches=5"]
    train(*arguments)
    train(*arguments, "compile.backend=eager")
    plain, compiled = run_folders()
    assert weights(plain).keys() == weights(compiled).keys()
    assert not [key for key in weights(compiled) if "_orig_mod" in key]


def test_stages_can_be_left_out(train: Train, run_folders: Folders) -> None:
    metrics = train("test=false", "trainer.max_epochs=1")
    assert "val/acc" in metrics
    assert "test/acc" not in metrics
    assert "test/acc" in train("train=false")
    assert status(run_folders()[1])["metrics"].keys() == {"test/loss", "test/acc", "test/f1", "test/ece"}


def test_lightning_debug_runs_work(train: Train) -> None:
    assert "test/acc" in train("trainer.fast_dev_run=true")


def start(*overrides: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "src.train", *QUICK, *overrides],
        cwd=ROOT,
        env=dict(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def catches(pid: int, signum: int) -> bool:
    """Whether the process has a handler for the signal."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(line.split()[1], 16) >> (signum - 1) & 1)


def rows_of(folders: list[Path]) -> int:
    path = folders[0] / "metrics.jsonl" if folders else None
    return len(path.read_text().splitlines()) if path and path.exists() else 0


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_one_of_several_targets_can_be_followed(train: Train, run_folders: Folders, tmp_path: Path) -> None:
    from src.config import ConfigError
    from tests.fake_crystals import crystals, write_cgcnn_folder

    rows = [f"c{number},{number % 3},{number % 5}" for number in range(24)]
    root = write_cgcnn_folder(tmp_path / "set", crystals(24), rows)
    words = ["experiment=null", "data=crystals", f"data.root={root}", "data.batch_size=4", "data.split=random"]
    words += ["model=cgcnn", "trainer.max_epochs=2", "monitor.mode=min", "data.val_size=0.2", "data.test_size=0.2"]
    with pytest.raises(ConfigError, match=r"val/mae_target_3: no metric of that name; did you mean val/mae_target"):
        train(*words, "monitor.metric=val/mae_target_3")
    train(*words, "monitor.metric=val/mae_target_2")
    (folder,) = run_folders()
    scores = [row["val/mae_target_2"] for row in metric_rows(folder) if "val/mae_target_2" in row]
    assert status(folder)["best"]["value"] == pytest.approx(min(scores)) and len(scores) == 2
