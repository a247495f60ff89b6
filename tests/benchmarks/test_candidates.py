"""The methods that were tried, against exact flows, solver steps and minimisers known in closed form."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from candidates.distances import pseudo_huber
from candidates.moment_matching import Drawn, auxiliary_loss, drawn, matching_loss
from candidates.multistep_consistency import MULTISTEP_CONSISTENCY, adjusted_target, annealed, multistep_loss
from candidates.repeated_targets import DELAY, REPEATED, TwiceLearned
from candidates.solver_teacher import solver_loss, solver_target
from progdist import WEIGHTINGS, Cosine, RectifiedFlow, distillation_target
from progdist.diffusion.analytic import Gaussian
from progdist.diffusion.sampler import DPMSolverPP, ddim_update
from progdist.diffusion.schedule import Schedule
from progdist.methods.chain import Stage
from progdist.methods.transitive import transitive_target
from support.checks import mixture
from support.jumps import Jumps
from support.toys import label, times

SNR = WEIGHTINGS["truncated_snr"]
ENDS_IN_NOISE = Cosine(math.inf, -math.inf)


def gaussian(schedule: Schedule) -> Gaussian:
    return Gaussian(schedule, torch.tensor(0.3).double(), 0.5)


def batch(count: int) -> tuple[Tensor, Tensor, Tensor]:
    x, eps = torch.randn(2, count, 2, dtype=torch.float64)
    return x, eps, (torch.arange(count, dtype=torch.float64) + 0.5) / count


@pytest.mark.parametrize("schedule", [ENDS_IN_NOISE, RectifiedFlow()], ids=label)
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_exact_multistep_consistency_has_no_loss(schedule: Schedule, steps: int) -> None:
    """Exact steps of the teacher, not adjusted, and exact jumps of the student to the end of its segment."""
    exact, (x, eps, u) = gaussian(schedule), batch(48)
    student, teacher = Jumps(exact, steps), Jumps(exact, 6 * steps)
    options = {"self_teacher": student, "steps": steps, "substeps": 6, "weighting": SNR}
    assert float(multistep_loss(student, teacher, x, eps, u, **options, eta=0).max()) < 1e-20
    assert float(multistep_loss(exact, teacher, x, eps, u, **options, eta=0).max()) > 1e-6


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()], ids=label)
def test_the_adjusted_target_is_tracts_where_nothing_is_adjusted(schedule: Schedule) -> None:
    teacher, other = mixture(schedule), gaussian(schedule)
    t, m, s = times(0.25, 0.5, 0.75, 1.0), times(0.0, 0.25, 0.5, 0.75), times(0.0, 0.0, 0.5, 0.5)
    x, z = torch.randn(2, 4, 2, dtype=torch.float64)
    expected = transitive_target(teacher, other, z, t, m, s)
    torch.testing.assert_close(adjusted_target(teacher, other, x, z, (t, m, s), 0.0), expected, rtol=0, atol=1e-12)


def test_an_adjusted_step_adds_the_variance_of_what_is_not_known() -> None:
    """|eps_h|^2 of DDIM's end rises by D (alpha_m - alpha_t sigma_m / sigma_t)^2 eta mean |x - xh|^2 / sigma_m^2."""
    schedule, eta = Cosine(), 0.75
    t, m = times(0.75, 0.5), times(0.5, 0.25)
    x, z = torch.randn(2, 2, 5, dtype=torch.float64)
    exact = gaussian(schedule)
    landed = ddim_update(schedule, z, adjusted_target(exact, exact, x, z, (t, m, m), eta), t, m)
    (alpha_t, sigma_t), (alpha_m, sigma_m) = ([each[:, None] for each in schedule.scales(time)] for time in (t, m))
    x_hat = exact(z, t)
    step = (alpha_m - alpha_t * sigma_m / sigma_t)[:, 0]
    before = sigma_m[:, 0] ** 2 * ((z - alpha_t * x_hat) / sigma_t).square().sum(1)
    after = (landed - alpha_m * x_hat).square().sum(1)
    torch.testing.assert_close(after - before, step**2 * eta * (x - x_hat).square().sum(1), rtol=1e-12, atol=0)


