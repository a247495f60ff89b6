"""Section 4 and table 1: what the network's output means, by how its error is weighted, by how it is sampled.

    python benchmarks/paper/ablation.py digits-halving [--seeds 3] [--set KEY=VALUE ...] [--out FOLDER]

Every pair of output and weighting trains a teacher with the same budget, data and seeds; each is sampled in the chain's
first number of steps by the ancestral sampler (with the upper bound of its variance) and by DDIM. A training that does
not stay finite is a result, too: the paper saw eps with the truncated SNR diverge.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from matplotlib.figure import Figure

from progdist.cli.progress import Terminal
from progdist.cli.terminal import console
from progdist.recipes.files import read_recipe, write_recipe
from progdist.recipes.recipe import Recipe
from progdist.runs.folder import Record, RunFolder
from progdist.training.callbacks import Callback
from progdist.training.records import NotFinite
from results import (
    COLOURS,
    Out,
    RecipeName,
    Set,
    begin,
    markdown,
    measured,
    panels,
    script,
    show,
    spread,
    train_teacher,
    write_results,
)

OUTPUTS = ("x_eps", "x", "eps", "v")
WEIGHTINGS = ("snr", "truncated_snr", "snr_plus_one")
SAMPLERS = ("ancestral", "ddim")


def ablation(
    recipe: RecipeName,
    set_: Set = None,
    out: Out = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds, from the recipe's own.", min=1)] = 3,
) -> None:
    """Table 1: output by weighting by sampler, undistilled."""
    resolved = read_recipe(recipe, set_ or [])
    folder = out or Path("runs") / f"{resolved.name}-ablation"
    show(measure(resolved, folder, seeds, Terminal(console)), folder)


def measure(recipe: Recipe, out: Path, seeds: int, callback: Callback) -> str:
    """Measure the grid, or go on with it.

    Args:
        recipe: its teacher's training is the budget; its output, weighting and seed are replaced.
        out: the output folder.
        seeds: the recipe's own and those that follow, so many in all.
        callback: called for every training.

    Returns:
        The table, as Markdown.

    Raises:
        UserError: the folder is of another recipe, or as in `run`.
    """
    folder = RunFolder(out)
    folder.claim(write_recipe(recipe), lambda old: "")
    records = []
    for seed in range(recipe.seed, recipe.seed + seeds):
        for output in OUTPUTS:
            for weighting in WEIGHTINGS:
                key = {"output": output, "weighting": weighting, "seed": seed}
                record = measured(folder, key, lambda key=key: _cell(recipe, folder, callback, **key))
                records.append(record)
                callback.note(f"{output}, {weighting}, seed {seed}: {_said(record)}")
    table = _table(records)
    write_results(folder, table, _figure(records, recipe))
    return table


def _cell(recipe: Recipe, folder: RunFolder, callback: Callback, output: str, weighting: str, seed: int) -> Record:
    """One teacher, sampled in both ways."""
    teacher = replace(recipe.teacher, weighting=weighting)
    changed = recipe.model_copy(update={"parameterization": output, "teacher": teacher, "seed": seed})
    run = begin(changed, folder.root / "teachers" / f"{output}-{weighting}-{seed}", callback)
    evaluator = run.evaluator
    steps = recipe.distill.counts()[0]
    found: Record = {"steps": steps}
    try:
        model = train_teacher(run)
    except NotFinite as error:
        return {**found, "diverged": str(error)}
    for sampler in SAMPLERS:
        if qualities := evaluator.qualities(model, steps, sampler):
            quality = qualities[0]
            found |= {sampler: quality.frechet, f"{sampler}_kernel": quality.kernel, "features": quality.features}
    return {**found, "training": dict(model.training)}


def _said(record: Record) -> str:
    if "diverged" in record:
        return "diverged"
    values = [
        f"{sampler} {record[sampler]:.3f}" if sampler in record else f"{sampler} diverged" for sampler in SAMPLERS
    ]
    return "Fréchet " + ", ".join(values)


def _cells(records: list[Record], sampler: str) -> dict[tuple[str, str], list[float | None]]:
    """(output, weighting) -> the distance for every seed, None where it diverged."""
    grid: dict[tuple[str, str], list[float | None]] = {}
    for record in records:
        grid.setdefault((record["output"], record["weighting"]), []).append(record.get(sampler))
    return grid


def _shown(values: list[float | None]) -> str:
    finite = [value for value in values if value is not None]
    lost = len(values) - len(finite)
    parts = [spread(finite)] if finite else []
    return ", ".join(parts + [f"{lost} of {len(values)} diverged"] * bool(lost))


def _table(records: list[Record]) -> str:
    columns = [_cells(records, sampler) for sampler in SAMPLERS]
    rows = [[*pair, *(_shown(column[pair]) for column in columns)] for pair in columns[0]]
    return markdown(["output", "weighting", *SAMPLERS], rows)


def _figure(records: list[Record], recipe: Recipe) -> Figure:
    figure, (axes,) = panels(1, 4.2)
    for sampler, colour, shift in zip(SAMPLERS, COLOURS, (-0.12, 0.12), strict=False):
        for position, values in enumerate(_cells(records, sampler).values()):
            finite = [value for value in values if value is not None]
            label = sampler if position == 0 else None
            axes.plot(
                [position + shift] * len(finite), finite, "o", color=colour, markersize=5, alpha=0.75, label=label
            )
            if len(finite) < len(values):
                axes.text(position, 1, "diverges", rotation=90, va="top", transform=axes.get_xaxis_transform())
    names = [f"{output}\n{weighting.replace('_', ' ')}" for output, weighting in _cells(records, SAMPLERS[0])]
    axes.set_xticks(range(len(names)), names, rotation=60, fontsize=8)
    if any("ddim" in record or "ancestral" in record for record in records):
        axes.set_yscale("log")  # an empty plot has no logarithm
    features = next((record["features"] for record in records if "features" in record), "")
    axes.set_ylabel(f"Fréchet distance ({features} features)")
    axes.set_title(f"{recipe.name}: {records[0]['steps']} steps, one point a seed", fontsize=10)
    axes.legend(frameon=False)
    return figure


app = script(ablation)

if __name__ == "__main__":
    app()
