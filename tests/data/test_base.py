"""What every data set shares: batches, normalisation, loaders, and how they get on with Lightning."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from src.config import ConfigError
from src.data.base import Batch
from src.data.images import TensorSplit
from src.data.mnist import MNISTDataModule
from src.data.sampler import TrainSampler
from src.data.transforms import Normalize, channel_statistics
from tests.fakes import write_idx, write_mnist

pytestmark = pytest.mark.usefixtures("few_warnings")
CPU = torch.device("cpu")


@pytest.fixture
def datamodule(tmp_path: Path) -> MNISTDataModule:
    write_mnist(tmp_path, train=100, test=25)
    datamodule = MNISTDataModule(str(tmp_path), batch_size=12, val_size=30, split_seed=0, seed=3)
    datamodule.setup()
    return datamodule


def on_device(datamodule: MNISTDataModule, batch: Batch) -> Batch:
    return datamodule.on_after_batch_transfer(datamodule.transfer_batch_to_device(batch, CPU, 0), 0)


# --- batches


def test_a_split_gathers_a_whole_batch() -> None:
    split = TensorSplit(torch.arange(24, dtype=torch.uint8).view(6, 1, 2, 2), torch.arange(6) * 10)
    batch = split[torch.tensor([4, 0, 4])]
    assert len(batch) == 3
    assert batch.x.tolist() == [[[[16, 17], [18, 19]]], [[[0, 1], [2, 3]]], [[[16, 17], [18, 19]]]]
    assert batch.y.tolist() == [40, 0, 40]
    assert batch.index.tolist() == [4, 0, 4]


def test_a_split_gathers_an_empty_batch() -> None:
    batch = TensorSplit(torch.zeros(6, 1, 2, 2, dtype=torch.uint8), torch.zeros(6, dtype=torch.int64))[torch.arange(0)]
    assert len(batch) == 0
    assert batch.x.shape == (0, 1, 2, 2)


def test_a_batch_moves_as_a_whole() -> None:
    batch = Batch(torch.zeros(2, 3), torch.zeros(2), torch.arange(2))
    assert batch.to(CPU) is batch
    moved = batch.to(torch.device("meta"), non_blocking=True)
    assert {tensor.device.type for tensor in (moved.x, moved.y, moved.index)} == {"meta"}


# --- normalisation


def test_statistics_are_exact() -> None:
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (50, 3, 9, 8), dtype=np.uint8))
    mean, std = channel_statistics(x)
    scaled = x.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std((0, 2, 3)), rtol=1e-12)


def test_normalisation_is_the_formula_and_leaves_its_input_alone() -> None:
    x = torch.arange(256, dtype=torch.uint8).repeat(2, 3, 1).view(2, 3, 16, 16)
    before = x.clone()
    mean, std = [0.1, 0.5, 0.9], [0.3, 0.2, 0.1]
    expected = (x.double() / 255 - torch.tensor(mean).double().view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1).double()
    actual = Normalize(mean, std)(x)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(x, before)
    already_float = before.float()
    Normalize(mean, std)(already_float)
    assert torch.equal(already_float, before.float())


def test_the_training_part_has_mean_0_and_deviation_1(datamodule: MNISTDataModule) -> None:
    split = datamodule.splits["train"]
    batch = on_device(datamodule, split[torch.arange(len(split))])
    assert batch.x.double().mean().item() == pytest.approx(0, abs=1e-6)
    assert batch.x.double().std(correction=0).item() == pytest.approx(1, abs=1e-6)


def test_constant_images_are_refused_rather_than_divided_by_zero(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path, train=40)
    write_idx(folder / "train-images-idx3-ubyte", np.full((40, 28, 28), 7, np.uint8))
    with pytest.raises(ConfigError, match="mnist: in the training part all pixels of channel 0 are equal"):
        MNISTDataModule(str(tmp_path), batch_size=12, val_size=10, split_seed=0, seed=3).setup()


# --- loaders


def test_evaluation_batches_are_in_order_unpadded_and_equal_each_time(datamodule: MNISTDataModule) -> None:
    for loader, count in ((datamodule.val_dataloader(), 30), (datamodule.test_dataloader(), 25)):
        first, second = ([on_device(datamodule, batch) for batch in loader] for _ in range(2))
        assert torch.cat([batch.index for batch in first]).tolist() == list(range(count))
        for one, other in zip(first, second, strict=True):
            assert torch.equal(one.x, other.x)
            assert torch.equal(one.y, other.y)


def test_setup_loads_once(datamodule: MNISTDataModule) -> None:
    splits, facts = datamodule.splits, datamodule.facts
    datamodule.setup("fit")
    datamodule.setup("test")
    assert datamodule.splits is splits
    assert datamodule.facts is facts


def test_facts_are_plain_values(datamodule: MNISTDataModule) -> None:
    def walk(value: Any) -> Iterator[Any]:
        children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        yield value
        for child in children:
            yield from walk(child)

    assert {type(value) for value in walk(datamodule.facts)} == {dict, list, str, int, float}


def test_each_process_gets_its_share(datamodule: MNISTDataModule) -> None:
    alone = [batch.index.tolist() for batch in datamodule.train_dataloader()]
    shares, evaluated = [], []
    for rank in range(3):
        progress = SimpleNamespace(current=SimpleNamespace(processed=0))
        loop = SimpleNamespace(restarting=False, epoch_progress=progress)
        datamodule.trainer = SimpleNamespace(  # type: ignore[assignment]
            global_rank=rank,
            world_size=3,
            fit_loop=loop,
            strategy=SimpleNamespace(root_device=CPU),
        )
        shares.append([batch.index.tolist() for batch in datamodule.train_dataloader()])
        evaluated.append([len(batch) for batch in datamodule.val_dataloader()])
    assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == alone
    assert evaluated == [[4, 4, 4], [4, 4, 2], [4, 4, 0]]
    assert datamodule.batches_per_epoch(1) == datamodule.batches_per_epoch(3) == len(alone) == 5


# --- under Lightning


class SaveAt(Callback):
    """Saves a checkpoint at one place of epoch 1."""

    def __init__(self, path: Path, hook: str, batch_idx: int = -1) -> None:
        def save(trainer: Trainer, module: LightningModule, *args: Any) -> None:
            if trainer.current_epoch == 1 and batch_idx in (-1, *args[-1:]):
                trainer.save_checkpoint(path)

        setattr(self, hook, save)


class Recorder(LightningModule):
    """A net of one weight that writes down which samples it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list[list[int]]] = {"train": [], "val": [], "test": [], "predict": []}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def record(self, split: str, batch: Batch) -> None:
        assert batch.x.dtype == torch.float32
        self.seen[split].append(batch.index.tolist())

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.record("train", batch)
        return self.weight * batch.x.mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.record("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.record("test", batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.record("predict", batch)
        return batch.y


def trainer(callbacks: Callback | None = None) -> Trainer:
    return Trainer(
        callbacks=callbacks,
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def steps_of(epoch: int) -> list[list[int]]:
    sampler = TrainSampler(70, 12, seed=3)
    sampler.set_epoch(epoch)
    return [index.tolist() for index in sampler]


@pytest.mark.parametrize(
    ("hook", "batch_idx", "remaining"),
    [
        ("on_train_batch_start", 0, 5),
        ("on_train_batch_end", 0, 4),
        ("on_train_batch_start", 3, 2),
        ("on_train_batch_end", 3, 1),
        ("on_train_batch_end", 4, 0),
        ("on_validation_end", -1, 0),
        ("on_train_epoch_end", -1, 0),
    ],
)
def test_lightning_serves_every_epoch_its_order_and_resumes_wherever_it_was_saved(
    datamodule: MNISTDataModule, tmp_path: Path, hook: str, batch_idx: int, remaining: int
) -> None:
    whole, resumed, path = Recorder(), Recorder(), tmp_path / "saved.ckpt"
    trainer(SaveAt(path, hook, batch_idx)).fit(whole, datamodule=datamodule)
    assert whole.seen["train"] == steps_of(0) + steps_of(1) + steps_of(2)
    assert whole.seen["val"] == 3 * [list(range(0, 12)), list(range(12, 24)), list(range(24, 30))]
    trainer().fit(resumed, datamodule=datamodule, ckpt_path=path, weights_only=True)
    assert resumed.seen["train"] == steps_of(1)[5 - remaining :] + steps_of(2)


def test_lightning_tests_and_predicts_on_the_test_part(datamodule: MNISTDataModule) -> None:
    module = Recorder()
    trainer().test(module, datamodule=datamodule, verbose=False)
    trainer().predict(module, datamodule=datamodule)
    assert module.seen["test"] == module.seen["predict"] == [list(range(12)), list(range(12, 24)), [24]]
