"""What gives the same students for less: variants of the digits chain, each from the same teachers, over several seeds.

    python benchmarks/experiments/cheaper_distillation.py RUN [RUN ...] [--variants NAME ...] [--out FILE.jsonl]

RUN is a finished run of the recipe `digits`, of which the teacher is taken. A variant's cost is counted in network
evaluations of one example, a backward pass as two, over that of the teacher's training; most are given a quarter, some
a half. The figures are Frechet distances of 1,797 samples over the teacher's own at 256 steps, mean and deviation over
the runs. A measurement that is in FILE is not made again.
"""

import argparse
import copy
import json
import random
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from progdist import WEIGHTINGS, Denoiser
from progdist._utils.random import generator
from progdist.compute.precision import autocast, resolve
from progdist.data.sources import load_images
from progdist.diffusion.loss import diffuse, weighted_error
from progdist.evaluation.features import feature_space
from progdist.evaluation.generate import SamplingOptions, generate_images
from progdist.evaluation.metrics import quality
from progdist.evaluation.summary import summarize
from progdist.methods.chain import Stage
from progdist.methods.progressive import distillation_target
from progdist.models.model import Model
from progdist.recipes.files import read_recipe
from progdist.teachers.own import load
from progdist.training.batches import Batch, Batches
from variants import TEACHER_COST, VARIANTS, Variant

CPU = torch.device("cpu")
SNR = WEIGHTINGS["truncated_snr"]
SPACES = ("digits", "pixels")
COUNT = 1797


