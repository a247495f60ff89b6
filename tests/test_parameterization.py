"""Every parameterisation's way there and back, at both endpoints, and against its paper definition."""

import math

import pytest
import torch

from conftest import name, times
from progdist import PARAMETERIZATIONS, Cosine, Denoiser, RectifiedFlow, UserError
from progdist.diffusion.schedule import Schedule

EXACT = Cosine(math.inf, -math.inf)
PAIRS = [
    (schedule, kind)
    for schedule in (Cosine(), EXACT, RectifiedFlow())
    for kind in PARAMETERIZATIONS
    if kind != "eps" or schedule == Cosine()
]


@pytest.mark.parametrize(("schedule", "kind"), PAIRS, ids=name)
def test_round_trip_at_all_times(schedule: Schedule, kind: str) -> None:
    """A perfect network's output denoises to x at every t, 0 and 1 among them."""
    t = torch.linspace(0, 1, 129, dtype=torch.float64)
    x, eps = torch.randn(2, 129, 2, 3, 3, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    z = alpha[:, None, None, None] * x + sigma[:, None, None, None] * eps
    parameterization = PARAMETERIZATIONS[kind]
    output = parameterization.output(x, eps, alpha, sigma)
    assert output.shape[1] == parameterization.heads * x.shape[1]
    torch.testing.assert_close(parameterization.denoise(output, z, alpha, sigma), x, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", ["x", "v", "x_eps", "eps"])
def test_finite_in_float32_at_the_papers_endpoints(kind: str) -> None:
    t = times(0, 1)
    alpha, sigma = Cosine().alpha(t), Cosine().sigma(t)
    z, output = torch.randn(2, 1, 4, 4), torch.randn(2, PARAMETERIZATIONS[kind].heads, 4, 4)
    assert PARAMETERIZATIONS[kind].denoise(output, z, alpha, sigma).isfinite().all()


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


def test_eps_is_refused_where_noise_tells_nothing() -> None:
    for schedule in (EXACT, RectifiedFlow()):
        with pytest.raises(UserError, match="use v or x"):
            Denoiser(torch.nn.Identity(), schedule, PARAMETERIZATIONS["eps"])


def test_the_network_sees_its_timestep_and_condition() -> None:
    class Spy(torch.nn.Module):
        def forward(self, z: torch.Tensor, timestep: torch.Tensor, mark: torch.Tensor) -> torch.Tensor:
            self.seen = timestep, mark
            return z

    spy, mark = Spy(), torch.ones(2)
    for schedule, expected in ((Cosine(), [511, 1023]), (RectifiedFlow(), [512, 1024])):
        Denoiser(spy, schedule, PARAMETERIZATIONS["x"])(torch.zeros(2, 1, 1, 1), times(0.5, 1), mark=mark)
        assert spy.seen[0].tolist() == expected
        assert spy.seen[1] is mark
    Denoiser(spy, Cosine(), PARAMETERIZATIONS["x"], timesteps=1000)(torch.zeros(2, 1, 1, 1), times(1)[0], mark=mark)
    assert spy.seen[0].tolist() == [999, 999]
