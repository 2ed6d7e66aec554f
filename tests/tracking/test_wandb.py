"""What reaches W&B, read back with its own public reader; servers that fail; and what must never reach the disk."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import wandb
from lightning.pytorch.utilities import rank_zero_only

from src.tracking.figures import log_figure
from src.tracking.plots import loss_curves
from src.tracking.wandb import WandbTracker, summary_of

SECRETS = {
    "WANDB_API_KEY": "k3y" + "0123456789abcdef" * 3,
    "AWS_SECRET_ACCESS_KEY": "s3cret-aws",
    "SLURM_JWT": "s3cret-slurm",
    "GITHUB_TOKEN": "s3cret-github",
    "HTTPS_PROXY": "http://user:s3cret-proxy@127.0.0.1:9",
    "DATABASE_URL": "postgres://user:s3cret-database@host/name",
}
INFO: Any = {
    "id": "run1",
    "name": "digits, linear",
    "tags": ["baseline", "mnist"],
    "group": "seeds",
    "notes": "first try",
    "config": {"seed": 0, "train": True, "optimizer": {"lr": 0.1}, "monitor": {"metric": "val/acc", "mode": "max"}},
    "facts": {"num_classes": 2, "class_names": ["cat", "dog"]},
    "parameters": 7850,
}

Factory = Callable[..., WandbTracker]


@pytest.fixture
def tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Factory]:
    """Makes trackers in a working folder of their own and closes what a failed test leaves open."""
    made: list[WandbTracker] = []
    monkeypatch.chdir(tmp_path)

    def make(folder: str = "run", **arguments: Any) -> WandbTracker:
        (tmp_path / folder).mkdir(exist_ok=True)
        made.append(WandbTracker(tmp_path / folder, **{"run": INFO, "mode": "offline", **arguments}))
        return made[-1]

    yield make
    for one in made:
        one.finish(1)


def records(folder: Path) -> list[dict[str, Any]]:
    """Every record of the run in `folder`, by `wandb leet inspect`."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return [json.loads(line) for line in output.splitlines()]


def of_kind(kind: str, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record[kind] for record in found if record["type"] == kind]


def segments(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "wandb").glob("*run-*-*"))


def written(run_dir: Path) -> bytes:
    """The transaction logs of a run, in which values are plain text: cheaper to ask for a value than `records`."""
    return b"".join(path.read_bytes() for segment in segments(run_dir) for path in segment.glob("*.wandb"))


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: value for update in of_kind("summary", found) for name, value in update["update"].items()}


def history(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row["item"].items() if not k.startswith("_")} for row in of_kind("history", found)]


