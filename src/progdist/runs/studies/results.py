"""What every study leaves in its folder: recipe.yaml, results.jsonl, table.md and plot.png.

A measurement that is in results.jsonl is not made again, so the same command goes on where it stopped.
"""

import io
from collections.abc import Callable, Iterable, Sequence
from statistics import mean, stdev

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from progdist._utils.errors import UserError
from progdist._utils.files import atomic_write
from progdist.diffusion.integrators import Step
from progdist.models.model import Model
from progdist.runs.evaluator import Evaluator
from progdist.runs.folder import Record, RunFolder

COLOURS = ("#1d4ed8", "#c2410c", "#047857", "#7c3aed", "#b45309", "#be123c")


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


def write_study(folder: RunFolder, table: str, figure: Figure) -> None:
    """Write table.md and plot.png."""
    atomic_write(folder.root / "table.md", table.encode())
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    atomic_write(folder.root / "plot.png", buffer.getvalue())
