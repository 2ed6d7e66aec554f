"""Predictions for new samples: ``python -m src.predict ckpt=last|RUN_DIR|FILE inputs=PATH [output=FILE.csv]``."""

import sys
from pathlib import Path

from src.config import ConfigError, take_arguments
from src.config.cli import Usage, run_entry

USAGE = Usage(
    "ckpt=last|RUN_DIR|FILE inputs=PATH [output=FILE.csv] [on_bad=error|skip] [key=value ...]",
    (
        "ckpt=last inputs=photos output=photos.csv on_bad=skip",
        "ckpt=best.ckpt 'inputs=photos/*.jpg'",
        "ckpt=last inputs=data/MNIST/raw/t10k-images-idx3-ubyte",
        "ckpt=formation-energy-per-atom.pth.tar inputs=cifs",
    ),
)


def main(arguments: list[str]) -> Path:
    """Predicts and returns the CSV file that it has written.

    Raises:
        ConfigError: The checkpoint or the inputs cannot be used, or the file cannot be written.
        SystemExit: The file is complete, but some inputs could not be used, and `on_bad` is not `skip`.
    """
    own, overrides = take_arguments(arguments, ("ckpt", "inputs", "output", "on_bad", "runs_dir", "experiment"))
    for name, what in (("ckpt", "last|RUN_DIR|FILE: say which checkpoint predicts"), ("inputs", "PATH: say on what")):
        if not own.get(name):
            raise ConfigError(f"{name}={what}")
    if (on_bad := own.get("on_bad", "error")) not in ("error", "skip"):
        raise ConfigError(f"on_bad={on_bad}: expected error or skip")

    from src.engine.evaluation import find_checkpoint
    from src.engine.prediction import predict

    path = find_checkpoint(str(own["ckpt"]), own.get("runs_dir"), own.get("experiment"))
    output = Path(str(own["output"])).expanduser() if own.get("output") else None
    output, bad = predict(path, Path(str(own["inputs"])).expanduser(), output, overrides)
    if bad and on_bad == "error":
        print(f"error: inputs that cannot be used: {bad}; the last column of {output} says why", file=sys.stderr)
        sys.exit(1)
    return output


if __name__ == "__main__":
    run_entry(main, USAGE)
