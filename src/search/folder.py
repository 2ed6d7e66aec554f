"""The folder of a study, which holds all that its trials depend on, the code included."""

import os
import secrets
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import yaml
from filelock import FileLock, Timeout

from src.config import Composed, ConfigError
from src.config.sources import CONFIG_DIR
from src.tracking.files import replacing

ROOT = CONFIG_DIR.parent


def create(name: str, sweep: Mapping[str, Any], common: Composed) -> Path:
    """Makes `<runs_dir>/sweeps/<name>-<time>-<id>` with a copy of the code and the configurations.

    Raises:
        ConfigError: It cannot be written.
    """
    time = datetime.now().isoformat("_", "milliseconds").replace(":", "-")
    runs = Path(common.cfg["runs_dir"]).expanduser().absolute()
    folder = runs / "sweeps" / f"{name}-{time}-{secrets.token_hex(4)}"
    try:
        for part in ("src", "configs"):
            shutil.copytree(ROOT / part, folder / "code" / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder / "code")  # may allow further targets
        _write(folder / "base.yaml", common.cfg)
        _write(folder / "sweep.yaml", {**sweep, "started_in": str(Path.cwd())})
    except OSError as error:
        raise ConfigError(f"runs_dir={runs}: no folder of a sweep can be made there: {error}") from error
    return folder


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Returns the sweep of a study, the configuration that its trials have in common, and the folder it began in.

    Raises:
        ConfigError: It is no folder of a study.
    """
    try:
        sweep, common = (yaml.safe_load((folder / f"{name}.yaml").read_text("utf-8")) for name in ("sweep", "base"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"resume={folder}: is no folder of a sweep: {error}") from error
    if not (isinstance(sweep, dict) and isinstance(common, dict) and "started_in" in sweep):
        raise ConfigError(f"resume={folder}: is no folder of a sweep: it is damaged")
    return sweep, common, sweep.pop("started_in")


def hold(folder: Path) -> FileLock:
    """Returns a lock that keeps a study for this process, as long as it lives.

    Raises:
        ConfigError: Another process has it.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise ConfigError(f"{folder}: this sweep is still going on") from error
    return lock


def is_frozen(folder: Path) -> bool:
    """Whether this process runs the study's copy of the code."""
    return (folder / "code").resolve() == ROOT


def go_on_frozen(folder: Path, arguments: Sequence[str]) -> NoReturn:
    """Becomes `src.sweep resume=FOLDER` as it was when the study began, where it began: edits make no difference."""
    try:
        os.chdir(began := read(folder)[2])
    except OSError as error:
        raise ConfigError(f"resume={folder}: it began in {began}, which cannot be entered: {error.strerror}") from error
    path = os.pathsep.join(filter(None, (str(folder / "code"), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}  # safe: not the working folder first
    command = [sys.executable, "-m", "src.sweep", f"resume={folder}", *arguments]
    os.execve(sys.executable, command, environment)


def _write(path: Path, values: Mapping[str, Any]) -> None:
    with replacing(path) as file:
        file.write_text(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True), encoding="utf-8")
