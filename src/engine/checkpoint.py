"""Checkpoints are data: written whole or not at all, read without unpickling anything but plain values and tensors."""

import hashlib
import os
import pickle
import re
import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from src.config import ConfigError, build
from src.config.schema import EXTRAS
from src.modules.base import BaseModule
from src.tracking.files import replacing

NUMPY_NUMBERS: list[Any] = [
    np.dtype,
    np.dtypes.Float64DType,
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
"""What reading may build besides tensors: a NumPy scalar, as other code stores its scores in checkpoints."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary file in the same folder, syncs, renames; ``<name>.sha256`` beside it is the commit mark.

    Lightning's own save goes through the system's temporary folder, which is a copy and not a rename where that is
    another file system, and takes a denied permission for a success.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Saves the checkpoint.

        Raises:
            OSError: The folder cannot be written or the disk is full; what stood there before still does.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            with open(temporary, "wb") as file:
                try:
                    torch.save(checkpoint, file)
                except RuntimeError as error:  # torch's writer hides the OSError that tells a full disk
                    free = f"{shutil.disk_usage(path.parent).free / 1e6:.0f} MB free on the disk"
                    raise OSError(f"cannot write {path}: {free} ({error})") from error
                file.flush()
                os.fsync(file.fileno())
            digest = sha256(temporary)
            commit_mark(path).unlink(missing_ok=True)
        with replacing(commit_mark(path)) as temporary:
            temporary.write_text(digest, encoding="ascii")
        sync_folder(path.parent)

    def remove_checkpoint(self, path: Any) -> None:
        """Removes the checkpoint, its commit mark first."""
        commit_mark(Path(path)).unlink(missing_ok=True)
        Path(path).unlink(missing_ok=True)


def commit_mark(path: Path) -> Path:
    """The file that holds a checkpoint's checksum once the checkpoint is complete."""
    return path.with_name(f"{path.name}.sha256")


def sha256(path: Path) -> str:
    """The checksum of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Makes a rename durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_committed(path: Path) -> bool:
    """Whether the checkpoint was written to its end and has not changed since."""
    mark = commit_mark(path)
    return path.is_file() and mark.is_file() and mark.read_text(encoding="ascii") == sha256(path)


def points(folder: Path) -> list[Path]:
    """The checkpoints in a folder from which a run can go on, newest first."""
    return [*sorted(folder.glob("step-*.ckpt"), reverse=True), *folder.glob("last.ckpt")]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint of this project.

    Raises:
        ConfigError: As `read_plain`; or it is not a checkpoint of this project.
    """
    checkpoint = read_plain(path)
    if not is_checkpoint(checkpoint):
        published = isinstance(checkpoint, dict) and {"state_dict", "args"} <= checkpoint.keys()
        way_out = "; weights of the CGCNN code can only predict: python -m src.predict" if published else ""
        raise ConfigError(f"{path}: a torch file, but not a checkpoint of this project (no config inside){way_out}")
    return checkpoint


def is_checkpoint(content: Any) -> TypeGuard[dict[str, Any]]:
    """Whether what was read is a checkpoint of this project."""
    return isinstance(content, dict) and {"config", "state_dict", "hyper_parameters"} <= content.keys()


def read_plain(path: Path) -> Any:
    """Reads a torch file of anybody's: tensors and plain values, NumPy's numbers among them.

    Raises:
        ConfigError: The file is missing, damaged, no torch file, or a pickle that wants to run code.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: {'is a folder' if path.is_dir() else 'there is no such file'}")
    if commit_mark(path).is_file() and not is_committed(path):
        raise ConfigError(f"{path}: damaged: it is not what was saved (the checksum beside it differs)")
    try:
        with torch.serialization.safe_globals(NUMPY_NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{path}: refused: it holds more than tensors and plain values; reading it could run code{_culprit(error)}"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise ConfigError(f"{path}: damaged, or not a checkpoint ({first_line(error)})") from error


def _culprit(error: BaseException) -> str:
    """What a file wants to be built, of torch's page on how to allow that."""
    found = re.search(r"Unsupported global: GLOBAL (\S+)|Trying to load unsupported GLOBAL (\S+)", str(error))
    return f" ({found[1] or found[2]})" if found else ""


def first_line(error: BaseException) -> str:
    """The first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def restore_module(checkpoint: Mapping[str, Any], path: Path) -> BaseModule:
    """Builds the module that a checkpoint holds, with its weights, in evaluation mode.

    Raises:
        ConfigError: A ``_target_`` is not in the allow-list, or the weights do not fit the code of today.
    """
    config, hparams = checkpoint["config"], checkpoint["hyper_parameters"]
    module = build_module(config, hparams["facts"])
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise ConfigError(f"{path}: written by another version of {config['model']['_target_']}: {error}") from error
    return module.eval()


def build_module(config: Mapping[str, Any], facts: Mapping[str, Any]) -> BaseModule:
    """Builds the LightningModule of a config for data of these facts."""
    extras = {item.name for item in fields(EXTRAS["model"])}  # of the run, not of the module
    return build(
        {key: value for key, value in config["model"].items() if key not in extras},
        BaseModule,
        facts=dict(facts),
        optimizer=config["optimizer"],
        scheduler=config["scheduler"],
        monitor=config["monitor"],
    )
