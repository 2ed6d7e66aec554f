"""Many runs: ``python -m src.sweep sweep=NAME``, or a grid, ``python -m src.sweep optimizer.lr=0.1,0.2 seed=1,2``."""

from pathlib import Path
from typing import Any

from src.config import ConfigError, take_arguments
from src.config.cli import Usage, run_entry
from src.engine.signals import check, handled, received
from src.search.folder import create, go_on_frozen, held, is_frozen, read
from src.search.launcher import LocalLauncher
from src.search.space import check_points, complete, read_grid, read_sweep
from src.search.summary import summarize
from src.search.trials import Search, say

SETTINGS = ("sampler", "pruner", "n_trials", "n_jobs", "seeds")
USAGE = Usage(
    "sweep=NAME|key=a,b,... [n_trials=N] [n_jobs=N] [seeds=[1,2,3]] [key=value ...] | resume=STUDY_DIR [n_trials=N]",
    ("sweep=mnist_lr", "experiment=mnist_linear optimizer.lr=1e-3,1e-2 seed=1,2,3 n_jobs=2", "resume=runs/sweeps/NAME"),
)


def main(arguments: list[str]) -> None:
    """Runs the trials that are still to be run.

    Raises:
        ConfigError: What was asked for cannot be run; nothing has been written then.
        SystemExit: Not every trial is finished or pruned; a signal ended the sweep.
    """
    own, rest = take_arguments(arguments, ("sweep", "resume", *SETTINGS))
    name, resume = own.pop("sweep", None), own.pop("resume", None)
    if resume and (rest or name or own.keys() - {"n_trials", "n_jobs"}):
        raise ConfigError(f"resume={resume}: a study goes on as it began; only n_trials and n_jobs may be changed")
    folder = Path(str(resume)).expanduser().absolute() if resume else begin(name, own, rest)
    if not is_frozen(folder):
        go_on_frozen(folder, [text for text in arguments if resume and not text.startswith("resume=")])
    with handled():
        is_well = go_on(folder, own)
        check()
    raise SystemExit(0 if is_well else 1)


def begin(name: object, own: dict[str, Any], overrides: list[str]) -> Path:
    """Checks what is to be tried and makes the folder of the study."""
    sweep = read_sweep(str(name), own, overrides) if name else read_grid(own, overrides)
    composed = check_points(sweep)

    from src.engine.plan import check_monitor  # after composition: a mistake is reported before torch is imported

    for one in composed:
        check_monitor(one.cfg)
    return create(str(name or "grid"), sweep, composed[0])


def go_on(folder: Path, own: dict[str, Any]) -> bool:
    """Runs what is left of a study, and says how it went."""
    sweep, common, _ = read(folder)
    with held(folder):
        search = Search(folder, sweep := complete(sweep | own), common, LocalLauncher(sweep["n_jobs"]), received)
        say(f"{search.count} trials, {sweep['n_jobs']} at a time, by {search.metric}: {folder}")
        search.run()
        return summarize(search)


if __name__ == "__main__":
    run_entry(main, USAGE)
