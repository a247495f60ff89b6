"""Methods that are not of the package beside progressive distillation: same teachers, same cost, over seeds.

    python benchmarks/experiments/other_methods.py digits --out FOLDER [--seeds 0 1 2] [--variants NAME ...]

As `distillation_methods.py`, of which FOLDER may be one, too: its teachers and its measurements are taken from there.
Each method is in a file of `candidates`, which says what a target costs. The rates are those of the recipe digits,
which were sought for progressive distillation, but where a variant's name says another.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from candidates import moment_matching
from candidates.backward import BACKWARD, BACKWARD_BALANCED
from candidates.distances import BACKWARD_HUBER, FEATURES, PSEUDO_HUBER
from candidates.multistep_consistency import MULTISTEP_CONSISTENCY, MultistepConsistency
from candidates.repeated_targets import REPEATED
from candidates.solver_teacher import SOLVER_TEACHER
from distillation_methods import BATCH, PROGRESSIVE_VARIANT, SHARES, Comparison, Variant, compare
from progdist.diffusion.integrators import Step
from progdist.diffusion.sampler import ancestral
from progdist.distillation import Hooks, Plan, Trainer, stage_training
from progdist.methods import PROGRESSIVE, Method
from progdist.methods.chain import Stage
from progdist.models.model import Model
from progdist.runs.run import Run


@dataclass(frozen=True, kw_only=True)
class Candidate(Variant):
    """A variant with methods that no recipe knows, in place of `method`.

    Args:
        candidates: the method of each stage; the last is that of those that follow, too.
    """

    candidates: tuple[Method, ...]

    def methods(self) -> list[Method]:
        """The method of each stage."""
        return [self.candidates[min(number, len(self.candidates) - 1)] for number in range(len(self.students))]


@dataclass(frozen=True)
class Matching(Variant):
    """A variant of one stage that is trained by a loop of its own."""

    def updates(self, budget: int) -> dict[int, int]:
        """Of both networks together."""
        return {self.students[0][0]: round(self.share * budget / (BATCH * moment_matching.EVALUATIONS))}


class Candidates(Comparison):
    """The runs of candidates, whose students are in no folder."""

    samplers: ClassVar[Mapping[str, Step]] = {"posterior": partial(ancestral, gamma=0.0)}

    def students(self, variant: Variant, run: Run, trainer: Trainer, teacher: Model) -> Iterator[tuple[Stage, Model]]:
        """Every stage with its student, in order."""
        plan, trainer = run.context.plan, replace(trainer, hooks=Hooks())
        if isinstance(variant, Matching):
            yield plan.links[0], matched(plan, trainer, teacher)
            return
        for number, (stage, method) in enumerate(zip(plan.links, variant.methods(), strict=True), 1):
            if isinstance(method, MultistepConsistency):
                method = replace(method, updates=plan.stages[stage.steps].updates)
            teacher = trainer.fit(stage_training(replace(plan, method=method), number, teacher, run.context.teacher))
            yield stage, teacher


def matched(plan: Plan, trainer: Trainer, teacher: Model) -> Model:
    """The student of a plan of one stage by moment matching."""
    steps, denoiser, conditions = plan.links[0].steps, teacher.denoiser, trainer.conditions(teacher)
    config, student = plan.stages[steps], denoiser.with_network(copy.deepcopy(denoiser.network))
    drawn = trainer.batch(trainer.examples, config.batch, 1)(0, config.updates, slice(config.batch))
    batches = ((batch, conditions(batch)) for batch in drawn)
    options = {"steps": steps, "learning_rate": config.learning_rate, "weighting": plan.weightings[1]}
    moment_matching.match(student, denoiser, batches, **options)
    return replace(teacher, denoiser=student)


DDIM = ((4, "ddim", 4), (2, "ddim", 2), (1, "ddim", 1))
TO_TWO = 0.689  # what `progressive` has spent when it comes to 2 steps
FROM_FOUR = ((4, 0.466, 6e-4), *SHARES[2:])


def regression(method: Method, factor: float = 1.0) -> Candidate:
    """A variant of progressive distillation: its chain, its shares of the cost, its rates times a factor."""
    students = tuple((steps, share, rate * factor) for steps, share, rate in SHARES)
    return Candidate("progressive", 256, students, DDIM, candidates=(method,))


def multistep(start: int, steps: int, share: float, rate: float = 1e-3) -> Candidate:
    """Multistep consistency in one stage, for so many steps."""
    measured = ((steps, "ddim", steps),)
    return Candidate("tract", start, ((steps, 1.0, rate),), measured, 0.5, share, candidates=(MULTISTEP_CONSISTENCY,))


def matching(steps: int, share: float, rate: float = 6e-4) -> Matching:
    """Moment matching for so many steps."""
    return Matching("progressive", 64, ((steps, 1.0, rate),), ((steps, "posterior", steps),), share=share)


VARIANTS = {
    "progressive": PROGRESSIVE_VARIANT,
    "progressive, rates x 2": regression(PROGRESSIVE, 2.0),
    "pseudo-Huber": regression(PSEUDO_HUBER),
    "teacher's features": regression(FEATURES),
    "backward": regression(BACKWARD),
    "backward, pseudo-Huber": regression(BACKWARD_HUBER),
    "backward, balanced": regression(BACKWARD_BALANCED),
    "targets used twice": regression(REPEATED),
    "from 32, solver": Candidate("progressive", 32, FROM_FOUR, DDIM, candidates=(SOLVER_TEACHER, PROGRESSIVE)),
    "multistep consistency to 2": multistep(64, 2, TO_TWO),
    "multistep consistency to 1": multistep(64, 1, 1.0),
    "moment matching to 1": matching(1, 1.0),
}


if __name__ == "__main__":
    compare(__doc__, VARIANTS, Candidates)
