"""Samplers against the exact flow, exact posteriors and the official samples."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor

from progdist import Cosine, Denoiser, Discrete, RectifiedFlow, UserError, VarianceExploding, sample
from progdist.diffusion.analytic import Gaussian
from progdist.diffusion.integrators import ode_derivative
from progdist.diffusion.sampler import (
    MULTISTEP_SAMPLERS,
    SAMPLERS,
    ancestral,
    ddim_update,
    network_evaluations,
    overshoot,
    sampling_step,
    time_grid,
)
from progdist.diffusion.schedule import Schedule
from support.checks import measured_order
from support.paths import REFERENCE
from support.toys import OfficialDenoiser, label, times


@pytest.mark.parametrize("wrong", [0, 1])
@pytest.mark.parametrize("clip", [0, 1])
def test_ddim_makes_the_official_samples(wrong: int, clip: int) -> None:
    official = np.load(REFERENCE / "ddim.npz")
    noise = torch.from_numpy(official["init"]).double()
    keys = [key for key in official.files if f"_wrong{wrong}_clip{clip}_" in key]
    assert len(keys) >= 4
    for key in keys:
        ours = sample(OfficialDenoiser(wrong), noise, int(key.rsplit("_", 1)[1]), clip=bool(clip))
        torch.testing.assert_close(ours, torch.from_numpy(official[key]).double(), rtol=0, atol=5e-6)


ORDERS = {"ddim": 1, "euler": 1, "euler_log_snr": 1, "heun": 2, "rk4": 4, "dpmpp": 2}


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()], ids=label)
@pytest.mark.parametrize("method", ORDERS)
def test_integrators_are_of_their_order(schedule: Schedule, method: str) -> None:
    counts = [16, 32, 64, 128] if ORDERS[method] > 1 else [64, 128, 256, 512]
    assert measured_order(schedule, lambda: sampling_step(method), counts) == pytest.approx(ORDERS[method], abs=0.15)


TABLES = {"ends with signal": Discrete.linear(1e-3, 0.5, 10), "pure noise": Discrete.linear(1e-3, 0.5, 10).rescaled()}


@pytest.mark.parametrize("grid", ["steps begin at entries", "and between them"])
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("method", ["euler", "heun", "rk4"])
def test_integrators_are_of_their_order_on_a_table(method: str, table: str, grid: str) -> None:
    """The exact flow from t = 1 to 0.2 over the kinks of a coarse table, of which steps end at every one or at none."""
    counts = [24, 48, 96, 192] if grid.startswith("steps") else [17, 37, 77, 157]
    schedule, errors = TABLES[table], []
    gaussian = Gaussian(schedule, torch.full((1,), 0.3, dtype=torch.float64), 0.5)
    noise = torch.randn(16, 1, dtype=torch.float64)
    for count in counts:
        z, times = noise, 1 - torch.arange(count + 1, dtype=torch.float64) / count * 0.8
        for t, s in pairwise(times):
            z = SAMPLERS[method](schedule, gaussian, z, t, s, None)
        errors.append(float((z - gaussian.flow(noise, times[0], times[-1])).abs().max()))
    slope, _ = np.polyfit(np.log(counts), np.log(errors), 1)
    assert ORDERS[method] - 0.2 < -slope < ORDERS[method] + 0.5


@pytest.mark.parametrize("schedule", [*TABLES.values(), Cosine(), RectifiedFlow(3.0)], ids=label)
def test_rates_are_the_derivatives_by_the_smooth_time(schedule: Schedule) -> None:
    """By a central difference, also across a table's entries; and the smooth time has its way back."""
    t, h = times(0.15, 0.3, 0.5, 0.62, 0.9), 1e-6
    smooth = schedule.smooth_time(t)
    torch.testing.assert_close(schedule.from_smooth_time(smooth), t, rtol=0, atol=1e-14)
    ahead, behind = (schedule.scales(schedule.from_smooth_time(smooth + d)) for d in (h, -h))
    for rate, high, low in zip(schedule.rates(t), ahead, behind, strict=True):
        torch.testing.assert_close(rate, (high - low) / (2 * h), rtol=0, atol=1e-8)


