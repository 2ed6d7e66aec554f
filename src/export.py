"""A model for other programs: ``python -m src.export ckpt=last|RUN_DIR|FILE format=onnx|pt2|aoti [output=FILE]``."""

import signal
import sys
from pathlib import Path

from src.config import ConfigError, take_arguments
from src.config.cli import Usage, run_entry
from src.config.errors import hint

USAGE = Usage(
    "ckpt=last|RUN_DIR|FILE format=onnx|pt2|aoti [output=FILE] [layout=chw|hwc] [inputs=PATH]",
    ("ckpt=last format=onnx", "ckpt=best.ckpt format=aoti output=model.pt2 inputs=photos layout=hwc"),
)
CHOICES = {"format": ("onnx", "pt2", "aoti"), "layout": ("chw", "hwc")}


def main(arguments: list[str]) -> Path:
    """Exports and returns the file.

    Raises:
        ConfigError: The checkpoint cannot be used or expressed in the format, or the file cannot be written.
    """
    names = ("ckpt", "format", "output", "layout", "inputs", "runs_dir", "experiment")
    own, overrides = take_arguments(arguments, names)
    own = {"format": "", "layout": "chw"} | own
    problems = [f"{text}: a checkpoint is exported as it is" for text in overrides]
    for name, choices in CHOICES.items():
        if own[name] not in choices:
            problems.append(f"{name}={own[name]}: there is no such {name}{hint(str(own[name]), choices)}")
    if not own.get("ckpt"):
        problems.append("ckpt=last|RUN_DIR|FILE: say which checkpoint to export")
    if problems:
        raise ConfigError(*problems)

    from src.engine.evaluation import find_checkpoint
    from src.portable.export import export

    checkpoint = find_checkpoint(str(own["ckpt"]), own.get("runs_dir"), own.get("experiment"))
    output, inputs = (Path(str(own[name])).expanduser() if own.get(name) else None for name in ("output", "inputs"))
    return export(checkpoint, own["format"], output, inputs, own["layout"])


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))  # unwinds: nothing is left behind
    run_entry(main, USAGE)
