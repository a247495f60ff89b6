r"""Moment matching (Salimans, Mensink, Heek & Hoogeboom 2024, arXiv 2406.04103, algorithm 2).

The student's prediction x~ = xh(z_t, t) at t = i/N is taken for a sample of the data. With s uniform in (t - 1/N, t],

    z_s ~ q(z_s | z_t, x~)

it is one if E[x~ | z_s] is the teacher's E[x | z_s]. An auxiliary denoiser, which begins as the teacher as the student
does, learns the former, and the student goes down the difference of the two; by turns

    auxiliary   w(s) (mean |x~ - xh_aux(z_s, s)|^2 + mean |xh_teacher(z_s, s) - xh_aux(z_s, s)|^2)
    student     mean x~ (xh_aux(z_s, s) - xh_teacher(z_s, s)),    the difference held fixed

The student's turn has weight 1: the difference of two predictions of x falls with the noise by itself. It is sampled as
it is trained, by `ancestral` with the lower bound of the variance, so that q is `sampler.ancestral` with gamma = 0.
Both turns take 5 evaluations an example: 3 of the network that learns, and one of each other one.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from progdist.diffusion.denoiser import Denoiser, DenoiserProtocol
from progdist.diffusion.loss import Weighting, diffuse, weighted_error
from progdist.diffusion.sampler import ancestral

EVALUATIONS = 5  # of an update, of whichever turn
BETAS = (0.0, 0.99)  # of Adam, as theirs


@dataclass(frozen=True)
class Drawn:
    """What an update is made of: x~ with its graph, z_s, and s."""

    x: Tensor
    z: Tensor
    s: Tensor


def drawn(
    student: DenoiserProtocol,
    x: Tensor,
    eps: Tensor,
    u: Tensor,
    steps: int,
    random: torch.Generator,
    **condition: Tensor,
) -> Drawn:
    """x~ at t = 1 - floor(u N) / N, and z_s at s = 1 - u, which is uniform in (t - 1/N, t]."""
    t, s = 1 - (u * steps).floor() / steps, 1 - u
    z = diffuse(student.schedule, x, eps, t)
    x_tilde = student(z, t, **condition)
    z_s = ancestral(student.schedule, lambda z, t: x_tilde.detach(), z, t, s, random, gamma=0.0)
    return Drawn(x_tilde, z_s, s)


def auxiliary_loss(
    auxiliary: DenoiserProtocol, teacher: DenoiserProtocol, at: Drawn, weighting: str | Weighting, **condition: Tensor
) -> Tensor:
    """The auxiliary's error as a denoiser of the student's samples, and its distance to the teacher: (B,)."""
    with torch.no_grad():
        target = teacher(at.z, at.s, **condition)
    predicted = auxiliary(at.z, at.s, **condition)
    own, taught = (
        weighted_error(weighting, teacher.schedule, predicted, each, at.s) for each in (at.x.detach(), target)
    )
    return own + taught


def matching_loss(auxiliary: DenoiserProtocol, teacher: DenoiserProtocol, at: Drawn, **condition: Tensor) -> Tensor:
    """What has the difference of the two moments as its gradient by x~: (B,)."""
    with torch.no_grad():
        apart = auxiliary(at.z, at.s, **condition) - teacher(at.z, at.s, **condition)
    return (at.x * apart).flatten(1).mean(1)


def match(
    student: Denoiser,
    teacher: Denoiser,
    batches: Iterable[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]],
    *,
    steps: int,
    learning_rate: float,
    weighting: str | Weighting,
) -> None:
    """Train a student of N `steps`, in place, on batches with their conditions, each for one network in its turn."""
    auxiliary = teacher.with_network(copy.deepcopy(teacher.network))
    for frozen, learning in ((teacher, False), (auxiliary, True), (student, True)):
        frozen.network.requires_grad_(learning)
    optimizers = [torch.optim.Adam(each.network.parameters(), learning_rate, BETAS) for each in (auxiliary, student)]
    random = torch.Generator().manual_seed(0)
    for update, (batch, condition) in enumerate(batches):
        turn = update % 2
        with torch.set_grad_enabled(turn == 1):
            at = drawn(student, batch["x"], batch["eps"], batch["u"], steps, random, **condition)
        if turn == 0:
            loss = auxiliary_loss(auxiliary, teacher, at, weighting, **condition)
        else:
            loss = matching_loss(auxiliary, teacher, at, **condition)
        loss.mean().backward()
        nn.utils.clip_grad_norm_((auxiliary, student)[turn].network.parameters(), 1.0)
        optimizers[turn].step()
        optimizers[turn].zero_grad()
