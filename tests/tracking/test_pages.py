"""The page of a run: what it says of runs of every kind, finished, failed, damaged; and in a browser."""

import html
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from src.modules.metrics import NonFiniteLossError
from src.tracking import pages
from src.tracking.pages import curves, write_index, write_report
from src.tracking.runs import StoredRun, find_runs, summary
from tests.conftest import QUICK, ROOT, Train, status
from tests.forked import killed_after, run_forked
from tests.stored import ROWS, write_classification, write_regression, write_run


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def text(page: Path) -> str:
    """What a reader sees of a page, without pictures, on one line."""
    whole = page.read_text().replace("<wbr>", "")
    bare = re.sub(r"<style>.*?</style>|<script>.*?</script>|<[^>]*>", " ", whole, flags=re.DOTALL)
    return " ".join(html.unescape(bare).split())


def test_a_run_leaves_a_timeline_and_a_page(train: Train, run_folders: Callable[[], list[Path]]) -> None:
    metrics = train("pictures=true", "trainer.max_epochs=2", "seed=1", "checkpoint.every_n_steps=10")
    (folder,) = run_folders()
    told = events(folder)
    assert [event["event"] for event in told] == [
        *("start", "epoch", "best", "checkpoint", "epoch", "checkpoint", "best", "test", "end")
    ]  # and not one for every tenth step
    assert [event["step"] for event in told if event["event"] == "checkpoint"] == [54, 108]
    assert told[-3]["value"] == status(folder)["best"]["value"] and told[-2]["test/acc"] == metrics["test/acc"]
    assert told[-1] == {"time": told[-1]["time"], "event": "end", "state": "finished", "reason": None}
    page = folder / "report.html"
    assert page.stat().st_mtime_ns >= (folder / "status.json").stat().st_mtime_ns
    shown = text(page)
    assert f"{metrics['test/acc']:#.4g} test/acc" in shown and "7,850 parameters" in shown
    assert "trainer.max_epochs 2 30" in shown and "seed 1 0" in shown  # value and default
    assert f"python -m src.train {' '.join(QUICK)} pictures=true trainer.max_epochs=2 seed=1" in shown


def test_a_failed_run_has_a_page_too(train: Train, run_folders: Callable[[], list[Path]]) -> None:
    with pytest.raises(NonFiniteLossError):
        train("pictures=true", "optimizer.lr=1e38")
    (folder,) = run_folders()
    shown = text(folder / "report.html")
    assert "failed" in shown and "NonFiniteLossError: the train loss is not finite at step 1 (epoch 0)" in shown
    assert "No metric has been logged: the run ended before its first row." in shown
    assert events(folder)[-1]["state"] == "failed"


