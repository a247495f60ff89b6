"""The methods of distillation side by side: from the same teachers, for the same network evaluations, over seeds.

    python benchmarks/experiments/distillation_methods.py digits --out FOLDER [--seeds 0 1 2] [--variants NAME ...]
    python benchmarks/experiments/distillation_methods.py fashion --out FOLDER [--seeds 0 1 2] [--variants NAME ...]

Every variant is a recipe: a method, a chain, rates, and as many updates as the budget pays for, all stages together.
Cost is counted in network evaluations of one example, a backward pass as two: an update of a batch B costs B (k + 3),
with k teacher steps to one of the student, and B (2 + 3) with the method `tract`. What is measured is the Frechet
distance of the samples in a classifier's features and in pixels. Each line of FOLDER/results.jsonl is one measurement,
and is not made again.

digits      the recipe of that name; a quarter of its teacher's training (`--budget` in network evaluations)
fashion     Fashion-MNIST at 14x14, class-conditional, with a small network and a teacher of 500 updates; the classifier
            sees the samples enlarged to 28x28
"""

import argparse
import json
import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from progdist.diffusion.integrators import Step
from progdist.distillation import Trainer, train_students
from progdist.evaluation.features import FeatureSpace, feature_space
from progdist.evaluation.metrics import Metrics
from progdist.methods import METHODS, Method
from progdist.methods.chain import Stage, stages
from progdist.models.model import Model
from progdist.recipes.files import read_recipe
from progdist.recipes.recipe import Recipe
from progdist.runs.evaluator import Evaluator
from progdist.runs.folder import Record
from progdist.runs.run import Run, open_run
from progdist.training.callbacks import Progress

BATCH = 64
PRECISIONS = [f"{section}.precision=float32" for section in ("teacher", "distill", "evaluate")]


@dataclass(frozen=True)
class Case:
    """Data, network and teacher.

    Args:
        recipe: of a name that ships.
        overrides: of it, but for the distillation.
        budget: network evaluations of one chain.
        spaces: (data's shape) -> where samples are measured.
    """

    recipe: str
    overrides: tuple[str, ...]
    budget: int
    spaces: Callable[[tuple[int, int, int]], list[FeatureSpace]]


def enlarged(image: tuple[int, int, int]) -> list[FeatureSpace]:
    """The features of Fashion-MNIST's classifier, of images of half the size, and pixels."""
    space = feature_space("fashion-mnist", (1, 28, 28))
    double = partial(nn.functional.interpolate, scale_factor=2, mode="bilinear")
    return [FeatureSpace(space.name, lambda images: space.extract(double(images))), feature_space("pixels", image)]


CASES = {
    "digits": Case(
        "digits",
        ("evaluate.samples=1797", "evaluate.resamples=2"),
        67_200,
        lambda image: [feature_space("digits", image), feature_space("pixels", image)],
    ),
    "fashion": Case(
        "fashion-mnist",
        (
            *("data.size=14", "network.width=16", "network.multipliers=[1,2]", "network.groups=8"),
            *("teacher.updates=500", "teacher.ema=0.99", "teacher.learning_rate=2.0e-3", "teacher.warmup=50"),
            *("evaluate.samples=2000", "evaluate.batch=500", "evaluate.features=[pixels]", "evaluate.resamples=2"),
        ),
        38_400,
        enlarged,
    ),
}


@dataclass(frozen=True)
class Variant:
    """A method and its chain.

    Args:
        method: as in a recipe.
        start: the teacher's steps.
        students: (step count, share of the cost, learning rate), largest count first.
        measured: (step count of the student, sampling method, sampling steps).
        ema: decay of the average of a student's weights.
        share: of the budget.
    """

    method: str
    start: int
    students: tuple[tuple[int, float, float], ...]
    measured: tuple[tuple[int, str, int], ...]
    ema: float = 0.0
    share: float = 1.0

    @property
    def chain(self) -> list[int]:
        """The teacher's steps, then those of each student."""
        return [self.start, *(steps for steps, _, _ in self.students)]

    def methods(self) -> list[Method]:
        """The method of each stage."""
        return [METHODS[self.method]] * len(self.students)

    def updates(self, budget: int) -> dict[int, int]:
        """Of each student: what its share of the budget pays for."""
        return {
            stage.steps: round(self.share * budget * part / (BATCH * (3 + method.evaluations(stage))))
            for stage, method, (_, part, _) in zip(stages(self.chain), self.methods(), self.students, strict=True)
        }

    def overrides(self, budget: int) -> Iterator[str]:
        """What makes a recipe of it."""
        yield f"distill={{method: {self.method}, chain: {self.chain}, ema: {self.ema}, batch: {BATCH}}}"
        for (steps, updates), (_, _, rate) in zip(self.updates(budget).items(), self.students, strict=True):
            yield f"distill.stages.{steps}={{updates: {updates}, learning_rate: {rate}}}"


SHARES = ((16, 0.113, 2e-4), (4, 0.353, 6e-4), (2, 0.223, 8e-4), (1, 0.311, 1e-3))
"""Of the recipe digits: 20, 170, 150 and 210 updates."""

TO_FOUR = 0.466
"""What `progressive` has spent when it comes to 4 steps."""

PROGRESSIVE_VARIANT = Variant(
    "progressive",
    256,
    SHARES,
    (
        *((4, "ddim", 4), (2, "ddim", 2), (1, "ddim", 1)),
        *((4, "overshoot", 4), (2, "overshoot", 4), (1, "overshoot", 2)),
    ),
)

