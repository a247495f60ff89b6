r"""What a denoiser is trained on: a weighted squared error of the denoised data (paper, section 4).

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
from progdist.diffusion.denoiser import DenoiserProtocol
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
    """The weighting of a name in WEIGHTINGS, or your own function; a UserError if there is none of this name."""
    if not isinstance(weighting, str):
        return weighting
    if weighting not in WEIGHTINGS:
        raise UserError(f"weighting {weighting!r} is unknown: use one of {', '.join(WEIGHTINGS)}")
    return WEIGHTINGS[weighting]


def diffuse(schedule: Schedule, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """z_t = alpha_t x + sigma_t eps; x and eps (B, ...), t (B,) or ()."""
    alpha, sigma = schedule.scales(t)
    return per_example(alpha, x) * x + per_example(sigma, x) * eps


def weighted_error(weighting: str | Weighting, schedule: Schedule, x_hat: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """w(t) mean |x - xh|^2 for each example: (B,), from x_hat and x (B, ...) and t (B,)."""
    error = (x_hat - x).square().flatten(1).mean(1)
    return as_weighting(weighting)(schedule.rho(t) ** 2).to(error) * error


def weighted_norm(weighting: str | Weighting, schedule: Schedule, x_hat: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """The root of `weighted_error`, whose gradient where both agree is 0; same arguments and shapes."""
    norm = torch.linalg.vector_norm((x_hat - x).flatten(1), dim=1) / x[0].numel() ** 0.5
    return as_weighting(weighting)(schedule.rho(t) ** 2).sqrt().to(norm) * norm


def denoising_loss(
    denoiser: DenoiserProtocol, x: Tensor, eps: Tensor, u: Tensor, *, weighting: str | Weighting, **condition: Tensor
) -> Tensor:
    """The loss of plain diffusion training, at times drawn over all of (0, 1].

    Args:
        denoiser: the one to train.
        x: data (B, ...).
        eps: standard normal noise (B, ...).
        u: uniform in [0, 1), float64 (B,).
        weighting: a name in WEIGHTINGS, or your own function.
        condition: passed on to the denoiser.

    Returns:
        (B,), one loss per example.
    """
    t = 1 - u
    x_hat = denoiser(diffuse(denoiser.schedule, x, eps, t), t, **condition)
    return weighted_error(weighting, denoiser.schedule, x_hat, x, t)
