"""LoRA students that were trained on a base in bf16, in 8 bits and in 4 bits, of the same seeds, by their distances.

    python examples/train_text_teacher.py digits runs/digits-captions runs/stock-text
    python benchmarks/experiments/quantized_base.py digits captions:runs/digits-captions runs/stock-text runs/bits

A student of 4 steps of the teacher's 8, not guided. Each is saved, sampled by the stock pipeline of its folder, whose
network is the base in full with the adapters merged, and compared with the data as in `text_teacher.py`. Of the base
the bytes of all parameters are given, as they lie on the device.
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from progdist._utils.names import Bits
from progdist.cli.progress import Terminal
from progdist.compute.placement import bytes_at_work
from progdist.distillation import Hooks, stage_training
from progdist.evaluation.measures.frechet import resampled_frechet
from progdist.models.quantized_base import quantized_base
from progdist.recipes.files import override
from progdist.recipes.from_teacher import Request, recipe_for_teacher
from progdist.runs.run import Run, open_run
from progdist.students.folder import save
from progdist.teachers.open import open_teacher
from text_teacher import Measure, features, open_data, stock_samples

START, STEPS = 8, 4
BASES: tuple[Bits | None, ...] = (None, 8, 4)


def opened(arguments: argparse.Namespace) -> Run:
    """The run whose teacher, data and plan all students have, but for seed and base."""
    request = Request(
        arguments.teacher, arguments.data, "bits", STEPS, start=START, updates=arguments.updates // 2, batch=32,
        lora=arguments.rank,
    )  # fmt: skip
    recipe = override(
        recipe_for_teacher(open_teacher(arguments.teacher), request), ["teacher.trust=true", "distill.precision=bf16"]
    )
    return open_run(recipe, arguments.out / "run", Terminal(Console()))


def distances(measure: Measure, images: Tensor) -> tuple[float, ...]:
    """Of images (N, 3, H, W) to the data, in pixels and in the classifier's features."""
    made = features(measure.data, images)
    return tuple(resampled_frechet(each, made[name], resamples=2, seed=0).estimate.value
                 for name, each in measure.distances.items())  # fmt: skip


def main() -> None:
    """Train, sample, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classifier")
    parser.add_argument("data")
    parser.add_argument("teacher")
    parser.add_argument("out", type=Path)
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--updates", type=int, default=150)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    images, real, _, _ = open_data(arguments.data, arguments.classifier)
    wanted, measure = images.stratified_labels(arguments.n), Measure.of(arguments.classifier, real)
    captions = [images.classes[place] for place in wanted.tolist()]
    run = opened(arguments)
    trainer, own = run.trainer(), run.context.teacher
    assert own is not None
    first, network = run.train_teacher(trainer), own.model.denoiser.network
    print("| base | bytes |\n|---|---:|")
    print(f"| float32 | {bytes_at_work(network, bf16=False):,} |\n| bf16 | {bytes_at_work(network, bf16=True):,} |")
    for bits in filter(None, BASES):
        print(f"| {bits} bits | {bytes_at_work(quantized_base(network, bits), bf16=True):,} |")
    print("\n| model | seed | seconds | pixels | features |\n|---|---:|---:|---:|---:|", flush=True)
    for steps in (START, STEPS):
        pixels, seen = distances(measure, stock_samples(f"{arguments.teacher}@{steps}", captions, 1.0)[0])
        print(f"| teacher, {steps} steps | | | {pixels:.4f} | {seen:.4f} |", flush=True)
    for seed in arguments.seeds:
        for bits in BASES:
            plan = replace(run.context.plan, base_bits=bits, seed=seed)
            one = replace(trainer, seed=seed, hooks=Hooks())
            student = one.fit(stage_training(plan, 1, first, own))
            folder = arguments.out / f"{bits or 16}-{seed}"
            shutil.rmtree(folder, ignore_errors=True)
            save(student, folder)
            pixels, seen = distances(measure, stock_samples(f"{folder}@{STEPS}", captions, 1.0)[0])
            seconds = student.training["seconds"]
            print(f"| {bits or 'bf16'} | {seed} | {seconds:.0f} | {pixels:.4f} | {seen:.4f} |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
