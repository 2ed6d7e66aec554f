"""What a result depends on besides the configuration: code, packages, hardware. Never environment variables."""

import os
import platform
import re
import subprocess
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import psutil
import torch

ROOT = Path(__file__).parents[2]


def describe_environment(command: list[str]) -> dict[str, Any]:
    """Git commit, Python, packages, processor, memory, GPUs and the command line, as plain values."""
    return {
        "command": command,
        "folder": str(Path.cwd()),
        "git": {
            "commit": (_git("rev-parse", "HEAD") or b"").decode().strip() or None,
            "changed_files": (_git("status", "--porcelain") or b"").decode(errors="replace").splitlines(),
        },
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": {"name": _cpu_name(), "cores": os.cpu_count(), "torch_threads": torch.get_num_threads()},
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "packages": {dist.name: dist.version for dist in sorted(distributions(), key=lambda d: d.name.lower())},
    }


def uncommitted_changes() -> bytes | None:
    """What `git apply` makes of the last commit the tracked files as they are; None if it is them, or there is none."""
    # Whatever the person has set for reading differences is not for applying them.
    plain = ("--binary", "--no-ext-diff", "--no-textconv", "--no-color", "--src-prefix=a/", "--dst-prefix=b/")
    return _git("diff", *plain, "HEAD") or None


def _git(*arguments: str) -> bytes | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True, timeout=30)
    except (FileNotFoundError, subprocess.SubprocessError):  # no git, or not a repository: the record says null
        return None
    return done.stdout


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.is_file() else ""
    name = re.search(r"^model name\s*: (.*)", text, re.MULTILINE)
    return name[1] if name else platform.processor() or platform.machine()
