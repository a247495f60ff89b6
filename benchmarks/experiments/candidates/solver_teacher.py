r"""Progressive distillation of a teacher that is sampled by DPM-Solver++ (2M) and not by DDIM.

Each step of that solver is DDIM's with a prediction extrapolated along the log-SNR (`progdist.diffusion.sampler`),

    D_0 = xh_0,    D_j = xh_j + (lambda_{j+1} - lambda_j) / (2 (lambda_j - lambda_{j-1})) (xh_j - xh_{j-1})

and D_j = xh_j in a step to the data. So the student that lands where k of them land has the weighted mean of the D_j as
its target, with the weights of `progdist.methods.progressive`. Only a teacher that was trained at all times can be
extrapolated: a student of a chain knows what its own DDIM step does.
"""

from dataclasses import replace

import torch
from torch import Tensor

from progdist._utils.broadcasting import per_example
from progdist.diffusion.denoiser import DenoiserProtocol
from progdist.diffusion.loss import Weighting, diffuse, weighted_error
from progdist.diffusion.sampler import alpha_sigma, ddim_update
from progdist.methods import PROGRESSIVE
from progdist.methods.progressive import substep_times, substep_weights


@torch.no_grad()
def solver_target(
    teacher: DenoiserProtocol, z: Tensor, t: Tensor, s: Tensor, *, substeps: int, **condition: Tensor
) -> Tensor:
    """As `distillation_target`: one DDIM step with it lands where `substeps` steps of DPM-Solver++ land."""
    times = substep_times(t, s, substeps)
    weights = substep_weights(*alpha_sigma(teacher.schedule, times))
    log_snr = teacher.schedule.log_snr(times[:-1])
    target, before = torch.zeros_like(z), None
    for j in range(substeps):
        x = extrapolated = teacher(z, times[j], **condition)
        if before is not None:
            ends = teacher.schedule.log_snr(torch.where(times[j + 1] > 0, times[j + 1], times[j]))  # D_j = xh_j at 0
            extrapolated = x + per_example((ends - log_snr[j]) / (2 * (log_snr[j] - log_snr[j - 1])), z) * (x - before)
        target = target + per_example(weights[j], z) * extrapolated
        if j + 1 < substeps:
            z = ddim_update(teacher.schedule, z, extrapolated, times[j], times[j + 1])
        before = x
    return target


def solver_loss(
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
    """`distillation_loss` with `solver_target`."""
    i = steps - (u.double() * steps).floor()
    t, s = i / steps, (i - 1) / steps
    z = diffuse(student.schedule, x, eps, t)
    target = solver_target(teacher, z, t, s, substeps=substeps, **condition)
    return weighted_error(weighting, student.schedule, student(z, t, **condition), target, t)


SOLVER_TEACHER = replace(PROGRESSIVE, name="solver's teacher", loss=solver_loss)
