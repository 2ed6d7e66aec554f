"""Takes the step again in which a run met a value that is not finite: ``python -m src.replay DUMP``."""

import sys
from pathlib import Path

from src.config import ConfigError
from src.config.cli import Usage, run_entry

USAGE = Usage("DUMP", ("runs/mnist_linear/2026-01-31_12-00-00.000-0a1b2c3d/black_box/step-37.pt",))


def main(arguments: list[str]) -> None:
    """Prints the samples, the loss and the first layer whose values are not finite; exit code 1 if all are.

    Raises:
        ConfigError: The file is not a saved step, or of another version of the net.
    """
    if len(arguments) != 1:
        raise ConfigError("one argument: the file that the run has saved in its folder black_box")

    import torch

    from src.engine.blackbox import describe, take_step
    from src.engine.checkpoint import read_checkpoint

    path = Path(arguments[0])
    dump = read_checkpoint(path)
    if "batch" not in dump:
        raise ConfigError(f"{path}: a checkpoint, not a saved step")
    on_gpu = dump["random"]["cuda"] is not None and torch.cuda.is_available()
    finding = take_step(dump, path, torch.device("cuda" if on_gpu else "cpu"))
    print(describe(dump, finding))
    if finding.layer is None:
        print("the step does not go wrong here: other hardware or other versions than those of the run")
        sys.exit(1)


if __name__ == "__main__":
    run_entry(main, USAGE)
