"""The command that writes a recipe that fits the data."""

from itertools import chain, count
from pathlib import Path
from typing import Annotated

import typer

from progdist._utils.errors import UserError
from progdist._utils.files import atomic_write
from progdist.cli import options
from progdist.cli.terminal import begin, suggest, write_line
from progdist.cli.way import Way
from progdist.recipes.stated import default_output, name_of_data

RUNS = Path("runs")


def init(
    source: Annotated[str, typer.Argument(help="folder:PATH or another source of images; with --data a teacher.")],
    data: Annotated[str | None, typer.Option(help=f"Data for a teacher: {options.DATA_SOURCES}")] = None,
    size: Annotated[
        int | None, typer.Option(help="Height and width of images, up to 128 (default: theirs, up to 32).", min=2)
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Sampling steps of the final student of a teacher (default: 4).", min=1)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The recipe to write (default: NAME.yaml, after the data).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the recipe that is there.")] = False,
) -> None:
    """Write a recipe that fits your data.

    Reads the images, takes size and network from the shipped recipes, and estimates the run on this machine.
    """
    if data is None and steps is not None:
        raise UserError("--steps requires --data, and a teacher to distil")
    if data is not None and size is not None:
        raise UserError("--size has no effect with --data, because a teacher makes images of its own size: remove it")
    name = _free(name_of_data(source) if data is None else default_output(source, steps or 4).name)
    out = out or Path(f"{name}.yaml")
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists: choose another --out, or replace it with --overwrite")
    if data is None:
        begin(f"reading {source}", data=source)
    else:
        begin(f"opening {source}", models=[source], data=data)
    from progdist.data.sources import open_source
    from progdist.recipes.from_teacher import Request
    from progdist.recipes.proposal import recipe_for_data, recipe_of_teacher
    from progdist.teachers.open import open_teacher

    if data is None:
        images, teacher = open_source(source), None
        for line in images.remarks():
            write_line(line)
        proposal = recipe_for_data(images, name, size)
    else:
        teacher = open_teacher(source)
        proposal = recipe_of_teacher(teacher, Request(source, data, name, steps or 4))
    for section, reason in proposal.reasons.items():
        write_line(f"{section}: {reason}")
    Way(fresh=False, shard=False, dry=True, device_memory=None).carry_out(proposal.recipe(), RUNS / name, teacher)
    words = source if data is None else f"{source} --data {data}"
    head = f"# Written by `progdist init {words}`. `progdist run {out}` runs it, in runs/{name}.\n"
    atomic_write(out, (head + proposal.text()).encode())
    write_line(f"Recipe: {out}")
    suggest(f"progdist run {out}")


def _free(name: str) -> str:
    """The name, with a number if a run has that name."""
    names = chain([name], (f"{name}-{number}" for number in count(2)))
    return next(each for each in names if not (RUNS / each).exists())
