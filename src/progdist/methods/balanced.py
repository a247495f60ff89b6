r"""Progressive distillation with balanced times: the learned weighting of Karras et al. 2023 (arXiv 2312.02696).

In the sum of `progressive` the times with the largest errors dominate. With e = w(t) mean |xh - x_target|^2, a weight
learned beside the network turns it into

    exp(-a(t)) e + a(t)

whose minimum is at exp(a(t)) = E[e | t], where it is 1 + log E[e | t]. A student of N steps knows N times, so a(t) is a
table of N numbers and needs no network. Here they are at their minimum for the examples of a batch that a process
computes at once,

    gradient of the loss = gradient of e / E[e | t],    the mean held fixed

the gradient of log E[e | t]: every time counts the same, at the end of a stage as at its beginning, and the weighting
w(t) cancels. The loss itself is e, so that records and early stopping see how large the error is.
"""

import torch
from torch import Tensor

from progdist.diffusion.denoiser import DenoiserProtocol
from progdist.diffusion.loss import Weighting
from progdist.methods.method import Method
from progdist.methods.progressive import distillation_loss


def balanced(error: Tensor, t: Tensor) -> Tensor:
    """The errors (B,), with gradients divided by the mean error at the same time; t (B,) of any values."""
    value, same = error.detach(), (t[:, None] == t).to(error)
    mean = (same * value).sum(1) / same.sum(1)
    return value + (error - value) / mean.clamp(min=torch.finfo(error.dtype).tiny)


def balanced_loss(
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
    """`progressive.distillation_loss` with its gradient divided by the mean error at each time of a batch.

    Same arguments, result and errors; the weighting has no effect on the student.
    """
    options = {"steps": steps, "substeps": substeps, "weighting": weighting, **condition}
    error = distillation_loss(student, teacher, x, eps, u, **options)
    return balanced(error, (u.double() * steps).floor())


BALANCED = Method(
    name="balanced",
    title="progressive distillation with balanced times",
    authors="Karras et al., 2023",
    arxiv="2312.02696",
    loss=balanced_loss,
    evaluations=lambda stage: stage.substeps,
    samplers=lambda steps: {"ddim": steps},
    weighted=False,
)
