"""Checkpoints that are damaged, foreign or hostile; and a save that is interrupted."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from src.config import ConfigError
from src.data.mnist import MNISTSubsetDataModule
from src.engine.checkpoint import AtomicCheckpointIO, is_committed, read_checkpoint, restore_module
from src.evaluate import main as evaluate
from src.tracking.progress import results_table
from tests.conftest import Train, refusal_of, status
from tests.fakes import Hostile


@pytest.fixture
def trained(train: Train, run_folders: Callable[[], list[Path]]) -> Path:
    train("trainer.max_epochs=1", "trainer.limit_train_batches=5", "model=mlp")
    (folder,) = run_folders()
    return folder


def refusal(path: Path) -> str:
    return refusal_of(evaluate, [f"ckpt={path}"])


def test_the_path_alone_gives_the_metrics_of_training(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "else where"
    trained.rename(moved)
    metrics = evaluate([f"ckpt={moved}"])
    assert metrics == pytest.approx(status(moved)["metrics"], abs=1e-6)
    assert metrics.keys() == status(moved)["metrics"].keys()
    assert results_table(status(moved)["metrics"]) in capsys.readouterr().out  # as training has printed it
    written = json.loads((moved / "evaluate-test.json").read_text(encoding="utf-8"))
    assert written == {"checkpoint": str(moved / "checkpoints/best.ckpt"), "metrics": metrics}
    assert evaluate([f"ckpt={moved}", "data.batch_size=100"]) == pytest.approx(metrics, abs=1e-6)
    assert evaluate([f"ckpt={moved}", "data.split_seed=1"])["test/loss"] != pytest.approx(
        metrics["test/loss"], abs=1e-6
    )
    lone = tmp_path / "lone.ckpt"
    (moved / "checkpoints/best.ckpt").rename(lone)
    output = tmp_path / "out.json"
    assert evaluate([f"ckpt={lone}", f"output={output}"]) == pytest.approx(status(moved)["metrics"], abs=1e-6)
    assert output.is_file()


def test_a_checkpoint_holds_plain_values_only(trained: Path) -> None:
    checkpoint = torch.load(trained / "checkpoints/best.ckpt", weights_only=True)
    assert checkpoint["config"]["model"]["net"]["_target_"] == "src.nets.linear.MLP"

    def types(value: Any) -> set[type]:
        if isinstance(value, dict):
            return set().union(*map(types, value.keys()), *map(types, value.values()), {dict})
        if isinstance(value, (list, tuple)):
            return set().union(*map(types, value), {list})
        return {type(value)}

    assert types(dict(checkpoint["hyper_parameters"])) <= {dict, list, str, int, float, bool, type(None)}
    assert types(checkpoint["config"]) <= {dict, list, str, int, float, bool, type(None)}


def test_missing_and_folders(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.ckpt") == f"{tmp_path / 'none.ckpt'}: there is no such file"
    assert refusal(tmp_path) == f"ckpt={tmp_path}: {tmp_path} holds no checkpoints/best.ckpt"
    with pytest.raises(ConfigError, match="ckpt=last: there is no run in"):
        evaluate(["ckpt=last"])


def test_truncated(trained: Path, tmp_path: Path) -> None:
    whole = (trained / "checkpoints/best.ckpt").read_bytes()
    for keep in (0, 10, len(whole) // 2, len(whole) - 30):
        path = tmp_path / f"{keep}.ckpt"
        path.write_bytes(whole[:keep])
        assert refusal(path).startswith(f"{path}: damaged, or not a checkpoint (")


@pytest.mark.parametrize("content", [b"not a checkpoint", b"\x80\x04N.", bytes(range(256)) * 40])
def test_not_a_checkpoint(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    assert str(path) in refusal(path)


def test_a_torch_file_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    torch.save({"weights": torch.zeros(3)}, path)
    assert refusal(path) == f"{path}: a torch file, but not a checkpoint of this project (no config inside)"


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_hostile_pickle_runs_nothing(writer: str, tmp_path: Path) -> None:
    path, marker = tmp_path / "x.ckpt", tmp_path / "executed"
    if writer == "torch":
        torch.save({"config": Hostile(marker), "state_dict": {}, "hyper_parameters": {}}, path)
    else:
        path.write_bytes(pickle.dumps(Hostile(marker)))
    assert f"{path}: refused: it holds more than tensors and plain values" in refusal(path)
    assert not marker.exists()


@pytest.mark.parametrize("section", ["model", "model.net", "optimizer", "data", "callbacks.evil"])
@pytest.mark.parametrize("target", ["os.system", "src.train.os.system", "torch.nn.functional.torch.os.system"])
def test_a_hostile_target_is_not_called(section: str, target: str, trained: Path, tmp_path: Path) -> None:
    path, marker = tmp_path / "x.ckpt", tmp_path / "executed"
    checkpoint = torch.load(trained / "checkpoints/best.ckpt", weights_only=True)
    node = checkpoint["config"]
    for key in section.split("."):
        node = node.setdefault(key, {})
    node.clear()
    node.update({"_target_": target, "command": f"touch '{marker}'"})
    torch.save(checkpoint, path)
    words = "is not an allowed target" if target == "os.system" else "names no class"
    assert f"{section}._target_: {target} {words}" in refusal(path)
    if section.startswith("model"):
        with pytest.raises(ConfigError, match=r"not an allowed target|names no"):
            restore_module(checkpoint, path)
    assert not marker.exists()


def test_weights_of_another_net_are_refused(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    checkpoint = torch.load(trained / "checkpoints/best.ckpt", weights_only=True)
    checkpoint["config"]["model"]["net"]["hidden_sizes"] = [8]
    torch.save(checkpoint, path)
    assert "written by another version of src.modules.classification.ClassificationModule" in refusal(path)


def test_another_data_set_is_refused_with_both_lists(trained: Path, tmp_path: Path) -> None:
    from tests.fakes import write_mnist

    write_mnist(tmp_path / "data", "FashionMNIST", train=300, test=50)
    with pytest.raises(ConfigError) as caught:
        evaluate([f"ckpt={trained}", "data=fashion_mnist", f"data.root={tmp_path / 'data'}", "data.val_size=50"])
    assert "the model was trained on mnist_subset, this is fashion_mnist" in str(caught.value)
    assert "['0', '1', '2'" in str(caught.value)
    assert "'Ankle boot'" in str(caught.value)


def test_long_lists_of_classes_begin_where_they_differ() -> None:
    datamodule = MNISTSubsetDataModule(batch_size=8, val_size=10, test_size=10, split_seed=0, seed=0)
    names = [f"n{number}" for number in range(1000)]
    datamodule.facts = {"class_names": [*names[:600], "cat", *names[601:]]}
    with pytest.raises(ConfigError) as caught:
        datamodule.adopt({"name": "imagenet", "class_names": names})
    rest = "'n601', 'n602', 'n603', 'n604', 'n605', 'n606', 'n607', 'n608', 'n609'] (of 1,000, from number 601 on)"
    assert str(caught.value) == (
        "data: the model was trained on imagenet, this is mnist_subset\n"
        f"    class_names of the model: ['n600', {rest}\n    class_names of the data: ['cat', {rest}"
    )
    with pytest.raises(ConfigError, match=r"of the model: \['n980', .*'n989'\] \(of 990, from number 981 on\)"):
        datamodule.adopt({"name": "imagenet", "class_names": datamodule.facts["class_names"][:990]})
    with pytest.raises(
        ConfigError, match=r"was trained on alloys, this is mnist_subset\n    class_names of the model: None"
    ):
        datamodule.adopt({"name": "alloys"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["output=src"], "output=src: is a folder or a device, not a file"),
        ([], "ckpt=last|RUN_DIR|FILE: say which checkpoint to evaluate"),
        (["split=train"], "split=train: there is no such split; did you mean"),
        (["optimizer=sgd"], "optimizer=sgd: the stored run keeps its optimizer"),
        (["data.batchsize=3"], "did you mean data.batch_size?"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, trained: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        evaluate([f"ckpt={trained}", *arguments] if arguments else [])
    assert message.replace("did you mean", "") in str(caught.value).replace("did you mean", "")


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.ckpt"
    io = AtomicCheckpointIO()
    io.save_checkpoint({"a": torch.ones(3)}, path)
    before = path.read_bytes()
    assert is_committed(path)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        io.save_checkpoint({"a": torch.zeros(3)}, path)
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.is_file()) == ["x.ckpt", "x.ckpt.sha256"]


def test_one_flipped_byte_is_noticed(trained: Path) -> None:
    path = trained / "checkpoints/best.ckpt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert not is_committed(path)
    assert refusal(path) == f"{path}: damaged: it is not what was saved (the checksum beside it differs)"


@pytest.mark.parametrize(
    ("overrides", "kept"),
    [
        ([], [54, 108]),
        (["checkpoint.every_n_steps=10"], [100, 108]),
        (["checkpoint.every_n_steps=10", "trainer.accumulate_grad_batches=3"], [90, 108]),
        (["checkpoint.every_minutes=0.000001"], [107, 108]),
    ],
)
def test_resume_points(
    overrides: list[str], kept: list[int], train: Train, run_folders: Callable[[], list[Path]]
) -> None:
    train("trainer.max_epochs=2", *overrides)  # 54 batches each
    folder = run_folders()[0] / "checkpoints"
    assert [int(path.stem.removeprefix("step-")) for path in sorted(folder.glob("step-*.ckpt"))] == kept
    assert all(is_committed(path) for path in folder.glob("*.ckpt"))
    assert (folder / "last.ckpt").samefile(folder / f"step-{kept[-1]:09d}.ckpt")
    loops = torch.load(folder / f"step-{kept[0]:09d}.ckpt", weights_only=True)["loops"]["fit_loop"]
    total = loops["epoch_loop.batch_progress"]["total"]
    assert total["ready"] == total["started"] == total["processed"] == total["completed"] == kept[0]


def test_read_is_by_content_not_by_name(trained: Path) -> None:
    renamed = trained / "model.bin"
    (trained / "checkpoints/best.ckpt").rename(renamed)
    assert restore_module(read_checkpoint(renamed), renamed).training is False
