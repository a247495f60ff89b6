"""Students without a data set: how much is lost against real data, and how many samples of the teacher are enough.

    python benchmarks/experiments/adversarial.py digits --variants progressive --out TEACHERS     # teacher-0, -1, -2
    python benchmarks/experiments/teacher_samples.py digits --teachers TEACHERS --out FOLDER [--seeds 0 1 2]

For each seed the same chain is distilled on the data and on 10, 100, ... samples of the same teacher, with the same
updates. All students, and the teacher at 256 steps, are then compared with the data: the Fréchet distance of as many
samples, in the features of the data's classifier. What is finished in FOLDER is not made again. The table is of means
and deviations over the seeds of the distance, and of its ratio to the teacher's.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from adversarial import CASES, CHAIN, Case, Quiet
from progdist.evaluation.evaluate import evaluate
from progdist.evaluation.generate import SamplingOptions
from progdist.evaluation.metrics import MetricConfig
from progdist.recipes.files import read_recipe, validated
from progdist.runs.checks import open_images
from progdist.runs.run import open_run

STUDENTS = (4, 1)
COUNTS = {"digits": (10, 100, 1000, 1797), "fashion": (10, 100, 1000, 10_000)}
UNMEASURED = {"samples": 16, "batch": 256, "most_steps": 1, "solver": None, "resamples": 2}  # a run's own evaluations


def students(case: Case, source: str, teacher: Path, seed: int, out: Path) -> dict[int, Path]:
    """The folders of the students of a teacher that were distilled on some data."""
    stages = {n: {"updates": updates, "learning_rate": rate} for n, (updates, rate) in case.regression.items()}
    data = read_recipe(case.recipe, case.overrides).data.model_dump(exclude_defaults=True)
    content = {
        "name": "samples",
        "seed": seed,
        "data": {"source": source} if source.startswith("teacher") else data,
        "teacher": {"model": str(teacher)},
        "distill": {"chain": CHAIN, "batch": 64, "stages": stages},
        "evaluate": UNMEASURED,
    }
    folder = out / f"{source.partition(':')[2] if source.startswith('teacher') else 'data'}-{seed}"
    open_run(validated(content, (), "samples"), folder, Quiet()).run()
    return {n: folder / f"student-{n:04d}" for n in STUDENTS}


def compare(name: str, seed: int, teachers: Path, out: Path) -> None:
    """Distil and measure what is missing of one seed."""
    case, teacher, file = CASES[name], teachers / f"teacher-{seed}", out / "measured.jsonl"
    images = open_images(read_recipe(case.recipe, case.overrides).data, seed)
    known = {(row["name"], row["steps"], row["seed"]) for row in rows(file)}
    sampling = SamplingOptions(count=case.samples, seed=seed, batch=600)
    entries = [("teacher", teacher, CHAIN[0])] if ("teacher", CHAIN[0], seed) not in known else []
    for source in (case.source, *(f"teacher:{count}" for count in COUNTS[name])):
        variant = source if source.startswith("teacher") else "data"
        if any((variant, n, seed) not in known for n in STUDENTS):
            entries += [(variant, folder, n) for n, folder in students(case, source, teacher, seed, out).items()]
        for each, folder, n in entries:
            (record,) = evaluate([(folder, n)], images, sampling, MetricConfig(case.spaces[:1]))
            row = {"name": each, "steps": n, "seed": seed, "frechet": record.quality[0].frechet}
            print(row, flush=True)
            with file.open("a") as lines:
                print(json.dumps(row), file=lines)
        entries = []


def rows(file: Path) -> list[dict[str, Any]]:
    """What is measured."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def table(file: Path) -> str:
    """Means and deviations over seeds, as Markdown."""
    measured = {(row["name"], row["steps"], row["seed"]): row["frechet"] for row in rows(file)}
    distances, ratios = (defaultdict[tuple[str, int], list[float]](list) for _ in range(2))
    for (name, steps, seed), distance in measured.items():
        distances[name, steps].append(distance)
        ratios[name, steps].append(distance / measured["teacher", CHAIN[0], seed])
    lines = ["| data | steps | seeds | Fréchet distance | ratio to the teacher's |", "|---|---:|---:|---:|---:|"]
    for (name, steps), values in sorted(distances.items(), key=lambda each: -each[0][1]):
        lines.append(f"| {name} | {steps} | {len(values)} | {spread(values)} | {spread(ratios[name, steps])} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Mean and deviation."""
    return f"{mean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def main() -> None:
    """Make what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=list(COUNTS))
    parser.add_argument("--teachers", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        compare(arguments.case, seed, arguments.teachers, arguments.out)
    print(table(arguments.out / "measured.jsonl"))


if __name__ == "__main__":
    main()
