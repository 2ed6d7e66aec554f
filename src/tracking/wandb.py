"""One Weights & Biases run, online or offline, which never blocks, never prompts and never costs the training.

Not recorded is wandb's own "metadata": it copies every ``SLURM_*`` variable, access tokens among them, and a git
remote with its user name. The run folder has a record of its own.
"""

import contextlib
import json
import math
import os
import pickle
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import psutil
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.loggers.wandb import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from src.tracking.dashboard import charts, checkpoints
from src.tracking.mode import Decision, decide
from src.tracking.text import BEST

if TYPE_CHECKING:
    from wandb import Run

SOURCE = Path(__file__).resolve().parents[1]
GRACE = 20.0  # seconds after `finish_timeout` that wandb's background process has to keep it


class WandbTracker(WandbLogger):
    """Lightning's W&B logger with a mode that is decided here and a run that is closed with the process's exit code.

    The run starts with the first use of `experiment`, on rank 0 only. Everything that wandb writes, artifacts included,
    stays under ``<save_dir>/wandb``, unless WANDB_DATA_DIR or WANDB_CACHE_DIR name other places. Neither a server that
    fails nor the end of wandb's own background process stops the training: a line says so.

    Args:
        save_dir: The run folder.
        run: id (the same again continues that run), name, tags, group, notes, config (as composed), facts (of the
            data) and parameters (of the net, their number), as plain values.
        project: W&B project.
        entity: W&B user or team; None: the account's default.
        mode: auto (online with credentials and a server that answers, else offline), online, offline or disabled.
        init_timeout: Seconds for the server to accept the run; then it goes on offline.
        finish_timeout: Seconds for the last data to reach the server; ``wandb sync`` can send what is left.
        log_checkpoints: Whether the best and the last checkpoint of a finished run become artifacts.

    Raises:
        ConfigError: Online is asked for without credentials.
    """

    _open: ClassVar[int] = 0  # runs that are open in this process

    def __init__(
        self,
        save_dir: str,
        run: Mapping[str, Any],
        project: str = "research-template",
        entity: str | None = None,
        mode: Literal["auto", "online", "offline", "disabled"] = "auto",
        init_timeout: float = 20.0,
        finish_timeout: float = 60.0,
        log_checkpoints: bool = True,
    ) -> None:
        super().__init__(save_dir=save_dir, version=run["id"], project=project)
        self.info, self.project, self.entity = run, project, entity
        self.init_timeout, self.finish_timeout, self.log_checkpoints = init_timeout, finish_timeout, log_checkpoints
        rank = getattr(rank_zero_only, "rank", 0)  # set by Lightning on import, unknown to its types
        self.decision = decide(mode) if rank == 0 else Decision("disabled", "not rank 0")
        self._folder = Path(save_dir, "wandb").absolute()
        self._run: Any = None
        self._finished = False
        self._variables: dict[str, str] = {}  # that are set in the environment while the run is open
        self._summaries: dict[str, str | None] = {}  # of the metrics seen so far
        self._known: dict[int, set[str]] = {}  # metrics that W&B was given before the run was resumed, by step

    @property
    @rank_zero_experiment
    def experiment(self) -> "Run":
        """The W&B run, started by the first access; a dummy on other ranks than 0."""
        if self._finished:
            raise RuntimeError(f"the W&B run {self.version} is finished; nothing can be logged to it any more")
        if self._run is None:
            from wandb.util import make_artifact_name_safe

            resumed = any(self._parts())
            self._run = self._start()
            if not resumed and self.decision.mode != "disabled":
                with self._going_on("the source"):
                    self._run.log_code(str(SOURCE), make_artifact_name_safe(f"source-{self.project}"), _is_source)
        return cast("Run", self._run)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs a row; a metric's first appearance decides what the summary keeps of it.

        A value that is not finite is left out where the summary keeps the best, since W&B would take NaN for the best
        ever after; metrics.jsonl has it.
        """
        if step in self._known:
            metrics = {name: value for name, value in metrics.items() if name not in self._known[step]}
            if not metrics:
                return
        run = self.experiment
        try:
            for name in sorted(metrics.keys() - self._summaries.keys()):
                self._summaries[name] = summary_of(name, self.info["config"]["monitor"])
                run.define_metric(name, step_metric="trainer/global_step", summary=self._summaries[name])
            super().log_metrics({k: v for k, v in metrics.items() if not self._summaries[k] or math.isfinite(v)}, step)
        except _failures() as error:
            print(f"W&B lost ({error!r}); metrics.jsonl goes on", flush=True)
            self._run = DummyLogger().experiment

    @rank_zero_only
    def catch_up(self, rows: Sequence[Mapping[str, float | None]]) -> None:
        """Continues a run: W&B gets what a kill has kept from it, and nothing that it has.

        Args:
            rows: All rows that the run has come to so far, each with its "step".
        """
        if self.decision.mode == "disabled":
            return
        parts = self._parts()
        if self.experiment and self.decision.mode == "online":  # the start has decided; it knows of no offline part
            parts = [part for part in parts if part.name.startswith("run-") or any(part.glob("*.synced"))]
        with ThreadPoolExecutor() as pool:
            for part in pool.map(history, parts):
                for item in part:
                    names = self._known.setdefault(int(item["trainer/global_step"]), set())
                    names.update(name.removesuffix("._type") for name in item)  # a picture is several entries
        for row in rows:
            if row["step"] is not None:
                values = {name: value for name, value in row.items() if name != "step" and value is not None}
                self.log_metrics(values, int(row["step"]))

    @rank_zero_only
    def log_results(self, results: Mapping[str, Any], folder: Path, step: int) -> None:
        """Shows the results of a test as charts and tables, unless W&B has them from before a kill.

        Args:
            results: What ``results/test.json`` holds.
            folder: The run folder, where the paths of pictures begin.
            step: Optimizer steps of the run.
        """
        if self.decision.mode != "disabled" and not any(n.startswith("results/") for n in self._known.get(step, ())):
            with self._going_on("the results"):
                super().log_metrics(charts(results, folder), step)

    @rank_zero_only
    def finish(self, exit_code: int = 0) -> None:
        """Closes the run with the exit code of the process; does nothing if it never started or is closed."""
        import wandb

        if self._run is None:
            return
        if exit_code == 0 and self.log_checkpoints and self.decision.mode != "disabled":
            with self._going_on("the checkpoints"):
                for artifact, alias in checkpoints(self._folder.parent, self.info, self.project):
                    self._run.log_artifact(artifact, aliases=[alias])
        run, self._run, self._finished = self._run, None, True
        WandbTracker._open -= 1
        guard = threading.Timer(self.finish_timeout + GRACE, _end_background_process)
        guard.start()
        try:
            run.finish(exit_code=exit_code)
        except _failures() as error:
            print(f"W&B did not take everything ({error!r}); to send the rest: {self._sync()}", flush=True)
        finally:
            if not WandbTracker._open and wandb.run is None:  # it would end any other open run as well
                with contextlib.suppress(SystemExit, *_failures()):  # it exits with a killed process's code
                    wandb.teardown()
            guard.cancel()
            for name in self._variables:
                os.environ.pop(name, None)

    def _parts(self) -> list[Path]:
        """What W&B has on disk of this run; each process that took it up has left a part."""
        return sorted(self._folder.glob(f"*run-*-{self.version}"))

    @contextlib.contextmanager
    def _going_on(self, what: str) -> Iterator[None]:
        """Says so where W&B does not take something, and lets the training go on."""
        try:
            yield
        except _failures() as error:
            print(f"W&B did not take {what}: {error!r}", flush=True)

    def _start(self) -> "Run":
        import wandb

        self._set_environment()
        if self.decision.mode != "disabled":
            self._folder.mkdir(exist_ok=True)  # where wandb cannot, it goes to another place with a shrug
        try:
            run = self._init()
        except wandb.Error as error:
            if self.decision.mode != "online":
                raise
            wandb.teardown()  # the failed start still holds the run's id
            self.decision = Decision("offline", f"going online failed: {str(error).splitlines()[0]}")
            run = self._init()
        WandbTracker._open += 1
        line = f"W&B {self.decision.mode} ({self.decision.reason})"
        if self.decision.mode == "online":
            line += f": {run.url}"
        elif self.decision.mode == "offline":
            line += f"; to send this run later: {self._sync()}"
        print(line, flush=True)
        return run

    def _set_environment(self) -> None:
        """Sets what wandb reads from the environment alone; a person's own values stay."""
        wanted = {
            "WANDB_DATA_DIR": str(self._folder / "data"),
            "WANDB_CACHE_DIR": str(self._folder / "cache"),
            "WANDB_HTTP_TIMEOUT": "10",  # seconds that an artifact may wait for a server that hangs
            "OTEL_SDK_DISABLED": "true",  # telemetry: where the server hangs, it holds up the process's end for 20 s
        }
        self._variables = {name: value for name, value in wanted.items() if name not in os.environ}
        os.environ.update(self._variables)

    def _init(self) -> "Run":
        import wandb

        settings = wandb.Settings(
            mode=self.decision.mode,
            silent=True,  # a line of our own says what matters
            init_timeout=self.init_timeout,
            finish_timeout=self.finish_timeout,
            finish_timeout_raises=True,
            reinit="create_new",  # never joins, nor ends, a run that is open elsewhere in this process
            save_code=False,
            disable_git=True,
            x_disable_meta=True,
            x_transaction_log_flush_interval=1.0,  # the default, 15, loses that many seconds of a killed run
        )
        wandb.setup(settings)  # its telemetry and its messages heed only the settings of the process
        return wandb.init(
            **{key: self.info[key] for key in ("id", "name", "tags", "group", "notes")},
            job_type="train" if self.info["config"]["train"] else "test",
            config={**self.info["config"], "facts": self.info["facts"], "parameters": self.info["parameters"]},
            dir=str(self._folder.parent),
            project=self.project,
            entity=self.entity,
            resume="allow",
            allow_val_change=True,
            settings=settings,
        )

    def _sync(self) -> str:
        """The command that sends every part of this mode; a resumed run has several."""
        kind = "offline-run" if self.decision.mode == "offline" else "run"
        return f"wandb sync {shlex.quote(os.path.relpath(self._folder))}/{kind}-*"


