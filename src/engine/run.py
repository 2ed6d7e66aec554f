"""The run folder: claimed once, described fully, and closed with the truth."""

import json
import os
import secrets
import socket
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import yaml
from torch.distributed import PrefixStore, TCPStore

from src.config import Composed, ConfigError
from src.engine.environment import describe_environment, uncommitted_changes
from src.engine.signals import Interrupted, received

INHERITED = "RESEARCH_TEMPLATE_RUN"
"""Environment variable by which the processes of one run share its folder."""


@runtime_checkable
class Closable(Protocol):
    """A tracker that wants to know how the run ended."""

    def finish(self, exit_code: int) -> None: ...  # noqa: D102


class Run:
    """One run: its folder, its identity and its status. A context manager that records how the run ends.

    Only the first process writes; the others share the folder's path.

    Args:
        folder: The run folder, which exists.
        run_id: Identity in the dashboards.
        owner: Whether this is the process that claimed the folder.
        status: What ``status.json`` says so far.
    """

    def __init__(self, folder: Path, run_id: str, owner: bool, status: dict[str, Any]) -> None:
        self.folder, self.run_id, self.owner = folder, run_id, owner
        self.status = status
        self.trackers: list[Closable] = []
        self._began = time.monotonic()

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.folder / "checkpoints"

    def update(self, **values: Any) -> None:
        """Sets entries of the status and writes it."""
        self.status.update(values, seconds=round(time.monotonic() - self._began, 1))
        if self.owner:
            write_json(self.folder / "status.json", self.status)

    def __enter__(self) -> Self:
        if self.owner:
            os.environ[INHERITED] = json.dumps({"folder": str(self.folder), "run_id": self.run_id})
        self.update(state="running")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.environ.pop(INHERITED, None)
        state, reason, exit_code = outcome(error)
        try:
            for tracker in self.trackers:
                tracker.finish(exit_code)
        finally:
            self.update(state=state, reason=reason, exit_code=exit_code, ended=now())
        if error is not None and state == "interrupted" and not isinstance(error, Interrupted):
            raise Interrupted(received() or 2) from error


def outcome(error: BaseException | None) -> tuple[str, str | None, int]:
    """State, reason and exit code of a run that ended with this exception, or without one."""
    match error:
        case None:
            return "finished", None, 0
        case Interrupted(signum=signum):
            return ("preempted" if signum.name == "SIGUSR1" else "interrupted"), str(error), 128 + signum
        case KeyboardInterrupt():
            return "interrupted", "stopped by SIGINT", 130
        case SystemExit() if received():  # Lightning turns a second Ctrl-C into exit code 1
            return "interrupted", str(Interrupted(received() or 2)), 128 + (received() or 2)
        case ConfigError():
            return "failed", str(error), 2
    return "failed", f"{type(error).__name__}: {error}", 1


def now() -> str:
    """The time in ISO format, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file that is never seen half-written.

    On a full disk there may be no room for the second copy; the file is then written over in place, because a status
    that still says "running" would be worse.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        path.write_text(text, encoding="utf-8")


def claim(composed: Composed) -> Run:
    """Claims a run folder that no other run has, or joins the one that the first process of this run has claimed.

    Raises:
        ConfigError: The folder cannot be made or written.
    """
    store = torchrun_store()
    if store is not None and os.environ["RANK"] != "0":
        os.environ[INHERITED] = store.get(INHERITED).decode()
    if inherited := os.environ.get(INHERITED):
        shared = json.loads(inherited)
        return Run(Path(shared["folder"]), shared["run_id"], owner=False, status={})
    cfg = composed.cfg
    parent = Path(cfg["runs_dir"]).expanduser().absolute() / (cfg["experiment"] or "none")
    try:
        folder, run_id = _make_folder(parent)
        status = {
            "state": "running",
            "reason": None,
            "exit_code": None,
            "run_id": run_id,
            "name": cfg["name"] or folder.name,
            "experiment": cfg["experiment"],
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "command": ["python", "-m", "src.train", *composed.overrides],
            "started": now(),
            "monitor": cfg["monitor"],
            "best": None,
            "metrics": {},
        }
        _describe(folder, cfg)
    except OSError as error:
        raise ConfigError(f"runs_dir={cfg['runs_dir']}: no run folder can be made there: {error}") from error
    if store is not None:
        store.set(INHERITED, json.dumps({"folder": str(folder), "run_id": run_id}))
    return Run(folder, run_id, owner=True, status=status)


def torchrun_store() -> PrefixStore | None:
    """The key-value store that torchrun keeps for its processes, None if this one was started otherwise."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"run/{attempt}", TCPStore(address, port, is_master=False))


def _make_folder(parent: Path) -> tuple[Path, str]:
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        run_id = secrets.token_hex(4)
        # To the millisecond, so that the names sort in the order of the launches.
        folder = parent / f"{datetime.now().isoformat('_', 'milliseconds').replace(':', '-')}-{run_id}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder, run_id


def _describe(folder: Path, cfg: dict[str, Any]) -> None:
    text = yaml.safe_dump(cfg, sort_keys=False, allow_unicode=True)
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    write_json(folder / "environment.json", describe_environment(sys.argv))
    if changes := uncommitted_changes():
        (folder / "uncommitted.diff").write_text(changes, encoding="utf-8")
    (folder / "checkpoints").mkdir()
    (folder / "plots").mkdir()
