"""Runs a model that ``python -m src.export`` has written; needs this file, NumPy, Pillow, and onnxruntime or torch.

    python portable.py MODEL INPUT ... [--top 3] [--save outputs.npz]

MODEL is an .onnx or .pt2 file. INPUT is a picture of the model's size, a .npy file of one sample or several, or a
folder with a .npy file for every input of the model. A line for each sample: its name, and the classes with the highest
probabilities or the values, apart by tabs. A wrong input ends with a message and exit code 2.
"""

import argparse
import os
import stat
import sys
import tokenize
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
DTYPES = {"image": "uint8", "distance": "float32", "z": "int64", "edge_index": "int64", "num_nodes": "int64"}
MAX_Z = 100
ORIENTATION = 0x0112  # EXIF tag


class PortableError(ValueError):
    """A file or an input that cannot be used."""


class Portable:
    """A model that is called with arrays and checks them: an exported program would compute on whatever it gets.

    Args:
        path: An .onnx file, or a .pt2 file of torch.export or of AOTInductor.

    Attributes:
        card: What the file says of itself, as texts; see `entries`.

    Raises:
        PortableError: It is no such file, or has no card.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        if not os.path.isfile(path):  # noqa: PTH113 - raises nothing, whatever the path
            raise PortableError(f"{path}: there is no such file")
        try:
            opened = open_onnx(path) if path.suffix == ".onnx" else open_pt2(path)
        except (OSError, ValueError, KeyError) as error:  # what their readers raise of bytes that are something else
            raise PortableError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error
        self.card: Mapping[str, str] = opened[0]
        self.compute: Callable[[Arrays], Sequence[NDArray[Any]]] = opened[1]
        if lacking := {"inputs", "outputs", "task", "layout"} - self.card.keys():
            raise PortableError(f"{path}: has no card (no {', '.join(sorted(lacking))}): not written by src.export")
        shapes = (line.partition(" ") for line in self.entries("inputs"))
        self.inputs = {name: [int(n) if n.isdigit() else n for n in shape.split(",")] for name, _, shape in shapes}
        self.check_card(path)

    def check_card(self, path: Path) -> None:
        """Raises PortableError if the card is none that src.export writes."""
        is_regression, layout = self.card["task"] == "regression", self.card["layout"]
        fits = list(self.inputs) == (["image"] if layout else ["z", "edge_index", "distance", "num_nodes"])
        fits &= self.entries("outputs") == (["prediction"] if is_regression else ["probabilities", "logits"])
        fits &= bool(self.entries("target_names" if is_regression else "class_names"))
        if fits and layout:
            _, *shape = self.inputs["image"]
            fits = len(shape) == 3 and all(isinstance(size, int) for size in shape) and layout in ("chw", "hwc")
            fits = fits and shape[0 if layout == "chw" else 2] in (1, 3)
        if not fits:
            raise PortableError(f"{path}: its card is damaged, or of a model that this program does not know")

    def entries(self, key: str) -> list[str]:
        """A list of the card: ``class_names``, ``target_names``, ``target_units``, ``inputs``, ``outputs``."""
        return self.card[key].split("\n") if self.card.get(key) else []

    def __call__(self, **arrays: NDArray[Any]) -> Arrays:
        """Returns the outputs by name.

        Args:
            **arrays: ``image``, uint8 [samples, ...] in the model's layout; or ``z`` [atoms] int64, ``edge_index``
                [2, edges] int64 from neighbour to centre, ``distance`` [edges] float32 in angstrom, and ``num_nodes``
                [samples] int64, the atoms of each crystal.

        Raises:
            PortableError: One is missing, or has another type or shape.
        """
        self.check(arrays)
        found = self.compute({name: np.ascontiguousarray(arrays[name]) for name in self.inputs})
        width = len(self.entries("target_names") or self.entries("class_names"))
        names = self.entries("outputs")
        if len(found) != len(names) or any(values.ndim != 2 or values.shape[1] != width for values in found):
            raise PortableError("the card does not fit the program: it was changed after the export")
        return dict(zip(names, found, strict=True))

    def check(self, arrays: Arrays) -> None:
        """Raises PortableError for what the program would compute nonsense of, or fail on."""
        if arrays.keys() != self.inputs.keys():
            raise PortableError(
                f"the model takes {', '.join(self.inputs)}, not {', '.join(sorted(arrays)) or 'nothing'}"
            )
        lengths: dict[str, int] = {}
        for name, shape in self.inputs.items():
            array = arrays[name]
            if array.dtype != DTYPES[name]:
                raise PortableError(f"{name}: has the type {array.dtype}, the model takes {DTYPES[name]}")
            fits = array.ndim == len(shape) and all(
                size == (lengths.setdefault(wanted, size) if isinstance(wanted, str) else wanted)
                for size, wanted in zip(array.shape, shape, strict=True)
            )
            if not fits:
                wanted = f"[{', '.join(map(str, shape))}]{self.layout_note()}"
                raise PortableError(f"{name}: has the shape {list(array.shape)}, the model takes {wanted}")
        if not lengths["samples"]:
            raise PortableError("there are no samples")
        if "z" in arrays:
            self.check_crystals(arrays)

    def layout_note(self) -> str:
        """What the axes of an image mean."""
        return {"chw": " (channels, height, width)", "hwc": " (height, width, channels)"}.get(self.card["layout"], "")

    def check_crystals(self, arrays: Arrays) -> None:
        """Raises PortableError where atoms, edges and crystals do not belong together."""
        z, edges, distance, nodes = (arrays[name] for name in ("z", "edge_index", "distance", "num_nodes"))
        # Not the sum alone, which wraps round for numbers that are large enough.
        if len(nodes) > len(z) or nodes.min() < 1 or nodes.max() > len(z) or nodes.sum() != len(z):
            message = f"each crystal has an atom at least, and together they have those of z, {len(z)}"
            raise PortableError(f"num_nodes: {message}")
        if z.min() < 1 or z.max() > MAX_Z:
            raise PortableError(f"z: atomic numbers go from 1 to {MAX_Z}, there is {z.min()} and {z.max()}")
        crystal = np.repeat(np.arange(len(nodes)), nodes)
        if edges.size and (edges.min() < 0 or edges.max() >= len(z)):
            raise PortableError(f"edge_index: atoms are 0 to {len(z) - 1}, there is {edges.min()} and {edges.max()}")
        if (crystal[edges[0]] != crystal[edges[1]]).any():
            raise PortableError("edge_index: an edge leads from one crystal to another")
        if not (np.isfinite(distance) & (distance > 0)).all():
            raise PortableError("distance: must be above 0 and finite, in angstrom")

    def read(self, path: str | Path) -> Arrays:
        """Reads a picture, a .npy file or a folder of them.

        Raises:
            PortableError: It cannot be read.
        """
        path = Path(path)
        if os.path.isdir(path):  # noqa: PTH112 - raises nothing, whatever the path
            return {name: read_array(path / f"{name}.npy") for name in self.inputs}
        if list(self.inputs) != ["image"]:
            raise PortableError(f"{path}: the model takes a folder with {', '.join(f'{n}.npy' for n in self.inputs)}")
        if path.suffix == ".npy":
            array = read_array(path)
            return {"image": array[None] if array.ndim == 3 else array}
        with opened(path) as file:
            return self.picture(file, f"{path}: ")

    def picture(self, file: BinaryIO, where: str = "") -> Arrays:
        """Reads a picture from an open file, or from ``io.BytesIO``; messages begin with `where`.

        Raises:
            PortableError: It is none, or not such as the model takes.
        """
        _, *shape = self.inputs["image"]
        channels, height, width = (int(n) for n in (shape if self.card["layout"] == "chw" else [shape[2], *shape[:2]]))
        try:
            pixels = read_picture(file, channels, (width, height))
        except PortableError as error:
            raise PortableError(f"{where}{error}") from error
        return {"image": (pixels.transpose(2, 0, 1) if self.card["layout"] == "chw" else pixels)[None]}

    def lines(self, name: str, outputs: Arrays, top: int) -> list[str]:
        """What is printed of some samples."""
        outputs_of_samples = outputs["prediction" if self.card["task"] == "regression" else "probabilities"]
        lines = []
        for number, values in enumerate(outputs_of_samples):
            if self.card["task"] == "regression":
                units = self.card["target_units"].split("\n")
                named = zip(self.entries("target_names"), units, values, strict=True)
                cells = [(f"{target} ({unit})" if unit else target, f"{value:.7g}") for target, unit, value in named]
            else:
                best = (-values).argsort(kind="stable")[:top]
                cells = [(self.entries("class_names")[label], f"{values[label]:.6f}") for label in best]
            label = name if len(outputs_of_samples) == 1 else f"{name}[{number}]"
            lines.append("\t".join([label, *(text for cell in cells for text in cell)]))
        return lines


def open_onnx(path: Path) -> tuple[Mapping[str, str], Callable[[Arrays], Sequence[NDArray[Any]]]]:
    """Opens an ONNX file: its metadata, and a function of its inputs."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as faults

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except (
        faults.Fail,
        faults.InvalidArgument,
        faults.InvalidGraph,
        faults.InvalidProtobuf,
        faults.NotImplemented,
    ) as error:
        raise PortableError(f"{path}: onnxruntime cannot load it: {str(error).splitlines()[0]}") from error
    return session.get_modelmeta().custom_metadata_map, lambda arrays: session.run(None, arrays)


