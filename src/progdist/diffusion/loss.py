r"""The training loss of a denoiser: a weighted squared error of the denoised data (paper, section 4).

    loss = w(t) mean |x - xh(z_t, t)|^2,    z_t = alpha_t x + sigma_t eps

    constant        w = 1                  |x - xh|^2
    snr             w = SNR                |eps - eps_h|^2, the loss of Ho et al. 2020
    truncated_snr   w = max(SNR, 1)        max(|x - xh|^2, |eps - eps_h|^2)
    snr_plus_one    w = SNR + 1            |v - v_h|^2
    velocity        w = (sqrt SNR + 1)^2   |u - u_h|^2 of flow matching, u = eps - x

with SNR = alpha^2 / sigma^2. Times are drawn from a number u, uniform in [0, 1), as t = 1 - u: never 0, where the
SNR of some schedules is infinite.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from progdist._utils.broadcasting import per_example
from progdist._utils.errors import UserError
from progdist.diffusion.denoiser import DenoiserProtocol, check_denoiser
from progdist.diffusion.parameterization import Parameterization
from progdist.diffusion.schedule import Schedule

Weighting = Callable[[Tensor], Tensor]  # SNR -> w, of the same shape

WEIGHTINGS: dict[str, Weighting] = {
    "constant": lambda snr: snr.new_ones(snr.shape),
    "snr": lambda snr: snr,
    "truncated_snr": lambda snr: snr.clamp(min=1),
    "snr_plus_one": lambda snr: snr + 1,
    "velocity": lambda snr: (snr.sqrt() + 1) ** 2,
}


def as_weighting(weighting: str | Weighting) -> Weighting:
    """The weighting with a name in WEIGHTINGS, or your own function. Raise a UserError for an unknown name."""
    if isinstance(weighting, str) and weighting in WEIGHTINGS:
        return WEIGHTINGS[weighting]
    if not callable(weighting):
        raise UserError(
            f"weighting {weighting!r} is unknown: use one of {', '.join(WEIGHTINGS)}, or a function of the SNR"
        )
    return weighting


def check_same_schedule(*denoisers: DenoiserProtocol) -> None:
    """Raise a UserError if a student and its teachers have different schedules, and so different latents."""
    for denoiser in denoisers:
        check_denoiser(denoiser)
    first, *others = (denoiser.schedule for denoiser in denoisers)
    for other in others:
        if other is not first and other != first and not _same(first, other):
            raise UserError(
                f"expected one schedule for student and teachers, got {_brief(first)} and {_brief(other)}: first train "
                "the student on the teacher's predictions (`progdist.distill` does)"
            )


def _same(schedule: Schedule, other: Schedule) -> bool:
    """Whether two schedules agree at a few times, as copies of your own schedule do."""
    t = torch.linspace(0, 1, 9, dtype=torch.float64)[1:]
    return all(torch.equal(a, b) for a, b in zip(schedule.scales(t), other.scales(t), strict=True))


def _brief(schedule: Schedule) -> str:
    return repr(schedule) if len(repr(schedule)) < 60 else type(schedule).__name__


VANISHES = 1e-3  # relative to the median: an error of 0.03 elsewhere counts as one of 1, no knowledge at all, at t = 1


def output_weight(
    weighting: str | Weighting, schedule: Schedule, parameterization: Parameterization, t: Tensor
) -> Tensor:
    """How much an error of the network's output counts at t: w(t) |d xh / d F|^2, float64 of t's shape (B,).

    An x-error weighted by the SNR is an eps-error, which counts the same at all times if the network predicts eps.
    """
    alpha, sigma = schedule.unit_scales(t)
    latent = torch.zeros(len(t), 1, 1, 1, dtype=torch.float64)
    heads = torch.eye(parameterization.heads, dtype=torch.float64)[..., None, None]
    moved = [
        parameterization.denoise(each.expand(len(t), -1, -1, -1), latent, alpha, sigma).flatten()
        for each in (torch.zeros_like(heads[0]), *heads)
    ]
    gain = sum((each - moved[0]).square() for each in moved[1:])
    return as_weighting(weighting)(schedule.rho(t) ** 2) * gain


def check_weighting(weighting: str | Weighting, schedule: Schedule, parameterization: Parameterization) -> None:
    """Refuse a weighting that vanishes at t = 1, where sampling starts and a student makes one of its few steps.

    Refuse NaN and negative weights, and weights that are 0 everywhere. A teacher of many steps can do without t = 1:
    its denoising loss may be weighted by the SNR (Ho et al. 2020).
    """
    t = torch.arange(1, 65, dtype=torch.float64) / 64
    given = as_weighting(weighting)(schedule.rho(t) ** 2)
    if len(wrong := (~(given >= 0)).nonzero()):
        at = int(wrong[0])
        raise UserError(
            f"the weighting is {float(given[at]):.2g} at t = {float(t[at]):.2g}, expected 0 or more: use truncated_snr"
        )
    if _vanishes(weights := output_weight(weighting, schedule, parameterization, t)):
        last, middle = (float(given[at]) for at in (-1, 31))
        counts = "" if _vanishes(given) else f", of the output {parameterization.name} {float(weights[-1]):.2g}"
        passing = (each for each in ("truncated_snr", *WEIGHTINGS) if _suits(each, schedule, parameterization))
        best = next(passing, None)
        remedy = f"use {best}" if best else "use a teacher that predicts x, or a weighting that rises with t"
        raise UserError(
            f"the weighting is {last:.2g} at t = 1{counts}, where sampling starts, and {middle:.2g} at t = 0.5, so a "
            f"student of few steps would learn nothing at t = 1: {remedy}"
        )


def _suits(name: str, schedule: Schedule, parameterization: Parameterization) -> bool:
    t = torch.arange(1, 65, dtype=torch.float64) / 64
    return not _vanishes(output_weight(name, schedule, parameterization, t))


def _vanishes(weights: Tensor) -> bool:
    """Whether the last weight is negligible beside the others, or all are 0."""
    return not weights[-1] > VANISHES * weights.median()


def diffuse(schedule: Schedule, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """z_t = alpha_t x + sigma_t eps; x and eps (B, ...), t (B,) or ()."""
    alpha, sigma = schedule.scales(t)
    return per_example(alpha, x) * x + per_example(sigma, x) * eps


def weighted_error(weighting: str | Weighting, schedule: Schedule, x_hat: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """w(t) mean |x - xh|^2 for each example: (B,), from x_hat and x (B, ...) and t (B,)."""
    error = (x_hat - x).square().flatten(1).mean(1)
    return as_weighting(weighting)(schedule.rho(t) ** 2).to(error) * error


def weighted_norm(weighting: str | Weighting, schedule: Schedule, x_hat: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """The root of `weighted_error`, with a gradient of 0 where both agree; same arguments and shapes."""
    norm = torch.linalg.vector_norm((x_hat - x).flatten(1), dim=1) / x[0].numel() ** 0.5
    return as_weighting(weighting)(schedule.rho(t) ** 2).sqrt().to(norm) * norm


def denoising_loss(
    denoiser: DenoiserProtocol, x: Tensor, eps: Tensor, u: Tensor, *, weighting: str | Weighting, **condition: Tensor
) -> Tensor:
    """The loss of plain diffusion training, at times drawn over all of (0, 1].

    Args:
        denoiser: the denoiser to train.
        x: data (B, ...).
        eps: standard normal noise (B, ...).
        u: uniform in [0, 1), float64 (B,).
        weighting: a name in WEIGHTINGS, or your own function.
        condition: passed to the denoiser.

    Returns:
        (B,), one loss per example.
    """
    check_denoiser(denoiser)
    t = 1 - u.double()
    x_hat = denoiser(diffuse(denoiser.schedule, x, eps, t), t, **condition)
    return weighted_error(weighting, denoiser.schedule, x_hat, x, t)
