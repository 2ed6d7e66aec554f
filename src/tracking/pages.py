"""Pages that need neither network nor script: ``report.html`` of a run, ``index.html`` of many."""

import base64
import io
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from src.config import ConfigError, compose
from src.config.sources import written
from src.tracking import plots
from src.tracking.files import replacing
from src.tracking.runs import StoredRun, columns_of, differing_keys, leaves, summary
from src.tracking.text import cell, duration, number, numeric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#012345"  # what is drawn in it takes the page's own text colour, which is another in the dark
STYLE: dict[Any, Any] = {f"{part}color": INK for part in ("text.", "axes.edge", "axes.label", "xtick.", "ytick.")}
NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
MOST_POINTS = 1500  # of a scatter plot that stay vectors
LARGEST_PICTURE = 24_000  # bytes; a larger one is embedded as JPEG


def write_report(folder: Path) -> Path:
    """Writes ``report.html`` into a run folder, from what lies there alone, whatever the run has come to.

    Raises:
        OSError: The folder cannot be read or written.
    """
    run = StoredRun(folder)
    results, resumes = run.json("results/test.json"), len(run.status.get("resumes") or [])
    environment = run.json(f"environment-{resumes}.json" if resumes else "environment.json")
    names = [one[key] for one in results.get("worst", []) for key in ("image", "explanation") if one.get(key)]
    content = {
        "run": run,
        "results": results,
        "events": run.events(),
        "pictures": {name: picture(run, name) for name in [*names, "plots/training_batch.png"]},
        "charts": [drawn(name, draw) for name, draw in plots.of_test(results).items()],
        "curves": curves(run.rows(), run.monitor["metric"]),
        "speed": curves(run.perf(), ""),
        "defaults": defaults(run),
        "facts": run.json("facts.json"),
        "packages": environment.pop("packages", {}),
        "environment": environment,
    }
    return _write(folder / "report.html", "report.html.j2", content)


def write_index(runs_dir: Path, runs: Sequence[StoredRun]) -> Path:
    """Writes ``index.html``: a line for each run with a link to its page, which is made anew where it is out of date.

    Raises:
        OSError: A folder cannot be read or written.
    """
    for run in runs:
        page, status = run.folder / "report.html", run.folder / "status.json"
        going_on = run.status.get("state") == "running"  # or killed: its status is told of neither
        if going_on or not page.is_file() or (status.is_file() and page.stat().st_mtime < status.stat().st_mtime):
            write_report(run.folder)
    keys = differing_keys(runs)
    rows = [summary(run, keys) for run in runs]
    columns = columns_of(rows)
    content = {"runs_dir": runs_dir, "runs": runs, "rows": rows, "columns": columns, "numeric": numeric(columns, rows)}
    return _write(runs_dir / "index.html", "index.html.j2", content)


def _write(path: Path, template: str, content: Mapping[str, Any]) -> Path:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = FileSystemLoader(Path(__file__).with_name("templates"))
    pages = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    pages.filters |= {"cell": cell, "number": number, "duration": duration, "leaves": leaves, "written": written}
    pages.filters |= {"shell": shlex.join, "moment": datetime.fromisoformat}
    text = pages.get_template(template).render(content)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")
    return path


def curves(rows: Sequence[Mapping[str, float | None]], monitor: str) -> list[tuple[str, str]]:
    """A chart for each metric of training and validation, with its title; the loss and the monitor come first.

    What is measured once an epoch is drawn by epoch, counted from 1, the rest by step.
    """
    found: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    for row in rows:
        for name, value in row.items():
            split, _, kind = name.partition("/")
            if kind and split not in ("test", "best") and value is not None:
                point = (row["step"] or 0, (row.get("epoch") or 0) + 1, value)
                found.setdefault(kind, {}).setdefault(plots.LINES.get(split, [split])[0], []).append(point)
    charts = []
    for kind in sorted(found, key=lambda kind: (kind != "loss", kind != monitor.rpartition("/")[2], kind)):
        epochs = [epoch for _, epoch, _ in found[kind].get("validation", [])]
        x = 1 if epochs and len(set(epochs)) == len(epochs) else 0
        series = {name: [(point[x], point[2]) for point in points] for name, points in sorted(found[kind].items())}
        title = plots.LABELS.get(kind, kind.replace("_", " "))
        charts.append((title, drawn(title, line_chart, series, ("step", "epoch")[x])))
    return charts


def line_chart(series: Mapping[str, Sequence[tuple[float, float]]], x: str) -> "Figure":
    """A small chart of lines, laid out by hand: a page has a dozen, and measuring each would double its time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 2.9))
    figure.subplots_adjust(left=0.15, right=0.97, top=0.96, bottom=0.16)
    plots.draw_lines(figure.subplots(), series, x)
    return figure


def drawn(name: str, draw: Callable[..., "Figure"], *arguments: Any) -> str:
    """The figure as SVG to stand in a page: transparent, in the page's text colour, its inner names its own."""
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({**STYLE, "font.size": 9, "svg.fonttype": "none", "svg.hashsalt": name}):
        figure = draw(*arguments)
        for axes in figure.axes:
            for points in axes.collections:
                # Many points are too much to draw one by one, and the cells of a colour bar leave seams.
                many = len(np.asarray(points.get_offsets())) > MOST_POINTS
                points.set_rasterized(many or len(points.get_paths()) > 100)
        figure.savefig(text, format="svg", transparent=True, metadata=NO_METADATA)
    svg = text.getvalue()
    # matplotlib has escaped the texts in it
    return re.sub(r' id="[\w.]+_\d+"', "", svg[svg.index("<svg") :]).replace(INK, "currentColor")


def picture(run: StoredRun, name: str) -> str | None:
    """A picture of the run folder as an address that holds it; None where it is missing or damaged."""
    from PIL import Image

    try:
        data, kind = (run.folder / name).read_bytes(), "png"
        image = Image.open(io.BytesIO(data)).convert("RGB")
    except FileNotFoundError:
        return None
    except (OSError, SyntaxError) as error:  # Pillow raises either
        run.faults.append(f"{name} is damaged: {error}")
        return None
    if len(data) > LARGEST_PICTURE:
        smaller, kind = io.BytesIO(), "jpeg"
        image.thumbnail((1000, 1000) if name.startswith("plots") else (320, 320))
        image.save(smaller, "JPEG", quality=85)
        data = smaller.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def defaults(run: StoredRun) -> dict[str, Any]:
    """The configuration of ``configs/train.yaml``, by dotted key; that of the run where it cannot be composed."""
    try:
        return dict(leaves(compose([]).cfg))
    except ConfigError as error:
        run.faults.append(f"what differs from the defaults is not known: {error}")
        return dict(leaves(run.config))
