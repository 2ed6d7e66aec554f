"""README and CONTRIBUTING are followed to the letter."""

import http.client
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from src.config import build, compose
from src.data.base import DataModule
from tests.conftest import ROOT
from tests.cpp import NEEDED, lacking, values
from tests.fake_crystals import crystals, write_cgcnn_folder
from tests.fakes import write_dogcat, write_image_folder, write_mnist

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"^`([\w./]+)`\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDS_A_CLONE = ("make ", "source ")
"""Run by tests/test_clone.py, or what the tests run under already."""
SLOW = ("python -m benchmarks",)


def commands(text: str) -> list[str]:
    lines = [line for language, block in BLOCK.findall(text) if language == "bash" for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def run(line: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    words = shlex.split(line)
    assert words[0] == "python"
    return subprocess.run(
        [sys.executable, *words[1:]],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=280,
    )


def test_every_command_of_the_readme_is_run_somewhere() -> None:
    every = commands((ROOT / "README.md").read_text(encoding="utf-8"))
    assert every[:2] == ["make train", "make test"]
    assert all(line.startswith(("python -m ", *NEEDS_A_CLONE)) for line in every)


SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("section", [title for title, text in SECTIONS.items() if "```bash\npython -m src" in text])
def test_readme_commands_in_order(section: str, tmp_path: Path) -> None:
    """`ckpt=last` and `resume=last` stand on what the lines before them in the section have trained."""
    write_mnist(tmp_path / "sets", train=5300, test=50)
    write_image_folder(tmp_path / "photos", 30)
    write_dogcat(tmp_path / "dogcat", 60)
    write_cgcnn_folder(tmp_path / "cifs", crystals(6))
    for line in commands(SECTIONS[section]):
        if line.startswith((*NEEDS_A_CLONE, *SLOW)):
            continue
        if "max_epochs" not in line and "src.train" in line and "=last" not in line and "--" not in line:
            line += " trainer.max_epochs=2"
        done = run(line.replace("/path/to", str(tmp_path)), ROOT, DATA_ROOT=str(tmp_path / "data"))
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


BENCHMARKS = {
    "mnist_epoch": ["--epochs", "2"],
    "cifar_epoch": ["--images", "1500", "--epochs", "1"],
    "ddp_scaling": ["--images", "6200", "--batch", "64", "--repeats", "1"],
    "folder_decode": ["--count", "40", "--rounds", "1", "--epochs", "2"],
    "store_scaling": ["--sizes", "1000", "2000", "--images", "500"],
    "crystal_step": ["--samples", "300", "--batch-size", "32", "--epochs", "2", "--stock-batches", "2"],
    "graph_building": ["--structures", "60"],
    "deploy": ["--seconds", "0.1", "--rounds", "1", "--batch", "4"],
}
"""Every benchmark, with the options that make it small."""


def leaves(figures: Any) -> Iterator[Any]:
    for value in figures.values():
        yield from leaves(value) if isinstance(value, dict) else [value]


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks(name: str, tmp_path: Path) -> None:
    if name == "deploy" and lacking():
        pytest.skip(f"{NEEDED}: {lacking()}")
    done = run(shlex.join(["python", "-m", f"benchmarks.{name}", *BENCHMARKS[name]]), ROOT)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures and all(isinstance(value, int | float) for value in leaves(figures))


def test_every_benchmark_is_run() -> None:
    assert {path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py")} == set(BENCHMARKS)
    shown = {
        line.split()[2].removeprefix("benchmarks.")
        for line in commands((ROOT / "README.md").read_text(encoding="utf-8"))
        if line.startswith(SLOW)
    }
    assert shown <= set(BENCHMARKS)


def test_readme_shows_what_a_mistake_prints(command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    (block,) = re.findall(r"```console\n\$ python -m src.train (.*?)\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    done = command("src.train", *shlex.split(block[0]))
    assert (done.returncode, done.stderr) == (2, block[1])


def test_readme_names_what_exists(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in re.findall(r"`((?:src|configs)/[\w./]+)`", text):
        if path != "configs/local/default.yaml":
            assert (ROOT / path).exists(), path
    for path in (ROOT / "configs/data").glob("*.yaml"):
        assert f"`{path.stem}`" in text


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_deploying_to_the_letter(tmp_path: Path) -> None:
    if lacking():
        pytest.skip(f"{NEEDED}: {lacking()}")
    text = (ROOT / "deploy/README.md").read_text(encoding="utf-8")
    digits = build(compose([]).cfg["data"], DataModule, seed=0)
    digits.setup()
    Image.fromarray(digits.splits["test"].x_NCHW[645, 0].numpy()).save(tmp_path / "digit.png")
    write_cgcnn_folder(tmp_path / "cifs", crystals(2))
    (tmp_path / "crystals").mkdir()
    printed = {}
    for line in commands(text):
        done = run(line.replace("/path/to", str(tmp_path)), ROOT, RUNS_DIR=str(tmp_path / "runs"))
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        printed[line] = done.stdout
    (shown,) = re.findall(r"```text\n(digit.*?)```", text, re.DOTALL)
    answer = printed["python deploy/portable.py /path/to/model.onnx /path/to/digit.png"]
    assert values(answer)["digit.png"] == pytest.approx(values(shown)["digit.png"], abs=0.01)
    check_server(text, tmp_path, answer)
    console = next(iter(re.findall(r"```console\n(.*?)```", text, re.DOTALL)))  # the other is of the benchmark
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for line in re.findall(r"^\$ (.*)", console, re.MULTILINE):
        line = line.replace("/path/to", str(tmp_path)).replace("deploy/cpp", str(ROOT / "deploy/cpp"))
        done = subprocess.run(line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    assert values(done.stdout)["digit.png"] == pytest.approx(values(answer)["digit.png"], abs=1e-4)
    assert console.splitlines(keepends=True)[-1] == shown


def check_server(text: str, folder: Path, answer: str) -> None:
    """Runs the server of the page, asks it for a digit, and gives it what it must refuse."""
    (server,) = re.findall(r"```python\n(import io.*?)```", text, re.DOTALL)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "server.py").write_text(server.replace("8000", str(port)), encoding="utf-8")
    shutil.copy(ROOT / "deploy/portable.py", folder)
    with subprocess.Popen([sys.executable, "server.py"], cwd=folder, stderr=subprocess.DEVNULL) as process:
        try:
            answers = [ask(process, port, content) for content in ((folder / "digit.png").read_bytes(), b"hello")]
        finally:
            process.kill()
    assert answers == [(200, answer.strip().replace("digit.png", "picture")), (400, "is neither PNG nor JPEG")]


def ask(process: subprocess.Popen[bytes], port: int, content: bytes) -> tuple[int, str]:
    while process.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("POST", "/", content)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except ConnectionRefusedError:  # it has not come up yet
            time.sleep(0.1)
    raise AssertionError(f"the server ended with {process.returncode}")


def test_contributing_to_the_letter(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    names = shlex.split(
        subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    )
    for name in names:
        if name.startswith(("src/", "configs/", "tests/")) or name == "pyproject.toml":
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files = FILE.findall(text)
    assert [Path(name).suffix for name, _ in files] == [".py", ".yaml", ".py"] * 2
    for name, content in files:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text(content, encoding="utf-8")
    for line in commands(text):
        done = run(line + (" -n 0" if "pytest" in line else ""), copy)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    sources = [name for name, _ in files if name.startswith("src/")]
    for tool in (["ruff", "check"], ["ruff", "format", "--check"], ["mypy", "--strict"]):
        done = subprocess.run([sys.executable, "-m", *tool, *sources], cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
