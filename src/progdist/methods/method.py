"""A method: what the student of one stage learns from its teacher, as one object.

Adding a method is a file with its loss and its `Method`, and its line in `progdist.methods.METHODS`.
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
"""(student, x=, eps=, u=, **condition) -> one loss per example, (B,), or parts of it by name, which are added up."""


@dataclass(frozen=True)
class Auxiliary:
    """A network that is trained beside the student, as a discriminator: the loss of the student holds its own, too."""

    network: nn.Module
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)  # of Adam


Auxiliaries = Callable[[Any, Denoiser, Tensor, Mapping[str, Tensor]], Mapping[str, Auxiliary]]
"""(options, teacher, x, condition) -> networks by name; x (B, ...) and the condition are a few examples."""


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
        evaluations: network evaluations without gradients for one example, of a stage, at most.
        samplers: of N steps: sampler -> its steps; None for any number.
        self_taught: whether the student also learns from the average of its own weights, or itself.
        weighted: whether the weighting of the loss matters to the student.
        options: of the method alone, an instance of a frozen dataclass that checks them; None where it has none. The
            loss takes it as `options`.
        training: options of the students' training that are other than the defaults, by their names in `TrainConfig`.
        auxiliaries: networks that are trained beside the student, which the loss takes as `auxiliaries`, by their
            names; None for none.
        noises: how many further standard normal draws of the data's shape each example has: with any the loss takes
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
        """The method with some of its options replaced; a UserError for one that it does not have."""
        names = [each.name for each in fields(self.options)] if self.options is not None else []
        if unknown := sorted(options.keys() - set(names)):
            has = f"use one of {', '.join(names)}" if names else "it has none"
            raise UserError(f"option {unknown[0]!r} of method {self.name} is unknown: {has}")
        if self.options is None or not options:
            return self
        return replace(self, options=replace(self.options, **options))

    def stage_loss(self, teacher: DenoiserProtocol, stage: Stage, weighting: str | Weighting) -> Loss:
        """The loss of one stage, with its teacher, steps and weighting bound."""
        how = {} if self.options is None else {"options": self.options}
        bound = {"teacher": teacher, "steps": stage.steps, "substeps": stage.substeps, "weighting": weighting}
        return partial(self.loss, **bound, **how)

    def learned(self, counts: Sequence[int], steps: int, sampler: str) -> bool:
        """Whether a student of some step counts (none: of any) learned to take so many steps of a sampler."""
        return not counts or steps in counts or any(self.samplers(n).get(sampler, 0) in (steps, None) for n in counts)
