r"""From noise to data: one pure step per method, one loop over a time grid.

DDIM is Euler's method in rho = alpha / sigma (paper, section 2 and appendix B):

    z_s / sigma_s = z_t / sigma_t + (rho_s - rho_t) xh
    z_s = (sigma_s / sigma_t) z_t + (alpha_s - alpha_t sigma_s / sigma_t) xh

Ancestral sampling draws from q(z_s | z_t, x = xh), with r = rho_t^2 / rho_s^2 (paper, equation 3):

    z_s = r (alpha_s / alpha_t) z_t + (1 - r) alpha_s xh + sqrt(variance) eps
    variance = (1 - r) sigma_s^(2 - 2 gamma) sigma_t^(2 gamma)

gamma in [0, 1] interpolates the logarithm of the variance from its lower to its upper bound (appendix F).

The grid is t = 1, (N-1)/N, ..., 1/N, and the last step returns the denoised data itself: N network evaluations,
and no step ever divides by sigma_0.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from progdist._errors import UserError
from progdist._shape import per_example
from progdist.denoiser import Denoises
from progdist.schedule import Schedule

Predict = Callable[[Tensor, Tensor], Tensor]
"""(z_t, t) -> xh, with the condition and any clipping already bound."""

Step = Callable[[Schedule, Predict, Tensor, Tensor, Tensor, torch.Generator | None], Tensor]
"""(schedule, predict, z_t, t, s, generator) -> z_s."""


def ddim_update(schedule: Schedule, z: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """z_s from z_t (B, ...) and its denoised data x (B, ...); times in float64, (B,) or (), t > s."""
    ratio = schedule.sigma(s) / schedule.sigma(t)
    scale = schedule.alpha(s) - schedule.alpha(t) * ratio
    return per_example(ratio, z) * z + per_example(scale, z) * x


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
    alpha_t, sigma_t, alpha_s, sigma_s = schedule.alpha(t), schedule.sigma(t), schedule.alpha(s), schedule.sigma(s)
    r = (alpha_t * sigma_s / (sigma_t * alpha_s)) ** 2
    c_z = alpha_t * sigma_s**2 / (sigma_t**2 * alpha_s)
    deviation = (1 - r).sqrt() * sigma_s ** (1 - gamma) * sigma_t**gamma
    eps = torch.randn(z.shape, generator=generator, dtype=z.dtype).to(z.device)
    mean = per_example(c_z, z) * z + per_example((1 - r) * alpha_s, z) * predict(z, t)
    return mean + per_example(deviation, z) * eps


METHODS: dict[str, Step] = {"ddim": ddim, "ancestral": ancestral}


def time_grid(steps: int) -> Tensor:
    """1, (N-1)/N, ..., 0 in float64, (N + 1,).

    Raises:
        UserError: steps is not positive.
    """
    if steps < 1:
        raise UserError(f"steps is {steps}: sampling takes at least 1 step")
    return torch.arange(steps, -1, -1, dtype=torch.float64) / steps


@torch.no_grad()
def sample(
    denoiser: Denoises,
    noise: Tensor,
    steps: int,
    *,
    method: str | Step = "ddim",
    clip: bool = False,
    generator: torch.Generator | None = None,
    **condition: Tensor,
) -> Tensor:
    """Data from noise in `steps` network evaluations.

    Args:
        denoiser: (z, t) -> xh.
        noise: z_1 ~ N(0, I), (B, ...).
        steps: N, at least 1.
        method: "ddim", "ancestral", or a step of your own, e.g. partial(ancestral, gamma=0.3).
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
    grid, z = time_grid(steps), noise
    for t, s in pairwise(grid[:-1]):
        z = step(denoiser.schedule, predict, z, t, s, generator)
    return predict(z, grid[-2])


def _clipped(predict: Predict, z: Tensor, t: Tensor) -> Tensor:
    """xh within [-1, 1]."""
    return predict(z, t).clamp(-1, 1)