@pytest.mark.parametrize("method", ORDERS)
def test_integrators_reach_the_data(method: str) -> None:
    """From noise at t = 1 with alpha near 0 to the data, they find the exact solution's Gaussian."""
    gaussian = Gaussian(Cosine(), torch.tensor(0.3).double(), 0.5)
    steps = 256 // (network_evaluations(2, method) - network_evaluations(1, method))
    images = sample(gaussian, torch.randn(20_000, 1, dtype=torch.float64), steps, method=method)
    assert float(images.mean()) == pytest.approx(0.3, abs=0.03)
    assert float(images.std()) == pytest.approx(0.5, abs=0.03)


def test_ddim_is_a_rotation_by_the_angle() -> None:
    """Appendix D: z_{phi - delta} = cos(delta) z_phi - sin(delta) v, equal to the DDIM step to rounding."""
    schedule, z, x = Cosine(), torch.randn(9, 3, dtype=torch.float64), torch.randn(9, 3, dtype=torch.float64)
    t = torch.linspace(0.2, 1, 9, dtype=torch.float64)
    s = t - 0.15
    delta = (schedule.angles(t)[0] - schedule.angles(s)[0])[:, None]
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    v = alpha * (z - alpha * x) / sigma - sigma * x
    torch.testing.assert_close(ddim_update(schedule, z, x, t, s), delta.cos() * z - delta.sin() * v, rtol=0, atol=1e-12)


def test_the_ode_is_the_papers_in_log_snr() -> None:
    """Appendix B: dz/dlambda = (alpha sigma^2 xh - sigma alpha^2 eps_h) / 2 for variance-preserving schedules."""
    schedule, gaussian = Cosine(), Gaussian(Cosine(), torch.tensor(0.3).double(), 0.5)
    z, t = torch.randn(9, 3, dtype=torch.float64), torch.linspace(0.1, 1, 9, dtype=torch.float64)
    slope, rate = ode_derivative(schedule, gaussian, z, t)
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    x = gaussian(z, t)
    eps = (z - alpha * x) / sigma
    expected = (alpha * sigma**2 * x - sigma * alpha**2 * eps) / 2
    torch.testing.assert_close(slope / rate[:, None], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_ancestral_draws_from_the_posterior(gamma: float) -> None:
    """Given x, the step's mean and variance are those of q(z_s | z_t, x), found by conditioning two Gaussians."""
    schedule, t, s, x, z = Cosine(), times(0.7)[0], times(0.5)[0], 0.4, 1.1
    draws = torch.full((400_000, 1), z, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    moved = ancestral(schedule, lambda z, t: torch.full_like(z, x), draws, t, s, generator, gamma=gamma)
    alpha_t, sigma_t, alpha_s, sigma_s = (float(f(u)) for u in (t, s) for f in (schedule.alpha, schedule.sigma))
    ratio = alpha_t / alpha_s
    covariance = ratio * sigma_s**2  # of z_t = ratio z_s + noise with z_s, both given x
    mean = alpha_s * x + covariance / sigma_t**2 * (z - alpha_t * x)
    lower = sigma_s**2 - covariance**2 / sigma_t**2
    upper = sigma_t**2 - ratio**2 * sigma_s**2
    assert float(moved.mean()) == pytest.approx(mean, abs=4e-3)
    assert float(moved.var()) == pytest.approx(lower ** (1 - gamma) * upper**gamma, rel=2e-2)


def test_ancestral_samples_the_data() -> None:
    """256 stochastic steps with the exact denoiser give the data's mean and width."""
    gaussian = Gaussian(Cosine(), torch.tensor(0.3), 0.5)
    images = sample(
        gaussian, torch.randn(20_000, 1), 256, method="ancestral", generator=torch.Generator().manual_seed(1)
    )
    assert float(images.mean()) == pytest.approx(0.3, abs=0.02)
    assert float(images.std()) == pytest.approx(0.5, abs=0.02)


def test_a_method_of_ones_own_and_its_randomness() -> None:
    gaussian, noise = Gaussian(Cosine(), torch.tensor(0.3), 0.5), torch.randn(4, 2)
    lower = partial(ancestral, gamma=0.0)
    drawn = [
        sample(gaussian, noise, 8, method=lower, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    ]
    torch.testing.assert_close(drawn[0], drawn[1], rtol=0, atol=0)
    assert not drawn[0].equal(drawn[2])


def test_one_step_returns_the_denoised_data() -> None:
    gaussian, noise = Gaussian(Cosine(), torch.tensor(0.3), 0.5), torch.randn(4, 2)
    torch.testing.assert_close(sample(gaussian, noise, 1), gaussian(noise, times(1.0)[0]))


def test_n_steps_are_n_evaluations() -> None:
    seen: list[float] = []

    class Counting(OfficialDenoiser):
        def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            seen.append(float(t))
            return super().__call__(z, t)

    sample(Counting(0), torch.randn(2, 2), 5)
    assert seen == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])
    assert time_grid(4).tolist() == [1, 0.75, 0.5, 0.25, 0]


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="takes 1 to"):
        sample(OfficialDenoiser(0), torch.randn(1, 1), 0)
    with pytest.raises(UserError, match="ddim, ancestral"):
        sample(OfficialDenoiser(0), torch.randn(1, 1), 1, method="dddim")


