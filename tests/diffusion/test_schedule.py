"""Schedules against their definitions, the official numbers and diffusers' own tables."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler, rescale_zero_terminal_snr
from torch import Tensor

from progdist import Cosine, Discrete, Karras, RectifiedFlow, UserError, VarianceExploding
from progdist.diffusion.schedule import Schedule, VariancePreserving
from progdist.diffusion.schedule import check_schedule as check_schedule_is_one
from support.checks import check_schedule
from support.paths import REFERENCE
from support.toys import label, times

ALL = [Cosine(), Cosine(math.inf, -math.inf), Discrete.linear(), Discrete.scaled_linear(), RectifiedFlow()]


def test_cosine_is_the_official_schedule() -> None:
    official = np.load(REFERENCE / "schedule.npz")
    ours = Cosine().log_snr(torch.from_numpy(official["t"]).double())
    # their float32 tangent of angles near pi/2 keeps about five digits
    torch.testing.assert_close(ours, torch.from_numpy(official["logsnr"]).double(), rtol=0, atol=2e-3)
    middle = slice(10, 991)
    torch.testing.assert_close(ours[middle].float(), torch.from_numpy(official["logsnr"])[middle], rtol=0, atol=1e-5)


@pytest.mark.parametrize("schedule", ALL, ids=label)
def test_rho_falls_and_the_definitions_agree(schedule: Schedule) -> None:
    t = torch.linspace(0, 1, 2049, dtype=torch.float64)[1:-1]
    check_schedule(schedule)
    if isinstance(schedule, VariancePreserving):
        torch.testing.assert_close(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones_like(t))
    else:
        torch.testing.assert_close(schedule.alpha(t) + schedule.sigma(t), torch.ones_like(t))


@pytest.mark.parametrize("schedule", [Cosine(math.inf, -math.inf), RectifiedFlow()], ids=label)
def test_endpoints_are_exact(schedule: Schedule) -> None:
    assert schedule.alpha(times(0, 1)).tolist() == [1, 0]
    assert schedule.sigma(times(0, 1)).tolist() == [0, 1]
    assert schedule.rho(times(0, 1)).tolist() == [math.inf, 0]
    assert schedule.log_snr(times(0, 1)).tolist() == [math.inf, -math.inf]


def test_cosine_keeps_its_digits_at_the_end() -> None:
    """rho_1 = exp(-lambda_max / 2), though alpha_1 is 4.5e-5 and cos(phi) would cancel."""
    assert float(Cosine().rho(times(1.0))) == pytest.approx(math.exp(-10), rel=1e-14)
    assert float(Cosine().rho(times(0.0))) == pytest.approx(math.exp(10), rel=1e-14)


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear"])
def test_discrete_is_the_table_of_diffusers(beta_schedule: str) -> None:
    ours = {"linear": Discrete.linear(), "scaled_linear": Discrete.scaled_linear(1e-4, 0.02)}[beta_schedule]
    table = DDIMScheduler(num_train_timesteps=1000, beta_schedule=beta_schedule).alphas_cumprod.double()
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(ours.alpha(t) ** 2, table, rtol=2e-5, atol=0)


def test_discrete_reaches_zero_snr_exactly() -> None:
    schedule = Discrete((0.9, 0.4, 0.0))
    assert float(schedule.alpha(times(1.0))) == 0
    assert float(schedule.alpha(times(0.0))) == 1
    assert schedule.alpha(times(1 / 3, 2 / 3)).tolist() == pytest.approx([0.9**0.5, 0.4**0.5])


@pytest.mark.parametrize("table", [(), (0.5, 0.6), (1.0, 0.5), (0.5, -0.1)])
def test_a_table_that_is_no_schedule_is_refused(table: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="fall from below 1"):
        Discrete(table)


TABLE = np.linspace(0.99, 0.01, 100)


@pytest.mark.parametrize("form", [tuple, list, np.asarray, torch.from_numpy, np.float32])
def test_a_table_is_taken_in_any_form(form: Callable[[Any], Any]) -> None:
    given = form(TABLE)
    schedule = Discrete(given)
    assert isinstance(schedule.alphas_cumprod, tuple)
    np.testing.assert_array_equal(schedule.alphas_cumprod, np.asarray(given, dtype=np.float64))
    assert schedule == Discrete(schedule.alphas_cumprod)
    assert hash(schedule) == hash(Discrete(schedule.alphas_cumprod))


@pytest.mark.parametrize("form", [list, np.asarray, torch.from_numpy])
def test_betas_are_taken_in_any_form(form: Callable[[Any], Any]) -> None:
    betas = np.linspace(1e-4, 0.02, 1000)
    expected = DDIMScheduler(trained_betas=betas.tolist()).alphas_cumprod.double()
    ours = torch.tensor(Discrete.from_betas(form(betas)).alphas_cumprod, dtype=torch.float64)
    torch.testing.assert_close(ours, expected, rtol=2e-5, atol=0)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (TABLE[::-1].copy(), "has 0.019899 at 1 after 0.01, expected numbers that fall .* Discrete.from_betas"),
        ((1.0, 0.5), "starts with 1, .* drop the first one"),
        ((0.9, 0.5, 1e-8, 1e-8), "has 1e-08 at 3 after 1e-08"),
        ((0.9, math.nan), "has nan at 1"),
        ((), "is empty"),
        ("linear", "is a str, expected numbers"),
        (np.ones((2, 2)), r"is \(2, 2\), expected one number per timestep"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(table: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(UserError, match=message):
        Discrete(table)


@pytest.mark.parametrize(("most", "least"), [(-20.0, 20.0), (20.0, 20.0), (math.nan, 1.0), ("20", -20.0)])
def test_bounds_that_are_swapped_or_equal_are_refused(most: Any, least: float) -> None:  # noqa: ANN401
    with pytest.raises(UserError, match=f"log_snr_max={most} and log_snr_min={least}"):
        Cosine(most, least)


class Line(Schedule):
    """Alpha and sigma linear in t, or in 1 - t, in float32."""

    def __init__(self, reverse: bool) -> None:
        self.reverse = reverse

    def alpha(self, t: Tensor) -> Tensor:
        return (t if self.reverse else 1 - t).float()

    def sigma(self, t: Tensor) -> Tensor:
        return (1 - t if self.reverse else t).float()


def test_a_schedule_of_ones_own_runs_from_data_to_noise() -> None:
    check_schedule_is_one(Line(reverse=False))
    assert Line(reverse=False).rho(times(0.5)).dtype == torch.float64
    with pytest.raises(UserError, match="signal-to-noise ratio of Line does not fall as t grows"):
        check_schedule_is_one(Line(reverse=True))


def test_variance_explodes_as_in_edm() -> None:
    """Equation 5 of Karras et al. at t = 1 - i / (N - 1)."""
    schedule, i = VarianceExploding(), np.arange(18)
    theirs = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    t = torch.from_numpy(1 - i / 17)
    np.testing.assert_allclose(schedule.sigma(t).numpy(), theirs, rtol=1e-12)
    assert (schedule.alpha(t) == 1).all()
    check_schedule(schedule)
    assert torch.equal(schedule.network_time(t), schedule.sigma(t))
    assert schedule.noise_scale() == pytest.approx(80, rel=1e-14)
    for bounds in ((80, 0.002), (0, 80), (1, 1), (0.002, math.inf), ("0.002", 80)):
        with pytest.raises(UserError, match="expected positive numbers sigma_min < sigma_max, and power > 0"):
            VarianceExploding(*bounds)


@pytest.mark.parametrize("power", [1.0, 3.0, 7.0, math.inf])
@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 3.0])
def test_karras_is_the_same_noise_in_latents_of_one_deviation(power: float, sigma_data: float) -> None:
    """z / alpha = y + s eps with the s of variance that explodes, and alpha^2 + (sigma / d)^2 = 1."""
    schedule, t = Karras(power=power, sigma_data=sigma_data), torch.linspace(0, 1, 65, dtype=torch.float64)
    level = VarianceExploding(power=power).sigma(t)
    alpha, sigma = schedule.scales(t)
    torch.testing.assert_close(sigma / alpha, level, rtol=1e-13, atol=0)
    torch.testing.assert_close(alpha**2 + (sigma / sigma_data) ** 2, torch.ones_like(t), rtol=0, atol=1e-14)
    torch.testing.assert_close(schedule.rho(t), VarianceExploding(power=power).rho(t), rtol=1e-13, atol=0)
    assert torch.equal(schedule.alpha(t), alpha)
    assert torch.equal(schedule.sigma(t), sigma)
    assert [float(end) for end in schedule.level(times(0, 1))] == pytest.approx([0.002, 80], rel=1e-13)
    check_schedule(schedule)


def test_a_power_without_end_is_the_logarithm() -> None:
    t = torch.linspace(0, 1, 65, dtype=torch.float64)
    geometric = torch.logspace(math.log10(0.01), math.log10(1348), 65, dtype=torch.float64)
    torch.testing.assert_close(VarianceExploding(0.01, 1348.0, math.inf).sigma(t), geometric, rtol=1e-13, atol=0)
    torch.testing.assert_close(
        VarianceExploding(0.01, 1348.0, 1e5).sigma(t), geometric, rtol=2e-4, atol=0
    )  # the limit of high powers


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 3.0])
def test_the_angle_runs_evenly(sigma_data: float) -> None:
    """Of deviation 1 it is the cosine schedule between the same signal-to-noise ratios."""
    schedule, t = Karras(sigma_data=sigma_data, spacing="angle"), torch.linspace(0, 1, 65, dtype=torch.float64)
    phi = torch.atan2(schedule.sigma(t) / sigma_data, schedule.alpha(t))
    torch.testing.assert_close(phi.diff(), ((phi[-1] - phi[0]) / 64).expand(64), rtol=0, atol=1e-14)
    assert [float(end) for end in schedule.level(times(0, 1))] == pytest.approx([0.002, 80], rel=1e-13)
    unit = Cosine(-2 * math.log(0.002 / sigma_data), -2 * math.log(80 / sigma_data))
    torch.testing.assert_close(schedule.alpha(t), unit.alpha(t), rtol=1e-12, atol=0)
    torch.testing.assert_close(schedule.sigma(t), sigma_data * unit.sigma(t), rtol=1e-12, atol=0)
    check_schedule(schedule)


def test_what_a_network_of_edm_receives() -> None:
    """c_noise of Karras et al., table 1, and of Stable Audio; latents over the deviation, of data over it."""
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    for spacing in ("power", "angle"):
        schedule = Karras(sigma_data=0.7, spacing=spacing)
        torch.testing.assert_close(schedule.network_time(t), schedule.level(t).log() / 4)
        assert schedule.data_scale == 0.7
        alpha, sigma = schedule.unit_scales(t)
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t))
    audio = Karras(0.3, 500.0, math.inf, 1.0, c_noise="atan")
    torch.testing.assert_close(audio.network_time(t), torch.atan2(audio.sigma(t), audio.alpha(t)) * 2 / math.pi)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sigma_min": 0}, "expected positive numbers sigma_min < sigma_max, and power > 0"),
        ({"power": 0}, "expected positive numbers sigma_min < sigma_max, and power > 0"),
        ({"sigma_max": math.inf}, "expected positive numbers sigma_min < sigma_max, and power > 0"),
        ({"sigma_data": 0}, "sigma_data is 0, expected the standard deviation"),
        ({"sigma_data": "1"}, "sigma_data is 1"),
        ({"spacing": "cosine"}, "spacing is 'cosine', expected one of power, angle"),
        ({"c_noise": "sigma"}, "c_noise is 'sigma', expected one of log, atan"),
    ],
)
def test_a_noise_that_is_not_edms_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Karras(**fields)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_a_shifted_flow_is_the_flow_at_other_times(shift: float) -> None:
    shifted, plain = RectifiedFlow(shift), RectifiedFlow()
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    sigma = shift * t / (1 + (shift - 1) * t)
    torch.testing.assert_close(shifted.sigma(t), plain.sigma(sigma))
    torch.testing.assert_close(shifted.alpha(t), plain.alpha(sigma))
    torch.testing.assert_close(shifted.network_time(t), sigma)
    assert (float(shifted.alpha(t[-1])), float(shifted.sigma(t[0]))) == (0, 0)


def test_a_shift_is_positive() -> None:
    with pytest.raises(UserError, match="positive"):
        RectifiedFlow(0.0)


def test_rescaling_is_the_published_one() -> None:
    ours = torch.tensor(Discrete.linear().rescaled().alphas_cumprod, dtype=torch.float64)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    theirs = (1 - rescale_zero_terminal_snr(betas)).cumprod(0)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert ours[-1] == 0


def test_the_time_of_an_angle_inverts_it() -> None:
    schedule, t = Discrete.linear(), torch.rand(500, dtype=torch.float64)
    torch.testing.assert_close(schedule.time(schedule.angles(t)[0]), t, rtol=0, atol=1e-12)
    assert float(schedule.time(torch.tensor([1.5707963267948966], dtype=torch.float64))) == 1