@pytest.mark.parametrize("overrides", [["trainer.max_epochs=1"], ["optimizer.lr=1e38"]])
def test_a_page_that_cannot_be_written_changes_nothing(
    overrides: list[str],
    train: Train,
    run_folders: Callable[[], list[Path]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pages, "write_report", full)
    if "1e38" in overrides[0]:
        with pytest.raises(NonFiniteLossError):
            train("pictures=true", *overrides)
    else:
        assert train("pictures=true", *overrides)["test/acc"] > 0.5
    assert "report.html could not be written: [Errno 28] No space left on device" in capsys.readouterr().err
    assert status(run_folders()[0])["state"] == ("failed" if "1e38" in overrides[0] else "finished")


def test_a_killed_run_shows_no_sign_of_life_and_then_goes_on(tmp_path: Path) -> None:
    output = tmp_path / "output"
    assert run_forked([*QUICK, "pictures=true", "trainer.max_epochs=2"], output, killed_after(60)) == -signal.SIGKILL
    (run,) = find_runs(tmp_path / "runs")
    assert (run.state, run.status["state"]) == ("killed", "running")
    assert f"no sign of life: process {run.status['pid']} on {socket.gethostname()} is gone" in text(
        write_report(run.folder)
    )
    assert run_forked(["resume=last", "trainer.max_epochs=3"], output) == 0, output.read_text()
    told = events(run.folder)
    (resume,) = [event for event in told if event["event"] == "resume"]
    assert resume["after"] == "running" and resume["changes"] == {"trainer.max_epochs": [2, 3]}
    shown = text(run.folder / "report.html")
    assert "trainer.max_epochs: 2 → 3" in shown and "resume=last trainer.max_epochs=3" in shown


def test_the_worst_samples_are_told_by_what_the_data_set_knows_of_them(tmp_path: Path) -> None:
    write_regression(folder := write_run(tmp_path / "a"))
    path = folder / "results/test.json"
    assert "id formula prediction target error Cu3Au-3 Cu3 Au" in text(write_report(folder))
    content = json.loads(path.read_text())
    content["worst"][0].pop("formula")
    path.write_text(json.dumps(content), encoding="utf-8")
    assert "id prediction target error Cu3Au-3" in text(write_report(folder))


def test_pages_need_neither_torch_nor_network(tmp_path: Path) -> None:
    write_classification(write_run(tmp_path / "runs/a/b"), ["cat", "dog"])
    code = (
        "import sys; from src.report import main; main([sys.argv[1]]);"
        "print(sorted({'torch', 'lightning', 'wandb', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "runs")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    for page in (tmp_path / "runs/index.html", tmp_path / "runs/a/b/report.html"):
        outside = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!data:|#|a/b/)[^"')\s>]+""", page.read_text())
        assert not outside, outside


def test_a_run_that_is_still_going_on(tmp_path: Path) -> None:
    began = datetime.fromtimestamp(psutil.Process().create_time(), UTC).isoformat()
    run = StoredRun(write_run(tmp_path / "a", state="running", started=began))
    assert (run.state, run.reason) == ("running", None)
    assert StoredRun(write_run(tmp_path / "b", state="running", host="elsewhere")).state == "running"
    # This process has the number that the run had, but is younger.
    assert StoredRun(write_run(tmp_path / "c", state="running", started="2020-01-01T00:00:00+00:00")).state == "killed"


def test_damaged_files_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    for name in ("facts.json", "environment.json"):
        (folder / name).write_text('{"half": ')
    (folder / "metrics.jsonl").write_text((folder / "metrics.jsonl").read_text() + '{"step": 39, "ep')
    (folder / "events.jsonl").write_text(
        '{"time": "2026-01-31T12:00:00+00:00", "event": "start", "host": "a\u2028b"}\n{"time": "20'
    )
    (folder / "perf.csv").write_text("step,name,value\n9,perf/memory_mb,100.0\n\0\0\0\0")
    (folder / "results").mkdir()
    (folder / "results/test.json").write_text("[]")
    (folder / "plots").mkdir()
    (folder / "plots/training_batch.png").write_bytes(b"\x89PNG")
    shown = text(write_report(folder))
    for name in ("facts.json", "environment.json", "results/test.json", "plots/training_batch.png"):
        assert f"{name} is damaged" in shown
    assert "0.7500 val/acc, best, in epoch 2" in shown and "memory (MB)" in shown and "start host a b" in shown
    with open(folder / "perf.csv", "a", encoding="utf-8") as file:
        file.write("\n29,perf/memory_mb29,perf/memory_mb,100.0\n")  # a torn line, and the next one glued to it
    assert "perf.csv is damaged" in text(write_report(folder))
    (folder / "config.yaml").write_text("seed: [")
    (folder / "status.json").write_text("")
    shown = text(write_report(folder))
    assert "config.yaml is damaged" in shown and "status.json is damaged" in shown and "unknown" in shown


@pytest.mark.parametrize(
    "status",
    [
        '{"state": "running", "host": "HOST"}',
        '{"state": "running", "host": "HOST", "started": "2026-01-31T12:00:00+00:00", "pid": null, "resumes": []}',
        '{"state": "failed", "reason": null, "metrics": null, "resumes": null, "monitor": 3}',
        "[1, 2]",
    ],
)
def test_whatever_a_damaged_folder_holds_it_has_a_page_and_a_line(status: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    (folder / "status.json").write_text(status.replace("HOST", socket.gethostname()))
    (folder / "metrics.jsonl").write_text("[]\n")
    (folder / "config.yaml").write_text("seed: 1\nmonitor: 3\n")
    (run,) = find_runs(tmp_path)
    assert "metrics.jsonl is damaged" in text(write_report(folder))
    line = summary(run)
    assert line["state"] == {"[": "unknown", "f": "failed"}.get(status[0] if status[0] == "[" else status[11], "killed")
    if status[0] == "[":
        assert line["reason"] == "status.json is damaged: it holds no dict"


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    run, image = StoredRun(write_run(tmp_path / "a")), io.BytesIO()
    Image.effect_noise((600, 600), 50).save(image, "PNG")
    content = image.getvalue()
    header, *chunks = content.split(b"IDAT")
    for broken in (header, content[: len(content) // 2], header + b"IDAT" + b"    ".join(chunks)):
        (run.folder / "picture.png").write_bytes(broken)
        assert pages.picture(run, "picture.png") is None
    assert len(run.faults) == 3 and all(fault.startswith("picture.png is damaged: ") for fault in run.faults)


def test_a_run_that_died_at_once(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", state="failed", reason="ConfigError: no data", rows=[])
    (folder / "metrics.jsonl").unlink()
    shown = text(write_report(folder))
    for line in ("ConfigError: no data", "There is no results/test.json: the run ended before its test.",
                 "There is no events.jsonl.", "There is no environment.json."):  # fmt: skip
        assert line in shown


def test_names_are_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>&'\"$5_{$"
    folder = write_run(
        tmp_path / "a", (f"name={evil}", f"notes={evil}"), reason=evil, state="failed", metrics={evil: 1.0}
    )
    write_classification(folder, [evil, f"<img src=x onerror=alert(2)>{'long ' * 60}"])
    (folder / "facts.json").write_text(json.dumps({"name": evil, evil: evil}))
    page = write_report(folder)
    write_index(tmp_path, find_runs(tmp_path))
    assert evil in text(page) and evil in text(tmp_path / "index.html")
    for path in (page, tmp_path / "index.html"):
        assert "<script>alert" not in path.read_text() and "<img src=x" not in path.read_text()


@pytest.mark.parametrize("classes", [2, 1000])
def test_few_and_many_classes(classes: int, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", metrics={"test/acc": 0.9})
    write_classification(folder, [f"n{n:08} a class of things, number {n}" for n in range(classes)], 4000)
    page = write_report(folder)
    assert page.stat().st_size < 1_500_000
    shown = text(page)
    charts = shown[
        shown.index("4,000 samples, weights of checkpoints/best.ckpt.") : shown.index("Classes, the weakest")
    ]
    which = "worst classes"  # the last line is their mean
    titles = [f"Precision and recall, {which} against the others", f"ROC, {which} against the others", "Calibration"]
    places = [charts.index(title) for title in titles]
    assert places == sorted(places)
    assert charts.count("0.500 ") == charts.count("0.625 ") == (3 if classes == 2 else 10)
    table = shown[shown.index("Classes, the weakest first") : shown.index("Samples with the largest loss")]
    assert re.findall(r"number (\d+) 20 ", table)[-1] == "1"  # of which there is no F1
    assert "cat/7.jpg, probability of the true class 0.01000, loss 4.600" in shown
    assert len(re.findall(r'<img src="data:image/(?:png|jpeg);base64,', page.read_text())) == 2


def test_regression(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", ("experiment=emt_cgcnn",))
    write_regression(folder)
    shown = text(write_report(folder))
    assert "50 samples. The plots show an even choice of them." in shown
    assert "band_gap eV 0.1000 0.2000 0.5000 0.1000" in shown
    assert "Cu3Au-3 Cu3 Au 1.000, 2.000 0.5000, none 0.5000" in shown
    assert re.search(r"50 samples, MAE 0\.0\d+, .*49 samples, MAE 0\.0\d+", shown)


def test_curves_leave_gaps_and_follow_the_text_colour() -> None:
    rows: list[dict[str, float | None]] = [
        {name: float(value) for name, value in row.items()} for row in [*ROWS, {"step": 30, "epoch": 3, "test/acc": 1}]
    ]
    steps: list[dict[str, float | None]] = [{"step": n, "epoch": 0, "train/lr": 10.0**-n} for n in range(5)]
    drawn = curves([*rows, *steps], "val/acc")
    assert [title for title, _ in drawn] == ["loss", "accuracy", "learning rate"]
    loss, accuracy, rate = (svg for _, svg in drawn)
    validation, *_ = re.findall(r'<path d="(M [^"]*)"[^>]*stroke: #e4572e', loss)
    assert "L" not in validation  # 1.5, NaN, 1.25: two points, no line
    assert ">epoch<" in accuracy and ">step<" in rate and "currentColor" in loss and "#012345" not in loss
    names = [set(re.findall(r' id="([^"]+)"', svg)) for _, svg in drawn]
    assert names[0] and not names[0] & names[1] and not names[0] & names[2]  # three pictures in one page


def test_a_configuration_of_another_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(tmp_path / "a")
    (folder / "config.yaml").write_text("seed: 3\nremoved: {key: 1}\nmonitor: {metric: val/acc, mode: max}\n")
    assert "seed 3 0 removed.key 1" in text(write_report(folder))


def test_keys_break_between_words(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    (folder / "facts.json").write_text(json.dumps({"<wbr>.a_&": "<i>.b"}))
    content = write_report(folder).read_text()
    for cell in (
        *("data.<wbr>_target_<wbr>", "src.<wbr>data.<wbr>mnist.<wbr>MNISTSubsetDataModule", "0.002"),
        *("early_<wbr>stopping.<wbr>min_<wbr>delta", "&lt;wbr&gt;.<wbr>a_<wbr>&amp;", "&lt;i&gt;.b"),
    ):
        assert f'<td class="name">{cell}</td>' in content


def test_the_index_makes_anew_what_is_out_of_date(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "x" / name) for name in "ab"]
    for folder, age in zip(folders, (-10, 10), strict=True):
        (folder / "report.html").write_text("as it was")
        time = (folder / "status.json").stat().st_mtime + age
        os.utime(folder / "report.html", (time, time))
    write_index(tmp_path, find_runs(tmp_path))
    assert [(folder / "report.html").read_text() == "as it was" for folder in folders] == [False, True]
    links = re.findall(r'href="(x/[^"]*)"', (tmp_path / "index.html").read_text())
    assert [(tmp_path / link).is_file() for link in links] == [True, True]


def test_the_page_of_a_run_that_was_killed_since_is_made_anew(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "x/a", state="running", host="elsewhere")
    write_index(tmp_path, find_runs(tmp_path))
    assert "<title>a: running</title>" in (folder / "report.html").read_text()
    content = json.loads((folder / "status.json").read_text())
    time = (folder / "status.json").stat().st_mtime
    (folder / "status.json").write_text(json.dumps({**content, "host": socket.gethostname(), "pid": 2**30}))
    os.utime(folder / "status.json", (time, time))  # a kill changes nothing in the folder
    write_index(tmp_path, find_runs(tmp_path))
    assert "<title>a: killed</title>" in (folder / "report.html").read_text()


@pytest.fixture
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if not (program := shutil.which("chromium")):
        pytest.skip("needs chromium")
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classification", "regression", "failed", "index"])
def test_in_a_browser(kind: str, browser: Any, tmp_path: Path) -> None:
    """Nothing is asked of the network, nothing breaks, nothing leaves a phone's screen, and the dark is dark."""
    name = "a-rather-long-name-without-any-place-to-break-it-" * 3
    page = tmp_path / "x" / name / "report.html"
    write_run(page.parent, state="failed" if kind == "failed" else "finished", reason="/a/long/path" * 30)
    (page.parent / "facts.json").write_text(json.dumps({"name": "photos", "class_names": ["x" * 30] * 900}))
    if kind == "classification":
        write_classification(page.parent, ["W" * 90, *map(str, range(29))])
    if kind == "regression":
        write_regression(page.parent)
    write_run(tmp_path / "x/other", ("seed=3",), metrics={"test/acc": 0.5}, started="2026-02-01T12:00:00+00:00")
    if kind == "index":
        page = write_index(tmp_path, find_runs(tmp_path))
    else:
        write_report(page.parent)
    colours, wrong = [], []
    for scheme in ("light", "dark"):
        context = browser.new_context(viewport={"width": 360, "height": 800}, color_scheme=scheme, offline=True)
        tab = context.new_page()
        tab.on("console", lambda message: wrong.append(message.text))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("request", lambda request: wrong.append(request.url) if request.url[:5] not in ("file:", "data:") else 0)
        tab.goto(page.as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") == 360
        assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        style = "getComputedStyle(document.querySelector('svg text') || document.body)"
        colours.append((paper, tab.evaluate(f"document.querySelector('svg') ? {style}.fill : {style}.color")))
    assert not wrong, wrong
    assert colours == [("rgb(255, 255, 255)", "rgb(27, 31, 36)"), ("rgb(20, 23, 27)", "rgb(228, 231, 234)")]
    if kind == "classification":
        assert len(tab.query_selector_all("img")) == 2
    if kind == "index":
        first = "document.querySelector('tbody tr:not([hidden])').innerText"
        assert "other" in tab.evaluate(first)  # the newest
        tab.click("th:has-text('seed')")
        assert name in tab.evaluate(first)
        tab.fill("input", "OTHER")
        assert "other" in tab.evaluate(first)
