"""Times that count alike: the gradient of the learned weighting at its minimum, and students that are exact."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from progdist import Cosine, Denoiser, UserError, distill, distillation_loss, distillation_target
from progdist.diffusion.analytic import Mixture
from progdist.diffusion.schedule import Schedule
from progdist.methods.balanced import balanced, balanced_loss
from support.checks import mixture
from support.toys import times


def test_every_time_counts_alike_with_the_gradient_of_the_logarithm() -> None:
    """The values are the errors; the gradient is that of the sum of B_t log E[e | t], whatever their size."""
    error = times(1, 100, 3, 300, 800).requires_grad_()
    t = times(0, 1, 0, 1, 1)
    found = balanced(error, t)
    assert torch.equal(found.detach(), error.detach())
    found.sum().backward()
    other = error.detach().requires_grad_()
    (2 * other[t == 0].mean().log() + 3 * other[t == 1].mean().log()).backward()
    torch.testing.assert_close(error.grad, other.grad)


def test_the_minimum_of_the_learned_weighting_is_the_logarithm() -> None:
    """exp(-a) E[e] + a is least at a = log E[e], where it is 1 + log E[e], and weighs e as `balanced` does."""
    error, a = times(0.2, 0.6).requires_grad_(), torch.linspace(-3, 1, 4001, dtype=torch.float64)
    mean = error.detach().mean()
    learned = (-a).exp() * mean + a
    assert abs(float(a[learned.argmin()] - mean.log())) < 1e-3
    assert abs(float(learned.min() - 1 - mean.log())) < 1e-6
    balanced(error, torch.zeros(2)).sum().backward()
    torch.testing.assert_close(error.grad, (-mean.log()).exp().expand(2))


def batch(count: int) -> tuple[Tensor, Tensor, Tensor]:
    x, eps = torch.randn(2, count, 2, dtype=torch.float64)
    return x, eps, (torch.arange(count, dtype=torch.float64) + 0.5) / count


@dataclass
class Scaled:
    """A teacher's predictions times a number for each example."""

    teacher: Mixture
    scale: Tensor

    @property
    def schedule(self) -> Schedule:
        return self.teacher.schedule

    def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.scale[:, None] * self.teacher(z, t)


def test_the_loss_is_progressive_distillations_and_its_gradient_over_the_mean_at_each_time() -> None:
    """Under any weighting: the value is the weighted one's, and the gradient the same."""
    teacher, (x, eps, u) = mixture(Cosine()), batch(32)
    options: dict[str, Any] = {"steps": 4, "substeps": 3}
    place, gradients = (u * 4).floor(), []
    for weighting in ("constant", "snr_plus_one"):
        found, plain = (torch.full((32,), 0.5, dtype=torch.float64, requires_grad=True) for _ in range(2))
        error = distillation_loss(Scaled(teacher, plain), teacher, x, eps, u, **options, weighting=weighting)
        loss = balanced_loss(Scaled(teacher, found), teacher, x, eps, u, **options, weighting=weighting)
        assert torch.equal(loss.detach(), error.detach())
        loss.sum().backward()
        error.sum().backward()
        assert found.grad is not None and plain.grad is not None
        for time in range(4):
            rows = place == time
            torch.testing.assert_close(found.grad[rows], plain.grad[rows] / error.detach()[rows].mean())
        gradients.append(found.grad)
    torch.testing.assert_close(*gradients)


def test_a_student_that_is_the_target_has_no_loss() -> None:
    teacher, (x, eps, u) = mixture(Cosine()), batch(32)

    class Perfect:
        schedule = Cosine()

        def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            return distillation_target(teacher, z, t, t - 1 / 4, substeps=3)

    loss = balanced_loss(Perfect(), teacher, x, eps, u, steps=4, substeps=3, weighting="constant")
    assert loss.tolist() == [0.0] * 32


def test_a_weighting_without_effect_is_refused() -> None:
    network = torch.nn.Linear(2, 2)
    teacher = Denoiser(network, Cosine(), "v", call=lambda network, z, timestep: network(z))
    with pytest.raises(UserError, match="weighting has no effect on students of method balanced: remove it"):
        distill(teacher, torch.randn(8, 2), [2, 1], method="balanced", weighting="snr_plus_one", updates=1, batch=4)
