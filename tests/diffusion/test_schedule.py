"""Schedules against their definitions, the official numbers and diffusers' own tables."""

import math

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler, rescale_zero_terminal_snr

from progdist import Cosine, Discrete, RectifiedFlow, UserError
from progdist.diffusion.schedule import Schedule, VariancePreserving
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
    with pytest.raises(UserError, match="fall"):
        Discrete(table)


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