def test_the_teachers_steps_grow_shorter() -> None:
    assert [annealed(8, 64, progress) for progress in (0, 1 / 3, 2 / 3, 1, 2)] == [8, 16, 32, 64, 64]
    seen: list[Tensor] = []

    class Spy:
        schedule = Cosine()

        def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            seen.append(t)
            return z

    x, eps, u = batch(256)
    loss = MULTISTEP_CONSISTENCY.stage_loss(gaussian(Cosine()), Stage(2, 64), SNR)
    loss(Spy(), x=x, eps=eps, u=u, self_teacher=gaussian(Cosine()))
    assert seen[0].unique().tolist() == [j / 16 for j in range(1, 17)]


@pytest.mark.parametrize("schedule", [Cosine(), ENDS_IN_NOISE, RectifiedFlow()], ids=label)
@pytest.mark.parametrize("substeps", [1, 2, 3, 8])
def test_the_solvers_target_lands_where_its_steps_land(schedule: Schedule, substeps: int) -> None:
    teacher, steps = mixture(schedule), 4
    for place in range(1, steps + 1):
        z = torch.randn(3, 2, dtype=torch.float64)
        t, s = (times(*[each / steps] * 3) for each in (place, place - 1))
        grid = [t * (1 - j / substeps) + s * (j / substeps) for j in range(substeps + 1)]
        solver, moved = DPMSolverPP(), z
        for now, then in pairwise(grid):
            moved = solver(schedule, teacher, moved, now, then, None)
        landed = ddim_update(schedule, z, solver_target(teacher, z, t, s, substeps=substeps), t, s)
        torch.testing.assert_close(landed, moved, rtol=0, atol=1e-12)


def test_the_solvers_target_is_of_second_order() -> None:
    """Twice as many steps of the teacher: a quarter of the distance to the exact flow, and a half with DDIM."""
    schedule, t, s = Cosine(), times(0.8), times(0.3)
    exact, z = gaussian(schedule), torch.randn(1, 4, dtype=torch.float64)

    def order(target: Tensor, finer: Tensor) -> float:
        far, near = ((ddim_update(schedule, z, each, t, s) - exact.flow(z, t, s)).norm() for each in (target, finer))
        return float((far / near).log2())

    assert order(*(solver_target(exact, z, t, s, substeps=k) for k in (64, 128))) == pytest.approx(2, abs=0.1)
    assert order(*(distillation_target(exact, z, t, s, substeps=k) for k in (64, 128))) == pytest.approx(1, abs=0.1)


class Targets:
    """The student that is the target of some teacher."""

    def __init__(self, teacher: Gaussian, steps: int, substeps: int, solver: bool = False) -> None:
        self.teacher, self.steps, self.substeps, self.schedule = teacher, steps, substeps, teacher.schedule
        self.target = solver_target if solver else distillation_target

    def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.target(self.teacher, z, t, t - 1 / self.steps, substeps=self.substeps)


def test_students_that_are_the_target_have_no_loss() -> None:
    exact, (x, eps, u) = gaussian(Cosine()), batch(32)
    options = {"steps": 4, "substeps": 3, "weighting": SNR}
    assert float(solver_loss(Targets(exact, 4, 3, solver=True), exact, x, eps, u, **options).max()) < 1e-20
    assert float(solver_loss(Targets(exact, 4, 3), exact, x, eps, u, **options).max()) > 1e-8


