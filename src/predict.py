"""Predictions for new samples: ``python -m src.predict ckpt=last|RUN_DIR|FILE inputs=PATH [output=FILE.csv]``."""

from pathlib import Path
from typing import Any

from src.config import ConfigError, take_arguments
from src.config.cli import Usage, run_entry

USAGE = Usage(
    "ckpt=last|RUN_DIR|FILE inputs=PATH [output=FILE.csv] [key=value ...]",
    ("ckpt=last inputs=new.extxyz output=new.csv", "ckpt=formation-energy-per-atom.pth.tar inputs=cifs"),
)


def main(arguments: list[str]) -> list[list[Any]]:
    """Predicts, writes a CSV file and returns its rows.

    Raises:
        ConfigError: The checkpoint or the inputs cannot be used.
    """
    own, overrides = take_arguments(arguments, ("ckpt", "inputs", "output", "runs_dir", "experiment"))
    for name, what in (("ckpt", "last|RUN_DIR|FILE: say which checkpoint predicts"), ("inputs", "PATH: say on what")):
        if not own.get(name):
            raise ConfigError(f"{name}={what}")

    from src.engine.evaluation import find_checkpoint
    from src.engine.prediction import predict

    path = find_checkpoint(str(own["ckpt"]), own.get("runs_dir"), own.get("experiment"))
    output = Path(own["output"]).expanduser() if own.get("output") else None
    return predict(path, Path(str(own["inputs"])).expanduser(), output, overrides)


if __name__ == "__main__":
    run_entry(main, USAGE)
