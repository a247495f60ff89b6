"""The exact denoisers against integrals done another way."""

import math

import pytest
import torch

from progdist import Cosine, Karras, RectifiedFlow, distillation_target
from progdist.diffusion.analytic import Gaussian, Mixture
from progdist.diffusion.sampler import ddim, ddim_update
from progdist.diffusion.schedule import Schedule
from support.toys import label, times

EDM = [Karras(sigma_data=0.7), Karras(sigma_data=0.7, spacing="angle"), Karras(sigma_data=2.0, power=math.inf)]


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow(), *EDM], ids=label)
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


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow(), *EDM], ids=label)
def test_the_flow_solves_the_probability_flow_ode(schedule: Schedule) -> None:
    """d(z / sigma) / d rho = xh along the exact flow, by a central difference."""
    gaussian = Gaussian(schedule, torch.tensor(0.3).double(), 0.5)
    z, t, h = torch.randn(4, 3, dtype=torch.float64), times(0.6)[0], 1e-5
    ahead, behind = (gaussian.flow(z, t, t + d) / schedule.sigma(t + d) for d in (h, -h))
    slope = (ahead - behind) / (schedule.rho(t + h) - schedule.rho(t - h))
    torch.testing.assert_close(slope, gaussian(z, t), rtol=0, atol=1e-8)


@pytest.mark.parametrize("schedule", EDM, ids=label)
def test_of_data_of_its_deviation_an_edm_has_nothing_to_learn(schedule: Karras) -> None:
    """F of N(0, d^2) is 0: latents have the deviation of the data at every time, so that the flow leaves them alone."""
    exact = Gaussian(schedule, torch.tensor(0.0).double(), schedule.sigma_data)
    z, t = torch.randn(9, 2, dtype=torch.float64), torch.linspace(0, 1, 9, dtype=torch.float64)
    torch.testing.assert_close(exact(z, t), schedule.alpha(t)[:, None] * z, rtol=0, atol=1e-14)
    torch.testing.assert_close(exact.flow(z, t, t.flip(0)), z, rtol=0, atol=1e-14)


@pytest.mark.parametrize("schedule", EDM, ids=label)
@pytest.mark.parametrize("substeps", [2, 5])
def test_one_step_of_an_edm_student_is_its_teachers(schedule: Karras, substeps: int) -> None:
    """In float64 to 1e-12; and x = z / alpha goes the way that Karras et al. write, dx / ds = (x - D(x; s)) / s."""
    gaussian, t, s = Gaussian(schedule, times(0.3)[0], 0.5), times(0.75)[0], times(0.5)[0]
    z = torch.randn(8, 3, dtype=torch.float64)
    moved, x = z, z / schedule.alpha(t)
    for part in range(substeps):
        now, then = (t + (s - t) * place / substeps for place in (part, part + 1))
        moved = ddim(schedule, gaussian, moved, now, then, None)
        level, lower = schedule.level(now), schedule.level(then)
        denoised = (level**2 * 0.3 + 0.25 * x) / (level**2 + 0.25)
        x = x + (lower - level) * (x - denoised) / level
    torch.testing.assert_close(schedule.alpha(s) * x, moved, rtol=0, atol=1e-12)
    target = distillation_target(gaussian, z, t, s, substeps=substeps)
    torch.testing.assert_close(ddim_update(schedule, z, target, t, s), moved, rtol=0, atol=1e-12)