def summary_of(name: str, monitor: Mapping[str, str]) -> str | None:
    """Returns what W&B's summary keeps of a metric besides its last value: "max", "min" or nothing.

    The monitored metric by its mode, others of training and validation by the last part of their name. A test metric is
    measured once, and step, epoch or learning rate have no best.
    """
    split, _, kind = name.rpartition("/")
    best = monitor["mode"] if name == monitor["metric"] else BEST.get(kind) if split in ("train", "val") else None
    return best and f"{best},last"


def _is_source(path: str) -> bool:
    """Whether a file below `SOURCE` is Python's, and not a link to somewhere else."""
    return path.endswith(".py") and Path(path).resolve().is_relative_to(SOURCE)


def history(folder: Path) -> list[dict[str, Any]]:
    """The rows in a part of a run on disk, read by wandb's own command; its file may end in the middle of a row."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    records = (json.loads(line) for line in done.stdout.split("\n") if line.startswith("{"))
    return [record["history"]["item"] for record in records if record.get("type") == "history"]


def _end_background_process() -> None:
    """Kills wandb's own process: with a server that hangs it was seen to wait for ever, past its time limit (0.31)."""
    for child in psutil.Process().children():
        if child.name().startswith("wandb-core"):
            child.kill()


def _failures() -> tuple[type[Exception], ...]:
    """What is raised where wandb's background process is gone (killed for memory, say), or the server or disk fails.

    And where a callback has put into a checkpoint what is neither a tensor nor a plain value.
    """
    from wandb.errors import CommError
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

    return OSError, CommError, HandleAbandonedError, MailboxClosedError, pickle.UnpicklingError
