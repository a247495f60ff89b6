r"""A toy method: one DDIM step of the student lands where one step of Heun's method by the teacher lands.

In rho = alpha / sigma the flow is d(z / sigma) / d rho = xh, so Heun's step from t to s moves z / sigma by the mean of
the predictions at both ends times rho_s - rho_t, and the student's target is that mean,

    x_target = (xh(z_t, t) + xh(z_s', s)) / 2,    z_s' by DDIM from z_t

and xh(z_t, t) alone where s = 0. This file and the line of HEUN in `progdist.methods.METHODS` are all that it needs.
"""

import torch
from torch import Tensor

from progdist._utils.broadcasting import per_example
from progdist.diffusion.denoiser import DenoiserProtocol
from progdist.diffusion.loss import Weighting, diffuse, weighted_error
from progdist.diffusion.sampler import ddim_update
from progdist.methods.method import Method


@torch.no_grad()
def heun_target(teacher: DenoiserProtocol, z: Tensor, t: Tensor, s: Tensor, **condition: Tensor) -> Tensor:
    """The prediction with which one DDIM step from t to s lands where Heun's step lands; arguments (B,) float64."""
    x = teacher(z, t, **condition)
    ends = s == 0
    then = teacher(ddim_update(teacher.schedule, z, x, t, s), torch.where(ends, t, s), **condition)
    weight = torch.where(ends, 1.0, 0.5).to(t)
    return per_example(weight, z) * x + per_example(1 - weight, z) * then


def heun_loss(
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
    """The weighted error at t = i/N, as in `progdist.methods.progressive.distillation_loss`."""
    i = steps - (u * steps).floor()
    t, s = i / steps, (i - 1) / steps
    z = diffuse(student.schedule, x, eps, t)
    target = heun_target(teacher, z, t, s, **condition)
    return weighted_error(weighting, student.schedule, student(z, t, **condition), target, t)


HEUN = Method(
    name="heun",
    title="distillation of Heun steps",
    authors="these tests, 2026",
    arxiv="0000.00000",
    loss=heun_loss,
    evaluations=lambda stage: 2,
    samplers=lambda steps: {"ddim": steps},
)
