"""The latents of a student's own samples, and what it learns there, against exact flows."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from candidates.backward import BACKWARD, MOST_STEPS, backward_loss, own_latents
from progdist import WEIGHTINGS, Cosine, RectifiedFlow, distillation_loss, distillation_target
from progdist.diffusion.analytic import Gaussian
from progdist.diffusion.loss import diffuse
from progdist.diffusion.sampler import sample
from progdist.diffusion.schedule import Schedule
from progdist.methods.chain import Stage
from support.checks import mixture
from support.jumps import Jumps
from support.toys import label, times

ENDS_IN_NOISE = Cosine(math.inf, -math.inf)
SNR = WEIGHTINGS["truncated_snr"]


class Seen:
    """A denoiser that keeps what it is asked."""

    schedule = ENDS_IN_NOISE

    def __init__(self, denoiser: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.denoiser, self.asked = denoiser, list[tuple[Tensor, Tensor]]()

    def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        self.asked.append((z, t))
        return self.denoiser(z, t)


def batch(count: int) -> tuple[Tensor, Tensor, Tensor]:
    x, eps = torch.randn(2, count, 2, dtype=torch.float64)
    return x, eps, (torch.arange(count, dtype=torch.float64) + 0.5) / count


@pytest.mark.parametrize("schedule", [ENDS_IN_NOISE, RectifiedFlow()], ids=label)
def test_own_latents_are_those_of_sampling(schedule: Schedule) -> None:
    """A student of exact steps comes to the exact flow of its noise, and one step more is its sample."""
    student = Jumps(Gaussian(schedule, torch.tensor(0.3).double(), 0.5), 4)
    eps, i = torch.randn(4, 3, dtype=torch.float64), times(4, 3, 2, 1)
    z = own_latents(student, eps, i, 4)
    torch.testing.assert_close(z, student.exact.flow(eps, torch.ones_like(i), i / 4), rtol=0, atol=1e-12)
    last = own_latents(student, eps, torch.ones_like(i), 4)
    torch.testing.assert_close(student(last, i * 0 + 0.25), sample(student, eps, 4), rtol=0, atol=1e-12)


def test_both_are_asked_where_the_student_comes_to_and_the_data_are_not_used() -> None:
    exact = mixture(ENDS_IN_NOISE)
    wrong, (x, eps, u) = Seen(lambda z, t: 0.5 * exact(z, t)), batch(16)
    teacher = Seen(exact)
    losses = backward_loss(wrong, teacher, x, eps, u, steps=4, substeps=3, weighting=SNR)
    i = 4 - (u * 4).floor()
    z = own_latents(wrong, eps, i, 4)
    for asked, t in (teacher.asked[0], wrong.asked[3]):
        assert torch.equal(asked, z)
        assert torch.equal(t, i / 4)
    other = backward_loss(wrong, teacher, x + 1, eps, u, steps=4, substeps=3, weighting=SNR)
    assert torch.equal(losses, other)


def test_a_student_that_is_the_target_has_no_loss_and_its_latents_carry_no_gradient() -> None:
    teacher, (x, eps, u) = mixture(Cosine()), batch(32)

    class Scaled:
        """The target times a number that is learned."""

        schedule, scale = Cosine(), torch.ones((), dtype=torch.float64, requires_grad=True)

        def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            self.target, self.asked = distillation_target(teacher, z, t, t - 1 / 4, substeps=3), z
            return self.scale * self.target

    student, options = Scaled(), {"steps": 4, "substeps": 3, "weighting": SNR}
    assert float(backward_loss(student, teacher, x, eps, u, **options).detach().max()) < 1e-20
    assert not student.asked.requires_grad
    student.scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    loss = backward_loss(student, teacher, x, eps, u, **options)
    loss.sum().backward()
    # w mean |(a - 1) x_target|^2, whose derivative by a is 2 / (a - 1) of it, the latents held fixed
    assert student.scale.grad is not None
    assert float(student.scale.grad) == pytest.approx(2 / 0.5 * float(loss.detach().sum()), rel=1e-9)


def test_students_of_one_step_and_of_many_learn_as_progressive_ones() -> None:
    """Of one there are no steps before it; of more than MOST_STEPS the data are seen."""
    teacher, (x, eps, u) = mixture(ENDS_IN_NOISE), batch(24)
    for steps in (1, 2 * MOST_STEPS):
        options = {"steps": steps, "substeps": 2, "weighting": SNR}
        own = backward_loss(teacher, teacher, x, eps, u, **options)
        expected = distillation_loss(teacher, teacher, x, eps, u, **options)
        torch.testing.assert_close(own, expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(own_latents(teacher, eps, torch.ones_like(u), 1), diffuse(ENDS_IN_NOISE, x * 0, eps, u * 0 + 1))


@pytest.mark.parametrize(("steps", "substeps"), [(16, 16), (4, 4), (2, 2), (1, 2)])
def test_its_evaluations_are_those_that_are_made(steps: int, substeps: int) -> None:
    teacher, student = (Seen(mixture(ENDS_IN_NOISE)) for _ in range(2))
    x, eps, u = batch(16)
    backward_loss(student, teacher, x, eps, u, steps=steps, substeps=substeps, weighting=SNR)
    made = len(teacher.asked) + len(student.asked) - 1  # but for the one that is learned from
    assert BACKWARD.evaluations(Stage(steps, substeps)) == made
