"""What the comparisons share: their command line, the runs they open, and what each leaves in its folder.

A comparison writes recipe.yaml, results.jsonl, table.md and plot.png. A measurement that is in results.jsonl is not
made again, so the same command resumes.
"""

import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.markdown import Markdown
from typer.core import TyperCommand

from progdist._utils.errors import UserError
from progdist._utils.files import atomic_write
from progdist.cli.terminal import UsageError, console, prepare_torch, refuse_usage, user_errors
from progdist.diffusion.integrators import Step
from progdist.models.model import Model
from progdist.recipes.recipe import Recipe
from progdist.runs.evaluator import Evaluator
from progdist.runs.folder import Record, RunFolder
from progdist.runs.run import Run, open_run
from progdist.training.callbacks import Callback

RecipeName = Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe that ships.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="key=value, e.g. teacher.updates=1000.")]
Out = Annotated[Path | None, typer.Option(help="Output folder; below runs/ if not given.")]
COLOURS = ("#1d4ed8", "#c2410c", "#047857", "#7c3aed", "#b45309", "#be123c")


class Command(TyperCommand):
    """A command whose usage errors are one line, as in `progdist`."""

    def make_context(self, *args: Any, **extra: Any) -> Any:  # noqa: ANN401
        """The arguments and options."""
        try:
            return super().make_context(*args, **extra)
        except UsageError as error:
            refuse_usage(error)


def script(command: Callable[..., None]) -> typer.Typer:
    """A script of one command; a mistake is one line and exit code 2, as in `progdist`."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    prepare_torch()
    app.command(cls=Command)(user_errors(command))
    return app


def show(table: str, folder: Path) -> None:
    """Print a table, and where it is."""
    console.print(Markdown(table))
    console.print(f"{folder}: table.md, plot.png, results.jsonl", highlight=False, soft_wrap=True)


def begin(recipe: Recipe, out: Path, callback: Callback) -> Run:
    """A run in a folder of its own, checked before anything is trained.

    Raises:
        UserError: as in `open_run` and `Run.prepare`.
    """
    run = open_run(recipe, out, callback)
    run.prepare()
    run.claim()
    return run


def train_teacher(run: Run) -> Model:
    """The teacher of a run, trained or read from its folder."""
    return run.train_teacher(run.trainer())


def measured(folder: RunFolder, key: Record, measure: Callable[[], Record]) -> Record:
    """The record of `key` from results.jsonl, or a new one: the key with what `measure` finds."""
    for record in folder.read("results"):
        if all(record.get(name) == value for name, value in key.items()):
            return record
    record = {**key, **measure()}
    folder.append("results", record)
    return record


def distance(evaluator: Evaluator, model: Model, steps: int, method: str | Step = "ddim") -> Record:
    """Both distances of a model's samples to the data, in the run's first feature space.

    Raises:
        UserError: the samples are not finite.
    """
    qualities = evaluator.qualities(model, steps, method)
    if qualities is None:
        raise UserError(f"samples in {steps} steps are not finite: the model was trained too fast or is damaged")
    quality = qualities[0]
    return {"frechet": quality.frechet, "kernel": quality.kernel, "features": quality.features}


def panels(count: int, height: float = 3.8) -> tuple[Figure, list[Axes]]:
    """A figure with `count` plots beside each other."""
    figure = Figure(figsize=(6.4 * count, height), layout="constrained")
    axes = [figure.add_subplot(1, count, number + 1) for number in range(count)]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25, linewidth=0.6)
    return figure, axes


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def spread(values: Sequence[float]) -> str:
    """The mean, and the standard deviation where there are several."""
    return f"{mean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def write_results(folder: RunFolder, table: str, figure: Figure) -> None:
    """Write table.md and plot.png."""
    atomic_write(folder.root / "table.md", table.encode())
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    atomic_write(folder.root / "plot.png", buffer.getvalue())
