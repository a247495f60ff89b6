r"""From noise to data: one pure step per method, and one loop over a time grid.

DDIM is Euler's method in rho = alpha / sigma (paper, section 2 and appendix B):

    z_s / sigma_s = z_t / sigma_t + (rho_s - rho_t) xh
    z_s = (sigma_s / sigma_t) z_t + (alpha_s - alpha_t sigma_s / sigma_t) xh

Ancestral sampling draws from q(z_s | z_t, x = xh), with r = rho_t^2 / rho_s^2 (paper, equation 3):

    z_s = r (alpha_s / alpha_t) z_t + (1 - r) alpha_s xh + sqrt(variance) eps
    variance = (1 - r) sigma_s^(2 - 2 gamma) sigma_t^(2 gamma)

gamma in [0, 1] interpolates the logarithm of the variance from its lower to its upper bound (appendix F). The other
stochastic sampler of that appendix overshoots: a DDIM step of twice the length, to q = 2s - t, then noise back to s,

    z_s = (alpha_s / alpha_q) z_q + sqrt(sigma_s^2 - (alpha_s / alpha_q)^2 sigma_q^2) eps

With q = 0 it is the multistep sampler of consistency models (Song et al. 2023, arXiv 2303.01469, algorithm 1):

    z_s = alpha_s xh + sigma_s eps

DPM-Solver++ (2M) is the DDIM step of a prediction that is extrapolated along the log-SNR, on the line through it and
the prediction at q, where the previous step started (Lu et al. 2022, arXiv 2211.01095, algorithm 2): of second order,
at one evaluation per step,

    D = xh_t + (lambda_s - lambda_t) / (2 (lambda_t - lambda_q)) (xh_t - xh_q)
    z_s = (sigma_s / sigma_t) z_t + (alpha_s - alpha_t sigma_s / sigma_t) D

Its first and last steps, the last of which ends at the data, are DDIM's. More: `progdist.diffusion.integrators`.

The grid is t = 1, (N-1)/N, ..., 1/N, and the last step returns the denoised data itself, so that no step ever divides
by sigma_0: N network evaluations, except for methods that use several per step.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from numbers import Integral

import torch
from torch import Tensor

from progdist._utils.broadcasting import per_example, scaled, time_device
from progdist._utils.errors import UserError
from progdist.diffusion.denoiser import DenoiserProtocol
from progdist.diffusion.integrators import Predict, Step, euler_in_log_snr, runge_kutta
from progdist.diffusion.schedule import Schedule


def standard_normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw standard normal numbers with the shape, type and device of a tensor, on the CPU.

    A generator with its own method `normal(like)` draws by it, so that each row can have its own numbers.
    """
    draw = getattr(generator, "normal", None)
    values = draw(like) if draw else torch.randn(like.shape, generator=generator, dtype=like.dtype)
    return values.to(like.device)


def alpha_sigma(schedule: Schedule, s: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha_s, sigma_s) in float64 at a step's end s; s = 0 is the data itself, (1, 0), whatever the schedule."""
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
    eps = standard_normal(z, generator)
    mean = per_example(c_z, z) * z + per_example((1 - r) * alpha_s, z) * predict(z, t)
    return mean + per_example(deviation, z) * eps


def noise_back(reach: Callable[[Tensor, Tensor], Tensor]) -> Step:
    """A deterministic step from t to q = reach(t, s) <= s, then noise back from q to s."""

    def step(
        schedule: Schedule, predict: Predict, z: Tensor, t: Tensor, s: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        q = reach(t, s)
        (alpha_s, sigma_s), (alpha_q, sigma_q) = alpha_sigma(schedule, s), alpha_sigma(schedule, q)
        ratio = alpha_s / alpha_q
        deviation = (sigma_s**2 - (ratio * sigma_q) ** 2).sqrt()
        eps = standard_normal(z, generator)
        return per_example(ratio, z) * ddim(schedule, predict, z, t, q, generator) + per_example(deviation, z) * eps

    return step


overshoot = noise_back(lambda t, s: 2 * s - t)  # a step of twice the length, then noise back by half of it
consistency = noise_back(lambda t, s: torch.zeros_like(s))
"""A step to the data, then noise back to s: for one-step students that can be called at any time."""


SAMPLERS: dict[str, Step] = {
    "ddim": ddim,
    "ancestral": ancestral,
    "overshoot": overshoot,
    "consistency": consistency,
    "euler": runge_kutta([()], [1.0]),
    "euler_log_snr": euler_in_log_snr,
    "heun": runge_kutta([(), (1.0,)], [0.5, 0.5]),
    "rk4": runge_kutta([(), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)], [1 / 6, 1 / 3, 1 / 3, 1 / 6]),
}