@pytest.mark.parametrize(("now", "then"), [(0.7, 0.5), (1.0, 0.75), (0.5, 0.25)])
def test_overshooting_draws_from_the_diffusion(now: float, then: float) -> None:
    """Given x and eps_h, z_q is known, and z_s has the mean and variance of the diffusion from q to s."""
    schedule, t, s, z, x = Cosine(), times(now)[0], times(then)[0], 1.1, 0.4
    draws = torch.full((400_000, 1), z, dtype=torch.float64)
    moved = overshoot(schedule, lambda z, t: torch.full_like(z, x), draws, t, s, torch.Generator().manual_seed(0))
    eps = (z - float(schedule.alpha(t)) * x) / float(schedule.sigma(t))
    q = 2 * then - now  # 0 in the last case: the data itself
    alpha_q, sigma_q = (float(schedule.alpha(times(q)[0])), float(schedule.sigma(times(q)[0]))) if q else (1.0, 0.0)
    ratio = float(schedule.alpha(s)) / alpha_q
    assert float(moved.mean()) == pytest.approx(ratio * (alpha_q * x + sigma_q * eps), abs=4e-3)
    assert float(moved.var()) == pytest.approx(float(schedule.sigma(s)) ** 2 - ratio**2 * sigma_q**2, rel=2e-2)


