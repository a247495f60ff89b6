"""A method: what the student of one stage learns from its teacher, as one object.

To add a method, write a file with its loss and its `Method`, and add a line to `progdist.methods.METHODS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from progdist._utils.errors import UserError
from progdist.diffusion.denoiser import Denoiser, DenoiserProtocol
from progdist.diffusion.loss import Weighting
from progdist.methods.chain import Stage

Loss = Callable[..., Tensor | Mapping[str, Tensor]]
"""(student, x=, eps=, u=, **condition) -> one loss per example, (B,), or its parts by name, which are summed."""


@dataclass(frozen=True)
class Auxiliary:
    """A network trained beside the student, e.g. a discriminator; the student's loss includes its loss."""

    network: nn.Module
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)  # Adam's


Auxiliaries = Callable[[Any, Denoiser, Tensor, Mapping[str, Tensor]], Mapping[str, Auxiliary]]
"""(options, teacher, x, condition) -> networks by name; x (B, ...) and the condition are a few examples."""


@dataclass(frozen=True)
class Method:
    """A method of distillation.

    Args:
        name: its name in recipes, commands and model folders.
        title: its title in reports and model cards.
        authors: the authors of its paper, with the year.
        arxiv: the arXiv number of its paper.
        loss: (student, teacher, x, eps, u, *, steps, substeps, weighting, **condition) -> (B,), as
            `progdist.methods.progressive.distillation_loss`; with `self_taught` it also takes `self_teacher`.
        evaluations: the most network evaluations without gradients per example of a stage.
        samplers: for students of N steps, sampler -> its steps; None for any number.
        self_taught: whether the student also learns from itself or the average of its own weights.
        weighted: whether the weighting of the loss matters to the student.
        options: the method's own options, an instance of a frozen dataclass that checks them; None if it has none. The
            loss takes it as `options`.
        training: options of the students' training that differ from the defaults, by their names in `TrainConfig`.
        auxiliaries: networks trained beside the student, which the loss takes as `auxiliaries`, by name; None for
            none.
        noises: the number of further standard normal draws with the data's shape per example; if any, the loss takes
            them as `noises`, (B, noises, ...).
    """

    name: str
    title: str
    authors: str
    arxiv: str
    loss: Loss
    evaluations: Callable[[Stage], int]
    samplers: Callable[[int], Mapping[str, int | None]]
    self_taught: bool = False
    weighted: bool = True
    options: Any = None
    training: Mapping[str, Any] = field(default_factory=dict, hash=False)
    auxiliaries: Auxiliaries | None = None
    noises: int = 0

    def configured(self, options: Mapping[str, Any]) -> "Method":
        """The method with some options replaced. Raise a UserError for an unknown option."""
        names = [each.name for each in fields(self.options)] if self.options is not None else []
        if unknown := sorted(options.keys() - set(names)):
            has = f"use one of {', '.join(names)}" if names else "it has none"
            raise UserError(f"option {unknown[0]!r} of method {self.name} is unknown: {has}")
        if self.options is None or not options:
            return self
        return replace(self, options=replace(self.options, **options))

    def stage_loss(self, teacher: DenoiserProtocol, stage: Stage, weighting: str | Weighting) -> Loss:
        """The loss of one stage, bound to its teacher, steps and weighting."""
        how = {} if self.options is None else {"options": self.options}
        bound = {"teacher": teacher, "steps": stage.steps, "substeps": stage.substeps, "weighting": weighting}
        return partial(self.loss, **bound, **how)

    def learned(self, counts: Sequence[int], steps: int, sampler: str) -> bool:
        """Whether a student for these step counts (none: any) was trained for this many steps of a sampler."""
        return not counts or steps in counts or any(self.samplers(n).get(sampler, 0) in (steps, None) for n in counts)
