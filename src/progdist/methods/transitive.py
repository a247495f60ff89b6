r"""Transitive closure time distillation (TRACT; Berthelot et al. 2023, arXiv 2303.04248, algorithm 1).

The teacher's kN times t = j/(kN) form N segments of k; that of t ends at s = (ceil(j/k) - 1)/N. The student learns to
go from every t of a segment to its end, so it can teach itself: the teacher makes one step, from t to m = t - 1/(kN),
and the average of the student's weights, the self-teacher, continues from m to s. The target that lands where these
two land is

    x_target = w xh_teacher(z_t, t) + (1 - w) xh_self(z_m, m),    w = (rho_m - rho_t) / (rho_s - rho_t)

and xh_teacher alone where m = s. So a stage of any k costs two evaluations per target, and 256 -> 16 -> 1 has two.

**Consistency distillation** (Song et al. 2023, arXiv 2303.01469, algorithm 2) is the case of one segment, N = 1: there
s = 0, w = 0, and the target is the self-teacher's prediction at the teacher's next point,

    x_target = xh_self(z_m, m),    and z_0 itself at m = 0

with DDIM as the solver, an even grid and the squared error. The network is never called at 0, so the boundary
xh(z, 0) = z is exact whatever its output means: the step to m = 0 gives z_0 = xh_teacher(z_t, t).
"""

import torch
from torch import Tensor

from progdist._utils.broadcasting import per_example
from progdist.diffusion.denoiser import DenoiserProtocol
from progdist.diffusion.loss import Weighting, check_same_schedule, diffuse, weighted_error
from progdist.diffusion.sampler import alpha_sigma, ddim_update
from progdist.methods.method import Method
from progdist.methods.progressive import substep_weights


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
    """The prediction for which one DDIM step from t to s lands where one step of each teacher lands.

    Args:
        teacher: steps from t to m.
        self_teacher: steps from m to s, where m > s.
        z: latents at time t, (B, ...).
        t: start, float64 (B,).
        m: midpoint, below t, float64 (B,).
        s: end, at most m, float64 (B,); 0 for clean data.
        condition: passed to both.

    Returns:
        x_target, with the shape and precision of z.
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
    weighting: str | Weighting,
    **condition: Tensor,
) -> Tensor:
    """TRACT's algorithm 1: the weighted error of the student against the transitive target, at t = j/(kN).

    Arguments and result as in `progressive.distillation_loss`, with t = 1 - floor(u kN) / (kN); `self_teacher` is the
    student, or the average of its weights, and takes the condition, too.
    """
    check_same_schedule(student, teacher, self_teacher)
    count = steps * substeps
    j = count - (u.double() * count).floor()
    t, m, s = j / count, (j - 1) / count, ((j / substeps).ceil() - 1) / steps
    z = diffuse(student.schedule, x, eps, t)
    target = transitive_target(teacher, self_teacher, z, t, m, s, **condition)
    return weighted_error(weighting, student.schedule, student(z, t, **condition), target, t)


TRANSITIVE = Method(
    name="tract",
    title="transitive closure time distillation",
    authors="Berthelot et al., 2023",
    arxiv="2303.04248",
    loss=transitive_loss,
    evaluations=lambda stage: 2,
    samplers=lambda steps: {"ddim": steps, "consistency": None} if steps == 1 else {"ddim": steps},
    self_taught=True,
)
