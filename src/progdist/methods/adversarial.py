r"""Progressive adversarial distillation: one step that a discriminator cannot tell from many (arXiv 2402.13929).

Lin, Wang and Yang 2024. The regression of progressive distillation asks for the mean of what a teacher of many steps
does, and a student of few steps blurs where it cannot follow every path. So a discriminator D also judges where the
student's step ends. With z_s = DDIM(z_t, xh, t, s) of the student, z_s' of the real kind, and D(z) a logit,

    L_student       = w |x_target - xh|^2 + lambda softplus(-D(z_s))
    L_discriminator = softplus(D(z_s)) + softplus(-D(z_s')) + r |grad D(z_s')|^2

the non-saturating loss (Goodfellow et al. 2014) with the gradient penalty R1 on real latents (Mescheder et al. 2018,
arXiv 1801.04406). Both networks take one step per update, from the same forward pass, by Adam with beta_1 = 0: with
0.9 the two oscillate (docs/results/methods.md). `judged` chooses what is judged and what counts as real:

    trajectory   z_s against the teacher's from the same z_t, which D sees, too: the student keeps to the teacher's
                 trajectory (their section 3.2, the conditional form)
    teacher      z_s against the teacher's, without z_t: where the student cannot keep to the trajectory it may leave
                 it for another (section 3.3, the unconditional form)
    data         z_s against alpha_s x + sigma_s eps of data and new noise
    samples      the image at the end of the student's own N steps against data, with the gradient through the last
                 step: the student may come nearer to the data than its teacher, and learns to correct its own errors

At the optimum D = log p_real - log p_student, whose gradient vanishes where both distributions agree.

R1 by finite differences costs one more evaluation of D and no second derivative (Lin et al. 2025, arXiv 2501.08316):

    |grad D(z)|^2 = E_n (D(z + delta n) - D(z))^2 / delta^2 + O(delta^2),    n ~ N(0, I)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from progdist._utils.broadcasting import per_example, time_device
from progdist._utils.errors import UserError
from progdist.diffusion.denoiser import Denoiser, DenoiserProtocol
from progdist.diffusion.loss import Weighting, check_same_schedule, diffuse, weighted_error
from progdist.diffusion.sampler import alpha_sigma, ddim_update
from progdist.methods.discriminators import Convolutions, TeacherFeatures, untrained
from progdist.methods.method import Auxiliary, Method
from progdist.methods.progressive import distillation_target

Judged = Literal["trajectory", "teacher", "data", "samples"]
Kind = Literal["convolutions", "teacher", "trained_teacher"]
DELTA = 0.05  # step of the finite difference, for pixels in [-1, 1]


@dataclass(frozen=True)
class AdversarialOptions:
    """The method's options.

    Args:
        weight: lambda, the weight of the adversarial loss; 0 leaves progressive distillation.
        regression: factor on the regression's weight.
        judged: what the discriminator sees: "trajectory", "teacher", "data" or "samples".
        discriminator: "convolutions" made from the data's shape; the "teacher"'s frozen network with a head; or a
            "trained_teacher", a copy of it.
        discriminator_learning_rate: the rate of its Adam, whose betas are (0, 0.99).
        r1: r, the weight of the gradient penalty.
    """

    weight: float = 1.0
    regression: float = 1.0
    judged: Judged = "samples"
    discriminator: Kind = "convolutions"
    discriminator_learning_rate: float = 4e-4
    r1: float = 0.05

    def __post_init__(self) -> None:
        """Raises: UserError: a number is out of range, or a name is unknown."""
        for name in ("weight", "regression", "r1"):
            _check_number(name, getattr(self, name), above=False)
        _check_number("discriminator_learning_rate", self.discriminator_learning_rate, above=True)
        if not self.weight and not self.regression:
            raise UserError("weight and regression are both 0, so nothing would be learned: set one of them")
        for name, kinds in (("judged", get_args(Judged)), ("discriminator", get_args(Kind))):
            if getattr(self, name) not in kinds:
                raise UserError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(kinds)}")


def _check_number(name: str, value: object, *, above: bool) -> None:
    valid = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
    if not valid or (above and not value):
        raise UserError(f"{name} is {value!r}, expected a {'positive number' if above else 'number from 0'}")


def adversarial_loss(
    student: DenoiserProtocol,
    teacher: DenoiserProtocol,
    x: Tensor,
    eps: Tensor,
    u: Tensor,
    *,
    steps: int,
    substeps: int,
    weighting: str | Weighting,
    options: AdversarialOptions,
    noises: Tensor,
    auxiliaries: Mapping[str, nn.Module] | None = None,
    **condition: Tensor,
) -> dict[str, Tensor]:
    """The losses of student and discriminator, at t = i/N; their weights are separate.

    Arguments as in `progressive.distillation_loss`, and the method's own (see `Method`); noises (B, 2, ...).

    Returns:
        The regression, the student's and the discriminator's adversarial loss, (B,) each; only the first at weight 0.
    """
    check_same_schedule(student, teacher)
    schedule, own = student.schedule, bool(auxiliaries) and options.judged == "samples" and steps > 1
    i = steps - (u.double() * steps).floor()
    t, s = i / steps, (i - 1) / steps
    z = diffuse(schedule, x, eps, t)
    target = distillation_target(teacher, z, t, s, substeps=substeps, **condition)
    if own:  # one forward pass for both
        last = own_latents(student, noises[:, 0], steps, **condition)
        both = {name: torch.cat([each, each]) for name, each in condition.items()}
        x_hat, made = student(torch.cat([z, last]), torch.cat([t, torch.full_like(t, 1 / steps)]), **both).chunk(2)
    else:
        x_hat = made = student(z, t, **condition)
    regression = options.regression * weighted_error(weighting, schedule, x_hat, target, t)
    if not auxiliaries:
        return {"regression": regression}
    if options.judged == "samples":
        fake, real, s = made, x, torch.zeros_like(s)
    else:
        fake, real = ddim_update(schedule, z, x_hat, t, s), ddim_update(schedule, z, target, t, s)
    if options.judged == "data":
        alpha, sigma = alpha_sigma(schedule, s)
        real = per_example(alpha, x) * x + per_example(sigma, x) * noises[:, 0]
    discriminator = auxiliaries["discriminator"]
    beside = {"z_t": z, "t": t} if options.judged == "trajectory" else {}
    judge = partial(discriminator, s=s, condition=condition, **beside)
    with untrained(discriminator):
        adversarial = softplus(-judge(fake))
    penalty = squared_gradient(judge, real, noises[:, 1]) if options.r1 else 0.0
    loss = softplus(judge(fake.detach())) + softplus(-judge(real)) + options.r1 * penalty
    return {"regression": regression, "adversarial": options.weight * adversarial, "discriminator": loss}


@torch.no_grad()
def own_latents(student: DenoiserProtocol, noise: Tensor, steps: int, **condition: Tensor) -> Tensor:
    """The latents (B, ...) before the last of a student's own N steps, starting from standard normal noise (B, ...)."""
    times = torch.arange(steps, 0, -1, dtype=torch.float64, device=time_device(noise.device)) / steps
    z = per_example(student.schedule.sigma(times[0]), noise) * noise
    for t, s in pairwise(times):
        z = ddim_update(student.schedule, z, student(z, t, **condition), t, s)
    return z


