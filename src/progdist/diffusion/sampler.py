r"""From noise to data: one pure step per method, one loop over a time grid.

DDIM is Euler's method in rho = alpha / sigma (paper, section 2 and appendix B):

    z_s / sigma_s = z_t / sigma_t + (rho_s - rho_t) xh
    z_s = (sigma_s / sigma_t) z_t + (alpha_s - alpha_t sigma_s / sigma_t) xh

Ancestral sampling draws from q(z_s | z_t, x = xh), with r = rho_t^2 / rho_s^2 (paper, equation 3):

    z_s = r (alpha_s / alpha_t) z_t + (1 - r) alpha_s xh + sqrt(variance) eps
    variance = (1 - r) sigma_s^(2 - 2 gamma) sigma_t^(2 gamma)

gamma in [0, 1] interpolates the logarithm of the variance from its lower to its upper bound (appendix F). The same
appendix's other stochastic sampler overshoots: a DDIM step of twice the length, to q = 2s - t, then noise back to s,

    z_s = (alpha_s / alpha_q) z_q + sqrt(sigma_s^2 - (alpha_s / alpha_q)^2 sigma_q^2) eps

The probability-flow ODE that DDIM integrates is, in any measure of time (appendices A and B),

    dz = d(alpha) xh + d(sigma) eps_h,    eps_h = (z - alpha xh) / sigma

and has other integrators (appendix C): Euler's method in t or in the log-SNR, Heun's and the classical Runge-Kutta
method in t, of second and fourth order, with two and four network evaluations to a step.

The grid is t = 1, (N-1)/N, ..., 1/N, and the last step returns the denoised data itself, so that no step ever divides
by sigma_0: N network evaluations, but for the methods that take several to a step.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from progdist._utils.broadcasting import per_example, time_device
from progdist._utils.errors import UserError
from progdist.diffusion.denoiser import DenoiserProtocol
from progdist.diffusion.schedule import Schedule

Predict = Callable[[Tensor, Tensor], Tensor]
"""(z_t, t) -> xh, with the condition and any clipping already bound."""

Step = Callable[[Schedule, Predict, Tensor, Tensor, Tensor, torch.Generator | None], Tensor]
"""(schedule, predict, z_t, t, s, generator) -> z_s."""


def alpha_sigma(schedule: Schedule, s: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha_s, sigma_s) in float64 of a step's end s; s = 0 is the data itself, (1, 0), whatever the schedule."""
    alpha, sigma = schedule.scales(s)
    return torch.where(s > 0, alpha, 1.0), torch.where(s > 0, sigma, 0.0)


