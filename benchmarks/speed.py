"""What one update and one image cost here, for a recipe's own network.

    python benchmarks/speed.py [RECIPE]

Medians of ten, after two that do not count; a sample is one network evaluation of the evaluation's batch.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from progdist._utils.precision import Precision, autocast
from progdist.cli.progress import Terminal
from progdist.diffusion.loss import WEIGHTINGS, denoising_loss
from progdist.distillation.progressive import distillation_loss
from progdist.models.unet import condition
from progdist.recipes.files import read_recipe
from progdist.runs.folder import RunFolder
from progdist.runs.run import Run
from progdist.training.distributed import Distributed


def median_ms(work: Callable[[], object], repeats: int = 10) -> float:
    """Median milliseconds of `work`, after two runs that do not count."""
    seconds = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds[2:])


def main() -> None:
    """Print a line for each precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="digits")
    recipe = read_recipe(parser.parse_args().recipe)
    run = Run(recipe, RunFolder(Path("unused")), Terminal(Console()), Distributed())
    student, teacher = run.stages.untrained().denoiser, run.stages.untrained().denoiser.requires_grad_(False)
    size = recipe.distill.batch
    x, eps = torch.randn(2, size, *run.images.shape)
    u = torch.rand(size, dtype=torch.float64)
    given = condition(student.network, torch.zeros(size, dtype=torch.long))
    optimizer = torch.optim.AdamW(student.parameters(), fused=True)
    teach = partial(denoising_loss, student, x, eps, u, weighting=WEIGHTINGS["truncated_snr"], **given)
    distil = partial(
        distillation_loss, student, teacher, x, eps, u, steps=4, weighting=WEIGHTINGS["truncated_snr"], **given
    )

    def update(loss: Callable[[], Tensor], precision: Precision) -> None:
        with autocast(torch.device("cpu"), precision):
            value = loss().mean()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    def evaluate(precision: Precision) -> None:
        with torch.no_grad(), autocast(torch.device("cpu"), precision):
            student(eps, 1 - u, **given)

    print(f"{recipe.name}: {sum(p.numel() for p in student.parameters()):,} parameters, batch {size}")
    print(f"{'':10}{'teacher update':>16}{'student update':>16}{'evaluation':>14}   (ms)")
    both: tuple[Precision, ...] = ("float32", "bf16")
    for precision in both:
        row = [median_ms(partial(update, loss, precision)) for loss in (teach, distil)]
        row.append(median_ms(partial(evaluate, precision)))
        print(f"{precision:10}{row[0]:16.1f}{row[1]:16.1f}{row[2]:14.1f}")


if __name__ == "__main__":
    main()
