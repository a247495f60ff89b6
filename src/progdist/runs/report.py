"""One self-contained HTML page of a run: it opens offline, on a phone, and tells its own story.

Quality against steps on a log axis, a slider over the step count with teacher and student images of the same noise
side by side, loss curves by stage, cost by stage, the recipe and the versions.
"""

import base64
import io
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from progdist._utils.errors import UserError
from progdist._utils.files import atomic_write, read_json
from progdist.recipes.files import read_recipe
from progdist.recipes.recipe import Recipe
from progdist.runs.folder import Record, RunFolder

TEACHER, STUDENT = "#c2410c", "#1d4ed8"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "progdist",
    "font.family": "sans-serif",
    "font.size": 11,
}


def write_report(folder: RunFolder) -> Path:
    """Write report.html into a run's folder, as far as the run has come.

    Raises:
        UserError: the folder holds no run, or damaged records.
    """
    try:
        page = _page(folder)
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, jinja2.TemplateError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        raise UserError(f"{folder.root} holds damaged records ({reason}): restore its .jsonl files") from error
    atomic_write(folder.report(), page.encode())
    return folder.report()


def _page(folder: RunFolder) -> str:
    """The page of a run."""
    records = sorted(folder.read("evaluations"), key=lambda record: -record["steps"])
    if not folder.recipe().is_file():
        raise UserError(f"{folder.root} holds no run: give the --out folder of `progdist run`")
    recipe = read_recipe(str(folder.recipe()))
    environment = jinja2.Environment(loader=jinja2.PackageLoader("progdist.runs", "."), autoescape=True)
    first = records[0]["quality"] if records else []
    features = [result["features"] for result in first]
    rows = quality_rows(records)
    return environment.get_template("report.html").render(
        recipe=folder.recipe().read_text(),
        name=folder.root.resolve().name,
        counts=recipe.distill.counts(),
        next=_next(recipe, records),
        features=features,
        figures=[_svg(_quality_figure(records, number)) for number in range(len(features) if rows else 0)],
        losses=_svg(losses) if (losses := _loss_figure(folder)) else "",
        slides=_slides(folder, records),
        rows=rows,
        costs=cost_rows(folder),
        classified=bool(first) and first[0]["agreement"] is not None,
        warning=first[0]["warning"] if first else None,
        samples=first[0]["samples"] if first else 0,
        versions={name: version(name) for name in ("progdist", "torch", "diffusers", "accelerate")},
        machine=_machine(),
    )


def _next(recipe: Recipe, records: list[Record]) -> str:
    """What a run that is not finished trains or measures next; nothing where it is finished."""
    known = {(record["model"], record["steps"]) for record in records}
    for model, steps in recipe.measurements():
        if (model, steps) not in known:
            return "the teacher" if model == "teacher" and not known else f"the student of {steps} steps"
    return ""


def quality_rows(records: list[Record]) -> list[dict[str, Any]]:
    """One row per step count: the student's and the teacher's numbers in the first feature space.

    `ratio` is the Frechet distance as a multiple of the teacher's at its full step count.
    """
    teachers = [record for record in records if record["model"] == "teacher"]
    if not teachers:
        return []
    best = max(teachers, key=lambda record: record["steps"])["quality"][0]["frechet"]
    rows = []
    for steps in sorted({record["steps"] for record in records}, reverse=True):
        row: dict[str, Any] = {"steps": steps}
        for record in records:
            if record["steps"] == steps:
                quality = record["quality"][0]
                row[record["model"]] = {**record, **quality, "ratio": quality["frechet"] / best}
        rows.append(row)
    return rows


def cost_rows(folder: RunFolder) -> list[dict[str, Any]]:
    """Updates, seconds and share of the teacher's training for every model of the run, and for all students."""
    trainings = [
        (path.parent.name, read_json(path)["training"])
        for path in sorted(folder.root.glob("*/progdist.json"), key=lambda path: path.parent.name, reverse=True)
    ]
    teacher = next((numbers["seconds"] for name, numbers in trainings if name == "teacher"), None)
    rows = [{"name": name, **numbers} for name, numbers in trainings]
    students = [row for row in rows if row["name"] != "teacher"]
    rows.append(
        {
            "name": "all students",
            "updates": sum(row["updates"] for row in students),
            "batch": "",
            "seconds": sum(row["seconds"] for row in students),
        }
    )
    return [{**row, "share": row["seconds"] / teacher if teacher else None} for row in rows]


