"""The metrics of a checkpoint: ``python -m src.evaluate ckpt=last|RUN_DIR|FILE [split=test|val] [key=value ...]``."""

from pathlib import Path

from src.config import ConfigError, take_arguments
from src.config.cli import Usage, run_entry

USAGE = Usage(
    "ckpt=last|RUN_DIR|FILE [split=test|val] [output=FILE] [key=value ...]",
    (
        "ckpt=last",
        "ckpt=runs/mnist_linear/2026-01-31_12-00-00.000-0a1b2c3d split=val",
        "ckpt=best.ckpt data.root=/sets",
    ),
)


def main(arguments: list[str]) -> dict[str, float]:
    """Evaluates and returns the metrics.

    Raises:
        ConfigError: The checkpoint or the data cannot be used.
    """
    own, overrides = take_arguments(arguments, ("ckpt", "split", "output", "runs_dir", "experiment"))
    if not own.get("ckpt"):
        raise ConfigError("ckpt=last|RUN_DIR|FILE: say which checkpoint to evaluate")

    from src.engine.evaluation import evaluate, find_checkpoint

    path = find_checkpoint(str(own["ckpt"]), own.get("runs_dir"), own.get("experiment"))
    output = Path(str(own["output"])).expanduser() if own.get("output") else None
    return evaluate(path, own.get("split", "test"), output, overrides)


if __name__ == "__main__":
    run_entry(main, USAGE)
