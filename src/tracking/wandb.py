"""One Weights & Biases run, online or offline, which never blocks, never prompts and never costs the training.

What is recorded: the run's configuration, metrics with their best values, pictures, console output, system metrics.
What is not: wandb's own "metadata" (it copies every `SLURM_*` variable, access tokens among them, and a git remote with
its user name) and the source; the run folder has a record of its own.
"""

import contextlib
import math
import os
import re
import secrets
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict, cast

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.loggers.wandb import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from src.config import ConfigError
from src.tracking import mode as modes
from src.tracking.files import replace_file

if TYPE_CHECKING:
    from wandb import Run, Settings

STEP = "trainer/global_step"
FLUSH_SECONDS = 1.0  # the default, 15, loses that much of a killed run
RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class RunInfo(TypedDict, total=False):
    """What the engine knows about the run, as plain values."""

    id: str | None  # from a checkpoint; None: the one kept in the run folder, or a new one
    name: str | None
    tags: list[str]
    group: str | None
    notes: str | None
    job_type: str | None
    config: Mapping[str, Any]  # the composed configuration
    facts: Mapping[str, Any]  # of the data
    parameters: int  # of the net
    git_commit: str | None


class WandbTracker(WandbLogger):
    """Lightning's W&B logger with a mode that is decided here and a run that is closed with the process's exit code.

    The run starts with the first use of `experiment`, on rank 0 only. Its id is chosen before that and kept in
    `<save_dir>/wandb/run_id`, so that a resumed process goes on with the same run. Everything that wandb writes,
    artifacts included, stays under `<save_dir>/wandb` (unless WANDB_DATA_DIR or WANDB_CACHE_DIR name other places).

    A server that fails never stops the training: the run is on disk then, and a line says so. The same holds if wandb's
    background process dies, after which nothing more reaches W&B.

    Args:
        save_dir: the run folder.
        run: what the run is about.
        project: W&B project.
        entity: W&B user or team; None: the account's default.
        mode: auto (online with credentials and a server that answers, else offline), online, offline or disabled.
        init_timeout: seconds for the server to accept the run; then the run goes on offline.
        finish_timeout: seconds for the last data to reach the server; what is left can be sent with `wandb sync`.

    Raises:
        ConfigError: the mode is unknown, or online without credentials; or the run id is malformed.
    """

    _open: ClassVar[set[str]] = set()  # ids of the runs that are open in this process

    def __init__(
        self,
        save_dir: str | Path,
        run: RunInfo,
        project: str = "research-template",
        entity: str | None = None,
        mode: str = "auto",
        init_timeout: float = 20.0,
        finish_timeout: float = 60.0,
    ) -> None:
        run_dir = Path(save_dir)
        self.run_id = _run_id(run_dir, run.get("id"))
        super().__init__(save_dir=str(run_dir), version=self.run_id, project=project)
        self.info = run
        self.entity = entity
        self.init_timeout = init_timeout
        self.finish_timeout = finish_timeout
        self.decision = modes.decide(mode) if _rank() == 0 else modes.Decision("disabled", "not rank 0")
        self._run_dir = run_dir
        self._run: Any = None
        self._finished = False
        self._set_variables: list[str] = []
        self._summaries: dict[str, str | None] = {}  # of the metrics seen so far

    @property
    @rank_zero_experiment
    def experiment(self) -> "Run":
        """The W&B run, started by the first access; a dummy on other ranks than 0.

        Raises:
            RuntimeError: the run was finished.
        """
        if self._finished:
            raise RuntimeError(f"the W&B run {self.run_id} is finished; nothing can be logged to it any more")
        if self._run is None:
            self._run = self._start()
        return cast("Run", self._run)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log a row; a metric's first appearance decides what the summary keeps of it.

        A value that is not finite is left out where the summary keeps the best, since W&B would take NaN for the best
        ever after; metrics.jsonl has it.
        """
        run = self.experiment
        try:
            for name in sorted(metrics.keys() - self._summaries.keys()):
                self._summaries[name] = self._summary(name)
                run.define_metric(name, step_metric=STEP, summary=self._summaries[name])
            super().log_metrics({k: v for k, v in metrics.items() if not self._summaries[k] or math.isfinite(v)}, step)
        except _process_died() as error:
            say(f"lost: its background process died ({error!r}); metrics.jsonl goes on")
            self._run = DummyLogger().experiment

    @rank_zero_only
    def finish(self, exit_code: int = 0) -> None:
        """Close the run with the exit code of the process; does nothing if it never started or is closed."""
        run, self._run = self._run, None
        if run is None:
            return
        self._finished = True
        try:
            run.finish(exit_code=exit_code)
        except TimeoutError:
            say(f"server did not take everything within {self.finish_timeout:.0f} s; to send the rest: {self._sync()}")
        except _process_died() as error:
            say(f"lost: its background process died ({error!r}); to send what is on disk: {self._sync()}")
        finally:
            self._release()

    def _start(self) -> "Run":
        import wandb

        self._set_environment()
        if self.decision.mode != "disabled":
            (self._run_dir / "wandb").mkdir(exist_ok=True)
            replace_file(self._run_dir / "wandb" / "run_id", f"{self.run_id}\n".encode())
        try:
            run = self._init(self.decision.mode)
        except wandb.Error as error:
            if self.decision.mode != "online":
                raise
            wandb.teardown()  # the failed start still holds the run's id
            self.decision = modes.Decision("offline", f"going online failed: {_first_line(error)}")
            run = self._init("offline")
        self._open.add(self.run_id)
        self._announce(run)
        return run

    def _init(self, mode: modes.Mode) -> "Run":
        import wandb

        # For the process too, until `finish`: wandb's own telemetry and its console output heed only this.
        wandb.setup(wandb.Settings(mode=mode, quiet=True, show_info=False))
        info = self.info
        config = dict(info.get("config", {}))
        config |= {key: info[key] for key in ("facts", "parameters") if key in info}
        return wandb.init(
            mode=mode,
            dir=str(self._run_dir),
            id=self.run_id,
            resume="allow",
            project=self.name,
            entity=self.entity,
            name=info.get("name"),
            tags=list(info.get("tags", ())) or None,
            group=info.get("group"),
            notes=info.get("notes"),
            job_type=info.get("job_type"),
            config=config,
            allow_val_change=True,
            settings=self._settings(),
        )

    def _settings(self) -> "Settings":
        import wandb

        return wandb.Settings(
            init_timeout=self.init_timeout,
            finish_timeout=self.finish_timeout,
            finish_timeout_raises=True,
            x_transaction_log_flush_interval=FLUSH_SECONDS,
            reinit="create_new",  # never joins, nor ends, a run that is open elsewhere in this process
            x_disable_meta=True,
            disable_git=True,
            git_commit=self.info.get("git_commit"),
            save_code=False,
            quiet=True,
            show_info=False,
        )

    def _summary(self, name: str) -> str | None:
        monitor = self.info.get("config", {}).get("monitor") or {}
        return summary_of(name, monitor.get("metric"), monitor.get("mode", "min"))

    def _set_environment(self) -> None:
        """What wandb reads from the environment alone, as long as the run is open; the person's own values stay.

        Staged artifacts and logs go into the run folder. wandb's telemetry is off: where the server hangs, it holds up
        the end of the process for 20 s.
        """
        folder = (self._run_dir / "wandb").absolute()
        wanted = {
            "WANDB_DATA_DIR": str(folder / "data"),
            "WANDB_CACHE_DIR": str(folder / "cache"),
            "OTEL_SDK_DISABLED": "true",
        }
        self._set_variables = [name for name in wanted if name not in os.environ]
        os.environ.update({name: wanted[name] for name in self._set_variables})

    def _release(self) -> None:
        import wandb

        self._open.discard(self.run_id)
        if not self._open and wandb.run is None:  # teardown would end a run that is open elsewhere in this process
            with contextlib.suppress(*_process_died()):
                wandb.teardown()
        for name in self._set_variables:
            os.environ.pop(name, None)

    def _announce(self, run: "Run") -> None:
        line = f"{self.decision.mode} ({self.decision.reason})"
        if self.decision.mode == "online":
            line += f": {run.url}"
        elif self.decision.mode == "offline":
            line += f"; to send this run later: {self._sync()}"
        say(line)

    def _sync(self) -> str:
        """The command that sends every part of the run which is on disk; a resumed run has several."""
        kind = "offline-run" if self.decision.mode == "offline" else "run"
        return f"wandb sync {shlex.quote(os.path.relpath(self._run_dir / 'wandb'))}/{kind}-*"


def summary_of(name: str, monitor: str | None, monitor_mode: str) -> str | None:
    """What W&B's summary keeps of a metric besides its last value: "max", "min" or nothing.

    The monitored metric by its mode; of others the last part of the name tells. A test metric is measured once, and
    step, epoch or learning rate have no best.
    """
    if name == monitor:
        return f"{monitor_mode},last"
    split, _, kind = name.rpartition("/")
    if split not in ("train", "val"):
        return None
    if kind in ("loss", "mae", "mse", "rmse", "ece"):
        return "min,last"
    return "max,last" if kind in ("acc", "f1", "auroc", "r2") else None


def _process_died() -> tuple[type[Exception], ...]:
    """What wandb raises when its background process is gone, killed for memory say."""
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

    return ConnectionError, HandleAbandonedError, MailboxClosedError


def _rank() -> int:
    return int(getattr(rank_zero_only, "rank", 0))  # set by Lightning on import, unknown to its types


def say(text: str) -> None:
    """One line for the person."""
    print(f"W&B {text}", flush=True)


def _run_id(run_dir: Path, given: str | None) -> str:
    kept = run_dir / "wandb" / "run_id"
    run_id = given or (kept.read_text().strip() if kept.exists() else secrets.token_hex(4))
    if not RUN_ID.fullmatch(run_id):
        raise ConfigError(f"W&B run id {run_id!r}: letters, digits, - and _ only (from {kept} or the checkpoint)")
    return run_id


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
