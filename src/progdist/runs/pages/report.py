"""Self-contained HTML pages for a run and for `progdist compare`, which open offline, on phones and in dark mode.

A run's page shows its progress, quality against steps, images of the same noise side by side with a slider for the step
count, and another for the guidance scale if models take it, loss curves and cost by stage, the recipe and the versions.
Without scripts it shows everything at the measured guidance scale. The page of a comparison has bars and a table for
every feature space, and the samples side by side.
"""

import platform
import time
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from math import hypot
from pathlib import Path
from typing import Any

import jinja2
import torch
from torch import Tensor

from progdist._utils.errors import UserError
from progdist._utils.files import atomic_write, read_json
from progdist._utils.words import any_of, counted, interval, significant, supported
from progdist.data.grid import grid_image
from progdist.data.images import Images
from progdist.evaluation.compare import Comparison
from progdist.evaluation.generate import SamplingOptions
from progdist.evaluation.record import EvaluationRecord
from progdist.methods import METHODS
from progdist.recipes.files import read_recipe
from progdist.recipes.recipe import Recipe
from progdist.runs.evaluator import SHOWN
from progdist.runs.folder import RunFolder
from progdist.runs.listing import FAILED
from progdist.runs.pages.figures import loss_svg, parts_svg, quality_svg
from progdist.runs.pages.progress import UnderWay, duration, measurements, run_seconds
from progdist.runs.pages.slides import TITLES, Rows, captions, embed, shown_scales, slides, training_images


def write_report(folder: RunFolder, under_way: UnderWay | None = None) -> Path:
    """Write report.html into a run's folder, from its records and the training in progress.

    Raises:
        UserError: the folder holds no run, or its records are damaged.
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
    in_order = folder.evaluations()
    if not folder.recipe().is_file():
        raise UserError(f"{folder.root} is not a run: name the --out folder of `progdist run`")
    recipe, records = read_recipe(str(folder.recipe())), sorted(in_order, key=lambda record: -record.steps)
    rows, upcoming = quality_rows(records), _next(recipe, folder, in_order)
    first = records[0].quality if rows else ()
    state, detail = _state(recipe, folder, upcoming, under_way)
    return template("report.html").render(
        recipe=folder.recipe().read_text(),
        name=folder.root.resolve().name,
        against=recipe.data.against,
        counts=recipe.distill.counts(),
        method=METHODS[recipe.distill.method].title,
        authors=METHODS[recipe.distill.method].authors,
        next=upcoming,
        state=state,
        detail=detail,
        progress=_progress(recipe, folder, in_order, under_way) if under_way and upcoming else None,
        stages=_stages(recipe, folder, under_way),
        written=time.time(),
        features=[quality.features for quality in first],
        figures=[quality_svg(records, number) for number in range(len(first))] if len(records) > 1 else [],
        losses=loss_svg(folder.read("metrics")),
        parts=parts_svg(folder.read("metrics")),
        slides=slides(folder, rows),
        training=training_images(folder),
        captions=captions(records),
        guidance=shown_scales(records),
        rows=rows,
        ratios=ratios(rows),
        has={model for row in rows.values() for model in row},
        measured=records[:1] + [record for record in records if record.model in ("converted", "student")],
        titles=TITLES,
        converted=next((record for record in records if record.model == "converted"), None),
        costs=cost_rows(folder),
        first=first[0] if first else None,
        versions={name: version(name) for name in ("progdist", "torch", "diffusers", "accelerate")},
        machine=_machine(),
    )


@lru_cache
def template(name: str) -> jinja2.Template:
    """A page template of this package."""
    pages = jinja2.Environment(loader=jinja2.PackageLoader("progdist.runs.pages", "."), autoescape=True)
    pages.filters["counted"], pages.filters["significant"] = counted, significant
    pages.globals |= {"supported": supported, "interval": interval}
    return pages.get_template(name)


def _next(recipe: Recipe, folder: RunFolder, records: Sequence[EvaluationRecord]) -> str:
    """What an unfinished run trains or measures next; "" if it is finished."""
    measured = {(record.model, record.steps) for record in records}
    for model, steps in measurements(recipe, stage_0=not recipe.trains_teacher and folder.has_stage_0()):
        if (model, steps) not in measured:
            first = not model.startswith("student") and steps == recipe.measurements()[0][1]
            student = f"the student of {counted(steps, 'step')}"
            trained = "measuring " * folder.model(model if first else f"student-{steps:04}").is_dir()
            return trained + (f"the {model}{' teacher' * (model == 'converted')}" if first else student)
    return ""


def _progress(recipe: Recipe, folder: RunFolder, records: Sequence[EvaluationRecord], now: UnderWay) -> dict[str, Any]:
    """The progress of the current training for the page."""
    left = {"stage": now.stage_seconds, "run": run_seconds(recipe, folder, records, now)}
    times = {name: None if seconds is None else duration(seconds) for name, seconds in left.items()}
    return {"model": now.model, "made": now.update, "updates": now.updates, **times}


def _state(recipe: Recipe, folder: RunFolder, upcoming: str, now: UnderWay | None) -> tuple[str, str]:
    """The state of a run (Running, Stopped, Failed or Finished) and the rest of that line."""
    if not upcoming:
        students = recipe.distill.counts()[1:]
        return "Finished", f": {counted(len(students), 'student')}, of {any_of(students, 'step', 'and')}."
    ended, reason = folder.ended() or ("", "")
    if now or (not ended and folder.in_use()):
        return "Running", "" if now else f": {upcoming} is next."
    if ended == FAILED:
        return "Failed", f"{_checkpoint(recipe, folder)}: {reason}. Run the same command to resume."
    return "Stopped", f"{_checkpoint(recipe, folder) or f': {upcoming} is next'}. Run the same command to resume."


def _checkpoint(recipe: Recipe, folder: RunFolder) -> str:
    """Where an ended run resumes: the checkpoint of the half-trained model; "" if there is none."""
    configs = recipe.train_configs(stage_0=folder.has_stage_0())
    for name, config in configs.items():
        update = 0 if folder.model(name).is_dir() else folder.checkpoints(name).latest_update()
        if update:
            return f" at update {update} of {config.updates} of {name}"
    return ""


def _stages(recipe: Recipe, folder: RunFolder, now: UnderWay | None) -> list[tuple[str, str]]:
    """The name of every stage, and `done`, `now` or `waiting`."""
    return [
        (name, "done" if folder.model(name).is_dir() else "now" if now and now.model == name else "waiting")
        for name in recipe.model_names(stage_0=folder.has_stage_0())
    ]


def quality_rows(records: Sequence[EvaluationRecord]) -> dict[int, dict[str, EvaluationRecord]]:
    """The records by step count, in descending order, and model; empty before the teacher is measured."""
    if not any(record.model == "teacher" for record in records):
        return {}
    rows = dict[int, dict[str, EvaluationRecord]]()
    for record in sorted(records, key=lambda record: -record.steps):
        rows.setdefault(record.steps, {})[record.model] = record
    return rows


def ratios(rows: Rows) -> dict[int, str]:
    """Each student's Frechet distance divided by the teacher's at the full step count, to the digits of both."""
    measured = {steps: row["student"].quality[0] for steps, row in rows.items() if "student" in row}
    teacher = next((row["teacher"].quality[0] for row in rows.values() if "teacher" in row), None)
    if teacher is None or not teacher.frechet > 0:
        return {}
    own, shown = (teacher.frechet_high - teacher.frechet_low) / 2 / teacher.frechet, {}
    for steps, quality in measured.items():
        ratio, half = quality.frechet / teacher.frechet, (quality.frechet_high - quality.frechet_low) / 2
        error = min(0.5, hypot(half / teacher.frechet, ratio * own))  # one digit after the point at least
        shown[steps] = supported(ratio, ratio - error, ratio + error)
    return shown


def cost_rows(folder: RunFolder) -> list[dict[str, Any]]:
    """Updates, seconds and share of the first model's training for every model, and for all students together."""
    names = sorted((path.parent.name for path in folder.root.glob("student-*/progdist.json")), reverse=True)
    first = [name for name in ("teacher", "converted") if (folder.model(name) / "progdist.json").is_file()]
    rows: list[dict[str, Any]] = [
        {"name": name, **read_json(folder.model(name) / "progdist.json")["training"]} for name in [*first, *names]
    ]
    rows = [row for row in rows if row["updates"]]  # a teacher that is taken as it is was not trained here
    students = [row for row in rows if row["name"] in names]
    whole = next((row["seconds"] for row in rows if row not in students), None)
    if len(students) > 1:
        total = {key: sum(row[key] for row in students) for key in ("updates", "seconds")}
        rows.append({"name": "all students", "batch": "", "total": True, **total})
    return [{**row, "share": row["seconds"] / whole if whole else None} for row in rows]


