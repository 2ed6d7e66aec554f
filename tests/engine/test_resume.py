"""A run that is killed and resumed ends exactly where it would have ended."""

import json
import os
import random
import shutil
import signal
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from src.config import ConfigError
from src.engine.run import _lock, newest_point
from src.tracking.wandb import history
from tests.conftest import QUICK, Train, metric_rows, status
from tests.fakes import CIFAR, write_cifar, write_dogcat
from tests.forked import fingerprint, killed_after, run_forked

SMALL = ["data.val_size=200", "data.test_size=3800", "data.batch_size=50", "trainer.log_every_n_steps=3"]  # 20 a epoch
CASES = {
    "linear, every step": ["trainer.max_epochs=3", "checkpoint.every_n_steps=1"],
    "mlp, one-cycle, every 7 steps": [
        "model=mlp", "scheduler=one_cycle", "trainer.max_epochs=4", "checkpoint.every_n_steps=7",
    ],
    "plateau": [
        "model=mlp", "optimizer.lr=0.3", "scheduler=plateau", "scheduler.patience=0", "trainer.max_epochs=5",
        "checkpoint.every_n_steps=3",
    ],
    "so many steps, epochs only": [
        "model=mlp", "scheduler=cosine", "trainer.max_epochs=-1", "trainer.max_steps=70",
        "trainer.log_every_n_steps=1",
    ],
    "so many steps, accumulation that epochs do not divide by, plateau": [
        "optimizer.lr=3.0", "scheduler=plateau", "scheduler.patience=0", "trainer.max_epochs=-1",
        "trainer.max_steps=24", "trainer.accumulate_grad_batches=3", "trainer.log_every_n_steps=1",
        "checkpoint.every_n_steps=2",
    ],
    "by the clock": ["model=mlp", "trainer.max_epochs=3", "checkpoint.every_minutes=0.0003"],
    "moving average": [
        "model=mlp", "scheduler=cosine", "callbacks=ema", "callbacks.ema.decay=0.9", "trainer.max_epochs=3",
        "checkpoint.every_n_steps=3",
    ],
    "accumulation, several validations": [
        "model=mlp", "trainer.accumulate_grad_batches=2", "trainer.val_check_interval=0.5", "trainer.max_epochs=3",
        "checkpoint.every_n_steps=2",
    ],
    "validations that epochs do not divide": [
        "model=mlp", "trainer.val_check_interval=13", "trainer.check_val_every_n_epoch=null", "trainer.max_epochs=4",
        "checkpoint.every_n_steps=1",
    ],
    "unfreezing": [
        "model=mlp", "model.freeze=backbone", "model.unfreeze_epoch=1", "scheduler=one_cycle", "trainer.max_epochs=3",
        "checkpoint.every_n_steps=4",
    ],
    "stops early": ["optimizer.lr=1.0e-9", "early_stopping.patience=2", "trainer.max_epochs=50"],
}  # fmt: skip
ROOM = ["trainer.log_every_n_steps=3", "trainer.max_epochs=3"]
OTHER_DATA = {
    "convolutions, augmentation, mixing": [
        "experiment=cifar10_resnet20", "data.val_size=200", "data.batch_size=50", "model.mixup=0.2", *ROOM,
        "checkpoint.every_n_steps=4",
    ],
    "streamed photos, two workers": [
        "experiment=dogcat", "model.net.width=4", "data.disk_budget_mb=0", "data.num_workers=2", "data.batch_size=8",
        "data.image_size=24", "data.store_size=28", *ROOM, "checkpoint.every_n_steps=4",
    ],
    "crystals": [
        "experiment=emt_cgcnn", "data.num_structures=200", "data.batch_size=8", *ROOM, "checkpoint.every_n_steps=4",
    ],
}  # fmt: skip