def open_pt2(path: Path) -> tuple[Mapping[str, str], Callable[[Arrays], Sequence[NDArray[Any]]]]:
    """Opens a .pt2 file: a package with compiled code, or else a saved program."""
    try:
        with zipfile.ZipFile(path) as archive:
            compiled = any("/aotinductor/" in name for name in archive.namelist())
    except (zipfile.BadZipFile, OSError) as error:
        raise PortableError(f"{path}: is neither an .onnx nor a .pt2 file: {error}") from error
    import json
    import logging

    import torch

    program: Any
    logging.getLogger("torch").setLevel(logging.ERROR)  # it finds that a package was not compiled for this very CPU
    try:
        if compiled:
            from torch._inductor import aoti_load_package

            program = aoti_load_package(str(path))
            card = program.loader.get_metadata()
        else:
            extra = {"card.json": ""}
            program = torch.export.load(path, extra_files=extra).module()
            card = json.loads(extra["card.json"] or "{}")
    except RuntimeError as error:
        raise PortableError(f"{path}: torch cannot load it: {str(error).splitlines()[0]}") from error

    def compute(arrays: Arrays) -> list[NDArray[Any]]:
        with torch.no_grad():
            return [output.numpy() for output in program(*map(torch.from_numpy, arrays.values()))]

    return card, compute


