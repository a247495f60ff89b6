r"""Stochastic students (Meng et al. 2023, arXiv 2210.03142, section 3.3).

The sampler `overshoot` makes a step of twice the length and adds noise back by half of it, so the student of N
deterministic steps is called at twice as many times,

    t = i/(2N),    s = max(t - 1/N, 0),    x_target as in `progressive`

and is sampled in N steps by DDIM, or in 2N by `overshoot`. Its teacher's steps are 1/(kN) long wherever they start, so
the last stretch, half a step from t = 1/(2N), takes half as many, and for odd k one that is cut off at 0.
"""

import torch
from torch import Tensor

from progdist.diffusion.denoiser import DenoiserProtocol
from progdist.diffusion.loss import Weighting, check_same_schedule, diffuse, weighted_error
from progdist.methods.method import Method
from progdist.methods.progressive import target_along


def stochastic_times(i: Tensor, steps: int, substeps: int) -> Tensor:
    """The teacher's k + 1 times from t = i/(2N), 1/(kN) apart, down to max(t - 1/N, 0): (k + 1, B) in float64.

    i is 1 to 2N, float64 (B,); where the stretch is half as long, the first k // 2 steps have length 0.
    """
    j = torch.arange(substeps + 1, dtype=torch.float64, device=i.device)[:, None]
    made = torch.where(i > 1, j, (j - substeps // 2).clamp(min=0))
    return (substeps * i / 2 - made).clamp(min=0) / (substeps * steps)


def stochastic_loss(
    student: DenoiserProtocol,
    teacher: DenoiserProtocol,
    x: Tensor,
    eps: Tensor,
    u: Tensor,
    *,
    steps: int,
    substeps: int,
    weighting: str | Weighting,
    **condition: Tensor,
) -> Tensor:
    """The weighted error of a stochastic student at t = i/(2N), with steps of 1/N, or what is left of t.

    Arguments and result as in `progressive.distillation_loss`, with t = 1 - floor(2 u N) / (2N).
    """
    check_same_schedule(student, teacher)
    i = 2 * steps - (u.double() * 2 * steps).floor()
    t = i / (2 * steps)
    z = diffuse(student.schedule, x, eps, t)
    target = target_along(teacher, z, stochastic_times(i, steps, substeps), **condition)
    return weighted_error(weighting, student.schedule, student(z, t, **condition), target, t)


STOCHASTIC = Method(
    name="stochastic",
    title="progressive distillation for stochastic sampling",
    authors="Meng et al., 2023",
    arxiv="2210.03142",
    loss=stochastic_loss,
    evaluations=lambda stage: stage.substeps,
    samplers=lambda steps: {"ddim": steps, "overshoot": 2 * steps},
)