def interrupted_and_whole(overrides: list[str], steps: int, kills: int, tmp_path: Path) -> tuple[Path, Path]:
    """Trains twice, once through; the folders of the run that was killed and resumed, and of the other."""
    output = tmp_path / "output"
    assert run_forked([*QUICK, *overrides, f"runs_dir={tmp_path / 'whole'}"], output) == 0, output.read_text()
    chosen = random.Random(repr(overrides))
    kill = chosen.randrange(1, steps // 2)
    code = run_forked([*QUICK, *overrides, f"runs_dir={tmp_path / 'killed'}"], output, killed_after(kill))
    assert code == -signal.SIGKILL, output.read_text()
    resume = ["resume=last", f"runs_dir={tmp_path / 'killed'}"]
    for _ in range(kills - 1):
        kill = chosen.randrange(kill + 1, min(kill + steps // 2, steps - 1))
        assert run_forked(resume, output, killed_after(kill)) == -signal.SIGKILL, output.read_text()
    assert run_forked(resume, output) == 0, output.read_text()
    (killed,), (whole,) = ((tmp_path / name).glob("*/*") for name in ("killed", "whole"))
    return killed, whole


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part, files in write_cifar(tmp_path / "data", train=1200, test=60).items():
        monkeypatch.setattr(CIFAR["cifar10"][0], part, files)
    write_dogcat(tmp_path / "data/dogcat", 240)
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))


@pytest.mark.parametrize("case", [*CASES, *OTHER_DATA])
def test_killed_and_resumed_equals_uninterrupted(case: str, data: None, tmp_path: Path) -> None:
    overrides = OTHER_DATA.get(case) or [*SMALL, *CASES[case]]
    killed, whole = interrupted_and_whole(overrides, 50, 3, tmp_path)
    assert fingerprint(killed) == fingerprint(whole)
    rows = metric_rows(killed)
    steps = [row["step"] for row in rows if "train/loss_step" in row]
    assert steps == sorted(set(steps)) and steps
    report = status(killed)
    assert (report["state"], len(report["resumes"])) == ("finished", 3)
    assert [entry["after"] for entry in report["resumes"]] == ["running"] * 3


@pytest.mark.parametrize(
    ("end", "further"),
    [
        (["trainer.max_steps=30"], ["trainer.max_steps=55"]),
        (["trainer.max_steps=40"], ["trainer.max_steps=55"]),
        (["trainer.max_steps=30", "trainer.accumulate_grad_batches=2"], ["trainer.max_steps=37"]),
    ],
)
def test_a_run_of_so_many_steps_is_extended(end: list[str], further: list[str], tmp_path: Path) -> None:
    """Where it ended inside an epoch, that epoch goes on, as if it had not ended."""
    common = [*QUICK, *SMALL, "trainer.max_epochs=-1", "scheduler=exponential", "scheduler.gamma=0.5"]
    output = tmp_path / "output"
    assert run_forked([*common, *end, *further, f"runs_dir={tmp_path / 'whole'}"], output) == 0, output.read_text()
    assert run_forked([*common, *end], output) == 0, output.read_text()
    (extended,), (whole,) = ((tmp_path / name).glob("*/*") for name in ("runs", "whole"))
    assert run_forked([f"resume={extended}", "trainer.max_steps=20"], output) == 2
    assert "error: trainer.max_steps=20: the run has done" in output.read_text()
    assert run_forked([f"resume={extended}", *further], output) == 0, output.read_text()
    assert fingerprint(extended) == fingerprint(whole)


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A run that SIGTERM stopped in its second epoch of three, with points at every tenth step."""
    overrides = [*QUICK, *SMALL, "trainer.max_epochs=3", "checkpoint.every_n_steps=10"]
    assert run_forked(overrides, tmp_path / "output", killed_after(34, signal.SIGTERM)) == 143
    (folder,) = (tmp_path / "runs").glob("*/*")
    return folder


def resumed(folder: Path, *overrides: str, expected: int = 0) -> str:
    output = folder.parents[2] / "output"
    code = run_forked([f"resume={folder}", *overrides], output)
    assert code == expected, output.read_text()
    return output.read_text()


def test_a_signal_leaves_a_point_at_its_batch(stopped: Path) -> None:
    assert newest_point(stopped / "checkpoints") == stopped / "checkpoints/step-000000034.ckpt"
    text = resumed(stopped)
    assert f"going on in {stopped} from step-000000034" in text
    assert text.splitlines()[-1] == f"run folder: {stopped}"
    assert status(stopped)["resumes"][0]["after"] == "interrupted"


def test_a_damaged_point_falls_back_to_the_one_before(stopped: Path) -> None:
    newest = stopped / "checkpoints/step-000000034.ckpt"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    text = resumed(stopped)
    assert "step-000000034.ckpt is damaged: going on from step-000000030.ckpt, the one before" in text
    assert status(stopped)["state"] == "finished"


def test_a_point_without_its_mark_is_not_trusted(stopped: Path) -> None:
    (stopped / "checkpoints/step-000000034.ckpt.sha256").unlink()
    assert newest_point(stopped / "checkpoints") == stopped / "checkpoints/step-000000030.ckpt"


def test_all_points_damaged(stopped: Path) -> None:
    for path in (stopped / "checkpoints").glob("step-*.ckpt"):
        path.write_bytes(b"")
    assert "step-000000030.ckpt, last.ckpt: all damaged" in resumed(stopped, expected=2)
    assert status(stopped)["state"] == "interrupted"  # nothing was touched


def test_the_run_folder_may_have_moved(stopped: Path) -> None:
    moved = stopped.with_name("moved")
    shutil.move(stopped, moved)
    resumed(moved)
    best = torch.load(max((moved / "checkpoints").glob("step-*.ckpt")), weights_only=True)["callbacks"]["best"]
    assert best["best_model_path"] == str(moved / "checkpoints/best.ckpt")


def test_the_best_score_is_remembered(tmp_path: Path) -> None:
    """An epoch after the resume that is worse than one before it does not become the best."""
    overrides = [*QUICK, *SMALL, "trainer.max_epochs=3", "scheduler=exponential", "scheduler.gamma=1e-9"]
    assert run_forked(overrides, tmp_path / "output", killed_after(50)) == -signal.SIGKILL
    (folder,) = (tmp_path / "runs").glob("*/*")
    before = (folder / "checkpoints/best.ckpt").read_bytes(), status(folder)["best"]
    state = torch.load(max((folder / "checkpoints").glob("step-*.ckpt")), weights_only=True)["callbacks"]["best"]
    resumed(folder)
    after = torch.load(max((folder / "checkpoints").glob("step-*.ckpt")), weights_only=True)["callbacks"]["best"]
    assert float(after["best_model_score"]) >= float(state["best_model_score"])
    assert status(folder)["best"]["value"] >= before[1]["value"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=1.0", r"optimizer.lr=1.0: this run began with 0.002 and keeps it"),
        ("seed=3", "seed=3: this run began with 0 and keeps it"),
        ("model.net=null", "model.net"),
        ("data.batch_size=10", "data.batch_size=10: this run began with 50"),
        ("trainer.accumulate_grad_batches=2", "trainer.accumulate_grad_batches=2: this run began with null"),
        ("optimizer=sgd", "optimizer=sgd: the stored run keeps its optimizer"),
        ("trainer.max_epochs=1", r"trainer.max_epochs=1: the run is in epoch 1 already \(counted from 0\)"),
        ("earlystopping.patience=3", r"did you mean early_stopping.patience\?"),
    ],
)
def test_a_change_is_refused_by_name(override: str, message: str, stopped: Path) -> None:
    from src.train import main

    before = (stopped / "status.json").read_bytes()
    with pytest.raises(ConfigError, match=message):
        main([f"resume={stopped}", override])
    assert (stopped / "status.json").read_bytes() == before


def test_changes_that_are_applied(stopped: Path) -> None:
    text = resumed(
        stopped, "trainer.max_epochs=4", "early_stopping.patience=7", "checkpoint.every_n_steps=5", "notes=longer"
    )
    assert "changed: trainer.max_epochs: 3 -> 4" in text and "changed: notes: None -> longer" in text
    assert "epoch 4/4" in text
    assert status(stopped)["resumes"][0]["changes"]["checkpoint.every_n_steps"] == [10, 5]
    assert "max_epochs: 4" in (stopped / "config.yaml").read_text()
    point = torch.load(max((stopped / "checkpoints").glob("step-*.ckpt")), weights_only=True)
    assert point["config"]["early_stopping"]["patience"] == 7
    assert next(state for name, state in point["callbacks"].items() if "Patience" in name)["patience"] == 7


def test_a_schedule_is_not_stretched(tmp_path: Path) -> None:
    overrides = [*QUICK, *SMALL, "trainer.max_epochs=3", "scheduler=cosine"]
    assert run_forked(overrides, tmp_path / "output", killed_after(34, signal.SIGTERM)) == 143
    (folder,) = (tmp_path / "runs").glob("*/*")
    text = resumed(folder, "trainer.max_epochs=9", expected=2)
    assert "CosineAnnealingLR was laid out for trainer.max_epochs=3 and cannot be stretched" in text


def test_a_finished_run_says_so_and_can_be_extended(train: Train, tmp_path: Path) -> None:
    overrides = [*QUICK, *SMALL, "early_stopping.patience=null"]
    assert run_forked([*overrides, "trainer.max_epochs=4", f"runs_dir={tmp_path / 'long'}"], tmp_path / "output") == 0
    assert run_forked([*overrides, "trainer.max_epochs=2"], tmp_path / "output") == 0
    (folder,), (long,) = (tmp_path / "runs").glob("*/*"), (tmp_path / "long").glob("*/*")
    report = (folder / "status.json").read_bytes()
    text = resumed(folder)
    assert "this run is finished already (trainer.max_epochs=2" in text and "raise what ended it" in text
    assert (folder / "status.json").read_bytes() == report
    resume = [f"resume={folder}", "trainer.max_epochs=4"]
    assert run_forked(resume, tmp_path / "output", killed_after(47)) == -signal.SIGKILL
    resumed(folder)  # the extension was not lost with the process
    assert fingerprint(folder)["state_dict"] == fingerprint(long)["state_dict"]
    assert fingerprint(folder)["optimizer_states"] == fingerprint(long)["optimizer_states"]


def test_a_test_that_was_left_out_trains_nothing(tmp_path: Path) -> None:
    output = tmp_path / "output"
    stops = ["early_stopping.patience=1", "early_stopping.min_delta=1.0", "test=false"]
    assert run_forked([*QUICK, *SMALL, *stops], output) == 0, output.read_text()
    (folder,) = (tmp_path / "runs").glob("*/*")
    before = status(folder)["best"]
    text = resumed(folder, "test=true")
    assert "test/acc" in text and "epoch " not in text
    assert status(folder)["best"] == before


def test_a_kill_while_a_run_is_taken_up_leaves_it_as_it_was(stopped: Path) -> None:
    def killed_at_once() -> None:
        from src.engine import run

        run.describe_environment = lambda command: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment, return-value]

    code = run_forked([f"resume={stopped}", "notes=other"], stopped.parents[2] / "output", killed_at_once)
    assert code == -signal.SIGKILL
    assert "changed: notes: None -> other" in resumed(stopped, "notes=other")


def test_a_run_killed_in_its_test_only_tests_again(tmp_path: Path) -> None:
    def killed_in_test() -> None:
        from src.modules.base import BaseModule

        BaseModule.on_test_epoch_end = lambda self: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]

    overrides = [*QUICK, *SMALL, "trainer.max_epochs=2"]
    assert run_forked(overrides, tmp_path / "output", killed_in_test) == -signal.SIGKILL
    (folder,) = (tmp_path / "runs").glob("*/*")
    text = resumed(folder)
    assert "epoch 2/2" not in text and "test/acc" in text
    assert status(folder)["state"] == "finished"


def test_a_run_that_is_going_on_is_not_resumed(stopped: Path) -> None:
    lock = _lock(stopped)
    try:
        assert "this run is still going on (process" in resumed(stopped, expected=2)
    finally:
        lock.release()
    resumed(stopped)


def test_other_data_is_noticed(stopped: Path) -> None:
    facts = json.loads((stopped / "facts.json").read_text())
    facts["fingerprint"] = "of other digits"
    (stopped / "facts.json").write_text(json.dumps(facts))
    assert "the data is not what the run began with: fingerprint differ" in resumed(stopped, expected=2)


def test_killed_before_it_wrote_down_its_data(stopped: Path) -> None:
    (stopped / "facts.json").unlink()
    resumed(stopped)
    assert json.loads((stopped / "facts.json").read_text())["name"] == "mnist_subset"


@pytest.mark.parametrize(("name", "content"), [("status.json", "{"), ("status.json", "[]"), ("config.yaml", "- a")])
def test_damaged_records_are_named(name: str, content: str, stopped: Path) -> None:
    (stopped / name).write_text(content)
    assert f"error: resume={stopped}: its {name} is missing or damaged" in resumed(stopped, expected=2)


def test_a_config_changed_by_hand_is_noticed(stopped: Path) -> None:
    text = (stopped / "config.yaml").read_text()
    (stopped / "config.yaml").write_text(text.replace("lr: 0.002", "lr: 0.5"))
    assert "its config.yaml was changed by hand" in resumed(stopped, expected=2)


def test_lost_rows_are_noticed(stopped: Path) -> None:
    os.truncate(stopped / "metrics.jsonl", 10)
    assert "metrics.jsonl has 10 bytes, but the checkpoint was saved after" in resumed(stopped, expected=2)


def test_last_is_a_point_too(stopped: Path) -> None:
    for path in (stopped / "checkpoints").glob("step-*"):
        path.unlink()
    assert f"going on in {stopped} from last" in resumed(stopped)


def test_a_finished_run_without_its_points_is_not_begun_again(stopped: Path) -> None:
    resumed(stopped)
    rows = (stopped / "metrics.jsonl").read_bytes()
    for path in [*(stopped / "checkpoints").glob("step-*"), *(stopped / "checkpoints").glob("last*")]:
        path.unlink()
    assert "its checkpoints to go on from are gone" in resumed(stopped, "trainer.max_epochs=9", expected=2)
    assert (stopped / "metrics.jsonl").read_bytes() == rows


def test_of_two_resumes_one_goes_on(stopped: Path) -> None:
    from src.config import compose_run
    from src.engine.run import claim

    composed = compose_run([f"resume={stopped}"])  # what the second has read before the first goes on
    resumed(stopped)
    with pytest.raises(ConfigError, match="another process has gone on with this run meanwhile"):
        claim(composed)


def test_a_save_that_is_killed_leaves_the_point_before(tmp_path: Path) -> None:
    def killed_in_save() -> None:
        from src.engine import checkpoint

        save = torch.save

        def half(value: dict[str, object], file: BinaryIO) -> None:
            save(value, file)
            if value.get("global_step") == 30:
                file.truncate(file.tell() // 2)
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)

        checkpoint.torch.save = half  # type: ignore[assignment]

    overrides = [*QUICK, *SMALL, "trainer.max_epochs=3", "checkpoint.every_n_steps=10"]
    assert run_forked(overrides, tmp_path / "output", killed_in_save) == -signal.SIGKILL
    (folder,) = (tmp_path / "runs").glob("*/*")
    assert newest_point(folder / "checkpoints") == folder / "checkpoints/step-000000020.ckpt"
    resumed(folder)
    assert status(folder)["state"] == "finished" and not list((folder / "checkpoints").glob(".*"))


@pytest.mark.parametrize(
    ("overrides", "signalled", "saved"),
    [  # after a validation, and between two optimizer steps, no point can be saved
        (["trainer.accumulate_grad_batches=2", "trainer.val_check_interval=4"], 7, 10),
        (["trainer.val_check_interval=13", "trainer.check_val_every_n_epoch=null"], 26, 27),
    ],
)
def test_a_signal_waits_for_a_batch_that_can_save(
    overrides: list[str], signalled: int, saved: int, tmp_path: Path
) -> None:
    run = [*QUICK, *SMALL, *overrides]
    assert run_forked(run, tmp_path / "output", killed_after(signalled, signal.SIGTERM)) == 143
    (folder,) = (tmp_path / "runs").glob("*/*")
    assert newest_point(folder / "checkpoints") == folder / f"checkpoints/step-{saved:09d}.ckpt"


def test_no_folder_and_no_run(tmp_path: Path) -> None:
    from src.train import main

    with pytest.raises(ConfigError, match=r"resume=last: there is no run in .*/runs"):
        main(["resume=last"])
    with pytest.raises(ConfigError, match=r"resume=.*: is no run folder: its config.yaml cannot be read"):
        main([f"resume={tmp_path}"])
    (tmp_path / "a.ckpt").touch()
    with pytest.raises(ConfigError, match=r"resume=.*a.ckpt: is a file; name the run folder that it lies in"):
        main([f"resume={tmp_path / 'a.ckpt'}"])
    with pytest.raises(ConfigError, match="say which run goes on"):
        main(["resume="])


def test_last_is_the_newest_of_the_experiment(tmp_path: Path) -> None:
    from src.config import find_run

    for experiment, started in (("a", "2026-01-01"), ("b", "2026-01-03"), ("a", "2026-01-02")):
        folder = tmp_path / "runs" / experiment / f"run-{started}"
        folder.mkdir(parents=True)
        (folder / "config.yaml").touch()
        (folder / "status.json").write_text(json.dumps({"started": started}))
    assert find_run("resume", "last").name == "run-2026-01-03"
    assert find_run("resume", "last", experiment="a").name == "run-2026-01-02"


def test_wandb_gets_each_step_once(tmp_path: Path) -> None:
    overrides = ["trainer=cpu", "logger.mode=offline", *SMALL, "trainer.max_epochs=3", "checkpoint.every_n_steps=7"]
    for name, kills in (("whole", []), ("killed", [26, 45])):
        runs = f"runs_dir={tmp_path / name}"
        for kill in kills[:1]:
            assert run_forked([*overrides, runs], tmp_path / "output", killed_after(kill)) == -signal.SIGKILL
        for kill in kills[1:]:
            assert run_forked(["resume=last", runs], tmp_path / "output", killed_after(kill)) == -signal.SIGKILL
        last = ["resume=last", runs] if kills else [*overrides, runs]
        assert run_forked(last, tmp_path / "output") == 0, (tmp_path / "output").read_text()
    (whole,), (killed,) = ((tmp_path / name).glob("*/*") for name in ("whole", "killed"))
    segments = sorted((killed / "wandb").glob("offline-run-*"))
    assert len(segments) == 3 and len({folder.name.rpartition("-")[2] for folder in segments}) == 1
    assert status(killed)["run_id"] in segments[0].name
    expected, got = sent(whole), sent(killed)
    assert [step for step, _ in got] == sorted({step for step, _ in got})  # each once, in order
    assert dict(got) == dict(expected) and got


def sent(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """What W&B was given in all parts of a run, in order: the step, and the values that equal runs have in common."""
    other = ("_", "perf/", "trainer/", "plots/", "results/")
    rows: list[tuple[int, dict[str, float]]] = []
    for part in sorted((folder / "wandb").glob("offline-run-*")):
        for item in history(part):
            values = {k: v for k, v in item.items() if not k.startswith(other)}
            if rows and rows[-1][0] == item["trainer/global_step"]:
                rows[-1][1].update(values)
            elif values:
                rows.append((item["trainer/global_step"], values))
    return rows
