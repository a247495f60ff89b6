"""Students that keep their teacher's output eps and its last noise level, above zero SNR, against closed forms."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from progdist import PARAMETERIZATIONS, WEIGHTINGS, Denoiser, Discrete, distillation_target
from progdist._utils.broadcasting import per_example
from progdist.diffusion.analytic import Gaussian
from progdist.diffusion.denoiser import DenoiserProtocol
from progdist.diffusion.sampler import ddim_update, sample
from progdist.methods.conversion import conversion_loss, equal_snr
from progdist.methods.guidance import Guided
from progdist.methods.progressive import substep_times
from support.checks import mixture

SCHEDULE = Discrete.scaled_linear()  # of Stable Diffusion


class ExactEps(nn.Module):
    """A network that was taught perfectly: its output is the eps of given predictions."""

    def __init__(self, predictions: DenoiserProtocol) -> None:
        super().__init__()
        self.predictions = predictions

    def forward(self, z: Tensor, timestep: Tensor, **condition: Tensor) -> Tensor:
        t = (timestep.double() + 1) / 1000
        return eps_of(z, self.predictions(z, t, **condition), t)


def eps_of(z: Tensor, x: Tensor, t: Tensor) -> Tensor:
    return (z - per_example(SCHEDULE.alpha(t), z) * x) / per_example(SCHEDULE.sigma(t), z)


def student_of(predictions: DenoiserProtocol) -> Denoiser:
    return Denoiser(ExactEps(predictions), SCHEDULE, PARAMETERIZATIONS["eps"], num_train_timesteps=1000)


class Target:
    """What the student of `steps` steps learns of its teacher."""

    def __init__(self, teacher: DenoiserProtocol, steps: int, substeps: int) -> None:
        self.teacher, self.steps, self.substeps = teacher, steps, substeps
        self.schedule = teacher.schedule

    def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return distillation_target(self.teacher, z, t, t - 1 / self.steps, substeps=self.substeps)


@pytest.mark.parametrize("substeps", [2, 5])
def test_the_target_is_a_mean_of_the_teachers_eps(substeps: int) -> None:
    """With weights in r = sigma / alpha: eps = sum_j (r_j - r_{j+1}) / (r_0 - r_k) eps_j."""
    teacher, z = mixture(SCHEDULE), torch.randn(4, 2, dtype=torch.float64)
    t = torch.tensor([1.0, 0.75, 0.5, 0.25], dtype=torch.float64)
    times = substep_times(t, t - 0.25, substeps)
    r = torch.where(times > 0, SCHEDULE.sigma(times) / SCHEDULE.alpha(times), 0.0)
    weights, mean, moved = (r[:-1] - r[1:]) / (r[0] - r[-1]), torch.zeros_like(z), z
    for weight, (now, then) in zip(weights, pairwise(times), strict=True):
        x = teacher(moved, now)
        mean = mean + per_example(weight, z) * eps_of(moved, x, now)
        moved = ddim_update(SCHEDULE, moved, x, now, then)
    ours = eps_of(z, distillation_target(teacher, z, t, t - 0.25, substeps=substeps), t)
    torch.testing.assert_close(ours, mean, rtol=0, atol=1e-10)


def test_four_steps_of_the_student_are_forty_of_the_teacher() -> None:
    """From the same noise, through two stages, each student's eps standing for its target."""
    teacher, noise = mixture(SCHEDULE), torch.randn(16, 2, dtype=torch.float64)
    student = student_of(Target(student_of(Target(student_of(teacher), 8, 5)), 4, 2))
    torch.testing.assert_close(sample(student, noise, 4), sample(teacher, noise, 40), rtol=0, atol=1e-9)


def test_what_begins_as_noise_alone_keeps_this_much_of_the_mean() -> None:
    """x = m + c (z - alpha_1 m) / s_1, s_1^2 = alpha_1^2 c^2 + sigma_1^2: the samplers begin with z = eps."""
    mean, width, end = 0.8, 0.5, torch.ones((), dtype=torch.float64)
    alpha, sigma = float(SCHEDULE.alpha(end)), float(SCHEDULE.sigma(end))
    spread = (alpha**2 * width**2 + sigma**2) ** 0.5
    exact = Gaussian(SCHEDULE, torch.tensor(mean, dtype=torch.float64), width)
    noise = torch.randn(64, 1, dtype=torch.float64)
    made = sample(exact, torch.cat([noise, -noise]), 1000)
    assert float(made.mean()) == pytest.approx(mean * (1 - width * alpha / spread), abs=1e-3)
    assert float(made.mean()) < mean - 0.02
    assert float(made.std() / torch.cat([noise, -noise]).std()) == pytest.approx(width / spread, rel=1e-2)


def test_a_guided_teacher_in_its_own_form_is_learned_to_the_end() -> None:
    """Stage 0 without a change of form: the times are the teacher's, and the guided eps has no loss at any of them."""
    u = torch.linspace(0, 0.999, 64, dtype=torch.float64)
    torch.testing.assert_close(equal_snr(SCHEDULE, SCHEDULE, 1 - u), 1 - u, rtol=0, atol=1e-12)

    class Conditional:
        schedule = SCHEDULE

        def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            return Gaussian(SCHEDULE, condition["mean"], 0.5)(z, t)

    guided = Guided(Conditional(), {"mean": torch.zeros(1, 2, dtype=torch.float64)}, 3.0)
    x, eps = torch.randn(2, 64, 2, dtype=torch.float64)
    u = (u * 1000).floor() / 1000  # at the table's entries, where the network's timestep is whole
    loss = conversion_loss(
        student_of(guided), guided, x, eps, u, weighting=WEIGHTINGS["truncated_snr"], mean=torch.ones_like(x)
    )
    assert float(loss.max()) < 1e-12
