"""Many runs: ``python -m src.sweep sweep=NAME``, or a grid, ``python -m src.sweep optimizer.lr=0.1,0.2 seed=1,2``."""

from pathlib import Path

from src.config import ConfigError, take_arguments
from src.config.cli import Usage, run_entry
from src.engine.signals import check, handled, received
from src.search.folder import create, go_on_frozen, hold, is_frozen, read
from src.search.launcher import Local
from src.search.slurm import Slurm, first_script
from src.search.space import SETTINGS, check_points, complete, read_cluster, read_grid, read_sweep
from src.search.summary import summarize
from src.search.trials import Search, say

USAGE = Usage(
    "sweep=NAME|key=a,b,... [n_trials=N] [n_jobs=N] [seeds=[1,2,3]] [key=value ...] | resume=STUDY_DIR [n_trials=N]\n"
    "       ... launcher=slurm [cluster=NAME] [cluster.KEY=VALUE ...] [dry_run=true]",
    ("sweep=mnist_lr", "experiment=mnist_linear optimizer.lr=1e-3,1e-2 seed=1,2,3 n_jobs=2", "resume=runs/sweeps/NAME"),
)


def main(arguments: list[str]) -> None:
    """Runs the trials that are still to be run, in a process that lives on the study's own copy of the code.

    Raises:
        ConfigError: What was asked for cannot be run; nothing has been written then.
        SystemExit: The sweep has ended: 0 if a trial is finished and none failed, 1, or after a signal.
    """
    own, rest = take_arguments(arguments, ("sweep", "resume", "dry_run", *SETTINGS))
    name, resume = own.pop("sweep", None), own.pop("resume", None)
    if not resume:
        own, rest, is_dry = read_cluster(name and str(name), own, rest)
        sweep = read_sweep(str(name), own, rest) if name else read_grid(own, rest)
        composed = check_points(sweep)  # stage 1 of the checks, without torch
        from src.engine.plan import check_monitor

        for one in composed:
            check_monitor(one.cfg)
        if sweep["launcher"] == "slurm" and (script := first_script(composed, sweep["cluster"])) and is_dry:
            return print(script, end="")
        go_on_frozen(create(str(name or "grid"), sweep, composed[0]), [])
    if rest or name or own.keys() - {"n_trials", "n_jobs"}:
        raise ConfigError(f"resume={resume}: a study goes on as it began; only n_trials and n_jobs may be changed")
    folder = Path(str(resume)).expanduser().absolute()
    if not is_frozen(folder):
        go_on_frozen(folder, [f"{key}={value}" for key, value in own.items()])
    with handled():
        stored, common, _ = read(folder)
        sweep, _lock = complete(stored | own), hold(folder)
        search = Search(folder, sweep, common, Slurm(sweep["cluster"]) if sweep["launcher"] == "slurm" else Local())
        say(f"{search.count} trials, {sweep['n_jobs']} at a time, by {search.metric}: {folder}")
        search.run(received)
        is_well = summarize(search)
        check()
    raise SystemExit(0 if is_well else 1)


if __name__ == "__main__":
    run_entry(main, USAGE)