def opened(path: Path) -> BinaryIO:
    """Opens a file; not a pipe, which would wait for its other end.

    Raises:
        PortableError: It cannot be opened.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise PortableError(f"{path}: cannot be read: is no file")
        return open(path, "rb")
    except OSError as error:
        raise PortableError(f"{path}: cannot be read: {error.strerror}") from error


def read_array(path: Path) -> NDArray[Any]:
    """Reads a .npy file.

    Raises:
        PortableError: It is none.
    """
    with opened(path) as file:
        try:
            array = np.lib.format.read_array(file, allow_pickle=False)
        except (ValueError, EOFError, OverflowError, MemoryError, SyntaxError, tokenize.TokenError) as error:
            raise PortableError(f"{path}: is no .npy file: {str(error).splitlines()[0]}") from error
    return np.asarray(array)


def read_picture(file: BinaryIO, channels: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Reads a PNG or JPEG picture as uint8 [height, width, channels].

    Raises:
        PortableError: It is none, of another size, transparent, turned by EXIF data, or of 16 bits.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file, formats=("PNG", "JPEG")) as image:
            if image.size != size:
                raise PortableError(f"is {image.width} x {image.height}, the model takes {size[0]} x {size[1]}")
            if image.has_transparency_data:
                raise PortableError("is transparent; lay it on a background first")
            if image.mode[0] in "IF" or any("16" in str(tile) for tile in image.tile):
                raise PortableError("has more than 8 bits a channel; convert it to RGB first")
            if image.mode not in ("1", "L", "P", "RGB"):
                raise PortableError(f"is {image.mode}; convert it to RGB first")
            if 1 < image.getexif().get(ORIENTATION, 1) < 9:
                raise PortableError("is to be turned, by its EXIF data; turn its pixels first")
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except PortableError:
        raise
    except UnidentifiedImageError as error:
        raise PortableError("is neither PNG nor JPEG") from error
    except (OSError, SyntaxError, ValueError, AssertionError, Image.DecompressionBombError) as error:
        raise PortableError(f"is damaged: {error}") from error  # what Pillow raises of broken files
    return pixels.reshape(size[1], size[0], channels)


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if (value := int(text)) < 1:
        raise ValueError
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the outputs of each input; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("inputs", nargs="+")
    parser.add_argument("--top", type=positive, default=3, help="classes to print")
    parser.add_argument("--save", help="a file for all outputs, one after the other")
    options = parser.parse_args(arguments)
    try:
        model = Portable(options.model)
        everything = []
        for path in options.inputs:
            try:
                everything.append(model(**model.read(path)))
            except PortableError as error:
                raise PortableError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error
            print(*model.lines(Path(path).name, everything[-1], options.top), sep="\n", flush=True)
        if options.save:
            np.savez(options.save, **{n: np.concatenate([part[n] for part in everything]) for n in everything[0]})
    except PortableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # of the file to save
        print(f"error: {options.save}: cannot be written: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
