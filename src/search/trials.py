"""The trials of a study: asked of Optuna, run, watched and told; the ledger is always ahead of the processes."""

import math
import random
import shutil
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna import pruners, samplers, storages
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState

from src.config import ConfigError, compose
from src.config.resume import experiment_folder, read_status
from src.search.launcher import Launcher, Process
from src.search.space import as_overrides, distributions, grid
from src.tracking.files import read_rows

POLL_SECONDS = 0.5


@dataclass
class Job:
    """A trial with a run that is going on.

    Attributes:
        trial: As Optuna knows it.
        slot: Its place among those that run at the same time.
        folder: Of the run.
        process: Of the run.
        is_watched: Whether it may be pruned: the first run of a point only, which the others are compared with.
    """

    trial: Trial
    slot: int
    folder: Path
    process: Process
    is_watched: bool


class Search:
    """Runs the trials of a study. What is done, and how it ended, is read from the ledger and the run folders alone.

    Args:
        folder: The study's folder, whose lock is held.
        sweep: What is tried, complete.
        common: The configuration that all trials have in common.
        launcher: What starts a run.
    """

    def __init__(self, folder: Path, sweep: Mapping[str, Any], common: Mapping[str, Any], launcher: Launcher) -> None:
        self.folder, self.sweep, self.launcher = folder, sweep, launcher
        self.metric, self.seed, self.n_jobs = common["monitor"]["metric"], common["seed"], sweep["n_jobs"]
        self.space = distributions(sweep["space"])
        self.points = grid(self.space) if sweep["sampler"] == "grid" else None
        self.count = sweep["n_trials"] if self.points is None else len(self.points[: sweep["n_trials"]])
        self.jobs: dict[int, Job] = {}
        self.left: set[int] = set()  # trials that were interrupted, which another start goes on with
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        self.study = open_ledger(folder, common["monitor"]["mode"])
        self.study.pruner = build_pruner(sweep["pruner"], common["trainer"].get("max_epochs"))

    def run(self, stopped: Callable[[], object]) -> None:
        """Runs trials until there are no more, or a signal has come (`stopped`) and those that ran have stopped."""
        while True:
            while not stopped() and len(self.jobs) < self.n_jobs and (trial := self._next()):
                self._advance(trial, min({*range(self.n_jobs)} - {job.slot for job in self.jobs.values()}))
            if stopped() and self.jobs.keys() - self.left:
                say(f"stopping: {len(self.jobs)} of the trials are saving their state")
                for job in self.jobs.values():
                    job.process.terminate()
                self.left |= self.jobs.keys()
            if not self.jobs:
                return
            time.sleep(POLL_SECONDS)
            for job in list(self.jobs.values()):
                self._look_after(job)

    def _next(self) -> Trial | None:
        """The next trial that an earlier start has left unfinished, else a new one; None: there are no more."""
        known = self.study.get_trials(deepcopy=False)
        open_ones = [t for t in known if t.state == TrialState.RUNNING and t.number not in self.left | self.jobs.keys()]
        if not open_ones and len(known) >= self.count:
            return None
        self.study.sampler = self._sampler(open_ones[0].number if open_ones else len(known))
        trial = Trial(self.study, open_ones[0]._trial_id) if open_ones else self.study.ask()
        for name, distribution in self.space.items():  # what it has already stays
            trial._suggest(name, distribution)
        return trial

    def _sampler(self, number: int) -> samplers.BaseSampler:
        """A sampler of its own for each trial, so that a study that is resumed draws what it would have drawn."""
        seed = random.Random(f"{self.seed} {number}").getrandbits(32)  # neighbouring seeds would draw alike
        if self.points is not None:
            return samplers.PartialFixedSampler(self.points[number], samplers.RandomSampler(seed))
        if self.sweep["sampler"] == "random":
            return samplers.RandomSampler(seed)
        return samplers.TPESampler(seed=seed, constant_liar=self.n_jobs > 1)

    def _run_of(self, trial: Trial, seed: int | None) -> tuple[list[str], Path]:
        """The overrides of a run of a trial, and its folder."""
        own = as_overrides(trial.params | ({} if seed is None else {"seed": seed}))
        overrides = [*self.sweep["overrides"], *own, f"runs_dir={self.folder}", f"group={self.folder.name}"]
        name = f"{trial.number:03d}" if seed is None else f"{trial.number:03d}-seed-{seed}"
        return overrides, experiment_folder(compose(overrides).cfg) / name

    def _advance(self, trial: Trial, slot: int) -> None:
        """Starts the first run of a trial that is not finished; with none left, tells the mean of their scores."""
        scores, seconds, folder = list[float](), 0.0, self.folder
        for seed in self.sweep["seeds"] or [None]:
            try:
                overrides, folder = self._run_of(trial, seed)
            except ConfigError as error:
                return self._fail(trial, str(error))
            process = self.launcher.find(folder)
            status = {} if process else status_at_rest(folder)
            if status.get("state") == "failed":
                return self._fail(trial, status["reason"])
            if status.get("state") != "finished":
                if trial.number not in self.left:
                    words = [f"resume={folder}"] if status else overrides
                    folder.parent.mkdir(exist_ok=True)
                    process = process or self.launcher.launch(words, folder, slot, self.n_jobs)
                    is_watched = not scores and self.sweep["pruner"] != "none"
                    self.jobs[trial.number] = Job(trial, slot, folder, process, is_watched)
                return None
            scores.append((status["best"] or {}).get("value", math.nan))
            seconds += status["seconds"]
        if not math.isfinite(score := statistics.fmean(scores)):
            return self._fail(trial, f"it has no score: {self.metric} is {score}")
        deviation = statistics.stdev(scores) if len(scores) > 1 else None
        run = str(folder.relative_to(self.folder))  # the last one of several
        spread = "" if deviation is None else f" ± {deviation:.2g}"
        result = f"{self.metric} {score:.4g}{spread}, {seconds:.0f} s"
        return self._tell(trial, TrialState.COMPLETE, result, score, deviation=deviation, seconds=seconds, run=run)

    def _look_after(self, job: Job) -> None:
        code = job.process.poll()  # before the reading: whatever it has written is there then
        if job.is_watched:
            self._report(job, may_prune=code is None)
        if code is None:
            return
        del self.jobs[job.trial.number]
        state = read_status(job.folder).get("state")
        if self.study.trials[job.trial.number].state == TrialState.PRUNED:
            return
        if state in ("finished", "failed"):
            self._advance(job.trial, job.slot)
        elif state in ("interrupted", "preempted") or job.trial.number in self.left:
            self.left.add(job.trial.number)
            say(f"trial {job.trial.number}: interrupted")
        else:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            lines = job.folder.with_suffix(".log").read_text(encoding="utf-8", errors="replace").split("\n")
            self._fail(job.trial, f"its process {how}: {next(filter(None, reversed(lines)), 'without a word')}")

    def _report(self, job: Job, may_prune: bool) -> None:
        """Tells Optuna what the epochs have come to since; a trial that is not worth its time is told and ended."""
        known = self.study.trials[job.trial.number].intermediate_values
        for row in read_rows(job.folder):
            epoch, value = row.get("epoch"), row.get(self.metric)
            if epoch is None or value is None or int(epoch) in known:
                continue
            known[int(epoch)] = value
            job.trial.report(value, int(epoch))
            if may_prune and job.trial.should_prune():
                self._tell(job.trial, TrialState.PRUNED, f"pruned in epoch {epoch:.0f} at {self.metric} {value:.4g}")
                job.is_watched = False
                return job.process.terminate()

    def _fail(self, trial: Trial, reason: str) -> None:
        reason = reason.partition("\n")[0]
        self._tell(trial, TrialState.FAIL, f"failed: {reason}", reason=reason)

    def _tell(self, trial: Trial, state: TrialState, result: str, score: float | None = None, **notes: Any) -> None:
        for name, value in notes.items():
            trial.set_user_attr(name, value)
        self.study.tell(trial, score, state=state)
        states = [frozen.state for frozen in self.study.trials]
        is_any = TrialState.COMPLETE in states
        best = f"; best {self.study.best_value:.4g}, trial {self.study.best_trial.number}" if is_any else ""
        ended = sum(state.is_finished() for state in states)
        say(f"[{ended}/{self.count}] trial {trial.number}: {shown(trial.params)}: {result}{best}")