def test_overshooting_samples_the_data() -> None:
    gaussian = Gaussian(Cosine(), torch.tensor(0.3), 0.5)
    draw = torch.Generator().manual_seed(1)
    images = sample(gaussian, torch.randn(20_000, 1), 256, method="overshoot", generator=draw)
    assert float(images.mean()) == pytest.approx(0.3, abs=0.02)
    assert float(images.std()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("method", [*SAMPLERS, *MULTISTEP_SAMPLERS])
def test_network_evaluations_are_counted(method: str) -> None:
    calls: list[float] = []

    class Counting(Gaussian):
        def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            calls.append(float(t))
            return super().__call__(z, t)

    sample(Counting(Cosine(), torch.tensor(0.3), 0.5), torch.randn(2, 1), 5, method=method)
    assert len(calls) == network_evaluations(5, method)


def test_a_number_of_steps_that_would_fill_the_memory_is_refused() -> None:
    with pytest.raises(UserError, match="1,000,000"):
        sample(Gaussian(Cosine(), torch.tensor(0.0), 1.0), torch.randn(2, 2), 10**13)


def test_euler_in_log_snr_says_where_it_cannot_begin() -> None:
    exact = Gaussian(RectifiedFlow(), torch.tensor(0.0), 1.0)
    with pytest.raises(UserError, match="use ddim"):
        sample(exact, torch.randn(2, 2), 4, method="euler_log_snr")


DPM_SOLVERS: list[tuple[str, Schedule, dict[str, Any]]] = [
    ("v", Cosine(), {"prediction_type": "v_prediction"}),
    ("x", Cosine(), {"prediction_type": "sample"}),
    ("eps", Discrete.linear(num_train_timesteps=1000), {"prediction_type": "epsilon"}),
    ("v", Discrete.scaled_linear(), {"prediction_type": "v_prediction"}),
    ("velocity", RectifiedFlow(), {"prediction_type": "flow_prediction", "use_flow_sigmas": True}),
    ("velocity", RectifiedFlow(3.0), {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3}),
]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers
@pytest.mark.parametrize("steps", [3, 16])
@pytest.mark.parametrize(("output", "schedule", "settings"), DPM_SOLVERS, ids=lambda value: str(value)[:16])
def test_dpm_solver_is_that_of_diffusers(
    tiny_model: Callable[..., Denoiser], output: str, schedule: Schedule, settings: dict[str, Any], steps: int
) -> None:
    """DPMSolverMultistepScheduler on our grid: trailing, or of a flow the same times, which its own begin 1/T lower."""
    denoiser = tiny_model(schedule, output, num_train_timesteps=1000)
    noise, grid = torch.randn(3, 1, 8, 8), time_grid(steps)[:-1]
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    alpha_bar = schedule.alpha(t) ** 2
    betas = 1 - alpha_bar / torch.cat([torch.ones(1).double(), alpha_bar[:-1]])
    solver: Any = DPMSolverMultistepScheduler(trained_betas=betas.tolist(), timestep_spacing="trailing", **settings)
    solver.set_timesteps(steps)
    log_rho = schedule.rho(grid).log()
    sigmas = schedule.sigma(grid) if isinstance(schedule, RectifiedFlow) else (-log_rho).exp()
    solver.sigmas = torch.cat([sigmas, torch.zeros(1)]).float()
    solver.timesteps = denoiser.timestep(grid)
    images = noise
    with torch.no_grad():
        for timestep in solver.timesteps.float():
            images = solver.step(denoiser.output(images, timestep.expand(3)), timestep, images).prev_sample
    ours = sample(denoiser, noise, steps, method="dpmpp")
    scale = max(1.0, float(ours.abs().max()))
    torch.testing.assert_close(images / scale, ours / scale, rtol=0, atol=1e-5)


def test_dpm_solver_begins_anew_with_each_sampling() -> None:
    gaussian, noise = Gaussian(Cosine(), torch.tensor(0.3), 0.5), torch.randn(4, 2)
    first, second = (sample(gaussian, noise, 4, method="dpmpp") for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(sample(gaussian, noise, 2, method="dpmpp"), sample(gaussian, noise, 2))


@pytest.mark.parametrize("method", ["ddim", "dpmpp", "ancestral"])
def test_sampling_begins_at_the_noise_of_the_schedule(method: str) -> None:
    """Standard normal noise times sigma_1, once: samples of N(1, 0.5^2), and of its flow the very ones."""
    gaussian = Gaussian(VarianceExploding(), torch.tensor(1.0).double(), 0.5)
    noise = torch.randn(4000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made = sample(gaussian, noise, 256, method=method, generator=torch.Generator().manual_seed(1))
    assert abs(float(made.mean()) - 1) < 0.03
    assert abs(float(made.std()) - 0.5) < 0.02
    if method != "ancestral":
        torch.testing.assert_close(made, gaussian.flow(80 * noise, times(1)[0], times(0)[0]), rtol=0, atol=0.05)


@pytest.mark.parametrize("schedule", [Cosine(), Discrete.linear(), RectifiedFlow(), RectifiedFlow(3.0)], ids=label)
def test_stock_schedules_begin_with_standard_noise(schedule: Schedule) -> None:
    """As stock samplers do, whose `init_noise_sigma` is 1."""
    seen: list[Tensor] = []

    class First:
        def __init__(self) -> None:
            self.schedule = schedule

        def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            seen.append(z)
            return z

    noise = torch.randn(3, 2)
    sample(First(), noise, 2)
    assert torch.equal(seen[0], noise)


@pytest.mark.parametrize("steps", [0, -1, 2.0, "4", True, None])
def test_steps_are_a_whole_number(steps: Any) -> None:  # noqa: ANN401
    with pytest.raises(UserError, match=f"steps is {steps}"):
        sample(OfficialDenoiser(0), torch.zeros(2, 2), steps)