def squared_gradient(judge: Callable[[Tensor], Tensor], z: Tensor, direction: Tensor) -> Tensor:
    """|grad D(z)|^2 by a difference along a standard normal direction, exact in expectation: (B,)."""
    return ((judge(z + DELTA * direction) - judge(z)) / DELTA).square()


def _auxiliaries(
    options: AdversarialOptions, teacher: Denoiser, x: Tensor, condition: Mapping[str, Tensor]
) -> dict[str, Auxiliary]:
    """The discriminator, if it has a weight."""
    if not options.weight:
        return {}
    conditional = options.judged == "trajectory"
    if options.discriminator == "convolutions":
        network = Convolutions(x, condition, conditional=conditional)
    else:
        trained = options.discriminator == "trained_teacher"
        network = TeacherFeatures(teacher, x, condition, conditional=conditional, trained=trained)
    return {"discriminator": Auxiliary(network, options.discriminator_learning_rate, betas=(0.0, 0.99))}


ADVERSARIAL = Method(
    name="adversarial",
    title="progressive adversarial distillation",
    authors="Lin, Wang & Yang, 2024",
    arxiv="2402.13929",
    loss=adversarial_loss,
    evaluations=lambda stage: stage.substeps + stage.steps - 1,
    samplers=lambda steps: {"ddim": steps},
    options=AdversarialOptions(),
    training={"adam_beta1": 0.0, "adam_beta2": 0.99},
    auxiliaries=_auxiliaries,
    noises=2,
)