VARIANTS = {
    "progressive": PROGRESSIVE_VARIANT,
    "balanced": Variant("balanced", 256, SHARES, ((4, "ddim", 4), (2, "ddim", 2), (1, "ddim", 1))),
    "stochastic": Variant(
        "stochastic",
        256,
        SHARES,
        ((4, "ddim", 4), (2, "ddim", 2), (1, "ddim", 1), (2, "overshoot", 4), (1, "overshoot", 2)),
    ),
    "tract to 4": Variant("tract", 32, ((4, 1.0, 1e-3),), ((4, "ddim", 4),), 0.5, TO_FOUR),
    "tract": Variant("tract", 64, ((8, 0.3, 1e-3), (1, 0.7, 1e-3)), ((1, "ddim", 1),), 0.5),
    "consistency": Variant(
        "tract", 32, ((1, 1.0, 1e-3),), ((1, "ddim", 1), (1, "consistency", 2), (1, "consistency", 4)), 0.5
    ),
    "consistency from 256": Variant(
        "tract", 256, ((1, 1.0, 1e-3),), ((1, "ddim", 1), (1, "consistency", 2), (1, "consistency", 4)), 0.5
    ),
}


class Quiet:
    """A callback that says nothing."""

    def begin(self, title: str, updates: int) -> None:
        """As the others."""

    def progress(self, progress: Progress) -> None:
        """As the others."""

    def end(self, stopped: int | None = None) -> None:
        """As the others."""

    def evaluated(self, record: object) -> None:
        """As the others."""

    def note(self, text: str) -> None:
        """As the others."""


@dataclass(frozen=True)
class Comparison:
    """The runs of one case in one folder."""

    case: Case
    out: Path
    variants: Mapping[str, Variant]
    samplers: ClassVar[Mapping[str, Step]] = {}  # that have no name in the package

    @property
    def results(self) -> Path:
        """Where the measurements are."""
        return self.out / "results.jsonl"

    def known(self) -> list[dict[str, Any]]:
        """The measurements so far."""
        return [json.loads(line) for line in self.results.read_text().splitlines()] if self.results.exists() else []

    def recipe(self, variant: Variant, seed: int) -> Recipe:
        """Of one variant."""
        chosen = variant.overrides(self.case.budget)
        return read_recipe(self.case.recipe, [*self.case.overrides, *chosen, *PRECISIONS, f"seed={seed}"])

    def opened(self, name: str, variant: Variant, seed: int) -> tuple[Run, Evaluator]:
        """The run of a variant, whose teacher is that of the seed, and what measures it."""
        teacher, folder = self.out / f"teacher-{seed}" / "teacher", self.out / f"{name.replace(' ', '-')}-{seed}"
        run = open_run(self.recipe(variant, seed), folder, Quiet())
        run.claim()
        if teacher.is_dir() and not (folder / "teacher").exists():
            shutil.copytree(teacher, folder / "teacher")
        return run, replace(run.evaluator, metrics=Metrics(self.case.spaces(run.context.images.shape)))

    def students(self, variant: Variant, run: Run, trainer: Trainer, teacher: Model) -> Iterator[tuple[Stage, Model]]:
        """Every stage with its student, in order."""
        yield from train_students(run.context.plan, teacher, trainer, run.context.teacher)

    def measure(self, name: str, seed: int) -> None:
        """Train a variant, or the teacher of a seed, and measure it."""
        if any((each["variant"], each["seed"]) == (name, seed) for each in self.known()):
            return
        variant = PROGRESSIVE_VARIANT if name == "teacher" else self.variants[name]
        run, evaluator = self.opened(name, variant, seed)
        trainer = run.trainer()
        teacher = run.train_teacher(trainer)
        records: list[Record] = []

        def add(model: Model, student: int, method: str, steps: int) -> None:
            found = evaluator.qualities(model, steps, self.samplers.get(method, method))
            assert found is not None  # the samples are finite
            distances = {each.features: each.frechet for each in found}
            records.append({"student": student, "method": method, "steps": steps, "frechet": distances})

        if name == "teacher":
            for steps in (32, 4, 2, 1):
                add(teacher, 0, "ddim", steps)
        else:
            for stage, student in self.students(variant, run, trainer, teacher):
                for steps, method, count in variant.measured:
                    if steps == stage.steps:
                        add(student, steps, method, count)
        with self.results.open("a") as file:
            for record in records:
                print(json.dumps({"variant": name, "seed": seed, **record}), file=file)


def table(records: list[dict[str, Any]]) -> str:
    """A row for every model and way to sample it: mean and deviation over the seeds, and the seeds."""
    spaces = list(records[0]["frechet"])
    lines = ["| variant | student | sampling | " + " | ".join(spaces) + " | seeds |", "|---|---|---|---|---|---|"]
    keys = list(dict.fromkeys((one["variant"], one["student"], one["method"], one["steps"]) for one in records))
    for key in keys:
        own = [one for one in records if (one["variant"], one["student"], one["method"], one["steps"]) == key]
        cells = []
        for space in spaces:
            values = [one["frechet"][space] for one in own]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        variant, student, method, steps = key
        lines.append(f"| {variant} | {student or ''} | {method} {steps} | {' | '.join(cells)} | {len(own)} |")
    return "\n".join(lines)


def compare(description: str | None, variants: Mapping[str, Variant], comparison: type[Comparison]) -> None:
    """The command: measure what is not yet measured, and print the table."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=list(CASES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=int, help="network evaluations of one chain")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(variants), choices=list(variants), metavar="NAME")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    case = CASES[arguments.case]
    case = replace(case, overrides=(*case.overrides, *arguments.set), budget=arguments.budget or case.budget)
    compared = comparison(case, arguments.out, variants)
    compared.out.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        for name in ("teacher", *arguments.variants):
            compared.measure(name, seed)
            print(f"seed {seed}: {name} is measured", flush=True)
    print(table(compared.known()))


if __name__ == "__main__":
    compare(__doc__, VARIANTS, Comparison)