def _machine() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    threads = torch.get_num_threads()
    return f"{platform.machine()}, {device}, {threads} threads, Python {platform.python_version()}"


def _axes(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, height))
    axes = figure.add_subplot()
    figure.subplots_adjust(left=0.1, right=0.98, top=0.97, bottom=0.5 / height)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    return figure, axes


def log_scale(axes: Axes) -> None:
    """A logarithmic y axis with plain numbers at its ticks: typeset powers of ten take a second to lay out."""
    axes.set_yscale("log")
    plain = FuncFormatter(lambda value, tick: f"{value:g}")
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(NullFormatter())


def _quality_figure(records: list[Record], number: int) -> Figure:
    figure, axes = _axes(3.6)
    draw_quality(axes, records, number)
    return figure


def draw_quality(axes: Axes, records: list[Record], number: int) -> None:
    """Frechet distance against steps in one feature space, both axes logarithmic, with bootstrap intervals."""
    for model, label, colour in (("teacher", "teacher, DDIM", TEACHER), ("student", "distilled students", STUDENT)):
        chosen = [(record["steps"], record["quality"][number]) for record in records if record["model"] == model]
        steps = [count for count, _ in chosen]
        middle, low, high = (
            [quality[key] for _, quality in chosen] for key in ("frechet", "frechet_low", "frechet_high")
        )
        axes.plot(steps, middle, "o-", color=colour, label=label, markersize=5)
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    counts = sorted({record["steps"] for record in records})
    axes.set_xscale("log", base=2)
    log_scale(axes)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xlabel("sampling steps")
    axes.set_ylabel("Fréchet distance")
    axes.legend(frameon=False)


def _loss_figure(folder: RunFolder) -> Figure | None:
    """Training loss of every model, smoothed over a fiftieth of its updates; None where none is recorded."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for record in folder.read("metrics"):
        if "loss" not in record:  # a measurement of the stopping rule, or an update passed over
            continue
        curves.setdefault(record["model"], []).append((record["update"], record["loss"]))
    if not curves:
        return None
    figure, axes = _axes(4.0)
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, max(1, len(curves) - 1)))
    for index, (name, points) in enumerate(curves.items()):
        updates, losses = (np.array(column) for column in zip(*points, strict=True))
        width = max(1, len(losses) // 50)
        smooth = np.convolve(losses, np.ones(width) / width, "valid")
        colour = TEACHER if name == "teacher" else colours[index - 1]
        axes.plot(updates[width - 1 :] / updates[-1], smooth, color=colour, label=name, linewidth=1.3)
    log_scale(axes)
    axes.set_xlabel("share of the stage's updates")
    axes.set_ylabel("loss")
    figure.subplots_adjust(bottom=1.1 / figure.get_figheight())
    figure.legend(loc="lower center", frameon=False, fontsize=8, ncols=5)
    return figure


def _svg(figure: Figure) -> str:
    """The figure as inline SVG that scales with the page."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def _slides(folder: RunFolder, records: list[Record]) -> list[dict[str, Any]]:
    """For every step count the sample grids as data URIs, and the distances beside them."""
    slides = []
    for row in quality_rows(records):
        slide: dict[str, Any] = {"steps": row["steps"]}
        for model in ("teacher", "student"):
            path = folder.grid(model, row["steps"])
            if model in row and path.is_file():
                encoded = base64.b64encode(path.read_bytes()).decode()
                slide[model] = {
                    "image": f"data:image/png;base64,{encoded}",
                    "frechet": round(row[model]["frechet"], 3),
                    "rmse": round(row[model]["rmse"], 3),
                }
        slides.append(slide)
    return slides