class DPMSolverPP:
    """The steps of one sampling run by DPM-Solver++ (2M), in order: each keeps its prediction for the next."""

    def __init__(self) -> None:
        self.before: tuple[Tensor, Tensor] | None = None

    def __call__(
        self, schedule: Schedule, predict: Predict, z: Tensor, t: Tensor, s: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """One deterministic step from t to s, where the next one starts: one network evaluation."""
        x = extrapolated = predict(z, t)
        if self.before is not None:
            q, x_q = self.before
            now = schedule.log_snr(t)
            ahead = (schedule.log_snr(s) - now) / (2 * (now - schedule.log_snr(q)))  # 0 if q is at zero SNR
            extrapolated = x + per_example(torch.where(s > 0, ahead, 0.0), z) * (x - x_q)
        self.before = (t, x)
        return ddim_update(schedule, z, extrapolated, t, s)


MULTISTEP_SAMPLERS: dict[str, Callable[[], Step]] = {"dpmpp": DPMSolverPP}
"""Multistep methods, which keep state between steps: create a new one for each sampling run."""


NFE_PER_STEP = {"heun": 2, "rk4": 4}  # network evaluations per step, where it is not one
MAX_STEPS = 1_000_000  # more than any sampler needs: a larger number is a mistake, and would fill memory with times


def network_evaluations(steps: int, method: str = "ddim") -> int:
    """The number of network calls of `sample`: the last step, which returns the denoised data, makes one."""
    return NFE_PER_STEP.get(method, 1) * (steps - 1) + 1


def sampling_step(method: str | Step) -> Step:
    """The step of a method, ready for one sampling run. Raise a UserError for an unknown name."""
    if not isinstance(method, str) and callable(method):
        return method
    if method in MULTISTEP_SAMPLERS:
        return MULTISTEP_SAMPLERS[method]()
    if not isinstance(method, str) or method not in SAMPLERS:
        raise UserError(
            f"sampling method {method!r} is unknown: use one of {', '.join([*SAMPLERS, *MULTISTEP_SAMPLERS])}"
        )
    return SAMPLERS[method]


def time_grid(steps: int) -> Tensor:
    """1, (N-1)/N, ..., 0 in float64, (N + 1,). Raise a UserError if steps is not 1 to MAX_STEPS."""
    if not isinstance(steps, Integral) or isinstance(steps, bool) or not 1 <= steps <= MAX_STEPS:
        raise UserError(f"steps is {str(steps)[:50]}: sampling takes 1 to {MAX_STEPS:,} steps")
    return torch.arange(steps, -1, -1, dtype=torch.float64) / steps


def initial_latents(schedule: Schedule, noise: Tensor) -> Tensor:
    """The latents at which sampling starts: standard normal noise (B, ...) times the schedule's `noise_scale`."""
    return scaled(noise, schedule.noise_scale())


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
    """Sample data from noise in `steps` steps.

    Args:
        denoiser: (z, t) -> xh.
        noise: eps ~ N(0, I), (B, ...): sampling starts from it times `Schedule.noise_scale`, sigma_1.
        steps: N, at least 1.
        method: a name in SAMPLERS or MULTISTEP_SAMPLERS, or your own step, e.g. partial(ancestral, gamma=0.3).
        clip: clip every xh to [-1, 1], as the paper does; eps follows, since each step computes it from (z_t, xh).
        generator: a CPU generator for the noise that stochastic methods add.
        condition: passed to the denoiser.

    Returns:
        (B, ...), pixels roughly in [-1, 1] for images.

    Raises:
        UserError: `steps` is below 1, or `method` is unknown.
    """
    step = sampling_step(method)
    predict: Predict = partial(denoiser, **condition)
    if clip:
        predict = partial(_clipped, predict)
    grid, z = time_grid(steps).to(time_device(noise.device)), initial_latents(denoiser.schedule, noise)
    for t, s in pairwise(grid[:-1]):
        z = step(denoiser.schedule, predict, z, t, s, generator)
    return predict(z, grid[-2])


def _clipped(predict: Predict, z: Tensor, t: Tensor) -> Tensor:
    return predict(z, t).clamp(-1, 1)
