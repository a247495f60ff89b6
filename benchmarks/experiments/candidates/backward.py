r"""Backward distillation (Kohler et al. 2024, arXiv 2405.05224): on the latents of the student's own samples.

`progressive` asks the student at z_t = alpha_t x + sigma_t eps of data x. When it samples, it is asked at what its own
steps made of noise. Here it learns at these,

    z_1 = sigma_1 eps,    z_s = the student's DDIM step from z_t,    x_target as in `progressive` at z_t

so that it learns to mend its own errors, and needs no data. From z_1 to z_t, t = i/N, are N - i steps. For batches of
one shape all examples take the N - 1 to the last time, and each keeps the latent of its own time: N - 1 evaluations of
the student beside those of the teacher, and none of a student of one step. Of many steps they would cost more than they
mend, so that students of more than 4 steps learn from data as `progressive` ones do.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from progdist._utils.broadcasting import per_example
from progdist.diffusion.denoiser import DenoiserProtocol
from progdist.diffusion.loss import Weighting, check_same_schedule, diffuse, weighted_error
from progdist.diffusion.sampler import ddim_update
from progdist.methods import Method
from progdist.methods.balanced import balanced
from progdist.methods.chain import Stage
from progdist.methods.progressive import distillation_target

MOST_STEPS = 4  # of a student that learns on its own latents


@torch.no_grad()
def own_latents(student: DenoiserProtocol, eps: Tensor, i: Tensor, steps: int, **condition: Tensor) -> Tensor:
    """The student's z at t = i/N on its way from noise.

    Args:
        student: makes DDIM steps of 1/N.
        eps: standard normal noise (B, ...).
        i: 1 to N, float64 (B,).
        steps: N.
        condition: passed on to the student.

    Returns:
        z, of the shape and precision of eps.
    """
    z = diffuse(student.schedule, torch.zeros_like(eps), eps, torch.ones_like(i))
    for step in range(steps, 1, -1):
        t, s = (torch.full_like(i, each / steps) for each in (step, step - 1))
        stepped = ddim_update(student.schedule, z, student(z, t, **condition), t, s)
        z = torch.where(per_example(i < step, z).bool(), stepped, z)
    return z


def backward_loss(
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
    """The weighted error of the student against the teacher's target at latents of its own.

    Arguments and result as of `progressive.distillation_loss`; the data are used where N is above MOST_STEPS.
    """
    check_same_schedule(student, teacher)
    i = steps - (u.double() * steps).floor()
    t, s = i / steps, (i - 1) / steps
    own = steps <= MOST_STEPS
    z = own_latents(student, eps, i, steps, **condition) if own else diffuse(student.schedule, x, eps, t)
    target = distillation_target(teacher, z, t, s, substeps=substeps, **condition)
    return weighted_error(weighting, student.schedule, student(z, t, **condition), target, t)


def _evaluations(stage: Stage) -> int:
    return stage.substeps + (stage.steps - 1 if stage.steps <= MOST_STEPS else 0)


BACKWARD = Method(
    name="backward",
    title="backward distillation",
    authors="Kohler et al., 2024",
    arxiv="2405.05224",
    loss=backward_loss,
    evaluations=_evaluations,
    samplers=lambda steps: {"ddim": steps},
)


def _balanced_backward(
    student: DenoiserProtocol,
    teacher: DenoiserProtocol,
    x: Tensor,
    eps: Tensor,
    u: Tensor,
    *,
    steps: int,
    **options: Any,  # noqa: ANN401
) -> Tensor:
    error = backward_loss(student, teacher, x, eps, u, steps=steps, **options)
    return balanced(error, (u.double() * steps).floor())


BACKWARD_BALANCED = replace(BACKWARD, name="backward, balanced", loss=_balanced_backward)