@dataclass(frozen=True)
class Trainer:
    """Trains the students of one variant."""

    variant: Variant
    images: Any
    seed: int

    def student(
        self, teacher: Denoiser, number: int, moments: dict[str, Any] | None
    ) -> tuple[Denoiser, dict[str, Any]]:
        """The student of one stage, and the state of its optimizer."""
        variant, stage = self.variant, self.variant.stages()[number]
        updates, rate = variant.updates[number][1], variant.rates[number]
        student = teacher.with_network(copy.deepcopy(teacher.network).requires_grad_(True))
        optimizer = torch.optim.AdamW(student.network.parameters(), rate, weight_decay=0.0, fused=True)
        if moments and variant.carry:
            optimizer.load_state_dict(moments)
        average = copy.deepcopy(student.network)
        losses = torch.ones(stage.steps, dtype=torch.float64)
        for update, (z, t, weight, target) in enumerate(self.targets(teacher, stage, number, updates, losses)):
            optimizer.param_groups[0]["lr"] = rate * (1 - update / updates)
            with autocast(CPU, resolve("auto", CPU)):
                each = weighted_error(SNR, student.schedule, student(z, t), target, t)
            index = (t * stage.steps).round().long() - 1
            losses.index_copy_(0, index, 0.9 * losses[index] + 0.1 * each.detach().double())
            (each * weight).mean().backward()
            torch.nn.utils.clip_grad_norm_(student.network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                for mean, value in zip(average.parameters(), student.network.parameters(), strict=True):
                    mean.lerp_(value, 1 - min(variant.ema, (1 + update) / (10 + update)))
        result = average if variant.ema else student.network
        return teacher.with_network(result.eval().requires_grad_(False)), optimizer.state_dict()

    def targets(
        self, teacher: Denoiser, stage: Stage, number: int, updates: int, losses: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """(z, t, importance weight, target) of each update; each target comes `uses` times, in another order."""
        variant, size = self.variant, self.variant.batch[number]
        kept: list[tuple[Tensor, ...]] = []
        order = random.Random(self.seed)
        for batch in Batches(self.images, size, self.seed, number + 1)(0, -(-updates // variant.uses), slice(0, size)):
            kept.append(self.one_batch(teacher, stage, batch, losses))
            if len(kept) == 8 or variant.uses == 1:
                yield from self.shuffled(kept, order)
                kept = []
        if kept:
            yield from self.shuffled(kept, order)

    def shuffled(self, kept: list[tuple[Tensor, ...]], order: random.Random) -> Iterator[Any]:
        """The batches as they are, then as many times as asked in another order of their examples."""
        yield from kept
        rows = [torch.cat(parts) for parts in zip(*kept, strict=True)]
        for _ in range(self.variant.uses - 1):
            places = list(range(len(rows[0])))
            order.shuffle(places)
            shuffled = [part[places].chunk(len(kept)) for part in rows]
            yield from zip(*shuffled, strict=True)

    def one_batch(self, teacher: Denoiser, stage: Stage, batch: Batch, losses: Tensor) -> tuple[Tensor, ...]:
        """z, t, importance weight and target of one batch."""
        x, eps, u, steps = batch["x"], batch["eps"], batch["u"], stage.steps
        if self.variant.antithetic:
            x, eps, u = (torch.cat([part[::2], sign * part[::2]]) for part, sign in ((x, 1), (eps, -1), (u, 1)))
        i, weight = steps - (u * steps).floor(), torch.ones(len(u))
        if self.variant.by_loss:
            chance = losses.sqrt() / losses.sqrt().sum()
            i = torch.searchsorted(chance.cumsum(0), u).clamp(max=steps - 1) + 1.0
            weight = (1 / (steps * chance[i.long() - 1])).float()
        t, s = i / steps, (i - 1) / steps
        z = diffuse(teacher.schedule, x, eps, t)
        with autocast(CPU, resolve("auto", CPU)):
            return z, t, weight, distillation_target(teacher, z, t, s, substeps=stage.substeps).float()


def distances(model: Model, steps: int, seed: int, images: Any) -> dict[str, float]:  # noqa: ANN401
    """The Frechet distance of a model's samples in every feature space."""
    made, _, _ = generate_images(model, SamplingOptions(steps, COUNT, None, seed, batch=600), print)
    spaces = [feature_space(name, images.shape) for name in SPACES]
    return {
        name: quality(space, space(images.sample(10_000, 0)[0]), summarize([space], made), resamples=2).frechet
        for name, space in zip(SPACES, spaces, strict=True)
    }


def measured(run: Path, name: str, images: Any) -> dict[str, Any]:  # noqa: ANN401
    """One variant from one teacher."""
    seed = read_recipe(str(run / "recipe.yaml")).seed
    model = load(run / "teacher")
    if name == "teacher":
        return {"256": distances(model, 256, seed, images)}
    trainer, current, moments = Trainer(VARIANTS[name], images, seed), model.denoiser, None
    torch.manual_seed(generator(seed, 99).initial_seed())
    found: dict[str, Any] = {}
    for number, stage in enumerate(trainer.variant.stages()):
        current, moments = trainer.student(current, number, moments)
        if stage.steps in (1, 4):
            found[str(stage.steps)] = distances(replace(model, denoiser=current), stage.steps, seed, images)
    return found


def main() -> None:
    """Measure what is not yet measured, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("runs/cheaper.jsonl"))
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    images = load_images("digits")
    known = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    results = {(record["run"], record["variant"]): record["found"] for record in known}
    for name in ("teacher", *arguments.variants):
        for run in arguments.runs:
            if (str(run), name) in results:
                continue
            found = results[str(run), name] = measured(run, name, images)
            with arguments.out.open("a") as file:
                print(json.dumps({"run": str(run), "variant": name, "found": found}), file=file)
        if name != "teacher":
            print(row(name, arguments.runs, results), flush=True)


def row(name: str, runs: list[Path], results: dict[tuple[str, str], Any]) -> str:
    """A line of the table."""
    cells = [name, f"{VARIANTS[name].cost() / TEACHER_COST:.2f}"]
    for steps in ("4", "1"):
        for space in SPACES:
            ratios = [results[str(run), name].get(steps, {}).get(space) for run in runs]
            whole = [results[str(run), "teacher"]["256"][space] for run in runs]
            shares = [ratio / other for ratio, other in zip(ratios, whole, strict=True) if ratio]
            spread = statistics.stdev(shares) if len(shares) > 1 else 0.0
            cells.append(f"{statistics.mean(shares):.2f} ± {spread:.2f}" if shares else "")
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
