r"""Two other losses of a stage, from the weighted mean of `progressive`.

**Transitive closure** (TRACT; Berthelot et al. 2023, arXiv 2303.04248, algorithm 1). The teacher's kN times t = j/(kN)
fall into N segments of k; that of t ends at s = (ceil(j/k) - 1)/N. The student learns to go from every t of a segment
to its end, so that it can teach itself: the teacher makes one step, from t to m = t - 1/(kN), and the average of the
student's weights, the self-teacher, goes on from m to s. The target that lands where these two land is

    x_target = w xh_teacher(z_t, t) + (1 - w) xh_self(z_m, m),    w = (rho_m - rho_t) / (rho_s - rho_t)

and xh_teacher alone where m = s. A stage of any k so costs two evaluations to a target, and 256 -> 16 -> 1 has two.

**Consistency distillation** (Song et al. 2023, arXiv 2303.01469, algorithm 2) is the same with one segment, N = 1:
there s = 0, w = 0, and the target is what the self-teacher makes of the teacher's next point,

    x_target = xh_self(z_m, m),    and z_0 itself at m = 0

with DDIM as the solver, an even grid and the squared error. The network is never asked at 0, so that the boundary
xh(z, 0) = z is exact whatever its output means: the step to m = 0 gives z_0 = xh_teacher(z_t, t).

**Stochastic students** (Meng et al. 2023, arXiv 2210.03142, section 3.3). The sampler `overshoot` makes a step of twice
the length and adds noise back by half of it, so the student of N deterministic steps is asked at twice as many times,

    t = i/(2N),    s = max(t - 1/N, 0),    x_target as in `progressive`

and is sampled in N steps by DDIM, or in 2N by `overshoot`. Its teacher's steps are 1/(kN) long wherever they begin, so
that the last way, of half a step from t = 1/(2N), takes half as many of them, and of an odd k one that is cut off at 0.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from progdist._utils.broadcasting import per_example
from progdist.diffusion.denoiser import DenoiserProtocol
from progdist.diffusion.loss import Weighting, diffuse, weighted_error
from progdist.diffusion.sampler import alpha_sigma, ddim_update
from progdist.methods.chain import Stage
from progdist.methods.progressive import stage_loss, substep_weights, target_along

StageLossOf = Callable[[DenoiserProtocol, Stage, Weighting], Callable[..., Tensor]]
"""(teacher, stage, weighting) -> the loss of the stage, a function of the student and a batch."""


@torch.no_grad()
def transitive_target(
    teacher: DenoiserProtocol,
    self_teacher: DenoiserProtocol,
    z: Tensor,
    t: Tensor,
    m: Tensor,
    s: Tensor,
    **condition: Tensor,
) -> Tensor:
    """The prediction with which one DDIM step from t to s lands where a step of each teacher lands.

    Args:
        teacher: steps from t to m.
        self_teacher: steps from m to s, where m > s.
        z: latents at time t, (B, ...).
        t: start, float64 (B,).
        m: between, below t, float64 (B,).
        s: end, at most m, float64 (B,); 0 for clean data.
        condition: passed on to both.

    Returns:
        x_target, of the shape and precision of z.
    """
    goes_on = m > s
    alpha, sigma = alpha_sigma(teacher.schedule, torch.stack([t, m, s]))
    weight = torch.where(goes_on, substep_weights(alpha, sigma)[0], 1.0)
    x = teacher(z, t, **condition)
    then = self_teacher(ddim_update(teacher.schedule, z, x, t, m), torch.where(goes_on, m, t), **condition)
    return per_example(weight, z) * x + per_example(1 - weight, z) * then


def transitive_loss(
    student: DenoiserProtocol,
    teacher: DenoiserProtocol,
    x: Tensor,
    eps: Tensor,
    u: Tensor,
    *,
    self_teacher: DenoiserProtocol,
    steps: int,
    substeps: int,
    weighting: Weighting,
    **condition: Tensor,
) -> Tensor:
    """TRACT's algorithm 1: the weighted error of the student against the transitive target, at t = j/(kN).

    Arguments and result as of `progressive.distillation_loss`, with t = 1 - floor(u kN) / (kN); `self_teacher` is the
    average of the student's weights, or the student itself, and is given the condition, too.
    """
    count = steps * substeps
    j = count - (u * count).floor()
    t, m, s = j / count, (j - 1) / count, ((j / substeps).ceil() - 1) / steps
    z = diffuse(student.schedule, x, eps, t)
    target = transitive_target(teacher, self_teacher, z, t, m, s, **condition)
    return weighted_error(weighting, student.schedule, student(z, t, **condition), target, t)


def stochastic_times(i: Tensor, steps: int, substeps: int) -> Tensor:
    """The teacher's times from t = i/(2N), 1/(kN) apart, down to max(t - 1/N, 0).

    Args:
        i: 1 to 2N, float64 (B,).
        steps: N.
        substeps: k.

    Returns:
        (k + 1, B) in float64. Where the way is half as long, the first k // 2 steps are none.
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
    weighting: Weighting,
    **condition: Tensor,
) -> Tensor:
    """The weighted error of a stochastic student at t = i/(2N), with steps of 1/N, or what is left of t.

    Arguments and result as of `progressive.distillation_loss`, with t = 1 - floor(2 u N) / (2N).
    """
    i = 2 * steps - (u * 2 * steps).floor()
    t = i / (2 * steps)
    z = diffuse(student.schedule, x, eps, t)
    target = target_along(teacher, z, stochastic_times(i, steps, substeps), **condition)
    return weighted_error(weighting, student.schedule, student(z, t, **condition), target, t)


def _bound(loss: Callable[..., Tensor]) -> StageLossOf:
    return lambda teacher, stage, weighting: partial(
        loss, teacher=teacher, steps=stage.steps, substeps=stage.substeps, weighting=weighting
    )


STAGE_LOSSES: dict[str, StageLossOf] = {
    "progressive": stage_loss,
    "stochastic": _bound(stochastic_loss),
    "tract": _bound(transitive_loss),
}
"""By the name in a recipe; that of tract is still to be given its `self_teacher`."""

PAPERS = {
    "progressive": ("progressive distillation", "Salimans & Ho, 2022", "2202.00512"),
    "stochastic": ("progressive distillation for stochastic sampling", "Meng et al., 2023", "2210.03142"),
    "tract": ("transitive closure time distillation", "Berthelot et al., 2023", "2303.04248"),
}
"""The method of each, its authors and its number on arXiv."""
