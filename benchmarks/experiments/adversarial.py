"""Adversarial beside progressive distillation: students of 4, 2 and 1 steps of the same teachers, judged over seeds.

    python benchmarks/experiments/adversarial.py digits --out FOLDER [--seeds 0 1 2] [--variants NAME ...]
    python benchmarks/experiments/adversarial.py digits --held-out --out FOLDER
    python benchmarks/experiments/adversarial.py fashion --out FOLDER

For each seed a teacher is trained as its recipe says, then the chain of each variant on it; what is finished in FOLDER
is not made again. Every student is judged beside the teacher at 256 steps (`judging.py` says by what), and the table is
of means and deviations over the seeds. With `--held-out` a fifth of the data is kept from teacher, students and
discriminator, and the distance to it is measured, too. Of every stage the updates and the seconds are printed.

digits      the recipe of that name
fashion     Fashion-MNIST at 14x14, class-conditional, with a small network and a teacher of 1,500 updates
"""

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import judging
from progdist.data.images import Images
from progdist.distillation import train_students
from progdist.recipes.files import read_recipe
from progdist.runs.checks import open_images
from progdist.runs.run import open_run
from progdist.training.callbacks import Progress

CHAIN = [256, 16, 4, 2, 1]
STUDENTS = (4, 2, 1)
TO_EIGHT = " to 8"  # how the names of variants end whose chain is 256, 16, 8, in the updates of a student of 4 steps


@dataclass(frozen=True)
class Case:
    """Data and teacher."""

    recipe: str  # of a name that ships
    source: str  # the data
    overrides: tuple[str, ...]  # of the recipe
    spaces: tuple[str, ...]  # of features: the first judges classes
    samples: int
    regression: Mapping[int, tuple[int, float]]  # updates and rate of each stage without a discriminator
    adversarial: Mapping[int, tuple[int, float]]  # and with one


CASES = {
    "digits": Case(
        "digits",
        "digits",
        (),
        ("digits", "digits_residual", "pixels"),
        1797,
        {16: (20, 2e-4), 4: (170, 6e-4), 2: (150, 8e-4), 1: (210, 1e-3)},
        {16: (20, 2e-4), 4: (300, 4e-4), 2: (300, 6e-4), 1: (500, 8e-4)},
    ),
    "fashion": Case(
        "fashion-mnist",
        "idx:/usr/share/datasets/fashion-mnist",
        (
            *("data.size=14", "network.width=16", "network.multipliers=[1,2]", "network.groups=8"),
            *("teacher.updates=1500", "teacher.ema=0.99", "teacher.learning_rate=2.0e-3", "teacher.warmup=50"),
        ),
        ("fashion-mnist", "fashion-mnist_residual", "pixels"),
        2000,
        {16: (20, 2e-4), 4: (170, 6e-4), 2: (150, 8e-4), 1: (210, 1e-3)},
        {16: (20, 2e-4), 4: (300, 4e-4), 2: (300, 6e-4), 1: (500, 8e-4)},
    ),
}

WEIGHTS = {16: 0.0, 8: 0.3, 4: 0.3, 2: 0.5, 1: 1.0}


def options(**more: object) -> dict[int, dict[str, object]]:
    """The method's options in each stage."""
    return {steps: {"weight": weight, **(more if weight else {})} for steps, weight in WEIGHTS.items()}


VARIANTS: dict[str, tuple[str, Mapping[int, Mapping[str, object]]]] = {
    "progressive": ("progressive", {}),
    "progressive, as long": ("progressive", {}),
    "progressive to 8": ("progressive", {}),
    "samples": ("adversarial", options()),
    "samples to 8": ("adversarial", options()),
    "data": ("adversarial", options(judged="data")),
    "teacher": ("adversarial", options(judged="teacher")),
    "trajectory": ("adversarial", options(judged="trajectory")),
    "samples, the teacher's features": ("adversarial", options(discriminator="teacher")),
}
"""The method, and its options in each stage; "as long" has the updates of the adversarial ones."""


class Quiet:
    """A callback that shows stages and notes."""

    def begin(self, title: str, updates: int) -> None:
        """Show the name of what trains."""
        print(f"{title}: {updates} updates", flush=True)

    def progress(self, progress: Progress) -> None:
        """Nothing."""

    def end(self, stopped: int | None = None) -> None:
        """Nothing."""

    def evaluated(self, record: object) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


def settings(case: Case, name: str) -> list[str]:
    """What makes a recipe of a variant."""
    method, options = VARIANTS[name]
    rates, chain = case.regression if name.startswith("progressive") else case.adversarial, CHAIN
    rates = case.adversarial if name == "progressive, as long" else rates
    if name.endswith(TO_EIGHT):
        rates, chain = {16: rates[16], 8: rates[4]}, [256, 16, 8]
    stages = {
        steps: {"updates": updates, "learning_rate": rate, **({"options": options[steps]} if steps in options else {})}
        for steps, (updates, rate) in rates.items()
    }
    return [f"distill={json.dumps({'method': method, 'chain': chain, 'batch': 64, 'stages': stages})}"]


def chain_of(case: Case, source: str, name: str, seed: int, out: Path) -> Path:
    """The folder of a variant's run, its models trained on the teacher of the seed."""
    changes = [f"data.source={source}", f"seed={seed}", *case.overrides, *settings(case, name)]
    recipe = read_recipe(case.recipe, changes)
    teacher, folder = out / f"teacher-{seed}", out / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    run = open_run(recipe, folder, Quiet())
    run.claim()
    if teacher.is_dir() and not run.folder.model("teacher").exists():
        shutil.copytree(teacher, folder / "teacher", dirs_exist_ok=True)
    trainer = run.trainer()
    first = run.train_teacher(trainer)
    if not teacher.is_dir():
        shutil.copytree(folder / "teacher", teacher)
    for stage, student in train_students(run.context.plan, first, trainer):
        print(f"seed {seed}, {name}: {stage.steps} steps in {student.training['seconds']} s", flush=True)
    return folder


def compare(case: Case, names: Sequence[str], seed: int, out: Path, *, held_out: bool) -> Path:
    """Train and judge all variants of one seed; the file of judgements."""
    source, kept = case.source, None
    if held_out:
        training, others = judging.split(case.source, out / f"split-{seed}", seed)
        source, kept = f"npz:{training}", f"npz:{others}"
    judged = out / f"judged-{seed}.jsonl"
    data = read_recipe(case.recipe, case.overrides).data

    def opened(source: str) -> Images:
        return open_images(data.model_copy(update={"source": source, "classes": None}), seed)

    images, held = opened(source), opened(kept) if kept else None
    setting = judging.Setting(images, held, features=case.spaces, samples=case.samples, seed=seed)
    folders = {name: chain_of(case, source, name, seed, out) for name in names}
    entries = [
        (name, folder / f"student-{n:04d}", n)
        for name, folder in folders.items()
        for n in ((8,) if name.endswith(TO_EIGHT) else STUDENTS)
    ]
    judging.judge(("teacher", out / f"teacher-{seed}", CHAIN[0]), entries, setting, judged)
    return judged


def main() -> None:
    """Make what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=list(CASES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--held-out", action="store_true")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    case = CASES[arguments.case]
    files = [
        compare(case, arguments.variants, seed, arguments.out, held_out=arguments.held_out) for seed in arguments.seeds
    ]
    print(judging.table(judging.read_rows(files)))


if __name__ == "__main__":
    main()