def test_a_target_is_learned_from_twice() -> None:
    """Its latents are asked once when it is made and once after the `DELAY` that follow; the teacher only once."""
    exact, asked = gaussian(Cosine()), []

    class Spy(Targets):
        def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            asked.append(float(z.sum()))
            return super().__call__(z, t)

    loss = REPEATED.stage_loss(exact, Stage(4, 2), SNR)
    assert isinstance(loss, TwiceLearned)
    count = DELAY + 2 * 20
    for _ in range(count):
        assert float(loss(Spy(exact, 4, 2), *batch(8)).max()) < 1e-20
    made = list(dict.fromkeys(asked))
    assert len(made) == DELAY + 20
    assert [asked.count(each) for each in made] == [2] * 20 + [1] * DELAY
    assert asked[DELAY] == asked[0]
    assert [REPEATED.evaluations(Stage(1, k)) for k in (2, 16)] == [1, 8]


@pytest.mark.parametrize(("scale", "minimiser"), [(1e-4, 0.0), (1e4, 0.25)])
def test_the_minimiser_of_pseudo_huber_lies_between_the_median_and_the_mean(scale: float, minimiser: float) -> None:
    """Of targets 0, 0, 0 and 1: the median, 0, if c is far below the errors, the mean, 1/4, if it is far above."""
    targets = torch.tensor([0.0, 0.0, 0.0, 1.0]).double()
    grid = torch.linspace(-0.5, 1, 1501, dtype=torch.float64)
    loss = pseudo_huber((grid[:, None] - targets).square(), scale).sum(1)
    assert float(grid[loss.argmin()]) == pytest.approx(minimiser, abs=1e-3)


def test_pseudo_huber_is_the_square_near_zero_and_the_norm_far_away() -> None:
    errors = times(0.0, 1e-12, 1e6)
    root = (errors + 0.1**2).sqrt() - 0.1
    torch.testing.assert_close(pseudo_huber(errors, 0.1), root, rtol=0, atol=1e-12)
    assert float(pseudo_huber(errors, 0.1)[1]) == pytest.approx(1e-12 / (2 * 0.1), rel=1e-6)
    assert float(pseudo_huber(errors, 0.1)[2]) == pytest.approx(1e3, rel=1e-3)


class Constant:
    """A denoiser that says one number."""

    schedule = Cosine()

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.value.expand_as(z)


def test_the_auxiliarys_minimiser_is_the_mean_of_both_and_the_student_goes_down_their_difference() -> None:
    """Of samples 1 and a teacher 0 it is 1/2; the gradient by each of D numbers of x~ is (1/2 - 0) / D."""
    value = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    x = torch.ones(6, 4, dtype=torch.float64, requires_grad=True)
    at = Drawn(x, torch.randn(6, 4, dtype=torch.float64), torch.linspace(0.2, 0.9, 6, dtype=torch.float64))
    auxiliary, teacher = Constant(value), Constant(torch.zeros((), dtype=torch.float64))
    auxiliary_loss(auxiliary, teacher, at, SNR).mean().backward()
    assert value.grad is not None and abs(float(value.grad)) < 1e-12
    assert x.grad is None
    matching_loss(auxiliary, teacher, at).sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 0.5 / 4))


def test_a_true_sample_is_noised_as_the_data_are() -> None:
    """With x~ = x, z_s is alpha_s x plus noise of sigma_s that does not depend on x; s is in (t - 1/N, t]."""
    count, random = 60_000, torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, count, 1, dtype=torch.float64, generator=random)

    class Knows(Constant):
        def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            assert torch.equal(t, torch.ones_like(t))
            return x

    at = drawn(Knows(x), x, eps, torch.full((count,), 0.4, dtype=torch.float64), 2, random)
    assert at.s.unique().tolist() == [0.6]
    alpha, sigma = (float(each) for each in Cosine().scales(times(0.6)))
    noise = (at.z - alpha * x) / sigma
    assert float(noise.std()) == pytest.approx(1, abs=0.01)
    assert float((noise * x).mean()) == pytest.approx(0, abs=0.015)
