"""The figures of a report: drawn by matplotlib, written as SVG that takes its colours and its size from the page."""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from progdist.evaluation.record import EvaluationRecord

TEACHER, STUDENT, SOLVER, INK = "#c2410c", "#1d4ed8", "#0f766e", "#1c1917"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "progdist",
    "font.family": "sans-serif",
    "font.size": 12,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}
# CSS variables of the page, which has its own colours in light and dark view
ON_THE_PAGE = {TEACHER: "var(--teacher)", STUDENT: "var(--student)", SOLVER: "var(--solver)", INK: "currentColor"}
CURVES = (
    ("teacher", "teacher, DDIM", TEACHER),
    ("teacher_dpmpp", "teacher, DPM-Solver++", SOLVER),
    ("student", "distilled students", STUDENT),
)
LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))  # of students, in turn
MOST_POINTS = 150  # points of a loss curve; more are indistinguishable on a page


def svg(figure: Figure) -> str:
    """The figure as inline SVG that scales with the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()[buffer.getvalue().index("<svg") :]
    for colour, variable in ON_THE_PAGE.items():
        text = text.replace(colour, variable)
    return text


def _axes(height: float) -> tuple[Figure, Axes]:
    """Axes narrow enough for legible text on a phone."""
    figure = Figure(figsize=(5.4, height))
    axes = figure.add_subplot()
    figure.subplots_adjust(left=0.155, right=0.98, top=0.97, bottom=0.58 / height)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    return figure, axes


def log_scale(axes: Axes) -> None:
    """A logarithmic y axis with plain numbers at its ticks: typeset powers of ten take a second to lay out."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 50 * low else (1.0,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, tick: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def quality_svg(records: Sequence[EvaluationRecord], number: int) -> str:
    """The Frechet distances in one feature space, as SVG."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(3.4)
        draw_quality(axes, records, number)
        return svg(figure)


def draw_quality(axes: Axes, records: Sequence[EvaluationRecord], number: int) -> None:
    """Frechet distance against steps in one feature space, both axes logarithmic, with bootstrap intervals."""
    for model, label, colour in CURVES:
        chosen = [(record.steps, record.quality[number]) for record in records if record.model == model]
        if not chosen:
            continue
        steps, qualities = zip(*chosen, strict=True)
        axes.plot(steps, [each.frechet for each in qualities], "o-", color=colour, label=label, markersize=5)
        low, high = ([getattr(each, f"frechet_{end}") for each in qualities] for end in ("low", "high"))
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    counts = sorted({record.steps for record in records})
    axes.set_xscale("log", base=2)
    log_scale(axes)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("sampling steps")
    axes.set_ylabel("Fréchet distance")
    axes.legend(frameon=False)


def loss_svg(metrics: Iterable[dict[str, Any]]) -> str:
    """Training loss of every model, smoothed over a fiftieth of its updates, as SVG; "" if none is recorded.

    For a loss of several parts it shows the first, which all methods have; `parts_svg` shows the others.
    """
    curves = dict[str, list[tuple[int, float]]]()
    for record in metrics:
        if "loss" in record:  # else a measurement of the stopping rule, or a skipped update
            parts = record.get("losses")
            value = next(iter(parts.values())) if parts else record["loss"]
            curves.setdefault(record["model"], []).append((record["update"], value))
    return _curves_svg(curves, "loss")


def parts_svg(metrics: Iterable[dict[str, Any]]) -> dict[str, str]:
    """The further parts of losses by name, a figure each, as in `loss_svg`; most methods have none."""
    parts = dict[str, dict[str, list[tuple[int, float]]]]()
    for record in metrics:
        for name, value in [*record.get("losses", {}).items()][1:]:
            parts.setdefault(name, {}).setdefault(record["model"], []).append((record["update"], value))
    figures = {name: _curves_svg(curves, f"{name} loss", logarithmic=False) for name, curves in parts.items()}
    return {name: figure for name, figure in figures.items() if figure}


def _curves_svg(curves: Mapping[str, Sequence[tuple[int, float]]], label: str, *, logarithmic: bool = True) -> str:
    """Smoothed curves of models by name over their updates; "" if none has two points."""
    smooth = {name: _smooth(points) for name, points in curves.items()}
    shown = {name: curve for name, curve in smooth.items() if len(curve[0]) > 1}
    if not shown:
        return ""
    rows = -(-len(shown) // 3)
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(3.1 + 0.24 * rows)
        students = [name for name in shown if name.startswith("student")]
        for name, curve in shown.items():
            place = students.index(name) if name in students else 0
            colour = STUDENT if name in students else TEACHER
            axes.plot(*curve, color=colour, linestyle=LINES[place % len(LINES)], label=name, linewidth=1.5)
        if logarithmic:
            log_scale(axes)
        axes.set_xlabel("updates of the model")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, tick: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylabel(label)
        figure.subplots_adjust(bottom=(0.62 + 0.24 * rows) / figure.get_figheight())
        figure.legend(loc="lower center", frameon=False, fontsize=10, ncols=min(3, len(shown)), columnspacing=1.0)
        return svg(figure)


def _smooth(points: Sequence[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """At most MOST_POINTS updates, with the mean loss of the fiftieth before each."""
    updates, losses = (np.array(column) for column in zip(*points, strict=True))
    width = max(1, len(losses) // 50)
    smooth = np.convolve(losses, np.ones(width) / width, "valid")
    chosen = np.unique(np.linspace(0, len(smooth) - 1, MOST_POINTS).round().astype(int))
    return updates[width - 1 :][chosen], smooth[chosen]
