"""From a checkpoint to a file that runs without this project, written only if it computes the same."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from src.config import ConfigError
from src.engine.checkpoint import read_checkpoint, restore_module
from src.engine.evaluation import check_output, run_of
from src.engine.plan import prepare_data, quiet
from src.engine.prediction import data_of
from src.modules.base import BaseModule
from src.portable.formats import FORMATS, require_compiler, silence
from src.portable.programs import Interface, Layout, interface_of, trace
from src.tracking.dashboard import score_of

RUNNER = Path(__file__).resolve().parents[2] / "deploy/portable.py"
SAMPLES = 64
"""On which the file is compared; an exported program is tuned for as many."""
TOLERANCE = 1e-4
"""Largest difference, absolute up to 1 and relative above."""


def export(path: Path, kind: str, output: Path | None, inputs: Path | None, layout: Layout) -> Path:
    """Exports a checkpoint and compares the file with it, in a process that does not know this project.

    Args:
        path: The checkpoint.
        kind: One of `FORMATS`.
        output: The file to write; by default in the run folder, for a lone checkpoint in this one.
        inputs: What the comparison runs on; by default the test part of the data that the model was trained on.
        layout: Of images.

    Returns:
        The file.

    Raises:
        ConfigError: The checkpoint or the samples cannot be used, the format cannot express the net, the results
            differ, or the file cannot be written. In no case anything has been written.
    """
    write, suffix, usual_name = FORMATS[kind]
    output = output or (run_of(path) or Path()) / usual_name
    check_output(output)
    if output.suffix != suffix:
        raise ConfigError(f"output={output}: the name of format={kind} must end in {suffix}")
    if kind == "aoti":
        require_compiler()
    quiet()
    checkpoint = read_checkpoint(path)
    facts = card_of(checkpoint, path)
    interface = interface_of(facts, layout)
    module = restore_module(checkpoint, path)
    samples = references(checkpoint, interface, module, inputs)
    with workshop(output) as folder:
        file = folder / output.name
        with silence():
            program = trace(module, facts, interface, samples[0].arrays)
            write(program, interface, metadata(checkpoint, interface), file)
        differences = compare(file, folder, samples)
        line = ", ".join(f"{name} {difference:.1e}" for name, difference in differences.items())
        if not all(difference <= TOLERANCE for difference in differences.values()):  # nor if one is NaN
            raise ConfigError(f"format={kind}: differs from PyTorch: {line}; at most {TOLERANCE} is right: not written")
        os.replace(file, output)
    print(f"largest difference from PyTorch, {len(samples[0].outputs[interface.outputs[0]])} samples: {line}")
    print(f"written: {output} ({output.stat().st_size / 1e3:,.0f} kB)", flush=True)
    return output


@contextmanager
def workshop(output: Path) -> Iterator[Path]:
    """A folder beside the file to come, for the time of the block.

    Raises:
        ConfigError: Nothing can be written there.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".export-", dir=output.absolute().parent) as name:
            yield Path(name)
    except OSError as error:
        raise ConfigError(f"output={output}: cannot be written: {error.strerror or error}") from error


def card_of(checkpoint: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The facts of a checkpoint.

    Raises:
        ConfigError: It has none, or not those that an exported model needs.
    """
    facts: dict[str, Any] = checkpoint["hyper_parameters"].get("facts") or {}
    classification = facts.get("task") != "regression"
    wanted = ["name", "task", *(["class_names"] if classification else ["target_names", "target_units"])]
    if "input_shape" in facts:
        wanted += ["mean", "std"]
    if lacking := [name for name in wanted if name not in facts]:
        raise ConfigError(f"{path}: its card lacks {', '.join(lacking)}: nobody could tell what the outputs mean")
    return facts


class Samples(NamedTuple):
    """Inputs of a program, and the outputs of the module itself."""

    arrays: dict[str, Tensor]
    outputs: dict[str, Tensor]


def references(
    checkpoint: Mapping[str, Any], interface: Interface, module: BaseModule, path: Path | None
) -> list[Samples]:
    """Real samples: a batch of two at least, and the first of them alone.

    Raises:
        ConfigError: There are none.
    """
    config, facts = checkpoint["config"], checkpoint["hyper_parameters"]["facts"]
    if path is not None:
        datamodule = data_of(config, facts)
        inputs = datamodule.read_inputs(path)
        inputs.check()
        split = inputs.split
    else:
        try:
            datamodule = prepare_data(config)
        except ConfigError as error:
            raise ConfigError(*error.problems, "or give some samples to compare on: inputs=PATH") from error
        datamodule.adopt(facts)
        split = datamodule.splits["test"]
    count = min(SAMPLES, len(split))
    found = []
    for positions in (torch.arange(max(count, 2)) % count, torch.tensor([0])):
        batch = split[positions]
        if path is not None:
            inputs.check()  # a split finds some while it reads
        arrays = interface.arrays(batch.x)
        with torch.no_grad():
            output = module(datamodule.on_after_batch_transfer(batch, 0).x)
        values = (output,) if facts["task"] == "regression" else (output.softmax(1), output)
        found.append(Samples(arrays, dict(zip(interface.outputs, values, strict=True))))
    return found


def metadata(checkpoint: Mapping[str, Any], interface: Interface) -> dict[str, str]:
    """What a file says of itself, as texts: every format and language has those. Lists have an entry a line."""
    facts, config = checkpoint["hyper_parameters"]["facts"], checkpoint["config"]
    score = score_of(checkpoint)
    inputs = [f"{name} {','.join(map(str, shape))}" for name, shape in interface.inputs.items()]
    card = {key: value for key, value in facts.items() if key != "atom_features"}
    lists = {key: facts.get(key) or [] for key in ("class_names", "target_names", "target_units")}
    return {
        "task": facts["task"],
        "inputs": "\n".join(inputs),
        "outputs": "\n".join(interface.outputs),
        "layout": interface.layout or "",
        "score": "" if score is None else f"{config['monitor']['metric']} {score:.6g}",
        "net": config["model"]["net"]["_target_"],
        "card": json.dumps({**card, **config["monitor"], "score": score}),
        **{key: "\n".join(re.sub(r"\s", " ", str(entry)) for entry in entries) for key, entries in lists.items()},
    }


def compare(file: Path, folder: Path, samples: Sequence[Samples]) -> dict[str, float]:
    """Runs a file in a process without this project, and returns the largest difference of each output."""
    for number, part in enumerate(samples):
        (folder / str(number)).mkdir()
        for name, array in part.arrays.items():
            np.save(folder / f"{number}/{name}.npy", array.numpy())
    command = [sys.executable, "-I", str(RUNNER), str(file), *map(str, range(len(samples))), "--save", "outputs.npz"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"the exported file does not run: {done.stderr.strip() or f'exit code {done.returncode}'}")
    found = np.load(folder / "outputs.npz")
    differences = {}
    for name in samples[0].outputs:
        expected = torch.cat([part.outputs[name] for part in samples])
        difference = (torch.from_numpy(found[name]) - expected).abs() / expected.abs().clamp(min=1)
        differences[name] = float(difference.max())
    return differences
