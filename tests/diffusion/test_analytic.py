"""The exact denoisers against integrals done another way."""

import pytest
import torch

from progdist import Cosine, RectifiedFlow
from progdist.diffusion.analytic import Gaussian, Mixture
from progdist.diffusion.schedule import Schedule
from support.toys import label, times


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()], ids=label)
def test_mixture_is_the_posterior_mean(schedule: Schedule) -> None:
    """E[x | z] by quadrature over x in one dimension."""
    means, weights, width = torch.tensor([[-1.0], [0.5]]).double(), torch.tensor([0.3, 0.7]).double(), 0.2
    mixture = Mixture(schedule, means, width, weights)
    x = torch.linspace(-4, 4, 20001, dtype=torch.float64)
    prior = (weights * torch.exp(-((x[:, None] - means.T) ** 2) / (2 * width**2))).sum(1)
    z = times(-1.3, 0.0, 0.9)
    t = times(0.3, 0.6, 0.9)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    joint = prior * torch.exp(-((z[:, None] - alpha[:, None] * x) ** 2) / (2 * sigma[:, None] ** 2))
    expected = (joint * x).sum(1) / joint.sum(1)
    torch.testing.assert_close(mixture(z[:, None], t).squeeze(1), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(mixture(z[:1, None], t[0]).squeeze(1), expected[:1], rtol=0, atol=1e-9)


def test_mixture_of_one_is_the_gaussian() -> None:
    mean = torch.tensor([[0.3, -0.2]]).double()
    z, t = torch.randn(5, 2, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    one = Mixture(Cosine(), mean, 0.5, torch.ones(1).double())
    torch.testing.assert_close(one(z, t), Gaussian(Cosine(), mean, 0.5)(z, t))


def test_draws_have_the_mixtures_moments() -> None:
    mixture = Mixture(Cosine(), torch.tensor([[-1.0, 0.0], [1.0, 2.0]]), 0.1, torch.tensor([0.25, 0.75]))
    x = mixture.draw(20000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.mean(0), torch.tensor([0.5, 1.5]), rtol=0, atol=0.03)
    torch.testing.assert_close(x.var(0), torch.tensor([0.76, 0.76]), rtol=0, atol=0.03)


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()], ids=label)
def test_the_flow_solves_the_probability_flow_ode(schedule: Schedule) -> None:
    """d(z / sigma) / d rho = xh along the exact flow, by a central difference."""
    gaussian = Gaussian(schedule, torch.tensor(0.3).double(), 0.5)
    z, t, h = torch.randn(4, 3, dtype=torch.float64), times(0.6)[0], 1e-5
    ahead, behind = (gaussian.flow(z, t, t + d) / schedule.sigma(t + d) for d in (h, -h))
    slope = (ahead - behind) / (schedule.rho(t + h) - schedule.rho(t - h))
    torch.testing.assert_close(slope, gaussian(z, t), rtol=0, atol=1e-8)
