r"""Integrators of the probability-flow ODE other than DDIM (paper, appendix C).

The ODE that DDIM integrates is, in any measure of time (appendices A and B),

    dz = d(alpha) xh + d(sigma) eps_h,    eps_h = (z - alpha xh) / sigma

and has other integrators: Euler's method in t or in the log-SNR, Heun's and the classical Runge-Kutta method in t, of
second and fourth order, with two and four network evaluations per step. On a table of noise levels alpha and sigma
have a kink at every entry, where these would be of first order. Such a schedule uses the angle as time
(`smooth_time`), in which both are a cosine and a sine.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from progdist._utils.broadcasting import per_example
from progdist._utils.errors import UserError
from progdist.diffusion.schedule import Schedule

Predict = Callable[[Tensor, Tensor], Tensor]  # (z_t, t) -> xh, with the condition and any clipping already bound
Step = Callable[[Schedule, Predict, Tensor, Tensor, Tensor, torch.Generator | None], Tensor]
"""(schedule, predict, z_t, t, s, generator) -> z_s."""


def ode_derivative(schedule: Schedule, predict: Predict, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The derivatives of z, shape of z, and the log-SNR, shape of t in float64, by smooth time; 0 < t <= 1."""
    (alpha, sigma), (alpha_rate, sigma_rate) = schedule.scales(t), schedule.rates(t)
    x = predict(z, t)
    eps = (z - per_example(alpha, z) * x) / per_example(sigma, z)
    slope = per_example(alpha_rate, z) * x + per_example(sigma_rate, z) * eps
    return slope, 2 * (alpha_rate / alpha - sigma_rate / sigma)


def euler_in_log_snr(
    schedule: Schedule, predict: Predict, z: Tensor, t: Tensor, s: Tensor, generator: torch.Generator | None
) -> Tensor:
    """One Euler step with the log-SNR as time. Raise a UserError at zero SNR, where it is infinite."""
    if not schedule.log_snr(t).isfinite().all():
        raise UserError("euler_log_snr cannot start at zero SNR, where the log-SNR is infinite: use ddim or euler")
    slope, rate = ode_derivative(schedule, predict, z, t)
    span = (schedule.log_snr(s) - schedule.log_snr(t)) / rate
    return z + per_example(span, z) * slope


def runge_kutta(rows: Sequence[Sequence[float]], weights: Sequence[float]) -> Step:
    """An explicit Runge-Kutta step in smooth time, from its Butcher tableau; the nodes are the sums of the rows."""

    def step(
        schedule: Schedule, predict: Predict, z: Tensor, t: Tensor, s: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        slopes: list[Tensor] = []
        begin = schedule.smooth_time(t)
        span = schedule.smooth_time(s) - begin
        for row in rows:
            moved = z + per_example(span, z) * _weighted(row, slopes, z)
            node = schedule.from_smooth_time(begin + sum(row) * span)
            slopes.append(ode_derivative(schedule, predict, moved, node)[0])
        return z + per_example(span, z) * _weighted(weights, slopes, z)

    return step


def _weighted(weights: Sequence[float], slopes: Sequence[Tensor], z: Tensor) -> Tensor:
    return sum((weight * slope for weight, slope in zip(weights, slopes, strict=True)), torch.zeros_like(z))
