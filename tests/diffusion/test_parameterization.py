"""Every parameterization's way there and back, at both endpoints, and against its definition in the paper."""

import math

import pytest
import torch

from progdist import PARAMETERIZATIONS, Cosine, RectifiedFlow
from progdist.diffusion.schedule import Schedule
from support.checks import check_round_trip
from support.toys import label, times

EXACT = Cosine(math.inf, -math.inf)


PAIRS = [
    (schedule, name)
    for schedule in (Cosine(), EXACT, RectifiedFlow())
    for name in PARAMETERIZATIONS
    if name != "eps" or schedule == Cosine()
]


@pytest.mark.parametrize(("schedule", "name"), PAIRS, ids=label)
def test_round_trip_at_all_times(schedule: Schedule, name: str) -> None:
    check_round_trip(schedule, PARAMETERIZATIONS[name])


@pytest.mark.parametrize("name", ["x", "v", "x_eps", "eps"])
def test_finite_in_float32_at_the_papers_endpoints(name: str) -> None:
    t = times(0, 1)
    alpha, sigma = Cosine().alpha(t), Cosine().sigma(t)
    z, output = torch.randn(2, 1, 4, 4), torch.randn(2, PARAMETERIZATIONS[name].heads, 4, 4)
    assert PARAMETERIZATIONS[name].denoise(output, z, alpha, sigma).isfinite().all()


def test_v_is_the_angular_velocity() -> None:
    """v = dz/dphi, by a central difference of z_phi = cos(phi) x + sin(phi) eps."""
    x, eps, phi, step = torch.randn(3, 3), torch.randn(3, 3), torch.tensor(0.7, dtype=torch.float64), 1e-5
    x, eps = x.double(), eps.double()
    moved = [torch.cos(phi + h) * x + torch.sin(phi + h) * eps for h in (step, -step)]
    velocity = (moved[0] - moved[1]) / (2 * step)
    torch.testing.assert_close(PARAMETERIZATIONS["v"].output(x, eps, phi.cos(), phi.sin()), velocity, rtol=0, atol=1e-9)


def test_two_heads_weigh_what_each_knows() -> None:
    """At t = 1 the x head alone counts, at t = 0 the latent does; between, both do."""
    z, output = torch.randn(3, 1, 2, 2, dtype=torch.float64), torch.randn(3, 2, 2, 2, dtype=torch.float64)
    t = times(0, 0.3, 1)
    x = PARAMETERIZATIONS["x_eps"].denoise(output, z, EXACT.alpha(t), EXACT.sigma(t))
    alpha, sigma = (float(scale(t)[1]) for scale in (EXACT.alpha, EXACT.sigma))
    torch.testing.assert_close(x[0], z[0])
    torch.testing.assert_close(x[1], sigma**2 * output[1, :1] + alpha * (z[1] - sigma * output[1, 1:]))
    torch.testing.assert_close(x[2], output[2, :1])
