r"""Progressive distillation: one step of the student does what k steps of the teacher do.

DDIM is Euler's method in rho (see `sampler`), so teacher steps t = t_0 > t_1 > ... > t_k = s with predictions
xh_0 ... xh_{k-1} move z / sigma by sum_j (rho_{j+1} - rho_j) xh_j. One step moves it by (rho_k - rho_0) xh, hence the
student's prediction that lands where the teacher does is a weighted mean (paper, Algorithm 2 and appendix G):

    x_target = sum_j w_j xh_j,    w_j = (rho_{j+1} - rho_j) / (rho_k - rho_0),    sum_j w_j = 1

Appendix G writes k = 2 as a quotient of small differences, which loses its digits in float32; the mean does not.
With rho = alpha / sigma and both sides times sigma_k the weights are

    w_j = sigma_k (rho_{j+1} - rho_j) / (alpha_k - sigma_k rho_0)

for j < k - 1, and the last is 1 minus the others. A sampler's last step returns the denoised data, so s = 0 stands for
(alpha, sigma) = (1, 0): the last prediction takes all the weight, without a special case. The student is trained only
at t = 1/N, ..., 1, and becomes the next teacher.
"""

import torch
from torch import Tensor

from progdist._utils.broadcasting import per_example
from progdist.diffusion.denoiser import DenoiserProtocol, check_denoiser
from progdist.diffusion.loss import Weighting, check_same_schedule, diffuse, weighted_error
from progdist.diffusion.sampler import alpha_sigma, ddim_coefficients
from progdist.methods.method import Method


def substep_times(t: Tensor, s: Tensor, substeps: int) -> Tensor:
    """t = t_0 > t_1 > ... > t_k = s, evenly spaced: (k + 1, *t.shape) in float64."""
    part = torch.arange(substeps + 1, dtype=torch.float64, device=t.device) / substeps
    part = part.reshape(-1, *(1,) * t.ndim)
    return t.double() * (1 - part) + s.double() * part


def substep_weights(alpha: Tensor, sigma: Tensor) -> Tensor:
    """The weights w_j of the k predictions between k + 1 noise levels, (k, B) in float64: nonnegative, with sum 1.

    Over the levels alpha rises and sigma falls, (k + 1, B) in float64; the last sigma may be 0.
    """
    rho = alpha[:-1] / sigma[:-1]
    early = sigma[-1] * rho.diff(dim=0) / (alpha[-1] - sigma[-1] * rho[0])
    return torch.cat([early, 1 - early.sum(0, keepdim=True)])


@torch.no_grad()
def distillation_target(
    teacher: DenoiserProtocol, z: Tensor, t: Tensor, s: Tensor, *, substeps: int = 2, **condition: Tensor
) -> Tensor:
    """The prediction for which one DDIM step from t to s lands where `substeps` steps of the teacher land.

    Args:
        teacher: a denoiser.
        z: latents at time t, (B, ...).
        t: start, float64 (B,) or ().
        s: end, below t, float64, with t's shape; 0 for clean data.
        substeps: k, at least 1.
        condition: passed to the teacher.

    Returns:
        x_target, with the shape and precision of z.
    """
    check_denoiser(teacher)
    return target_along(teacher, z, substep_times(t, s, substeps), **condition)


@torch.no_grad()
def target_along(teacher: DenoiserProtocol, z: Tensor, times: Tensor, **condition: Tensor) -> Tensor:
    """`distillation_target` for teacher steps through times t_0 to t_k, falling, float64 (k + 1, B) or (k + 1,).

    The first times may be equal, which makes no step; the last is below the one before it.
    """
    alpha, sigma = alpha_sigma(teacher.schedule, times)
    c_z, c_x = ddim_coefficients((alpha[:-1], alpha[1:]), (sigma[:-1], sigma[1:]))
    c_z, c_x, w = torch.stack([c_z, c_x, substep_weights(alpha, sigma)]).to(z)  # (k, B) each, cast once
    x = teacher(z, times[0], **condition)
    target = per_example(w[0], z) * x
    for j in range(1, len(times) - 1):
        z = per_example(c_z[j - 1], z) * z + per_example(c_x[j - 1], z) * x
        x = teacher(z, times[j], **condition)
        target = target + per_example(w[j], z) * x
    return target


def distillation_loss(
    student: DenoiserProtocol,
    teacher: DenoiserProtocol,
    x: Tensor,
    eps: Tensor,
    u: Tensor,
    *,
    steps: int,
    substeps: int = 2,
    weighting: str | Weighting,
    **condition: Tensor,
) -> Tensor:
    """Algorithm 2: the weighted error of the student against the teacher's target, at t = i/N.

    Args:
        student: the denoiser to train, sampled in N = `steps` steps.
        teacher: the frozen teacher, sampled in N * substeps steps.
        x: data (B, ...).
        eps: standard normal noise (B, ...).
        u: uniform in [0, 1), float64 (B,); t = 1 - floor(u N) / N.
        steps: N.
        substeps: k, teacher steps per student step.
        weighting: a name in WEIGHTINGS, or your own function.
        condition: passed to both.

    Returns:
        (B,), one loss per example.

    Raises:
        UserError: student and teacher have different schedules.
    """
    check_same_schedule(student, teacher)
    i = steps - (u.double() * steps).floor()
    t, s = i / steps, (i - 1) / steps
    z = diffuse(student.schedule, x, eps, t)
    target = distillation_target(teacher, z, t, s, substeps=substeps, **condition)
    return weighted_error(weighting, student.schedule, student(z, t, **condition), target, t)


PROGRESSIVE = Method(
    name="progressive",
    title="progressive distillation",
    authors="Salimans & Ho, 2022",
    arxiv="2202.00512",
    loss=distillation_loss,
    evaluations=lambda stage: stage.substeps,
    samplers=lambda steps: {"ddim": steps},
)