def exit_codes(found: list[dict[str, Any]]) -> list[int]:
    return [record.get("exit_code", 0) for record in of_kind("exit", found)]


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_everything_about_a_run_arrives_and_no_secret_does(
    tracker: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    environment = dict(os.environ)
    logger = tracker()
    for step, (accuracy, loss) in enumerate([(0.5, 0.9), (0.75, float("nan")), (0.625, 0.4)]):
        logger.log_metrics({"val/acc": accuracy, "train/loss": loss, "epoch": step}, step)
    logger.log_metrics({"test/acc": 0.7}, 3)
    log_figure([logger], "plots/curves", loss_curves([{"epoch": 0, "train/loss": 1.0}]), step=3)
    artifact = wandb.Artifact("weights", type="model")
    (tmp_path / "weights.bin").write_bytes(b"weights")
    artifact.add_file(str(tmp_path / "weights.bin"))
    logger.experiment.log_artifact(artifact)
    assert logger.experiment.url is None, "asked for without a word from wandb"
    logger.finish(0)
    printed = capfd.readouterr()

    run_dir = tmp_path / "run"
    (segment,) = segments(run_dir)
    found = records(segment)
    (run,) = of_kind("run", found)
    assert {key: run[key] for key in ("run_id", "display_name", "tags", "run_group", "notes") if key in run} == {
        "run_id": "run1", "display_name": "digits, linear", "tags": ["baseline", "mnist"], "run_group": "seeds",
        "notes": "first try",
    }  # fmt: skip
    assert run["project"] == "research-template"
    config = {name: value for name, value in run["config"]["update"].items() if name != "_wandb"}
    assert config == {**INFO["config"], "facts": INFO["facts"], "parameters": 7850}

    rows = history(found)
    assert rows[0] == {"val/acc": 0.5, "train/loss": 0.9, "epoch": 0, "trainer/global_step": 0}
    assert rows[1] == {"val/acc": 0.75, "epoch": 1, "trainer/global_step": 1} and rows[3] == {
        "test/acc": 0.7,
        "trainer/global_step": 3,
    }
    best = summary(found)
    assert best["val/acc"] == {"max": 0.75, "last": 0.625}
    assert best["train/loss"] == {"min": 0.4, "last": 0.4}
    assert best["test/acc"] == 0.7 and best["epoch"] == 2
    assert {metric["step_metric"] for metric in of_kind("metric", found)} == {"trainer/global_step"}

    (picture,) = best["plots/curves.filenames"]
    assert (segment / "files" / picture).read_bytes().startswith(b"\x89PNG")
    assert exit_codes(found) == [0]
    assert any(path.read_bytes() == b"weights" for path in (run_dir / "wandb" / "data").rglob("*") if path.is_file())
    assert not (tmp_path / "home").exists(), "something was written to the home folder"

    assert dict(os.environ) == environment
    assert printed.out == (
        "W&B offline (logger.mode=offline); to send this run later: wandb sync run/wandb/offline-run-*\n"
    )
    assert printed.err == ""
    content = {path: path.read_bytes() for path in files(run_dir)}
    assert len(content) > 6
    for secret in ("s3cret", SECRETS["WANDB_API_KEY"]):
        assert [path for path, data in content.items() if secret.encode() in data] == []


def test_rows_survive_a_kill_and_a_resumed_run_joins_them(tracker: Factory, tmp_path: Path) -> None:
    first = tracker()
    for step in range(20):
        first.log_metrics({"a": step + 0.625}, step)
    time.sleep(1.3)  # what another process can read now survives the end of this one
    (segment,) = segments(tmp_path / "run")
    assert all(f"{step}.625".encode() in written(tmp_path / "run") for step in range(20))
    first.finish(1)
    second = tracker()
    second.log_metrics({"a": 20.0}, 20)
    second.finish(143)

    (rest,) = set(segments(tmp_path / "run")) - {segment}
    found = records(rest)
    (run,) = of_kind("run", found)
    assert (run["run_id"], run["resume"]) == ("run1", True)
    assert history(found) == [{"a": 20.0, "trainer/global_step": 20}] and exit_codes(found) == [143]


def test_runs_of_one_process_do_not_mix_even_when_open_at_once(tracker: Factory, tmp_path: Path) -> None:
    one = tracker("one", run={**INFO, "id": "one"})
    two = tracker("two", run={**INFO, "id": "two"})
    one.log_metrics({"a": 1.625}, 0)
    two.log_metrics({"a": 2.625}, 0)
    one.finish(0)
    two.log_metrics({"a": 3.625}, 1)
    two.finish(1)
    values = {name: re.findall(rb"\d\.625", written(tmp_path / name)) for name in ("one", "two")}
    assert set(values["one"]) == {b"1.625"} and set(values["two"]) == {b"2.625", b"3.625"}


def test_nothing_is_logged_to_a_finished_run(tracker: Factory) -> None:
    logger = tracker()
    logger.log_metrics({"a": 1.0}, 0)
    logger.finish(0)
    logger.finish(1)
    with pytest.raises(RuntimeError, match="run1 is finished"):
        logger.log_metrics({"a": 1.0}, 1)


def test_a_run_that_never_started_leaves_nothing(tracker: Factory, tmp_path: Path) -> None:
    tracker().finish(0)
    assert list((tmp_path / "run").iterdir()) == []


def test_disabled_records_nothing(tracker: Factory, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logger = tracker(mode="disabled")
    logger.log_metrics({"a": 1.0}, 0)
    logger.finish(0)
    assert list((tmp_path / "run").iterdir()) == []
    assert capfd.readouterr().out == "W&B disabled (logger.mode=disabled)\n"


def test_other_ranks_have_no_run(
    tracker: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = tracker(mode="online")  # without credentials: rank 0 is who complains
    logger.log_metrics({"a": 1.0}, 0)
    logger.experiment.log({"a": 1.0})
    logger.finish(0)
    assert list((tmp_path / "run").iterdir()) == [] and capfd.readouterr() == ("", "")


def test_the_end_of_wandbs_own_process_does_not_end_the_training(
    tracker: Factory, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logger = tracker()
    logger.log_metrics({"a": 1.0}, 0)
    for child in psutil.Process().children(recursive=True):
        if child.name().startswith("wandb-core"):
            child.kill()
            child.wait(10)
    for step in range(1, 4):
        logger.log_metrics({"a": 2.0}, step)
    logger.finish(0)
    again = tracker("again", run={**INFO, "id": "again"})
    again.log_metrics({"a": 1.0}, 0)
    again.finish(0)
    said = [line for line in capfd.readouterr().out.splitlines() if "lost" in line]
    assert len(said) == 1 and said[0].startswith("W&B lost (")
    assert len(segments(tmp_path / "again")) == 1


def test_an_unwritable_run_folder_is_an_error(tracker: Factory, tmp_path: Path) -> None:
    logger = tracker()
    (tmp_path / "run" / "wandb").write_text("a file where the folder should be")
    with pytest.raises(FileExistsError):
        logger.log_metrics({"a": 1.0}, 0)


@pytest.mark.parametrize(
    ("metric", "kept"),
    [
        ("val/acc", "max,last"), ("train/acc", "max,last"), ("val/f1", "max,last"), ("val/loss", "min,last"),
        ("train/loss", "min,last"), ("val/mae", "min,last"), ("test/acc", None), ("epoch", None), ("lr", None),
        ("perf/loss", None), ("val/strange", "min,last"),
    ],
)  # fmt: skip
def test_what_the_summary_keeps(metric: str, kept: str | None) -> None:
    assert summary_of(metric, {"metric": "val/strange", "mode": "min"}) == kept


class Server(BaseHTTPRequestHandler):
    """As much of W&B's server as a run's start needs; `state` decides how it answers."""

    protocol_version = "HTTP/1.1"
    state = "works"

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.state == "hangs" and self.command == "POST":
            time.sleep(20)
            return
        content = json.dumps(self.graphql(json.loads(body)) if self.path == "/graphql" else {}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = answer  # noqa: N815

    def graphql(self, query: dict[str, Any]) -> dict[str, Any]:
        names = query.get("variables", {})
        if query.get("operationName") == "RunResumeStatus":
            return {"data": {"model": None}}
        if query.get("operationName") == "UpsertBucket":
            project = {"id": "p", "name": names["project"], "entity": {"id": "e", "name": "somebody"}}
            bucket = {"id": "b", "name": names["name"], "displayName": "shown", "project": project}
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if query.get("operationName") == "CreateRunFiles":
            url = f"http://127.0.0.1:{self.server.server_port}/file"  # type: ignore[attr-defined]
            uploads = [{"name": name, "uploadUrl": url} for name in names["files"]]
            return {"data": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": uploads}}}
        viewer = {"id": "v", "entity": "somebody", "username": "somebody", "flags": "{}", "teams": {"edges": []}}
        return {"data": {"serverInfo": {"features": []}, "viewer": viewer, "project": None}}

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(Server, "state", "works")
    monkeypatch.setenv("WANDB_API_KEY", SECRETS["WANDB_API_KEY"])
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_online_until_the_server_dies_and_the_end_does_not_wait_for_it(
    server: str, tracker: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    logger = tracker(mode="auto", init_timeout=10, finish_timeout=0.3)
    logger.log_metrics({"a": 1.625}, 0)
    monkeypatch.setattr(Server, "state", "hangs")
    logger.log_metrics({"a": 2.625}, 1)
    start = time.monotonic()
    logger.finish(0)
    assert time.monotonic() - start < 8
    assert capfd.readouterr().out.splitlines() == [
        f"W&B online (credentials from WANDB_API_KEY): {server}/somebody/research-template/runs/run1",
        "W&B did not take everything (TimeoutError('Timed out finishing run.')); "
        "to send the rest: wandb sync run/wandb/run-*",
    ]
    assert set(re.findall(rb"\d\.625", written(tmp_path / "run"))) == {b"1.625", b"2.625"}
    key = SECRETS["WANDB_API_KEY"].encode()
    assert [path for path in files(tmp_path / "run") if key in path.read_bytes()] == []


def test_a_failed_start_goes_on_offline_with_the_same_run(
    server: str, tracker: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Server, "state", "hangs")
    logger = tracker(mode="online", init_timeout=1)
    start = time.monotonic()
    logger.log_metrics({"a": 1.0}, 0)
    assert time.monotonic() - start < 10
    logger.finish(0)
    printed = capfd.readouterr()
    (said,) = printed.out.splitlines()
    assert printed.err == "" and said.startswith("W&B offline (going online failed: Failed to get resume status")
    assert said.endswith("; to send this run later: wandb sync run/wandb/offline-run-*")
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*-run1"))) == 1
