"""One self-contained HTML page of a run: it opens offline, on a phone, in the dark, and tells its own story.

How far the run has come, quality against steps on a log axis, a slider over the step count with images of the same
noise side by side, and another over the guidance scale where models take it as an input, loss curves by stage, cost by
stage, the recipe and the versions. Where there are no scripts, all of it is there, one step count below the other, at
the guidance scale that is measured.
"""

import platform
import time
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import torch

from progdist._utils.errors import UserError
from progdist._utils.files import atomic_write, read_json
from progdist.methods.transitive import PAPERS
from progdist.recipes.files import read_recipe
from progdist.recipes.recipe import Recipe
from progdist.runs.folder import Record, RunFolder
from progdist.runs.pages.figures import loss_svg, quality_svg
from progdist.runs.pages.progress import UnderWay, duration, run_seconds, stage_costs
from progdist.runs.pages.slides import captions, guidance_dial, slides


def write_report(folder: RunFolder, under_way: UnderWay | None = None) -> Path:
    """Write report.html into a run's folder, as far as the run has come.

    Args:
        folder: of the run.
        under_way: the training under way, if one is.

    Raises:
        UserError: the folder holds no run, or damaged records.
    """
    try:
        page = _page(folder, under_way)
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, jinja2.TemplateError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        raise UserError(f"{folder.root} holds damaged records ({reason}): restore its .jsonl files") from error
    atomic_write(folder.report(), page.encode())
    return folder.report()


def _page(folder: RunFolder, under_way: UnderWay | None) -> str:
    """The page of a run."""
    in_order = list(folder.read("evaluations"))
    if not folder.recipe().is_file():
        raise UserError(f"{folder.root} holds no run: give the --out folder of `progdist run`")
    recipe, records = read_recipe(str(folder.recipe())), sorted(in_order, key=lambda record: -record["steps"])
    first = records[0]["quality"] if records else []
    features = [result["features"] for result in first]
    rows = quality_rows(records)
    upcoming = _next(recipe, records)
    return template("report.html").render(
        recipe=folder.recipe().read_text(),
        name=folder.root.resolve().name,
        counts=recipe.distill.counts(),
        method=PAPERS[recipe.distill.target][0],
        authors=PAPERS[recipe.distill.target][1],
        next=upcoming,
        progress=_progress(recipe, folder, in_order, under_way) if under_way and upcoming else None,
        stages=_stages(recipe, folder, under_way),
        written=time.time(),
        features=features,
        figures=[quality_svg(records, number) for number in range(len(features) if rows else 0)],
        losses=loss_svg(folder.read("metrics")),
        slides=slides(folder, rows),
        captions=captions(records),
        dial=guidance_dial(records),
        rows=rows,
        solver=any("teacher_dpmpp" in row for row in rows),
        costs=cost_rows(folder),
        classified=bool(first) and first[0]["agreement"] is not None,
        warning=first[0]["warning"] if first else None,
        samples=first[0]["samples"] if first else 0,
        versions={name: version(name) for name in ("progdist", "torch", "diffusers", "accelerate")},
        machine=_machine(),
    )


@lru_cache
def template(name: str) -> jinja2.Template:
    """One of the pages that lie beside this module."""
    return jinja2.Environment(loader=jinja2.PackageLoader("progdist.runs.pages", "."), autoescape=True).get_template(
        name
    )


def _next(recipe: Recipe, records: list[Record]) -> str:
    """What a run that is not finished trains or measures next; nothing where it is finished."""
    known = {(record["model"], record["steps"]) for record in records}
    for model, steps in recipe.measurements():
        if (model, steps) not in known and model != "teacher_dpmpp":  # version 0.1.0 did not measure it
            taught = (model, steps) == recipe.measurements()[0]
            return "the teacher" if taught else f"the student of {steps} step{'s' * (steps > 1)}"
    return ""


def _progress(recipe: Recipe, folder: RunFolder, records: list[Record], now: UnderWay) -> dict[str, Any]:
    """What the page says of the training under way."""
    stage, whole = now.stage_seconds, run_seconds(recipe, folder, records, now)
    return {
        "model": now.model,
        "made": now.update,
        "updates": now.updates,
        "stage": None if stage is None else duration(stage),
        "run": None if whole is None else duration(whole),
    }


def _stages(recipe: Recipe, folder: RunFolder, now: UnderWay | None) -> list[tuple[str, str]]:
    """The name of every stage, and `done`, `now` or `waiting`."""
    return [
        (name, "done" if folder.model(name).is_dir() else "now" if now and now.model == name else "waiting")
        for name in stage_costs(recipe)
    ]


def quality_rows(records: list[Record]) -> list[dict[str, Any]]:
    """One row per step count: each model's numbers in the first feature space.

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
    return f"{platform.machine()}, {device}, {threads} thread{'s' * (threads > 1)}, Python {platform.python_version()}"
