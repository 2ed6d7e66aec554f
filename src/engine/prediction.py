"""From a checkpoint and new samples to predictions with names: our own checkpoints, and those of the CGCNN code."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from tqdm import tqdm

from src.config import ConfigError, apply_overrides, build, compose, resolve_target
from src.data.base import DataModule, Inputs
from src.engine.checkpoint import is_checkpoint, read_checkpoint, read_plain, restore_module
from src.engine.evaluation import check_output, find_checkpoint, for_all_samples, run_of
from src.engine.plan import bare_trainer, quiet
from src.engine.preemption import global_rank
from src.engine.resume import gather
from src.modules.base import BaseModule
from src.tracking.dashboard import score_of
from src.tracking.files import replacing

PUBLISHED_NET = "src.nets.cgcnn.CGCNN"


def predict(path: Path, inputs: Path, output: Path | None, overrides: Sequence[str]) -> tuple[Path, int]:
    """Predicts every sample of `inputs` and writes a row for each, in their order, to a CSV file.

    A row has the sample's name; a value for each target, or the class and the probability of each class; and what is
    wrong with the sample if it cannot be used. That column is always there, because rows are written as batches are
    done. The file gets its name when it is complete.

    Args:
        path: A checkpoint of this project or a ``.pth.tar`` of the CGCNN code.
        inputs: What the data set of the checkpoint can read: pictures, or a folder or a file of crystals.
        output: The file to write; by default ``predictions.csv`` in the run folder, for a lone file in this one.
        overrides: Changes to the stored config; ``data`` and ``trainer`` can be replaced.

    Returns:
        The file, and how many inputs could not be used; 0 on processes but the first.

    Raises:
        ConfigError: The checkpoint or the inputs cannot be used, or the file cannot be written.
    """
    if not inputs.exists() and not any(sign in str(inputs) for sign in "*?["):
        raise ConfigError(f"inputs={inputs}: there is no such file or folder")
    output = output or (run_of(path) or Path()) / "predictions.csv"
    check_output(output)
    quiet()
    content = read_plain(path)
    checkpoint = content if is_checkpoint(content) else from_published(content, path, inputs)
    cfg = apply_overrides(for_all_samples(checkpoint), overrides, allowed_groups=("data", "trainer")).cfg
    if limits := {"fast_dev_run", "limit_predict_batches"} & cfg["trainer"].keys():
        raise ConfigError(*(f"trainer.{name}: every input gets its row; name fewer inputs" for name in limits))
    datamodule = data_of(cfg, checkpoint["hyper_parameters"]["facts"])
    samples = datamodule.read_inputs(inputs)
    datamodule.splits = {"test": samples.split}
    module = restore_module({**checkpoint, "hyper_parameters": {"facts": datamodule.facts}}, path)
    with completed(output) as file:
        writer = RowWriter(file, samples, datamodule.facts)
        trainer = bare_trainer(cfg["trainer"], [writer])
        trainer.predict(module, datamodule=datamodule, return_predictions=False)
        writer.bar.close()
        assert writer.done == len(samples.names) or not trainer.is_global_zero, "a sample was not predicted"
    if trainer.is_global_zero:
        bad = f", {writer.bad} of {len(samples.names)} inputs cannot be used" if writer.bad else ""
        print(f"written: {output} ({len(samples.names) - writer.bad} predictions{bad})", flush=True)
    return output, writer.bad if trainer.is_global_zero else 0


def data_of(cfg: Mapping[str, Any], facts: Mapping[str, Any]) -> DataModule:
    """The data module of a config without its data, which prepares inputs for the model of these facts."""
    datamodule = build(cfg["data"], DataModule, seed=cfg["seed"])
    datamodule.facts = dict(facts)
    datamodule.prepare_data = lambda: None  # type: ignore[method-assign]  # it would ask for the data set's files
    return datamodule


@contextmanager
def completed(output: Path) -> Iterator[TextIO]:
    """Opens a file that gets its name when the block has come to its end; processes but the first write to nowhere.

    Raises:
        ConfigError: It cannot be written.
    """
    if global_rank() != 0:
        yield io.StringIO()
        return
    try:
        with replacing(output) as path, open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            yield file
    except OSError as error:
        raise ConfigError(f"output={output}: cannot be written: {error}") from error


class RowWriter(Callback):
    """Writes the row of each input as soon as all before it are there, on the first process.

    Args:
        file: Where to.
        inputs: What is predicted.
        facts: Those of the model.
    """

    def __init__(self, file: TextIO, inputs: Inputs, facts: Mapping[str, Any]) -> None:
        self.csv, self.inputs, self.class_names = csv.writer(file), inputs, facts.get("class_names")
        if self.class_names:
            columns = ["class", *(f"p({name})" for name in self.class_names)]
        else:
            targets = zip(facts["target_names"], facts["target_units"], strict=True)
            columns = [f"{name} ({unit})" if unit else name for name, unit in targets]
        self.csv.writerow(["id", *columns, "problem"])
        self.blank = [""] * len(columns)
        self.positions = [position for position in range(len(inputs.names)) if position not in inputs.problems]
        self.done = self.bad = 0
        hidden = None if global_rank() == 0 else True  # None: where the output is no terminal
        self.bar = tqdm(total=len(inputs.names), desc="predicting", unit=" inputs", disable=hidden, mininterval=0.5)
        self.rows = self._problems()  # that wait for one before them, by position
        self._write()

    def on_predict_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *args: Any, **kwargs: Any) -> None:
        """Takes the rows of a batch from all processes."""
        index, output = outputs
        cells = zip(index.tolist(), self._cells(output.float().cpu()), strict=True)
        rows = {self.positions[sample]: row for sample, row in cells}
        for part in gather(trainer, rows | self._problems()):
            self.rows |= part
        self._write()

    def _cells(self, output_BT: Tensor) -> Iterator[list[Any]]:
        """What stands in the rows, numbers in the seven digits of single precision."""
        values_BT = output_BT.softmax(1) if self.class_names else output_BT
        for label, values in zip(output_BT.argmax(1), values_BT.tolist(), strict=True):
            named = [self.class_names[label]] if self.class_names else []
            yield [*named, *(float(f"{value:.7g}") for value in values), ""]

    def _problems(self) -> dict[int, list[Any]]:
        rows = {position: [*self.blank, reason] for position, reason in self.inputs.problems.items()}
        self.inputs.problems.clear()
        return rows

    def _write(self) -> None:
        while (cells := self.rows.pop(self.done, None)) is not None:
            self.csv.writerow([self.inputs.names[self.done], *cells])
            self.bad += bool(cells[-1])
            self.done += 1
            self.bar.update()


def load(path: str | Path) -> BaseModule:
    """Loads a trained model, in evaluation mode, on the CPU.

    Its attribute ``card`` is what is known of it: the facts of its data (``class_names`` or ``target_names``,
    ``input_shape``, ``mean`` and ``std`` in units of the full range, ...), the ``metric`` by which it was chosen, its
    ``score``, and the ``config``. Its method ``prepare`` makes an input of files, as they are made for an evaluation:

        model = load("last")
        x = model.prepare("photos")  # whatever src.predict takes: a picture, a folder, a CIF file, ...
        names = [model.card["class_names"][label] for label in model(x).argmax(1)]

    Args:
        path: A run folder, a checkpoint, or ``last`` for the newest run.

    Raises:
        ConfigError: There is none, or it cannot be used.
    """
    file = find_checkpoint(str(path))
    checkpoint = read_checkpoint(file)
    config, facts = checkpoint["config"], checkpoint["hyper_parameters"]["facts"]
    module = restore_module(checkpoint, file)
    module.card = {**facts, **config["monitor"], "score": score_of(checkpoint), "config": config}
    module.prepare = partial(prepare, data_of(config, facts))
    return module


def prepare(datamodule: DataModule, path: str | Path) -> Any:
    """Makes the input of a model from all samples of a file or folder, at once.

    Raises:
        ConfigError: A sample cannot be used, or there are none.
    """
    inputs = datamodule.read_inputs(Path(path).expanduser())
    inputs.check()
    batch = inputs.split[torch.arange(len(inputs.split))]
    inputs.check()  # a split finds some while it reads
    return datamodule.on_after_batch_transfer(batch, 0).x


def from_published(content: Mapping[str, Any], path: Path, inputs: Path) -> dict[str, Any]:
    """Returns what a checkpoint of this project would hold, for one of the CGCNN code.

    Its data is read as that code does: 12 neighbours, with stand-ins where an atom has fewer (``compat``), and vectors
    of the elements from the ``atom_init.json`` beside the inputs.

    Args:
        content: What the file holds.
        path: The file, for messages.
        inputs: What is to be predicted.

    Raises:
        ConfigError: It is no such checkpoint.
    """
    net: Any = resolve_target(PUBLISHED_NET, nn.Module)
    try:
        weights, arguments = net.import_weights(content), net.import_arguments(content)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{path}: neither a checkpoint of this project nor of the CGCNN code: {error}") from error
    task, options = content["args"]["task"], content["args"].get("data_options", [])
    state = {f"net.{name}": tensor for name, tensor in weights.items()}
    facts = {"name": path.name, "task": task, "cutoff": arguments.pop("cutoff")}
    if task == "regression":
        mean, std = (float(content["normalizer"][name]) for name in ("mean", "std"))
        facts |= {"target_names": options[2:3] or ["prediction"], "target_units": [""]}
        facts |= {"target_mean": [mean], "target_std": [std]}
        state |= {"target_mean": torch.tensor([mean]), "target_std": torch.tensor([std])}
    else:
        facts |= {"class_names": ["0", "1"], "num_classes": 2}
    config = compose(["data=crystals", "model=cgcnn", "monitor.metric=val/loss", "monitor.mode=min"]).cfg
    config["data"] |= {
        "root": str(inputs if inputs.exists() else inputs.parent),
        "compat": True,
        "atom_features": True,
        "cutoff": facts["cutoff"],
    }
    config["model"] = {
        "_target_": f"src.modules.{task}.{task.title()}Module",
        "net": {"_target_": PUBLISHED_NET, **arguments},
    }
    return {"config": config, "state_dict": state, "hyper_parameters": {"facts": facts}}
