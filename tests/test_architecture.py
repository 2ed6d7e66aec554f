"""The arrows between the rooms, and what must never stand in the source."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

SOURCES = sorted((ROOT / "src").rglob("*.py"))
MAY_IMPORT = {
    "config": {"config"},
    "nets": {"nets"},
    "structures": {"structures"},
    "data": {"data", "config", "structures"},
    "modules": {"modules", "config"},
    "tracking": {"tracking", "config"},
    "search": {"search", "config", "tracking.files", "tracking.text"},
    "portable": {"portable", "config", "engine", "tracking", "modules.base"},
    # Only the bases: which module and which data set a run has is the config's choice.
    "engine": {"engine", "config", "tracking", "modules.base", "modules.metrics", "modules.optimization", "data.base"},
}
FOREIGN = {
    "config": {"torch", "lightning", "numpy", "wandb", "torchvision", "torchmetrics"},
    "structures": {
        "torch",
        "lightning",
        "torchvision",
        "torch_geometric",
        "hydra",
        "wandb",
    },  # worker processes import it
    "nets": {"lightning", "hydra", "wandb", "omegaconf"},
    "modules": {"hydra", "omegaconf", "wandb"},
    "search": {"torch", "lightning", "wandb", "torchvision"},
    "data": {"hydra", "omegaconf", "wandb", "torchmetrics"},
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path) -> None:
    parts = path.relative_to(ROOT / "src").with_suffix("").parts
    room = parts[0] if len(parts) > 1 else "entry"
    for name in imports(path):
        if name.startswith("src."):
            target = name.removeprefix("src.")
            allowed = MAY_IMPORT.get(room, {"config", "engine", "tracking", "search", "portable", "data.base"})
            assert any(target == entry or target.startswith(f"{entry}.") for entry in allowed), f"{path}: {name}"
        assert name.partition(".")[0] not in FOREIGN.get(room, set()), f"{path}: {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_unsafe_code(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"weights_only\s*=\s*False|pickle\.loads?\(|\beval\(|\bexec\(", text.replace(".eval()", ""))
    assert "matplotlib.pyplot" not in imports(path)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{path}:{node.lineno}: bare except"
            assert "Exception" not in ast.unparse(node.type).split("."), f"{path}:{node.lineno}: broad except"


def test_there_is_no_utils() -> None:
    assert not [path for path in SOURCES if "util" in path.stem or "helper" in path.stem]


def code_lines(text: str) -> int:
    """Lines that hold code: what explains it (comments, docstrings, blank lines) makes reading shorter, not longer."""
    explained = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            docstring = node.body[0]
            explained |= set(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in silent:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - explained)


def test_every_room_can_be_read_in_an_afternoon() -> None:
    lines: dict[str, int] = {}
    for path in SOURCES:
        room = path.relative_to(ROOT / "src").parts[0]
        lines[room] = lines.get(room, 0) + code_lines(path.read_text(encoding="utf-8"))
        assert code_lines(path.read_text(encoding="utf-8")) < 300, f"{path}: too long to be read at once"
    assert max(lines.values()) < 2000 and sum(lines.values()) < 8350, lines


@pytest.mark.parametrize("entry", ["train", "evaluate", "predict", "explain", "prepare", "sweep", "report", "export"])
def test_entries_are_recipes(entry: str) -> None:
    assert len((ROOT / f"src/{entry}.py").read_text(encoding="utf-8").splitlines()) < 60


def test_configuration_and_help_need_no_torch() -> None:
    code = (
        "import sys, src, src.config; from src.config.cli import help_text;"
        "src.config.compose([]); help_text('src.train');"
        "print(sorted({'torch', 'lightning', 'numpy', 'wandb', 'torchvision'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_dependencies_exclude_the_compromised_releases() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '"lightning>=2.6.4,!=2.6.2,!=2.6.3"' in pyproject
    assert not re.search(r"^lightning==2\.6\.[0-3]\b", lock, re.MULTILINE)
    pinned = re.findall(r"^[a-zA-Z0-9._-]+==\S+(?:.*?)\\\n\s+--hash=sha256:[0-9a-f]{64}", lock, re.MULTILINE)
    assert len(pinned) == len(re.findall(r"^[a-zA-Z0-9]", lock, re.MULTILINE)) > 80
    assert "://" not in lock
