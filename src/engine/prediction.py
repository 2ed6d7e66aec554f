"""From a checkpoint and new samples to predictions with names: our own checkpoints, and those of the CGCNN code."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from src.config import ConfigError, apply_overrides, build, compose, resolve_target
from src.data.base import DataModule, Split
from src.engine.checkpoint import is_checkpoint, read_plain, restore_module
from src.engine.plan import quiet, rehearse_trainer
from src.engine.resume import gather
from src.engine.sharding import with_strategy
from src.modules.base import BaseModule

PUBLISHED_NET = "src.nets.cgcnn.CGCNN"


def predict(path: Path, inputs: Path, output: Path | None, overrides: Sequence[str]) -> list[list[Any]]:
    """Predicts every sample of `inputs` and writes the predictions, in their order, to a CSV file.

    Args:
        path: A checkpoint of this project or a ``.pth.tar`` of the CGCNN code.
        inputs: What the data set of the checkpoint can read: for crystals, a folder or a file of structures.
        output: The file to write; by default ``predictions.csv`` in the run folder, for a lone file in this one.
        overrides: Changes to the stored config; ``data`` and ``trainer`` can be replaced.

    Returns:
        The rows: a name, then a value for each target, or the class and the probability of each class; none on
        processes but the first.

    Raises:
        ConfigError: The checkpoint or the inputs cannot be used, or the file cannot be written.
    """
    if not inputs.exists():
        raise ConfigError(f"inputs={inputs}: there is no such file or folder")
    quiet()
    content = read_plain(path)
    checkpoint = content if is_checkpoint(content) else from_published(content, path, inputs)
    cfg = apply_overrides(checkpoint["config"], overrides, allowed_groups=("data", "trainer")).cfg
    datamodule = build(cfg["data"], DataModule, seed=cfg["seed"])
    datamodule.facts = facts = dict(checkpoint["hyper_parameters"]["facts"])
    split, names = datamodule.read_inputs(inputs)
    rehearse_trainer(cfg["trainer"])
    module = restore_module({**checkpoint, "hyper_parameters": {"facts": facts}}, path)
    trainer = Trainer(
        **{**with_strategy(cfg["trainer"]), "logger": False, "enable_checkpointing": False},
        enable_progress_bar=False,
        use_distributed_sampler=False,
    )
    outputs = in_order(trainer, module, datamodule, split)
    if outputs is None:
        return []
    header, rows = _table(outputs, names, facts)
    run = path.parent.parent
    output = output or (run if (run / "status.json").is_file() else Path()) / "predictions.csv"
    try:
        with output.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows])
    except OSError as error:
        raise ConfigError(f"output={output}: cannot be written: {error}") from error
    print(f"written: {output} ({len(rows)} predictions)", flush=True)
    return rows


def in_order(trainer: Trainer, module: BaseModule, datamodule: DataModule, split: Split) -> Tensor | None:
    """The outputs for a split in its order, whatever the number of processes; None on others than the first."""
    datamodule.splits = {"test": split}
    batches: Any = trainer.predict(module, datamodule=datamodule)
    index, outputs = (torch.cat(parts).cpu() for parts in zip(*batches, strict=True))
    everywhere = gather(trainer, (index, outputs.float()))
    if not trainer.is_global_zero:
        return None
    index, outputs = (torch.cat(parts) for parts in zip(*everywhere, strict=True))
    order = index.argsort()
    assert torch.equal(index[order], torch.arange(len(split))), "a sample was predicted twice, or not at all"
    return outputs[order]


def _table(outputs: Tensor, names: Sequence[str], facts: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Header and rows, numbers in the seven digits of single precision."""
    classes = facts.get("class_names")
    values = [[float(f"{value:.7g}") for value in row] for row in (outputs.softmax(1) if classes else outputs).tolist()]
    if not classes:
        return ["id", *facts["target_names"]], [[name, *row] for name, row in zip(names, values, strict=True)]
    rows = [[name, classes[row.index(max(row))], *row] for name, row in zip(names, values, strict=True)]
    return ["id", "class", *(f"p({name})" for name in classes)], rows


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
        facts |= {"target_names": options[2:3] or ["prediction"], "target_mean": [mean], "target_std": [std]}
        state |= {"target_mean": torch.tensor([mean]), "target_std": torch.tensor([std])}
    else:
        facts |= {"class_names": ["0", "1"], "num_classes": 2}
    config = compose(["data=crystals", "model=cgcnn", "monitor.metric=val/loss", "monitor.mode=min"]).cfg
    config["data"] |= {"root": str(inputs), "compat": True, "atom_features": True, "cutoff": facts["cutoff"]}
    config["model"] = {
        "_target_": f"src.modules.{task}.{task.title()}Module",
        "net": {"_target_": PUBLISHED_NET, **arguments},
    }
    return {"config": config, "state_dict": state, "hyper_parameters": {"facts": facts}}
