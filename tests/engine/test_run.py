"""Run folders: one each, described fully, closed with the truth."""

import json
import multiprocessing
import os
import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest

from src.config import Composed, ConfigError, compose
from src.engine.run import INHERITED, Run, claim, outcome
from src.engine.signals import Interrupted
from src.tracking.files import write_json


@pytest.fixture
def composed() -> Composed:
    return compose(["logger=none"])


def _claim(
    composed: Composed, barrier: "multiprocessing.synchronize.Barrier", results: "multiprocessing.Queue[str]"
) -> None:
    barrier.wait()
    results.put(str(claim(composed).folder))


def test_twenty_launches_in_one_second_get_twenty_folders(composed: Composed, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(20), context.Queue()
    processes = [context.Process(target=_claim, args=(composed, barrier, results)) for _ in range(20)]
    for process in processes:
        process.start()
    folders = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(folders) == 20
    assert len(list((tmp_path / "runs/mnist_linear").iterdir())) == 20


def test_children_join_the_folder_and_leave_the_status_alone(composed: Composed) -> None:
    with claim(composed) as run:
        assert os.environ[INHERITED]
        before = (run.folder / "status.json").read_bytes()
        child = claim(composed)
        assert (child.folder, child.run_id, child.owner) == (run.folder, run.run_id, False)
        child.update(state="nonsense")
        assert (run.folder / "status.json").read_bytes() == before
    assert INHERITED not in os.environ


class Tracker:
    exit_code: int | None = None

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, ("finished", None, 0)),
        (Interrupted(15), ("interrupted", "stopped by SIGTERM", 143)),
        (Interrupted(2), ("interrupted", "stopped by SIGINT", 130)),
        (Interrupted(10), ("preempted", "stopped by SIGUSR1", 138)),
        (KeyboardInterrupt(), ("interrupted", "stopped by SIGINT", 130)),
        (ConfigError("no such thing"), ("failed", "no such thing", 2)),
        (OSError(28, "No space left on device"), ("failed", "OSError: [Errno 28] No space left on device", 1)),
    ],
)
def test_the_status_tells_how_it_ended(
    error: BaseException | None, expected: tuple[str, str | None, int], composed: Composed
) -> None:
    assert outcome(error) == expected
    run, tracker = claim(composed), Tracker()
    run.trackers = [tracker]
    expectation = nullcontext() if error is None else pytest.raises((type(error), Interrupted))
    with expectation, run:
        assert json.loads((run.folder / "status.json").read_text())["state"] == "running"
        if error is not None:
            raise error
    report = json.loads((run.folder / "status.json").read_text())
    assert (report["state"], report["reason"], report["exit_code"]) == expected
    assert tracker.exit_code == expected[2]
    assert report["ended"] >= report["started"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"runs_dir=.*/file: no run folder can be made there: .*Not a directory"):
        claim(compose([f"runs_dir={tmp_path / 'file'}"]))


def test_status_is_never_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "status.json"
    write_json(path, {"state": "running"})
    written = Path.write_text

    def full(self: Path, text: str, **options: str) -> int:
        if self.name.endswith(".tmp"):
            raise OSError(28, "No space left on device")
        return written(self, text, **options)

    monkeypatch.setattr(Path, "write_text", full)
    write_json(path, {"state": "failed"})
    assert json.loads(path.read_text()) == {"state": "failed"}
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == ["status.json"]


def test_environment_and_configuration_are_recorded(composed: Composed) -> None:
    run = claim(composed)
    assert isinstance(run, Run)
    environment = json.loads((run.folder / "environment.json").read_text())
    assert {"git", "python", "packages", "cpu", "gpus", "command", "memory_gb"} <= environment.keys()
    assert environment["cpu"]["cores"] == os.cpu_count()
    text = (run.folder / "config.yaml").read_text()
    assert "_target_: torch.optim.Adam" in text


def test_uncommitted_changes_can_be_applied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of texts in any encoding, with any line ends, and of what is no text; whatever git is told for reading."""
    from src.engine import environment

    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=b", *words], cwd=tmp_path, check=True)

    monkeypatch.setattr(environment, "ROOT", tmp_path)
    assert environment.uncommitted_changes() is None
    before = {"latin.txt": b"caf\xe9\n", "dos.txt": b"a\r\nb\r\n", "binary": bytes(range(256)), "none": b"no end"}
    after = {name: content + b"\xe9\r\n\n" for name, content in before.items()}
    for name, content in before.items():
        (tmp_path / name).write_bytes(content)
    for words in (["init", "-q"], ["config", "diff.noprefix", "true"], ["add", "."], ["commit", "-qm", "first"]):
        git(*words)
    assert environment.uncommitted_changes() is None
    for name, content in after.items():
        (tmp_path / name).write_bytes(content)
    changes = environment.uncommitted_changes()
    assert changes is not None
    git("checkout", "-q", ".")
    (tmp_path / "uncommitted.diff").write_bytes(changes)
    git("apply", "uncommitted.diff")
    assert {name: (tmp_path / name).read_bytes() for name in after} == after
