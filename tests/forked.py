"""Runs in processes of their own that need no second import: forked, and killed where a test says."""

import hashlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing import util
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore


def start_forked(task: Callable[[], object], output: Path, environment: dict[str, str] | None = None) -> int:
    """Starts a task in a forked process that prints into `output`, and returns the process's number."""
    child = os.fork()
    if child:
        return child
    util._run_after_forkers()  # as multiprocessing's own fork: else workers ask our parent for what this process shares
    code = 1
    try:
        with open(output, "w", encoding="utf-8") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        os.environ.update(environment or {})
        from src.config import ConfigError

        torch.set_num_threads(1)
        try:
            task()
            code = 0
        except ConfigError as error:
            print(f"error: {error}")
            code = 2
        except SystemExit as error:
            code = int(error.code or 0)
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def wait_for(child: int) -> int:
    """The exit code of a forked process, negative after a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def train_task(overrides: list[str], before: Callable[[], None] = lambda: None) -> Callable[[], object]:
    """Training through the door that the command line uses."""

    def task() -> object:
        from src.train import main

        before()
        return main(overrides)

    return task


def run_forked(overrides: list[str], output: Path, before: Callable[[], None] = lambda: None) -> int:
    """Trains in a forked process and returns its exit code, negative after a signal; what it printed is in `output`."""
    return wait_for(start_forked(train_task(overrides, before), output))


def run_ranks(world_size: int, task: Callable[[int], Callable[[], object]], folder: Path) -> list[int]:
    """Runs a task on several processes as torchrun starts them, with gloo; prints go to ``folder/rank-N``."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    children = []
    for rank in range(world_size):
        environment = {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1",
            "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size), "MASTER_PORT": str(store.port),
            "TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_USE_AGENT_STORE": "True",
            "GLOO_SOCKET_IFNAME": "lo",
        }  # fmt: skip
        children.append(start_forked(task(rank), folder / f"rank-{rank}", environment))
    return [wait_for(child) for child in children]


def killed_after(batches: int, signum: int = signal.SIGKILL) -> Callable[[], None]:
    """Has the process signal itself at the end of the training batch of this number, counted over the whole run."""

    def arrange() -> None:
        from src.engine.callbacks import Reporter

        original = Reporter.on_train_batch_end

        def then_signal(self: Reporter, trainer: Any, *arguments: Any) -> None:
            original(self, trainer, *arguments)
            if trainer.fit_loop.total_batch_idx + 1 == batches:
                os.kill(os.getpid(), signum)

        Reporter.on_train_batch_end = then_signal  # type: ignore[method-assign]

    return arrange


def fingerprint(folder: Path) -> dict[str, str]:
    """SHA-256 of what a run must have in common with one that was never interrupted."""
    point = torch.load(max((folder / "checkpoints").glob("step-*.ckpt")), weights_only=True)
    best = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
    parts: dict[str, Any] = {
        name: point[name] for name in ("state_dict", "optimizer_states", "lr_schedulers", "loops", "epoch")
    }
    parts["callbacks"] = {
        name: {
            key: value for key, value in state.items() if "path" not in key and key not in ("best_k_models", "dirpath")
        }
        for name, state in point["callbacks"].items()
    }
    parts["averaging"] = {key: point.get(key) for key in ("current_model_state", "averaging_state")}
    parts["best"] = best["state_dict"]
    digests = {name: _sha256(part) for name, part in parts.items()}
    for name in ("metrics.jsonl", "metrics.csv"):
        digests[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    report = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    return digests | {"score": repr(report["best"]["value"]), "test": repr(report["metrics"])}


def _sha256(value: Any) -> str:
    digest = hashlib.sha256()

    def feed(part: Any) -> None:
        if isinstance(part, dict):
            for key in sorted(part, key=str):
                digest.update(f"{key}:".encode())
                feed(part[key])
        elif isinstance(part, list | tuple):
            for item in part:
                feed(item)
        elif isinstance(part, torch.Tensor):
            digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
            digest.update(
                part.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if part.numel() else b""
            )
        else:
            digest.update(repr(part).encode())

    feed(value)
    return digest.hexdigest()
