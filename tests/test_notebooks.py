"""Every notebook runs from top to bottom, and is stored without outputs; the course is whole."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COURSE = NOTEBOOKS[1:]


def text(path: Path) -> str:
    return "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")


def test_the_course_is_whole() -> None:
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"{number:02}" for number in range(11)]
    for page in (text(NOTEBOOKS[0]), (ROOT / "README.md").read_text(encoding="utf-8")):
        assert set(re.findall(r"(\d\d_\w+\.ipynb)", page)) >= {path.name for path in COURSE}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(path.parent)}}).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_without_outputs(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem)
def test_notebook_ends_with_exercises_and_their_solutions(path: Path) -> None:
    exercises = text(path).partition("## Exercises")[2]
    assert re.findall(r"^\**(\d)\.", exercises, re.MULTILINE)[:3] == ["1", "2", "3"]
    cells = nbformat.read(path, as_version=4).cells
    assert sum("solution" in cell.metadata.get("tags", ()) for cell in cells) >= 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_and_files_exist(path: Path) -> None:
    for target in re.findall(r"\]\(([^):]+)\)", text(path)):
        assert (path.parent / target).resolve().exists(), target
    for name in re.findall(r"`((?:src|configs|scripts|deploy|notebooks)/[\w./]+)`", text(path)):
        assert (ROOT / name).exists(), name
