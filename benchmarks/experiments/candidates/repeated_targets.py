r"""Progressive distillation whose every target is learned from twice, with other batches between.

A target costs k evaluations and an update of the student 3, so that with each target in two updates an update costs
k / 2 + 3 and not k + 3. The batches that the loop hands over in the second half of the turns are left aside.
"""

from collections import deque
from dataclasses import dataclass, replace

from torch import Tensor

from progdist.diffusion.denoiser import DenoiserProtocol
from progdist.diffusion.loss import Weighting, diffuse, weighted_error
from progdist.methods import PROGRESSIVE, Method
from progdist.methods.chain import Stage
from progdist.methods.method import Loss
from progdist.methods.progressive import distillation_target

DELAY = 8  # targets that are made before the first is learned from again


class TwiceLearned:
    """The loss of one stage, which keeps its last targets: `DELAY` new ones, then by turns an old and a new one."""

    def __init__(self, teacher: DenoiserProtocol, stage: Stage, weighting: str | Weighting) -> None:
        self.teacher, self.stage, self.weighting = teacher, stage, weighting
        self.kept: deque[tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]] = deque()

    def __call__(self, student: DenoiserProtocol, x: Tensor, eps: Tensor, u: Tensor, **condition: Tensor) -> Tensor:
        """`distillation_loss` of a new target, or of the oldest that was learned from once."""
        if len(self.kept) == DELAY:
            z, t, target, condition = self.kept.popleft()
        else:
            z, t, target = self.made(x, eps, u, **condition)
            self.kept.append((z, t, target, condition))
        return weighted_error(self.weighting, student.schedule, student(z, t, **condition), target, t)

    def made(self, x: Tensor, eps: Tensor, u: Tensor, **condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z, t and the target of a batch."""
        steps = self.stage.steps
        i = steps - (u.double() * steps).floor()
        t, s = i / steps, (i - 1) / steps
        z = diffuse(self.teacher.schedule, x, eps, t)
        return z, t, distillation_target(self.teacher, z, t, s, substeps=self.stage.substeps, **condition)


@dataclass(frozen=True)
class RepeatedTargets(Method):
    """A method whose loss has a memory."""

    def stage_loss(self, teacher: DenoiserProtocol, stage: Stage, weighting: str | Weighting) -> Loss:
        """A new memory for each stage."""
        return TwiceLearned(teacher, stage, weighting)


REPEATED = RepeatedTargets(
    **vars(replace(PROGRESSIVE, name="targets used twice", evaluations=lambda stage: stage.substeps // 2))
)
