"""``debug=...``: what each choice is for."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from src.config import ConfigError
from src.data.sampler import TrainSampler
from src.engine.tuning import FindBatchSize
from src.evaluate import main as evaluate
from tests.conftest import Folders, Train, status


def test_fast_runs_one_batch_of_every_stage(train: Train, run_folders: Folders) -> None:
    assert "test/acc" in train("debug=fast")
    (folder,) = run_folders()
    assert status(folder)["state"] == "finished"
    assert not (folder / "metrics.jsonl").exists()


def test_limit_does_all_that_a_run_does(train: Train, run_folders: Folders) -> None:
    train("debug=limit", "pictures=true")
    (folder,) = run_folders()
    assert (folder / "checkpoints/best.ckpt").is_file()
    assert (folder / "plots/confusion_matrix.png").is_file()
    assert status(folder)["epoch"] == 1


def test_what_a_run_was_limited_to_does_not_limit_an_evaluation(train: Train, run_folders: Folders) -> None:
    train("debug=limit")
    (folder,) = run_folders()
    best = folder / "checkpoints/best.ckpt"
    limited = status(folder)["metrics"]
    whole = evaluate([f"ckpt={best}"])
    assert whole["test/acc"] != limited["test/acc"]
    assert whole == evaluate([f"ckpt={best}", "trainer.limit_test_batches=1.0"])
    assert evaluate([f"ckpt={best}", "trainer.limit_test_batches=5"])["test/acc"] == limited["test/acc"]


def test_overfit_learns_one_batch_by_heart(train: Train) -> None:
    metrics = train("debug=overfit")
    assert metrics["train/acc"] == 1
    assert metrics["train/loss"] < 0.01
    assert (64 * metrics["val/acc"]).is_integer()  # one batch of it as well


def test_the_batches_of_the_first_epoch_come_again() -> None:
    sampler = TrainSampler(10, 4, seed=1, repeats=True)
    epochs = []
    for epoch in (0, 1, 5):
        sampler.set_epoch(epoch)
        epochs.append(torch.stack(list(sampler)))
    assert torch.equal(epochs[0], epochs[1])
    assert torch.equal(epochs[0], epochs[2])
    assert torch.equal(epochs[0], torch.stack(list(TrainSampler(10, 4, seed=1))))


@pytest.mark.parametrize(("profiler", "what"), [("simple", "run_training_batch"), ("pytorch", "aten::")])
def test_profile_lies_in_the_run_folder(profiler: str, what: str, train: Train, run_folders: Folders) -> None:
    train("debug=profile", f"trainer.profiler={profiler}", "trainer.limit_train_batches=8")
    (folder,) = run_folders()
    assert what in (folder / f"profile/fit-{profiler}.txt").read_text()


def test_an_unknown_profiler_is_refused(train: Train) -> None:
    with pytest.raises(ConfigError, match="profiler"):
        train("debug=profile", "trainer.profiler=simpel")


def test_anomaly_names_the_function(train: Train) -> None:
    with pytest.raises(RuntimeError, match=r"Function 'LogSoftmaxBackward0' returned nan values"):
        train("debug=anomaly", "optimizer.lr=1e38", "black_box=false")


def test_find_lr_says_where_the_loss_falls(
    train: Train, run_folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    train("debug=find_lr", "model=mlp")
    (folder,) = run_folders()
    found = re.search(
        r"^optimizer\.lr=(\S+) is where the loss falls most steeply: (\S+)$", capsys.readouterr().out, re.MULTILINE
    )
    assert found is not None
    assert 1e-4 < float(found[1]) < 1
    assert Path(found[2]) == folder / "plots/learning_rate.png"
    assert Path(found[2]).is_file()
    assert not list((folder / "checkpoints").iterdir())


def test_find_batch_size_goes_to_the_end_of_the_training_part(
    train: Train, run_folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    train("debug=find_batch_size", "model=mlp")
    (folder,) = run_folders()
    found = re.search(
        r"^data\.batch_size=(\d+) is the fastest, .* samples/s; the training part is not larger: (\S+)$",
        capsys.readouterr().out,
        re.MULTILINE,
    )
    assert found is not None
    assert int(found[1]) in [2**power for power in range(1, 12)]
    assert Path(found[2]) == folder / "plots/batch_size.png"


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Gives room for so many samples."""

    def limit(largest: int) -> None:
        def seconds(self: FindBatchSize, trainer: object, module: object, share: int) -> float:
            if share > largest:
                raise torch.OutOfMemoryError
            return 1.0

        monkeypatch.setattr(FindBatchSize, "_seconds", seconds)

    return limit


def test_find_batch_size_stops_where_memory_ends(
    train: Train, memory: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    memory(16)
    train("debug=find_batch_size")
    assert "data.batch_size=16 is the fastest, 16.00 samples/s; 32 do not fit into memory" in capsys.readouterr().out


def test_no_batch_size_fits(train: Train, memory: Callable[[int], None]) -> None:
    memory(1)
    with pytest.raises(ConfigError, match="there is no size to choose from: 2 do not fit into memory"):
        train("debug=find_batch_size")