def open_ledger(folder: Path, mode: str) -> optuna.Study:
    """Opens the study in a folder whose lock is held; what a killed process has left half done there is undone."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = folder / "journal.log"
    path.with_name("journal.log.lock").unlink(missing_ok=True)
    if path.exists():
        whole, end, _ = path.read_bytes().rpartition(b"\n")
        with open(path, "rb+") as file:
            file.truncate(len(whole + end))
    storage = storages.JournalStorage(JournalFileBackend(str(path)))
    direction = optuna.study.StudyDirection["MAXIMIZE" if mode == "max" else "MINIMIZE"]
    return optuna.create_study(storage=storage, study_name=folder.name, direction=direction, load_if_exists=True)


def build_pruner(name: str, max_epochs: int | None) -> pruners.BasePruner:
    """Builds a pruner by its name in the sweep."""
    if name == "hyperband":
        return pruners.HyperbandPruner(max_resource=max_epochs if max_epochs and max_epochs > 0 else "auto")
    return pruners.MedianPruner() if name == "median" else pruners.NopPruner()


def status_at_rest(folder: Path) -> dict[str, Any]:
    """What a run says of itself once it has ended, for it may outlive a sweep that was killed; {} if it is to begin."""
    if not folder.is_dir():
        return {}
    with FileLock(folder / ".lock"):
        status = read_status(folder)
        if not status:  # it was killed before it began
            shutil.rmtree(folder)
    return status


def shown(point: Mapping[str, Any]) -> str:
    """Returns a point on one line, numbers to four digits."""
    return " ".join(as_overrides({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in point.items()}))


def say(line: str) -> None:
    """Prints a line at once."""
    print(line, flush=True)
