"""The three formats: ONNX, the saved program of torch.export, and the compiled package of AOTInductor."""

import json
import logging
import platform
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.export import ExportedProgram

from src.config import ConfigError
from src.engine.checkpoint import first_line
from src.portable.programs import Interface

OPSET = 20  # what torch's exporter translates to and onnxruntime has had since 1.17


def write_onnx(program: ExportedProgram, interface: Interface, card: Mapping[str, str], path: Path) -> None:
    """Writes an ONNX file with its weights inside and the card among its metadata, and checks it.

    Raises:
        ConfigError: An operator has no translation; it names it.
    """
    import onnx

    try:
        translated = torch.onnx.export(
            program,
            input_names=list(interface.inputs),
            output_names=list(interface.outputs),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise ConfigError(f"format=onnx: no translation of {_operator(error)}; format=pt2 has no such limit") from error
    assert translated is not None
    model = translated.model_proto
    onnx.helper.set_model_props(model, dict(card))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _operator(error: BaseException) -> str:
    """The operator that an error of the exporter speaks of; else what its cause says."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    found = [match[0] for cause in causes if (match := re.search(r"\baten[.:]+\w+(?:\.\w+)?", str(cause)))]
    return found[0] if found else first_line(causes[-1])


def write_pt2(program: ExportedProgram, interface: Interface, card: Mapping[str, str], path: Path) -> None:
    """Writes the program as torch.export.load reads it, the card as an extra file."""
    torch.export.save(program, path, extra_files={"card.json": json.dumps(dict(card))})


def write_aoti(program: ExportedProgram, interface: Interface, card: Mapping[str, str], path: Path) -> None:
    """Compiles the program for CPUs of this kind; not only for this very CPU, where a package would end elsewhere.

    Raises:
        ConfigError: There is no C++ compiler, or it fails.
    """
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.exc import CppCompileError

    settings: dict[str, object] = {"aot_inductor.metadata": dict(card)}
    if platform.machine() in ("x86_64", "AMD64"):
        settings |= {"cpp.march": "x86-64-v3", "cpp.simdlen": 256}  # AVX2: whatever was built since 2015
    try:
        aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)
    except CppCompileError as error:
        raise ConfigError(f"format=aoti: the C++ compiler failed: {first_line(error)}") from error


def require_compiler() -> None:
    """Looks for the compiler that AOTInductor calls.

    Raises:
        ConfigError: There is none.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ConfigError("format=aoti: needs a C++ compiler: install g++, or name another one with CXX=...") from error


Writer = Callable[[ExportedProgram, Interface, Mapping[str, str], Path], None]
FORMATS: dict[str, tuple[Writer, str, str]] = {
    "onnx": (write_onnx, ".onnx", "model.onnx"),
    "pt2": (write_pt2, ".pt2", "model.pt2"),
    "aoti": (write_aoti, ".pt2", "model-aoti.pt2"),
}
"""What writes each format, the suffix that its readers want, and the file's usual name."""


@contextmanager
def silence() -> Iterator[None]:
    """Keeps what the exporters say of themselves from the person, but not their errors."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