def ddim_coefficients(alpha: tuple[Tensor, Tensor], sigma: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The factors of z_t and xh in z_s, from (alpha_t, alpha_s) and (sigma_t, sigma_s): float64, each of one shape."""
    (alpha_t, alpha_s), (sigma_t, sigma_s) = alpha, sigma
    ratio = sigma_s / sigma_t
    return ratio, alpha_s - alpha_t * ratio


def ddim_update(schedule: Schedule, z: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """z_s from z_t (B, ...) and its denoised data x (B, ...); times in float64, (B,) or (), t > s >= 0."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.scales(t), alpha_sigma(schedule, s)
    c_z, c_x = ddim_coefficients((alpha_t, alpha_s), (sigma_t, sigma_s))
    return per_example(c_z, z) * z + per_example(c_x, z) * x


def ddim(
    schedule: Schedule, predict: Predict, z: Tensor, t: Tensor, s: Tensor, generator: torch.Generator | None
) -> Tensor:
    """One deterministic step from t to s: one network evaluation."""
    return ddim_update(schedule, z, predict(z, t), t, s)


def ancestral(
    schedule: Schedule,
    predict: Predict,
    z: Tensor,
    t: Tensor,
    s: Tensor,
    generator: torch.Generator | None,
    gamma: float = 1.0,
) -> Tensor:
    """One stochastic step from t to s > 0; gamma = 0 takes the lower bound of the variance, 1 the upper."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.scales(t), schedule.scales(s)
    r = (alpha_t * sigma_s / (sigma_t * alpha_s)) ** 2
    c_z = alpha_t * sigma_s**2 / (sigma_t**2 * alpha_s)
    deviation = (1 - r).sqrt() * sigma_s ** (1 - gamma) * sigma_t**gamma
    eps = torch.randn(z.shape, generator=generator, dtype=z.dtype).to(z.device)
    mean = per_example(c_z, z) * z + per_example((1 - r) * alpha_s, z) * predict(z, t)
    return mean + per_example(deviation, z) * eps


def overshoot(
    schedule: Schedule, predict: Predict, z: Tensor, t: Tensor, s: Tensor, generator: torch.Generator | None
) -> Tensor:
    """One deterministic step of twice the length, from t to q = 2s - t >= 0, and noise back from q to s."""
    q = 2 * s - t
    (alpha_s, sigma_s), (alpha_q, sigma_q) = alpha_sigma(schedule, s), alpha_sigma(schedule, q)
    ratio = alpha_s / alpha_q
    deviation = (sigma_s**2 - (ratio * sigma_q) ** 2).sqrt()
    eps = torch.randn(z.shape, generator=generator, dtype=z.dtype).to(z.device)
    return per_example(ratio, z) * ddim(schedule, predict, z, t, q, generator) + per_example(deviation, z) * eps


def ode_derivative(schedule: Schedule, predict: Predict, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The ODE's right-hand side dz/dt at (z, t), shape of z, and d(log-SNR)/dt in float64, shape of t; 0 < t <= 1."""
    with torch.enable_grad():
        time = t.detach().clone().requires_grad_()
        alpha, sigma = schedule.alpha(time), schedule.sigma(time)
        alpha_rate, sigma_rate = (torch.autograd.grad(scale.sum(), time)[0] for scale in (alpha, sigma))
    alpha, sigma = alpha.detach(), sigma.detach()
    x = predict(z, t)
    eps = (z - per_example(alpha, z) * x) / per_example(sigma, z)
    slope = per_example(alpha_rate, z) * x + per_example(sigma_rate, z) * eps
    return slope, 2 * (alpha_rate / alpha - sigma_rate / sigma)


def euler_in_log_snr(
    schedule: Schedule, predict: Predict, z: Tensor, t: Tensor, s: Tensor, generator: torch.Generator | None
) -> Tensor:
    """One step of Euler's method with the log-SNR as time.

    Raises:
        UserError: it begins at zero SNR, where the log-SNR is infinite.
    """
    if not schedule.log_snr(t).isfinite().all():
        raise UserError("euler_log_snr cannot begin at zero SNR, where the log-SNR is infinite: use ddim or euler")
    slope, rate = ode_derivative(schedule, predict, z, t)
    span = (schedule.log_snr(s) - schedule.log_snr(t)) / rate
    return z + per_example(span, z) * slope


def runge_kutta(rows: Sequence[Sequence[float]], weights: Sequence[float]) -> Step:
    """An explicit Runge-Kutta step in t, from its Butcher tableau; the nodes are the sums of the rows."""

    def step(
        schedule: Schedule, predict: Predict, z: Tensor, t: Tensor, s: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        slopes: list[Tensor] = []
        for row in rows:
            moved = z + per_example(s - t, z) * _weighted(row, slopes, z)
            slopes.append(ode_derivative(schedule, predict, moved, t + sum(row) * (s - t))[0])
        return z + per_example(s - t, z) * _weighted(weights, slopes, z)

    return step


def _weighted(weights: Sequence[float], slopes: Sequence[Tensor], z: Tensor) -> Tensor:
    return sum((weight * slope for weight, slope in zip(weights, slopes, strict=True)), torch.zeros_like(z))


METHODS: dict[str, Step] = {
    "ddim": ddim,
    "ancestral": ancestral,
    "overshoot": overshoot,
    "euler": runge_kutta([()], [1.0]),
    "euler_log_snr": euler_in_log_snr,
    "heun": runge_kutta([(), (1.0,)], [0.5, 0.5]),
    "rk4": runge_kutta([(), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)], [1 / 6, 1 / 3, 1 / 3, 1 / 6]),
}


NFE_PER_STEP = {"heun": 2, "rk4": 4}
"""Of the network, for the methods that take more than one."""


MAX_STEPS = 1_000_000
"""More than any sampler takes: a larger number is a mistake, and would fill the memory with times."""


def network_evaluations(steps: int, method: str = "ddim") -> int:
    """How often `sample` calls the network: the last step, which returns the denoised data, calls it once."""
    return NFE_PER_STEP.get(method, 1) * (steps - 1) + 1


def time_grid(steps: int) -> Tensor:
    """1, (N-1)/N, ..., 0 in float64, (N + 1,).

    Raises:
        UserError: steps is not 1 to MAX_STEPS.
    """
    if not 1 <= steps <= MAX_STEPS:
        raise UserError(f"steps is {steps}: sampling takes 1 to {MAX_STEPS:,} steps")
    return torch.arange(steps, -1, -1, dtype=torch.float64) / steps


@torch.no_grad()
def sample(
    denoiser: DenoiserProtocol,
    noise: Tensor,
    steps: int,
    *,
    method: str | Step = "ddim",
    clip: bool = False,
    generator: torch.Generator | None = None,
    **condition: Tensor,
) -> Tensor:
    """Data from noise in `steps` steps.

    Args:
        denoiser: (z, t) -> xh.
        noise: z_1 ~ N(0, I), (B, ...).
        steps: N, at least 1.
        method: one of METHODS, or a step of your own, e.g. partial(ancestral, gamma=0.3).
        clip: keep every xh within [-1, 1], as the paper does; eps follows, since each step takes it from (z_t, xh).
        generator: a CPU generator of the noise that stochastic methods add.
        condition: passed on to the denoiser.

    Returns:
        (B, ...), pixels in about [-1, 1] for images.

    Raises:
        UserError: steps below 1, or no such method.
    """
    if isinstance(method, str) and method not in METHODS:
        raise UserError(f"sampling method {method!r} is unknown: use one of {', '.join(METHODS)}")
    step = METHODS[method] if isinstance(method, str) else method
    predict: Predict = partial(denoiser, **condition)
    if clip:
        predict = partial(_clipped, predict)
    grid, z = time_grid(steps).to(time_device(noise.device)), noise
    for t, s in pairwise(grid[:-1]):
        z = step(denoiser.schedule, predict, z, t, s, generator)
    return predict(z, grid[-2])


def _clipped(predict: Predict, z: Tensor, t: Tensor) -> Tensor:
    """xh within [-1, 1]."""
    return predict(z, t).clamp(-1, 1)
