"""Section 5.3: how long is long enough.

    python benchmarks/paper/budget.py digits-halving [--times 0.5 ...] [--divide-by 2 ...] [--set KEY=VALUE ...]

The same teacher is distilled with the recipe's updates per stage times each of several factors, along chains that
divide by 2 and by 4 at a time; every student of few steps is measured. The plot is quality against the updates of all
stages together.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from matplotlib.figure import Figure

from progdist.cli.progress import Terminal
from progdist.cli.terminal import console
from progdist.distillation import train_students
from progdist.methods.chain import halvings
from progdist.recipes.files import read_recipe, write_recipe
from progdist.recipes.recipe import Recipe
from progdist.recipes.training import StageTraining
from progdist.runs.evaluator import Evaluator
from progdist.runs.folder import Record, RunFolder
from progdist.runs.run import Run
from progdist.training.callbacks import Callback
from results import (
    COLOURS,
    Out,
    RecipeName,
    Set,
    begin,
    distance,
    markdown,
    measured,
    panels,
    script,
    show,
    train_teacher,
    write_results,
)

MAX_STEPS = 8
"""Students of more steps are trained, but not measured."""


def budget(
    recipe: RecipeName,
    set_: Set = None,
    out: Out = None,
    times: Annotated[list[float] | None, typer.Option(help="Factors of the updates; 0.25 to 2 if not given.")] = None,
    divide_by: Annotated[list[int] | None, typer.Option(help="Teacher steps to one; 2 and 4 if not given.")] = None,
) -> None:
    """Section 5.3: quality against updates per stage. For chains that divide by 2 and by 4."""
    resolved = read_recipe(recipe, set_ or [])
    folder = out or Path("runs") / f"{resolved.name}-budget"
    factors, divisors = times or [0.25, 0.5, 1.0, 2.0], divide_by or [2, 4]
    show(measure(resolved, folder, factors, divisors, Terminal(console)), folder)


def measure(recipe: Recipe, out: Path, factors: Sequence[float], divisors: Sequence[int], callback: Callback) -> str:
    """Distil with every budget along every chain, or go on with it.

    Args:
        recipe: teaches the teacher, and gives the updates that the factors multiply.
        out: the output folder.
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
    folder.claim(write_recipe(recipe), lambda old: "")
    first = begin(recipe, out / "teacher", callback)
    teacher, evaluator = train_teacher(first), first.evaluator
    records: list[Record] = []
    for (divisor, factor), changed in variants.items():
        run = begin(changed, out / "students" / f"by-{divisor}-times-{factor:g}", callback)
        if not run.folder.model("teacher").exists():
            shutil.copytree(first.folder.model("teacher"), run.folder.model("teacher"))
        records += _students(run, evaluator, folder, divisor, factor)
    start = recipe.distill.counts()[0]
    key = {"divisor": 0, "factor": 0.0, "steps": start}
    reference = measured(folder, key, lambda: distance(evaluator, teacher, start))
    table = _table(records, reference)
    write_results(folder, table, _figure(records, reference, recipe))
    return table


def _variant(recipe: Recipe, divisor: int, factor: float) -> Recipe:
    """The recipe with another chain and its updates multiplied."""
    part = recipe.distill
    counts = part.counts()
    chain = tuple(halvings(counts[0], counts[-1], divisor))
    changed = replace(part, start=None, end=None, substeps=None, chain=chain, stages={})
    stages = {
        link.steps: part.stages.get(link.steps, StageTraining()).model_copy(
            update={"updates": max(1, round(factor * part.train_config(link).updates))}
        )
        for link in changed.links()
    }
    return recipe.model_copy(update={"distill": replace(changed, stages=stages)})


def _students(run: Run, evaluator: Evaluator, folder: RunFolder, divisor: int, factor: float) -> list[Record]:
    """Train one chain, and measure its students of few steps."""
    records, updates, seconds, trainer = [], 0, 0.0, run.trainer()
    for stage, model in train_students(run.context.plan, run.train_teacher(trainer), trainer, run.context.teacher):
        steps = stage.steps
        updates, seconds = updates + model.training["updates"], seconds + model.training["seconds"]
        if steps <= MAX_STEPS:
            key = {"divisor": divisor, "factor": factor, "steps": steps}
            spent = {"updates": updates, "seconds": round(seconds, 1)}
            found = measured(folder, key, lambda m=model, n=steps, spent=spent: {**spent, **distance(evaluator, m, n)})
            records.append(found)
            run.context.callback.note(f"by {divisor}, {factor:g} times: Fréchet {found['frechet']:.3f} at {steps}")
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


app = script(budget)

if __name__ == "__main__":
    app()
