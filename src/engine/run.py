"""The run folder: claimed once, described fully, and closed with the truth."""

import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from filelock import FileLock, Timeout
from lightning.pytorch import Trainer
from torch.distributed import FileStore, PrefixStore, Store, TCPStore

from src.config import Composed, ConfigError
from src.config.compose import Resumed
from src.config.resume import INHERITED, differences, digest_of, experiment_folder, read_status, slurm_folder
from src.engine.checkpoint import is_committed, points
from src.engine.environment import describe_environment, uncommitted_changes
from src.engine.failure import FailureWatch
from src.engine.preemption import global_rank, is_preemption
from src.engine.signals import Interrupted, received
from src.tracking.files import AppendOnlyFile, replacing, write_json
from src.tracking.wandb import WandbTracker


class Run:
    """One run: its folder, its identity and its status. A context manager that records how the run ends.

    Only the first process writes; the others share the folder's path and watch for one another's failure.

    Args:
        composed: Its configuration, and what goes on.
        folder: The run folder, which exists.
        run_id: Identity in the dashboards.
        status: What ``status.json`` says so far; None in other processes than the first.
        point: The checkpoint to go on from; None to begin at the beginning.
        lock: Held while the run lasts.

    Attributes:
        trackers: That are told how it ends.
    """

    def __init__(
        self,
        composed: Composed,
        folder: Path,
        run_id: str,
        status: dict[str, Any] | None = None,
        point: Path | None = None,
        lock: FileLock | None = None,
    ) -> None:
        self.cfg, self.resumed = composed.cfg, composed.resumed
        self.folder, self.run_id, self.point = folder, run_id, point
        self.name, self.checkpoints = self.cfg["name"] or folder.name, folder / "checkpoints"
        self.owner, self.status = status is not None, status or {}
        self.trackers: list[WandbTracker] = []
        self.failure = FailureWatch(folder, global_rank())
        self.shared = ""  # what the other processes of the run are told
        self._lock, self._timeline = lock, AppendOnlyFile(folder / "events.jsonl")
        self._began = time.monotonic() - self.status.get("seconds", 0.0)

    def update(self, **values: Any) -> None:
        """Sets entries of the status and writes it; a new best score and the test go on the timeline."""
        for event, key in (("best", "best"), ("test", "metrics")):
            if values.get(key) and values[key] != self.status.get(key):
                self.note(event, **values[key])
        self.status.update(values, seconds=round(time.monotonic() - self._began, 1))
        if self.owner:
            write_json(self.folder / "status.json", self.status)

    def note(self, event: str, **detail: Any) -> None:
        """Adds an event to the timeline ``events.jsonl``."""
        if self.owner:
            entry = {"time": now(), "event": event, **detail}
            self._timeline.append(json.dumps(entry, ensure_ascii=False) + "\n")
            self._timeline.close()

    def __enter__(self) -> Self:
        if self.owner:
            os.environ[INHERITED] = self.shared
        self.update(state="running")
        return self

    def watch(self, trainer: Trainer) -> None:
        """Has this process end when another process of the run fails."""
        if trainer.world_size > 1:
            launcher = trainer.strategy.launcher
            self.failure.start(lambda: getattr(launcher, "procs", []), self._end_with_others)

    def _end_with_others(self, reason: str) -> None:
        print(f"error: {reason}", file=sys.stderr, flush=True)
        self._close("failed", reason, 1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.environ.pop(INHERITED, None)
        state, own, exit_code = outcome(error)
        self.failure.stop()
        reason = self.failure.report(str(own)) if state == "failed" else own
        self._close(state, reason, exit_code)
        if error is not None and state == "interrupted" and not isinstance(error, Interrupted):
            raise Interrupted(exit_code - 128) from error
        if reason != own:  # what came of it here, such as a closed connection, is of no interest
            print(f"error: {reason}", file=sys.stderr, flush=True)
            raise SystemExit(1) from None

    def _close(self, state: str, reason: str | None, exit_code: int) -> None:
        try:
            for tracker in self.trackers:
                tracker.finish(exit_code)
        finally:
            self.update(state=state, reason=reason, exit_code=exit_code, ended=now())
            if self.owner:
                self._describe(state, reason)
            if self._lock is not None:
                self._lock.release()

    def _describe(self, state: str, reason: str | None) -> None:
        """Ends the timeline and writes the page; where it cannot be written, the run has still ended as it has."""
        try:
            self.note("end", state=state, reason=reason)
            if self.cfg["pictures"]:
                from src.tracking.pages import write_report

                write_report(self.folder)
        except (OSError, ValueError) as error:  # a full disk, or numbers that no chart can show
            print(f"report.html could not be written: {error}", file=sys.stderr, flush=True)


def outcome(error: BaseException | None) -> tuple[str, str | None, int]:
    """State, reason and exit code of a run that ended with this exception, or without one."""
    match error:
        case None:
            return "finished", None, 0
        case Interrupted(signum=signum):
            return ("preempted" if is_preemption(signum) else "interrupted"), str(error), 128 + signum
        case KeyboardInterrupt():
            return "interrupted", "stopped by SIGINT", 130
        case SystemExit() if received():  # Lightning turns a second Ctrl-C into exit code 1
            return "interrupted", str(Interrupted(received())), 128 + received()
        case ConfigError():
            return "failed", str(error), 2
    return "failed", f"{type(error).__name__}: {error}", 1


def now() -> str:
    """The time in ISO format, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def claim(composed: Composed) -> Run:
    """Claims a run folder that no other run has, or joins the one that the first process of this run has claimed.

    Raises:
        ConfigError: The folder cannot be made or written, is in use, or belongs to another configuration.
    """
    digest = digest_of(composed.cfg)
    try:
        store = meeting_point(composed.cfg)
        if inherited := os.environ.get(INHERITED) or (store is not None and global_rank() and store.get(INHERITED)):
            return _join(json.loads(inherited), composed, digest)
        environment = describe_environment(sys.argv)  # which asks git: before there is anything to be in time for
        run = _continue(composed, composed.resumed) if composed.resumed else _begin(composed)
        if composed.resumed is None or composed.resumed.changes:
            with replacing(run.folder / "config.yaml") as file:
                file.write_text(yaml.safe_dump(composed.cfg, sort_keys=False, allow_unicode=True), encoding="utf-8")
        run.update(config_digest=digest)
        resumes = run.status["resumes"]
        number = f"-{len(resumes)}" if resumes else ""
        write_json(run.folder / f"environment{number}.json", environment)
        detail = {key: value for key, value in resumes[-1].items() if key != "time"} if resumes else {}
        run.note("resume" if resumes else "start", host=run.status["host"], **detail)
    except OSError as error:
        if composed.resumed:
            raise ConfigError(f"resume={composed.resumed.folder}: cannot be written: {error}") from error
        raise ConfigError(f"runs_dir={composed.cfg['runs_dir']}: no run folder can be made there: {error}") from error
    told = {"folder": run.folder, "run_id": run.run_id, "point": run.point, "digest": digest}
    run.shared = json.dumps(told, default=str)
    if store is not None:
        store.set(INHERITED, run.shared)
    return run


def _join(shared: Mapping[str, Any], composed: Composed, digest: str) -> Run:
    folder = Path(shared["folder"])
    if shared["digest"] != digest:
        first = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        keys = [f"{key}: {old} in process 0, {new} here" for key, (old, new) in differences(first, composed.cfg)]
        problem = f"process {global_rank()} of this run has another configuration: {'; '.join(keys)}"
        FailureWatch(folder, global_rank()).note(problem)
        raise ConfigError(problem)
    point = shared["point"] and Path(shared["point"])
    return Run(composed, folder, shared["run_id"], point=point)


def _begin(composed: Composed) -> Run:
    cfg = composed.cfg
    folder, run_id = _make_folder(cfg)
    lock = _lock(folder)
    (folder / "checkpoints").mkdir()
    (folder / "plots").mkdir()
    if changes := uncommitted_changes():
        (folder / "uncommitted.diff").write_bytes(changes)
    status = {
        **_attempt(cfg, folder),
        "run_id": run_id,
        "experiment": cfg["experiment"],
        "command": ["python", "-m", "src.train", *composed.overrides],
        "started": now(),
        "monitor": cfg["monitor"],
        "best": None,
        "metrics": {},
        "resumes": [],
    }
    return Run(composed, folder, run_id, status, lock=lock)


def _continue(composed: Composed, resumed: Resumed) -> Run:
    folder, status = resumed.folder, resumed.status
    lock = _lock(folder)
    if read_status(folder) != status:
        raise ConfigError(f"resume={folder}: another process has gone on with this run meanwhile; try again")
    FailureWatch(folder, 0).clear()
    point = newest_point(folder / "checkpoints")
    if point is None and status["state"] == "finished":
        raise ConfigError(f"resume={folder}: the run is finished, and its checkpoints to go on from are gone")
    changes = {key: list(pair) for key, pair in resumed.changes.items()}
    entry = {"time": now(), "after": status["state"], "point": point and point.name, "changes": changes}
    status = {**status, **_attempt(composed.cfg, folder), "resumes": [*status.get("resumes", []), entry]}
    return Run(composed, folder, status["run_id"], status, point, lock)


def _attempt(cfg: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What the status says of a run that begins, or goes on."""
    return {
        "state": "running",
        "reason": None,
        "exit_code": None,
        "name": cfg["name"] or folder.name,
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }


def _lock(folder: Path) -> FileLock:
    """Keeps the folder for this process, as long as it lives, however it dies."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        status = read_status(folder)
        raise ConfigError(
            f"{folder}: this run is still going on (process {status.get('pid')} on {status.get('host')})"
        ) from error
    return lock


def newest_point(folder: Path) -> Path | None:
    """The newest checkpoint to go on from that is whole; says so if it is not the newest of all. None: there is none.

    Raises:
        ConfigError: There are some, but none is whole.
    """
    there = points(folder)
    newest = next(filter(is_committed, there), None)
    if there and newest is None:
        raise ConfigError(f"{folder}: no checkpoint to go on from: {', '.join(p.name for p in there)}: all damaged")
    if newest is not None and newest != there[0]:
        print(f"{there[0].name} is damaged: going on from {newest.name}, the one before", flush=True)
    return newest


def meeting_point(cfg: Mapping[str, Any]) -> Store | None:
    """A key-value store that the processes of a run share before there is a process group.

    None where there is one process, and under Lightning's own launcher, whose processes inherit the environment.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return PrefixStore(f"run/{attempt}", TCPStore(address, port, is_master=False))
    processes = int(os.environ.get("SLURM_NTASKS", "1"))
    if "SLURM_STEP_ID" in os.environ and processes > 1 and slurm_folder(cfg) is not None:
        folder = experiment_folder(cfg)
        folder.mkdir(parents=True, exist_ok=True)
        names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
        return FileStore(str(folder / f".slurm-{'-'.join(os.environ.get(n, '0') for n in names)}"), processes)
    return None


def _make_folder(cfg: Mapping[str, Any]) -> tuple[Path, str]:
    parent, slurm = experiment_folder(cfg), slurm_folder(cfg)
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        run_id = secrets.token_hex(4)
        # To the millisecond, so that the names sort in the order of the launches.
        folder = slurm or parent / f"{datetime.now().isoformat('_', 'milliseconds').replace(':', '-')}-{run_id}"
        try:
            folder.mkdir()
        except FileExistsError:
            slurm = slurm and slurm.with_name(f"{slurm.name}-{run_id}")  # another run of the same job
            continue
        return folder, run_id
