"""The studies as commands."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.markdown import Markdown

from progdist.cli.options import DATA_SOURCES
from progdist.cli.terminal import console

Recipe = Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe that ships.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="key=value, e.g. teacher.updates=1000.")]
Out = Annotated[Path | None, typer.Option(help="The study's folder; below runs/ if not given.")]


def ablation(
    recipe: Recipe,
    set_: Set = None,
    out: Out = None,
    seeds: Annotated[int, typer.Option(help="How many, from the recipe's own.", min=1)] = 3,
) -> None:
    """Table 1: output by weighting by sampler, undistilled."""
    from progdist.cli.progress import Terminal
    from progdist.recipes.files import read_recipe
    from progdist.runs.studies.ablation import ablation as study

    resolved = read_recipe(recipe, set_ or [])
    folder = out or Path("runs") / f"{resolved.name}-ablation"
    _show(study(resolved, folder, seeds, Terminal(console)), folder)


def budget(
    recipe: Recipe,
    set_: Set = None,
    out: Out = None,
    times: Annotated[list[float] | None, typer.Option(help="Factors of the updates; 0.25 to 2 if not given.")] = None,
    divide_by: Annotated[list[int] | None, typer.Option(help="Teacher steps to one; 2 and 4 if not given.")] = None,
) -> None:
    """Section 5.3: quality against updates per stage. For chains that divide by 2 and by 4."""
    from progdist.cli.progress import Terminal
    from progdist.recipes.files import read_recipe
    from progdist.runs.studies.budget import budget as study

    resolved = read_recipe(recipe, set_ or [])
    folder = out or Path("runs") / f"{resolved.name}-budget"
    factors, divisors = times or [0.25, 0.5, 1.0, 2.0], divide_by or [2, 4]
    _show(study(resolved, folder, factors, divisors, Terminal(console)), folder)


def stochastic(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    levels: Annotated[int, typer.Option(help="Of the ancestral sampler's variance.", min=2)] = 11,
    most: Annotated[int, typer.Option(help="The largest step count measured.", min=2)] = 64,
) -> None:
    """Figure 4, appendix F: stochastic sampling. Of distilled and undistilled models."""
    from progdist.cli.progress import Terminal
    from progdist.runs.studies.stochastic import stochastic as study

    _show(study(run, levels, most, Terminal(console)), run / "stochastic")


def integrators(
    model: Annotated[Path, typer.Argument(help="A model folder, best one that was not distilled.")],
    data: Annotated[str, typer.Option(help=DATA_SOURCES)] = "digits",
    features: Annotated[str, typer.Option(help="digits, fashion-mnist, pixels or inception.")] = "pixels",
    count: Annotated[int, typer.Option("--count", "-n", help="Samples of each.", min=2)] = 1024,
    evaluations: Annotated[list[int] | None, typer.Option(help="Budgets; 4, 8, ..., 128 if not given.")] = None,
    clip: Annotated[bool, typer.Option("--clip", help="Keep every denoised image within [-1, 1].")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the noise.", min=0)] = 0,
    out: Out = None,
) -> None:
    """Appendix C: integrators at equal cost. On an exact mixture and on a model."""
    from progdist.cli.progress import Terminal
    from progdist.runs.studies.integrators import Trained
    from progdist.runs.studies.integrators import integrators as study

    folder = out or Path("runs") / "integrators"
    trained = Trained(model, data, features, count, seed, clip)
    _show(study(trained, folder, evaluations or [4, 8, 16, 32, 64, 128], Terminal(console)), folder)


def _show(table: str, folder: Path) -> None:
    console.print(Markdown(table))
    console.print(f"{folder}: table.md, plot.png, results.jsonl", highlight=False, soft_wrap=True)


COMMANDS: tuple[Callable[..., None], ...] = (ablation, budget, stochastic, integrators)
