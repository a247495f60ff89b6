"""EDM's form of the recipe `digits` beside its variance-preserving one: the same network, updates, rates and seeds.

    python benchmarks/experiments/edm_teacher.py --out FOLDER [--seeds 0 1 2] [--forms vp edm-angle edm-power] [-n 1797]

vp          the recipe: the cosine schedule, output v
edm-angle   the raw network F(c_in x, c_noise) of Karras et al. 2022, for noise from 0.002 to 80 and data of deviation
            0.75 (that of the digits); teacher and students at times that are even in the angle
edm-power   the students of the same teacher at times that are even in the 7th root of the noise, as EDM's own sampler

A ratio is a student's Frechet distance to the data, in a classifier's features, over that of its own teacher at 256
steps on the same grid; every model is sampled once, from the noise of its seed. Each line of FOLDER/results.jsonl is
one measurement, and is not made again.
"""

import argparse
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from distillation_methods import Quiet
from progdist import Denoiser, Karras
from progdist.distillation import train_students
from progdist.evaluation.features import feature_space
from progdist.evaluation.generate import SamplingOptions, generate_images
from progdist.evaluation.metrics import quality
from progdist.evaluation.summary import summarize
from progdist.models.model import Model
from progdist.recipes.files import read_recipe
from progdist.runs.run import Run, open_run

FORMS = {"vp": None, "edm-angle": Karras(sigma_data=0.75, spacing="angle"), "edm-power": Karras(sigma_data=0.75)}
STUDENTS = (4, 1)


@dataclass(frozen=True)
class FormRun(Run):
    """The run of a recipe whose teacher is of EDM's form, or of the recipe's own for None."""

    schedule: Karras | None = None

    def untrained(self) -> Model:
        """The recipe's network, as what EDM calls F."""
        model = super().untrained()
        if self.schedule is None:
            return model
        return replace(model, denoiser=Denoiser(model.denoiser.network, self.schedule, "edm"))


def measure(form: str, seed: int, out: Path, count: int) -> dict[str, float]:
    """The distance of the teacher at 256 steps and of each student, by the number of steps."""
    schedule, folder = FORMS[form], out / f"{form}-{seed}"
    recipe = read_recipe("digits", ["teacher.precision=float32", "distill.precision=float32", f"seed={seed}"])
    run = FormRun(open_run(recipe, folder, Quiet()).context, schedule)
    run.claim()
    if form == "edm-power" and not (folder / "teacher").exists():
        shutil.copytree(out / f"edm-angle-{seed}" / "teacher", folder / "teacher")
    trainer = run.trainer()
    teacher = run.train_teacher(trainer)
    if schedule is not None:
        teacher = replace(teacher, denoiser=teacher.denoiser.with_parts(schedule=schedule))
    images = run.context.images
    space = feature_space("digits", images.shape)
    data = space(images.sample(10_000, 0)[0])

    def distance(model: Model, steps: int) -> float:
        made, _, _ = generate_images(model, SamplingOptions(steps, count, None, seed, batch=600), print)
        return quality(space, data, summarize([space], made), resamples=2).frechet

    found = {"256": distance(teacher, 256), "teacher in 4": distance(teacher, 4)}
    for stage, student in train_students(run.context.plan, teacher, trainer, run.context.teacher):
        if stage.steps in STUDENTS:
            found[str(stage.steps)] = distance(student, stage.steps)
    return found


def table(records: list[dict[str, Any]]) -> str:
    """A row for each form: means and deviations over the seeds."""
    lines = ["| form | teacher, 256 steps | teacher, 4 | student, 4 | student, 1 | 4 / 256 | 1 / 256 |"]
    lines.append("|---|---|---|---|---|---|---|")
    for form in FORMS:
        rows = [record["frechet"] for record in records if record["form"] == form]
        columns = [[row[key] for row in rows] for key in ("256", "teacher in 4", "4", "1")]
        columns += [[row[key] / row["256"] for row in rows] for key in ("4", "1")]
        cells = [f"{mean(each):.3f}" + (f" ± {stdev(each):.3f}" if len(each) > 1 else "") for each in columns if each]
        lines += [f"| {form} | {' | '.join(cells)} |"] if rows else []
    return "\n".join(lines)


def main() -> None:
    """Measure what is not yet measured, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("-n", type=int, default=1797)
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = arguments.out / "results.jsonl"
    records = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    for seed in arguments.seeds:
        for form in arguments.forms:
            if not any((each["form"], each["seed"]) == (form, seed) for each in records):
                records.append({"form": form, "seed": seed, "frechet": measure(form, seed, arguments.out, arguments.n)})
                with results.open("a") as file:
                    print(json.dumps(records[-1]), file=file)
                print(f"{form}, seed {seed}: {records[-1]['frechet']}", flush=True)
    print(table(records))


if __name__ == "__main__":
    main()
