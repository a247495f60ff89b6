r"""Multistep consistency distillation (Heek, Hoogeboom & Salimans 2024, arXiv 2403.06807).

As in `progdist.methods.transitive` time falls into N segments, the student goes from any t of a segment to its end s in
one DDIM step, and teaches itself from the point m to which the teacher steps. Two things differ.

**The teacher's steps grow shorter.** A segment has k of them, which rises geometrically with the progress r of the
training, from 0 to 1,

    k = round(k_0 (k_1 / k_0)^r),    t = j / (kN),    m = (j - 1) / (kN)

so that what the segment's last step knows comes up through few steps first.

**The teacher's step is adjusted DDIM** (their algorithm 3). DDIM goes on from the mean xh of what the data may be, so
its latents have too little variance. With the batch's data x, and D numbers an example,

    z_m = alpha_m xh + sqrt(sigma_m^2 + (D / |eps_h|^2) v) eps_h
    v = (alpha_m - alpha_t sigma_m / sigma_t)^2 eta mean |x - xh|^2

Here the step to the data, m = 0, stays DDIM's. With a = sqrt(...) - sigma_m the target that lands where the two land is

    x_target = w xh + (1 - w) xh_self(z_m, m) + g eps_h
    g = (sigma_s / sigma_m) a / (alpha_s - alpha_t sigma_s / sigma_t)

w as in `transitive`. N = 1 is consistency distillation: w = g = 0.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from progdist._utils.broadcasting import per_example
from progdist.diffusion.denoiser import DenoiserProtocol
from progdist.diffusion.loss import Weighting, diffuse, weighted_error
from progdist.diffusion.sampler import alpha_sigma, ddim_coefficients
from progdist.methods.chain import Stage
from progdist.methods.method import Loss, Method
from progdist.methods.progressive import substep_weights

ETA = 0.75  # of their images


def annealed(first: int, last: int, progress: float) -> int:
    """k: geometrically from `first` to `last`."""
    return round(first * (last / first) ** min(progress, 1.0))


@torch.no_grad()
def adjusted_target(
    teacher: DenoiserProtocol,
    self_teacher: DenoiserProtocol,
    x: Tensor,
    z: Tensor,
    times: tuple[Tensor, Tensor, Tensor],
    eta: float,
    **condition: Tensor,
) -> Tensor:
    """The prediction with which one DDIM step from t to s lands where the two steps land.

    Args:
        teacher: steps from t to m by adjusted DDIM.
        self_teacher: steps from m to s by DDIM, where m > s.
        x: the data of the latents, (B, ...).
        z: latents at time t, (B, ...).
        times: t > m >= s, float64 (B,) each.
        eta: share of the squared error that is taken for variance; 0 for DDIM.
        condition: passed on to both.

    Returns:
        x_target, of the shape and precision of z.
    """
    t, m, s = times
    alpha, sigma = alpha_sigma(teacher.schedule, torch.stack(times))
    goes_on = m > s
    weight = torch.where(goes_on, substep_weights(alpha, sigma)[0], 1.0)
    x_hat = teacher(z, t, **condition)
    eps_hat = (z - per_example(alpha[0], z) * x_hat) / per_example(sigma[0], z)
    _, c_x = ddim_coefficients((alpha[0], alpha[1]), (sigma[0], sigma[1]))
    variance, power = ((each.double().square().flatten(1).mean(1)).to(t) for each in (x - x_hat, eps_hat))
    adjusted = (sigma[1] ** 2 + eta * c_x**2 * variance / power).sqrt()
    added = torch.where(m > 0, adjusted - sigma[1], 0.0)
    z_m = per_example(alpha[1], z) * x_hat + per_example(sigma[1] + added, z) * eps_hat
    then = self_teacher(z_m, torch.where(goes_on, m, t), **condition)
    _, whole = ddim_coefficients((alpha[0], alpha[2]), (sigma[0], sigma[2]))
    noise = torch.where(goes_on, sigma[2] / sigma[1], 1.0) * added / whole
    return per_example(weight, z) * x_hat + per_example(1 - weight, z) * then + per_example(noise, z) * eps_hat


def multistep_loss(
    student: DenoiserProtocol,
    teacher: DenoiserProtocol,
    x: Tensor,
    eps: Tensor,
    u: Tensor,
    *,
    self_teacher: DenoiserProtocol,
    steps: int,
    substeps: int,
    weighting: str | Weighting,
    eta: float = ETA,
    **condition: Tensor,
) -> Tensor:
    """The weighted error of the student against `adjusted_target`, at t = j/(kN); as `transitive.transitive_loss`."""
    count = steps * substeps
    j = count - (u.double() * count).floor()
    times = j / count, (j - 1) / count, ((j / substeps).ceil() - 1) / steps
    z = diffuse(student.schedule, x, eps, times[0])
    target = adjusted_target(teacher, self_teacher, x, z, times, eta, **condition)
    return weighted_error(weighting, student.schedule, student(z, times[0], **condition), target, times[0])


@dataclass(frozen=True, kw_only=True)
class MultistepConsistency(Method):
    """The method, with its schedule of k.

    Args:
        first: k_0; k_1 is the stage's own k.
        updates: over which k rises.
    """

    first: int = 8
    updates: int = 1

    def stage_loss(self, teacher: DenoiserProtocol, stage: Stage, weighting: str | Weighting) -> Loss:
        """The loss, which counts its calls."""
        calls = 0

        def loss(student: DenoiserProtocol, **batch: Any) -> Tensor:  # noqa: ANN401
            nonlocal calls
            k = annealed(self.first, stage.substeps, calls / self.updates)
            calls += 1
            return multistep_loss(student, teacher, **batch, steps=stage.steps, substeps=k, weighting=weighting)

        return loss


MULTISTEP_CONSISTENCY = MultistepConsistency(
    name="multistep consistency",
    title="multistep consistency distillation",
    authors="Heek et al., 2024",
    arxiv="2403.06807",
    loss=multistep_loss,
    evaluations=lambda stage: 2,
    samplers=lambda steps: {"ddim": steps},
    self_taught=True,
)
