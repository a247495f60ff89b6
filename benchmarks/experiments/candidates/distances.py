r"""Progressive distillation's regression with another distance between prediction and target.

With xh the student's prediction, x_T the target of `progdist.methods.progressive` and e = w(t) mean |xh - x_T|^2 its
loss, D numbers an example:

pseudo-Huber        sqrt(e + c^2) - c: the square near 0, the norm beyond c (Song & Dhariwal 2023, arXiv 2310.14189,
                    with c = 0.00054 a number)
teacher's features  e + r mean |phi(xh) - phi(x_T)|^2, phi what the middle block of the teacher's network makes of
                    alpha x + sigma eps at a time of (0, 1] (Lin & Yang 2023, arXiv 2401.00110); r gives both terms one
                    mean over the batch.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from candidates.backward import BACKWARD
from progdist.diffusion.denoiser import Denoiser, DenoiserProtocol
from progdist.diffusion.loss import Weighting, diffuse, weighted_error
from progdist.methods import PROGRESSIVE, Method
from progdist.methods.progressive import distillation_target

HUBER_SCALE = 0.00054


def pseudo_huber(error: Tensor, scale: float) -> Tensor:
    """sqrt(e + c^2) - c of mean squares e, without its loss of digits where e is far below c^2."""
    return error / ((error + scale**2).sqrt() + scale)


def under_huber(method: Method, scale: float) -> Method:
    """A method with its loss e under `pseudo_huber`."""

    def loss(*parts: Any, **options: Any) -> Tensor:  # noqa: ANN401
        error = method.loss(*parts, **options)
        assert isinstance(error, Tensor)
        return pseudo_huber(error, scale)

    return replace(method, name=f"{method.name}, pseudo-Huber", loss=loss)


def middle_features(teacher: Denoiser, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
    """What the middle block of the network of a teacher gives out, (B, ...)."""
    block, found = teacher.network.mid_block, []
    assert isinstance(block, nn.Module)
    handle = block.register_forward_hook(lambda module, inputs, output: found.append(output))
    try:
        teacher(z, t, **condition)
    finally:
        handle.remove()
    return found[0]


def features_loss(
    student: DenoiserProtocol,
    teacher: Denoiser,
    x: Tensor,
    eps: Tensor,
    u: Tensor,
    *,
    steps: int,
    substeps: int,
    weighting: str | Weighting,
    **condition: Tensor,
) -> Tensor:
    """The error of `distillation_loss` and that of the teacher's features, at time 1 - (u N mod 1)."""
    teacher.network.requires_grad_(False)
    place = u.double() * steps
    i = steps - place.floor()
    t, s, then = i / steps, (i - 1) / steps, 1 - place.remainder(1)
    z = diffuse(student.schedule, x, eps, t)
    target = distillation_target(teacher, z, t, s, substeps=substeps, **condition)
    x_hat = student(z, t, **condition)
    error = weighted_error(weighting, student.schedule, x_hat, target, t)
    with torch.no_grad():
        wanted = middle_features(teacher, diffuse(student.schedule, target, eps, then), then, **condition)
    seen = middle_features(teacher, diffuse(student.schedule, x_hat, eps, then), then, **condition)
    apart = (seen - wanted).float().square().flatten(1).mean(1)
    return error + apart * (error.mean() / apart.mean().clamp(min=torch.finfo(apart.dtype).tiny)).detach()


PSEUDO_HUBER, BACKWARD_HUBER = (under_huber(each, HUBER_SCALE) for each in (PROGRESSIVE, BACKWARD))
FEATURES = replace(
    PROGRESSIVE,
    name="teacher's features",
    loss=features_loss,
    evaluations=lambda stage: stage.substeps + 2,  # of half a network: two forward passes, and one back to its input
)
