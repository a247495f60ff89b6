r"""Appendix C: integrators of the probability-flow ODE at equal numbers of network evaluations.

    python benchmarks/paper/integrators.py MODEL [--data digits] [--features pixels] [-n 1024] [--evaluations 8 ...]

On an exact denoiser, of a mixture of three Gaussians in the plane, the error is the root mean square distance at
t = 0.1 from a fine solution begun at t = 0.9, and the order is minus the slope of log(error) against log(evaluations).
On a trained model it is the quality of whole samples, from t = 1 to the data.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from torch import Tensor

from progdist._utils.errors import UserError
from progdist.cli.options import DATA_SOURCES
from progdist.cli.progress import Terminal
from progdist.cli.terminal import console
from progdist.data.sources import load_images
from progdist.diffusion.analytic import Mixture
from progdist.diffusion.sampler import NFE_PER_STEP, SAMPLERS, network_evaluations
from progdist.diffusion.schedule import Schedule
from progdist.evaluation.evaluate import images_for_model
from progdist.evaluation.features import feature_space, features_of
from progdist.evaluation.generate import SamplingOptions, generate_batches
from progdist.evaluation.metrics import quality
from progdist.evaluation.summary import join, summarize
from progdist.runs.folder import Record, RunFolder
from progdist.teachers.own import load
from progdist.training.callbacks import Callback
from results import COLOURS, Out, markdown, measured, panels, script, show, write_results

DETERMINISTIC = ("ddim", "euler", "euler_log_snr", "heun", "rk4")
START, END = 0.9, 0.1
ON_THE_MIXTURE = (16, 32, 64, 128, 256, 512)
FINE = 1024


@dataclass(frozen=True)
class Trained:
    """A model to be sampled, and what its samples are compared with.

    Args:
        model: its folder.
        data: a source of images.
        features: name of the feature space.
        samples: how many.
        seed: of their noise.
        clip: keep every denoised image within [-1, 1].
    """

    model: Path
    data: str
    features: str
    samples: int
    seed: int
    clip: bool


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
    folder = out or Path("runs") / "integrators"
    trained = Trained(model, data, features, count, seed, clip)
    show(measure(trained, folder, evaluations or [4, 8, 16, 32, 64, 128], Terminal(console)), folder)


def measure(trained: Trained, out: Path, budgets: list[int], callback: Callback) -> str:
    """Compare the integrators on a mixture in the model's schedule, and on the model.

    Args:
        trained: the model and the data.
        out: the output folder.
        budgets: network evaluations that every integrator may use.
        callback: called for every measurement.

    Returns:
        Both tables, as Markdown.

    Raises:
        UserError: as in `load`, `generate_images` and `load_images`, or a budget below 1.
    """
    if min(budgets, default=0) < 1:
        raise UserError(f"--evaluations {budgets}: give positive numbers, e.g. --evaluations 8 --evaluations 16")
    model, folder = load(trained.model), RunFolder(out)
    settings = {key: str(value) for key, value in vars(trained).items()}
    folder.claim("".join(f"{key}: {value}\n" for key, value in settings.items()), lambda old: "")
    errors = mixture_errors(model.denoiser.schedule)
    images = images_for_model(model, load_images(trained.data), callback.note)
    space = feature_space(trained.features, images.shape)
    data = features_of(space, images, images.chosen(max(trained.samples, 10_000), trained.seed))

    def found(method: str, steps: int) -> Record:
        options = SamplingOptions(steps, trained.samples, None, trained.seed, method, trained.clip)
        batches, _ = generate_batches(model, options, lambda text: None)
        result = quality(space, data, join(summarize([space], made) for _, made, _ in batches))
        return {"frechet": result.frechet, "kernel": result.kernel}

    methods = _methods(model.denoiser.schedule, callback)
    records = []
    for budget in budgets:
        for method in methods:
            steps = steps_within(budget, method)
            key = {"method": method, "steps": steps, "evaluations": network_evaluations(steps, method)}
            records.append({"budget": budget, **measured(folder, key, lambda m=method, n=steps: found(m, n))})
            callback.note(f"{method}, {steps} steps: Fréchet {records[-1]['frechet']:.3f}")
    table = _tables(errors, records)
    write_results(folder, table, _figure(errors, records, trained.features))
    return table


def _methods(schedule: Schedule, callback: Callback) -> list[str]:
    """The integrators that can begin where the schedule does."""
    start = schedule.log_snr(torch.ones((), dtype=torch.float64))
    if start.isfinite():
        return list(DETERMINISTIC)
    callback.note("euler_log_snr is left out: the model's schedule begins at zero SNR, where the log-SNR is infinite")
    return [method for method in DETERMINISTIC if method != "euler_log_snr"]


def steps_within(budget: int, method: str) -> int:
    """The most steps of a method that take no more than `budget` network evaluations; at least 1."""
    return (budget - 1) // NFE_PER_STEP.get(method, 1) + 1


def mixture(schedule: Schedule) -> Mixture:
    """Three Gaussians of width 0.2 at the corners of a triangle."""
    angles = torch.arange(3, dtype=torch.float64) * (2 * math.pi / 3)
    means = torch.stack([angles.cos(), angles.sin()], 1) * 0.7
    return Mixture(schedule, means, 0.2, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))


def integrate(schedule: Schedule, z: Tensor, method: str, steps: int) -> Tensor:
    """z at END from z at START (B, 2) in so many equal steps, with the exact denoiser."""
    exact, step = mixture(schedule), SAMPLERS[method]
    grid = torch.linspace(START, END, steps + 1, dtype=torch.float64)
    for t, s in pairwise(grid):
        z = step(schedule, exact, z, t, s, None)
    return z


def mixture_errors(schedule: Schedule) -> dict[str, dict[int, float]]:
    """For each integrator: network evaluations -> RMS error against Runge-Kutta's method of order 4 in FINE steps."""
    draw = torch.Generator().manual_seed(0)
    x, eps = mixture(schedule).draw(256, draw), torch.randn(256, 2, generator=draw, dtype=torch.float64)
    start = torch.tensor(START, dtype=torch.float64)
    z = schedule.alpha(start) * x + schedule.sigma(start) * eps
    fine = integrate(schedule, z, "rk4", FINE)

    def error(method: str, count: int) -> float:
        end = integrate(schedule, z, method, count // NFE_PER_STEP.get(method, 1))
        return float((end - fine).square().mean().sqrt())

    return {method: {count: error(method, count) for count in ON_THE_MIXTURE} for method in DETERMINISTIC}


def order(errors: dict[int, float]) -> float:
    """The measured order: minus the slope of log(error) over the finer half of the counts."""
    counts = sorted(errors)[len(errors) // 2 :]
    return -float(np.polyfit(np.log(counts), np.log([errors[count] for count in counts]), 1)[0])


def _tables(errors: dict[str, dict[int, float]], records: list[Record]) -> str:
    exact = markdown(
        ["integrator", "order", *(f"error, {count} evaluations" for count in ON_THE_MIXTURE)],
        [[m, f"{order(e)}"[:5], *(f"{e[count]:.1e}" for count in ON_THE_MIXTURE)] for m, e in errors.items()],
    )
    budgets = sorted({record["budget"] for record in records})
    rows = []
    for method in DETERMINISTIC:
        by_budget = {record["budget"]: record for record in records if record["method"] == method}
        if not by_budget:
            continue
        rows.append([method, *(f"{by_budget[b]['frechet']:.3f} ({by_budget[b]['evaluations']})" for b in budgets)])
    trained = markdown(["integrator", *(f"Fréchet, at most {budget} evaluations (took)" for budget in budgets)], rows)
    return f"{exact}\n{trained}"


def _figure(errors: dict[str, dict[int, float]], records: list[Record], features: str) -> Figure:
    figure, (left, right) = panels(2, 4.2)
    for colour, (method, error) in zip(COLOURS, errors.items(), strict=False):
        left.plot(list(error), list(error.values()), "o-", color=colour, markersize=4, label=method)
        chosen = [record for record in records if record["method"] == method]
        counts, values = [r["evaluations"] for r in chosen], [r["frechet"] for r in chosen]
        right.plot(counts, values, "o-", color=colour, markersize=4, label=method)
    for axes, what in ((left, "RMS error on an exact mixture"), (right, f"Fréchet distance ({features} features)")):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("network evaluations")
        axes.set_ylabel(what)
        axes.legend(frameon=False, fontsize=8)
    return figure


app = script(integrators)

if __name__ == "__main__":
    app()
