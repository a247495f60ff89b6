"""A method: what the student of one stage learns from its teacher, as one object.

Adding a method is a file with its loss and its `Method`, and its line in `progdist.methods.METHODS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from progdist.diffusion.denoiser import DenoiserProtocol
from progdist.diffusion.loss import Weighting
from progdist.methods.chain import Stage

Loss = Callable[..., Tensor]  # (student, x=, eps=, u=, **condition) -> one loss per example, (B,)


@dataclass(frozen=True)
class Method:
    """A method of distillation.

    Args:
        name: in recipes, commands and model folders.
        title: in reports and model cards.
        authors: of its paper, with the year.
        arxiv: number of its paper.
        loss: (student, teacher, x, eps, u, *, steps, substeps, weighting, **condition) -> (B,), as
            `progdist.methods.progressive.distillation_loss`; with `self_taught` it also takes `self_teacher`.
        evaluations: network evaluations of frozen models for one example, of a stage.
        samplers: of N steps: sampler -> its steps; None for any number.
        self_taught: whether the student also learns from the average of its own weights, or itself.
    """

    name: str
    title: str
    authors: str
    arxiv: str
    loss: Loss
    evaluations: Callable[[Stage], int]
    samplers: Callable[[int], Mapping[str, int | None]]
    self_taught: bool = False

    def stage_loss(self, teacher: DenoiserProtocol, stage: Stage, weighting: str | Weighting) -> Loss:
        """The loss of one stage, with its teacher, steps and weighting bound."""
        return partial(self.loss, teacher=teacher, steps=stage.steps, substeps=stage.substeps, weighting=weighting)

    def learned(self, counts: Sequence[int], steps: int, sampler: str) -> bool:
        """Whether a student of some step counts (none: of any) learned to take so many steps of a sampler."""
        return not counts or steps in counts or any(self.samplers(n).get(sampler, 0) in (steps, None) for n in counts)
