"""What is exported: the net with everything that belongs before and after it, as functions of plain tensors.

Tensor suffixes: B samples, C channels, H height, W width, K classes, T targets, N atoms, E edges.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from src.config import ConfigError
from src.engine.checkpoint import first_line
from src.modules.base import BaseModule

Layout = Literal["chw", "hwc"]


class Head(nn.Module):
    """From a net's output to what people want: probabilities and logits, or values in the targets' units."""

    std: Tensor
    mean: Tensor

    def __init__(self, module: BaseModule) -> None:
        super().__init__()
        self.net = module.net.to(memory_format=torch.contiguous_format)
        self.regression = hasattr(module, "target_mean")
        for name in ("mean", "std") if self.regression else ():
            self.register_buffer(name, module.get_buffer(f"target_{name}"))

    def outputs(self, x: Any) -> tuple[Tensor, ...]:
        """The program's outputs, in the order of `Interface.outputs`."""
        output = self.net(x)
        return (output * self.std + self.mean,) if self.regression else (output.softmax(1), output)


class ImageProgram(Head):
    """Images of 8 bits, as decoders give them."""

    scale: Tensor
    shift: Tensor

    def __init__(self, module: BaseModule, facts: Mapping[str, Any], layout: Layout) -> None:
        super().__init__(module)
        self.hwc = layout == "hwc"
        mean_C11, std_C11 = (torch.tensor(facts[key], dtype=torch.float64).view(-1, 1, 1) for key in ("mean", "std"))
        self.register_buffer("scale", (1 / (255 * std_C11)).float())
        self.register_buffer("shift", (-mean_C11 / std_C11).float())

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Takes uint8 ``[B, C, H, W]`` or ``[B, H, W, C]``."""
        x_BCHW = image.permute(0, 3, 1, 2) if self.hwc else image
        return self.outputs(x_BCHW.to(torch.float32) * self.scale + self.shift)


class CrystalProgram(Head):
    """Crystals as atoms and the distances to their neighbours."""

    def forward(self, z: Tensor, edge_index: Tensor, distance: Tensor, num_nodes: Tensor) -> tuple[Tensor, ...]:
        """Takes what the net's `forward` documents, one tensor each."""
        x = {"z": z, "edge_index": edge_index, "distance": distance, "num_nodes": num_nodes}
        return self.outputs(x)


@dataclass(frozen=True)
class Interface:
    """What goes in and comes out.

    Attributes:
        inputs: Name and shape of each, whose entries are numbers or the names of lengths that vary.
        outputs: Their names.
        layout: Of images.
    """

    inputs: Mapping[str, Sequence[int | str]]
    outputs: Sequence[str]
    layout: Layout | None

    def arrays(self, x: Any) -> dict[str, Tensor]:
        """The inputs of a batch as the data module gathers it, before its transforms."""
        if self.layout is None:
            return {name: x[name].contiguous() for name in self.inputs}
        ((_, *shape),) = self.inputs.values()
        x = x.permute(0, 2, 3, 1) if self.layout == "hwc" else x
        for axis, size in enumerate(shape, start=1):  # photos are stored with a margin, of which the middle is kept
            assert isinstance(size, int)
            x = x.narrow(axis, (x.shape[axis] - size) // 2, size)
        return {"image": x.contiguous()}


def interface_of(facts: Mapping[str, Any], layout: Layout) -> Interface:
    """The interface of a model for data of these facts.

    Raises:
        ConfigError: It takes neither images nor crystals.
    """
    outputs = ("prediction",) if facts["task"] == "regression" else ("probabilities", "logits")
    if "input_shape" in facts:
        channels, *size = facts["input_shape"]
        shape = [channels, *size] if layout == "chw" else [*size, channels]
        return Interface({"image": ["samples", *shape]}, outputs, layout)
    if "cutoff" in facts:
        shapes: dict[str, Sequence[int | str]] = {
            "z": ["atoms"],
            "edge_index": [2, "edges"],
            "distance": ["edges"],
            "num_nodes": ["samples"],
        }
        return Interface(shapes, outputs, None)
    raise ConfigError(f"a model of {facts.get('name')} takes neither images nor crystals: nothing to export it as")


def trace(
    module: BaseModule, facts: Mapping[str, Any], interface: Interface, example: Mapping[str, Tensor]
) -> ExportedProgram:
    """Records the program of a module, for any number of samples.

    Args:
        module: In evaluation mode.
        facts: Of its data.
        interface: Of the program.
        example: Inputs of two samples or more: of one, torch would take the number for a constant.

    Raises:
        ConfigError: The net does something that cannot be recorded.
    """
    program = ImageProgram(module, facts, interface.layout) if interface.layout else CrystalProgram(module)
    names = {name for shape in interface.inputs.values() for name in shape if isinstance(name, str)}
    lengths = {name: Dim(name, min=0 if name == "edges" else 1) for name in names}
    dynamic = tuple(
        {axis: lengths[name] for axis, name in enumerate(shape) if isinstance(name, str)}
        for shape in interface.inputs.values()
    )
    # Clones: of a view, torch.export.save would store all that it is a view of.
    arguments = tuple(example[name].clone() for name in interface.inputs)
    try:
        return torch.export.export(program.eval(), arguments, dynamic_shapes=dynamic)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise ConfigError(f"{type(module.net).__name__} cannot be exported: {first_line(error)}") from error