def _machine() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    threads = torch.get_num_threads()
    return f"{platform.machine()}, {device}, {counted(threads, 'thread')}, Python {platform.python_version()}"


def write_comparison(
    out: Path, comparisons: Sequence[Comparison], sampling: SamplingOptions, data: Images | None = None
) -> None:
    """Write the page of comparisons, whose samples were made with these options; some of the data above them."""
    spaces = dict[str, list[dict[str, Any]]]()
    for each in comparisons:
        spaces.setdefault(each.quality.features, []).append(each.to_json())
    first = [each for each in comparisons if each.quality is each.record.quality[0]]
    page = template("comparison.html").render(
        spaces=spaces,
        models=[each.to_json() | grid(each.images) for each in first],
        warnings=list(dict.fromkeys(each.quality.warning for each in comparisons if each.quality.warning)),
        options=sampling,
        real=grid(_like(data, first[0].images).sample(SHOWN, sampling.seed)[0]) if data else None,
        sampler={"ddim": "DDIM", "dpmpp": "DPM-Solver++"}.get(str(sampling.method), sampling.method),
    )
    atomic_write(out, page.encode())


def _like(data: Images, samples: Tensor) -> Images:
    """The data in the size and channels of samples (B, C, H, W), as in the comparison."""
    channels, height, width = samples.shape[1:]
    differs = data.shape != (channels, height, width) or data.may_differ
    return data.resized(height, 3 if channels == 3 else 1) if differs and height == width else data


def grid(images: Tensor) -> dict[str, Any]:
    """Samples (B, C, H, W) as one image at the page's resolution: a data URI, its width and its height."""
    image, width, height = embed(grid_image(images, 8))
    return {"grid": image, "width": width, "height": height}
