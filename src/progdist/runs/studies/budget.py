"""Section 5.3: how long is long enough.

The same teacher is distilled with the recipe's updates per stage times each of several factors, along chains that
divide by 2 and by 4 at a time; every student of few steps is measured. The plot is quality against the updates of all
stages together.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from progdist.methods.chain import halvings
from progdist.recipes.files import write_recipe
from progdist.recipes.recipe import Recipe
from progdist.recipes.training import StageTraining
from progdist.runs.evaluator import Evaluator
from progdist.runs.folder import Record, RunFolder
from progdist.runs.run import Run, open_run
from progdist.runs.studies.results import COLOURS, distance, markdown, measured, panels, write_study
from progdist.training.callbacks import Callback

MAX_STEPS = 8
"""Students of more steps are trained, but not measured."""


def budget(recipe: Recipe, out: Path, factors: Sequence[float], divisors: Sequence[int], callback: Callback) -> str:
    """Distil with every budget along every chain, or go on with it.

    Args:
        recipe: teaches the teacher, and gives the updates that the factors multiply.
        out: the study's folder.
        factors: of the updates of each stage.
        divisors: teacher steps to one of the student, e.g. 2 and 4.
        callback: called for every training.

    Returns:
        The table, as Markdown.

    Raises:
        UserError: a divisor does not lead along the recipe's chain, or as in `run`.
    """
    folder = RunFolder(out)
    variants = {(k, f): _variant(recipe, k, f) for k in divisors for f in factors}
    folder.claim(write_recipe(recipe), lambda old: False)
    first = open_run(recipe, out / "teacher", callback)
    first.prepare()
    first.claim()
    teacher, evaluator = first.train_teacher(first.trainer()), first.evaluator()
    records: list[Record] = []
    for (divisor, factor), changed in variants.items():
        run = open_run(changed, out / "students" / f"by-{divisor}-times-{factor:g}", callback)
        run.prepare()
        run.claim()
        if not run.folder.model("teacher").exists():
            shutil.copytree(first.folder.model("teacher"), run.folder.model("teacher"))
        records += _students(run, evaluator, folder, divisor, factor)
    start = recipe.distill.counts()[0]
    key = {"divisor": 0, "factor": 0.0, "steps": start}
    reference = measured(folder, key, lambda: distance(evaluator, teacher, start))
    table = _table(records, reference)
    write_study(folder, table, _figure(records, reference, recipe))
    return table


def _variant(recipe: Recipe, divisor: int, factor: float) -> Recipe:
    """The recipe with another chain and its updates multiplied."""
    part = recipe.distill
    counts = part.counts()
    chain = tuple(halvings(counts[0], counts[-1], divisor))
    changed = part.model_copy(update={"chain": chain, "stages": {}})
    stages = {
        link.steps: part.stages.get(link.steps, StageTraining()).model_copy(
            update={"updates": max(1, round(factor * part.train_config(link).updates))}
        )
        for link in changed.links()
    }
    return recipe.model_copy(update={"distill": changed.model_copy(update={"stages": stages})})


def _students(run: Run, evaluator: Evaluator, folder: RunFolder, divisor: int, factor: float) -> list[Record]:
    """Train one chain, and measure its students of few steps."""
    trainer = run.trainer()
    model, records, updates, seconds = run.train_teacher(trainer), [], 0, 0.0
    for number, stage in enumerate(run.recipe.distill.links(), 1):
        model = run.train_student(trainer, number, stage, model)
        updates, seconds = updates + model.training["updates"], seconds + model.training["seconds"]
        if stage.steps <= MAX_STEPS:
            key = {"divisor": divisor, "factor": factor, "steps": stage.steps}
            spent = {"updates": updates, "seconds": round(seconds, 1)}
            records.append(
                measured(
                    folder, key, lambda m=model, n=stage.steps, spent=spent: {**spent, **distance(evaluator, m, n)}
                )
            )
            run.callback.note(f"by {divisor}, {factor:g} times: Fréchet {records[-1]['frechet']:.3f} at {stage.steps}")
    return records


def _table(records: list[Record], reference: Record) -> str:
    headings = ["divide by", "times", "steps", "updates so far", "seconds so far", "Fréchet", "of the teacher's"]
    rows = [
        [
            str(record["divisor"]),
            f"{record['factor']:g}",
            str(record["steps"]),
            str(record["updates"]),
            f"{record['seconds']:.0f}",
            f"{record['frechet']:.3f}",
            f"{record['frechet'] / reference['frechet']:.2f}",
        ]
        for record in records
    ]
    return markdown(headings, rows)


def _figure(records: list[Record], reference: Record, recipe: Recipe) -> Figure:
    figure, (axes,) = panels(1, 4.2)
    counts = sorted({record["steps"] for record in records}, reverse=True)
    for colour, steps in zip(COLOURS, counts, strict=False):
        for divisor, line in ((2, "o-"), (4, "s--")):
            chosen = [r for r in records if (r["steps"], r["divisor"]) == (steps, divisor)]
            label = f"{steps} step{'s' if steps > 1 else ''}, chain by {divisor}"
            x, y = [r["updates"] for r in chosen], [r["frechet"] for r in chosen]
            if chosen:
                axes.plot(x, y, line, color=colour, markersize=4, label=label)
    start = recipe.distill.counts()[0]
    axes.axhline(reference["frechet"], color="grey", linewidth=1, label=f"teacher at {start}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("updates of all stages so far")
    axes.set_ylabel(f"Fréchet distance ({reference['features']} features)")
    axes.legend(frameon=False, fontsize=8)
    return figure
