"""Finished runs of several seeds, measured again with equally many samples of each model: means and their spread.

    python benchmarks/experiments/seeds.py RUN [RUN ...] [-n 1797] [--students 4 1] \
        [--data digits] [--features digits pixels]

Every model is sampled once, in float32, from the noise of its run's seed. The ratio is a student's Frechet distance to
the data over that of its own teacher at the teacher's full step count.
"""

import argparse
from pathlib import Path
from statistics import mean, stdev

import torch

from progdist.data.sources import load_images
from progdist.evaluation.features import feature_space
from progdist.evaluation.generate import SamplingOptions, generate_images
from progdist.evaluation.metrics import quality
from progdist.evaluation.summary import summarize
from progdist.recipes.files import read_recipe
from progdist.recipes.recipe import student_name
from progdist.runs.folder import RunFolder
from progdist.teachers.own import load


def distances(folder: Path, steps: int, count: int, seed: int, data: str, features: list[str]) -> list[float]:
    """The Frechet distance of a model's samples in every feature space."""
    images = load_images(data)
    made, _, _ = generate_images(load(folder), SamplingOptions(steps, count, None, seed, batch=600), print)
    found = []
    for name in features:
        space = feature_space(name, images.shape)
        found.append(quality(space, space(images.sample(10_000, 0)[0]), summarize([space], made), resamples=2).frechet)
    return found


def measured(run: Path, students: list[int], count: int, data: str, features: list[str]) -> list[list[float]]:
    """The distances of one run's teacher and of its students."""
    recipe = read_recipe(str(run / "recipe.yaml"))
    first = "converted" if RunFolder(run).has_stage_0() else "teacher"
    models = [(first, recipe.distill.counts()[0]), *((student_name(steps), steps) for steps in students)]
    rows = []
    for name, steps in models:
        rows.append(distances(run / name, steps, count, recipe.seed, data, features))
        shown = ", ".join(f"{space} {value:.3f}" for space, value in zip(features, rows[-1], strict=True))
        print(f"{run} (seed {recipe.seed}), {name} at {steps}: {shown}", flush=True)
    return rows


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("-n", type=int, default=1797)
    parser.add_argument("--students", type=int, nargs="+", default=[4, 1])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--features", nargs="+", default=["digits", "pixels"])
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    students, features = arguments.students, arguments.features
    runs = [measured(run, students, arguments.n, arguments.data, features) for run in arguments.runs]
    for place, space in enumerate(features):
        for row, steps in enumerate(students, 1):
            ratios = [rows[row][place] / rows[0][place] for rows in runs]
            spread = f" ± {stdev(ratios):.2f}" if len(ratios) > 1 else ""
            print(f"{space}, {steps} steps: {mean(ratios):.2f}{spread} ({', '.join(f'{r:.2f}' for r in ratios)})")


if __name__ == "__main__":
    main()
