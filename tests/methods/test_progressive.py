"""The target against teacher steps, the paper's quotient, the official numbers and closed forms."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from progdist import WEIGHTINGS, Cosine, Discrete, Karras, RectifiedFlow, distillation_target
from progdist._utils.broadcasting import per_example
from progdist.diffusion.analytic import Mixture
from progdist.diffusion.loss import denoising_loss
from progdist.diffusion.sampler import alpha_sigma, ddim
from progdist.diffusion.schedule import Schedule
from progdist.methods.progressive import distillation_loss, substep_times, substep_weights
from support.checks import check_student_lands_where_the_teacher_lands, mixture
from support.paths import REFERENCE
from support.toys import OfficialDenoiser, label

EDM = [Karras(sigma_data=0.7), Karras(sigma_data=0.7, spacing="angle")]
SCHEDULES = [Cosine(), Cosine(math.inf, -math.inf), Discrete.linear(), RectifiedFlow(), *EDM]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=label)
@pytest.mark.parametrize("substeps", [1, 2, 3, 5])
def test_one_student_step_lands_where_the_teacher_lands(schedule: Schedule, substeps: int) -> None:
    check_student_lands_where_the_teacher_lands(schedule, substeps)


def papers_quotient(schedule: Schedule, teacher: Mixture, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Appendix G's form of the target, kept only as an oracle; s > 0."""
    middle = (t + s) / 2
    landed = ddim(schedule, teacher, ddim(schedule, teacher, z, t, middle, None), middle, s, None)
    ratio = schedule.sigma(s) / schedule.sigma(t)
    scale = schedule.alpha(s) - ratio * schedule.alpha(t)
    return (landed - per_example(ratio, z) * z) / per_example(scale, z)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=label)
def test_two_substeps_are_appendix_g(schedule: Schedule) -> None:
    teacher, z = mixture(schedule), torch.randn(16, 2, dtype=torch.float64)
    t = torch.linspace(0.2, 1, 16, dtype=torch.float64)
    s = t - 0.1
    ours = distillation_target(teacher, z, t, s)
    torch.testing.assert_close(ours, papers_quotient(schedule, teacher, z, t, s), rtol=0, atol=1e-10)


def test_cosine_halves_have_a_closed_form() -> None:
    """x_target = (sigma_s xh_t + sigma_t xh_m) / (sigma_s + sigma_t) for two equal substeps."""
    schedule = Cosine()
    t, s = torch.linspace(0.3, 1, 9, dtype=torch.float64), torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    weights = substep_weights(*alpha_sigma(schedule, substep_times(t, s, 2)))
    sigma_s, sigma_t = schedule.sigma(s), schedule.sigma(t)
    torch.testing.assert_close(weights, torch.stack([sigma_s, sigma_t]) / (sigma_s + sigma_t), rtol=0, atol=1e-14)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=label)
@pytest.mark.parametrize("steps", [1, 2, 1024, 8192])
def test_weights_are_a_mean_everywhere(schedule: Schedule, steps: int) -> None:
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    weights = substep_weights(*alpha_sigma(schedule, substep_times(t, t - 1 / steps, 4)))
    assert weights.isfinite().all()
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(0), torch.ones(steps, dtype=torch.float64), rtol=0, atol=1e-12)
    assert weights[:, 0].tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=label)
def test_float32_is_exact_at_8192_steps(schedule: Schedule) -> None:
    """The target in float32 against float64, at t from 1 to 1/8192, with the same predictions."""
    t = torch.cat([torch.linspace(1 / 8192, 1, 400, dtype=torch.float64), torch.arange(1, 9).double() / 8192])
    z = torch.randn(len(t), 2)

    class Smooth:
        schedule: Schedule

        def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            return z.tanh() * 0.5 + per_example(t, z) * 0.3

    Smooth.schedule = schedule
    single = distillation_target(Smooth(), z, t, (t - 1 / 8192).clamp(min=0))
    double = distillation_target(Smooth(), z.double(), t, (t - 1 / 8192).clamp(min=0))
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-6)


@pytest.mark.parametrize("head", ["v", "x"])
def test_targets_and_losses_are_the_official_ones(head: str) -> None:
    official = np.load(REFERENCE / "losses.npz")
    x, eps = (torch.from_numpy(official[name]).double() for name in ("x", "eps"))
    student, teacher = OfficialDenoiser(0), OfficialDenoiser(1)
    ours = {"constant": "constant", "snr": "snr", "snr_trunc": "truncated_snr", "v_mse": "snr_plus_one"}
    tolerance = {0: 2e-6, 1: 1e-5, 2: 1e-5, 4: 1e-5}
    counts = sorted({int(name.split("_")[2]) for name in official.files if name.startswith(f"loss_{head}_")})
    assert 0 in counts
    assert len(counts) >= 3
    for steps in counts:
        for theirs, weighting in ours.items():
            key = f"loss_{head}_{steps}_{theirs}"
            if key not in official.files:
                continue
            if steps == 0:
                u = 1 - torch.from_numpy(official["u"]).double()
                loss = denoising_loss(student, x, eps, u, weighting=WEIGHTINGS[weighting])
            else:
                i = torch.from_numpy(official[f"i_{head}_{steps}"]).double()
                u = 1 - (i + 0.5) / steps
                loss = distillation_loss(student, teacher, x, eps, u, steps=steps, weighting=WEIGHTINGS[weighting])
            # their eps differs by rounding where sigma is small, and their target loses digits as steps grow
            relative = 1e-2 if theirs == "snr" else tolerance.get(steps, 5e-4)
            torch.testing.assert_close(loss, torch.from_numpy(official[key]).double(), rtol=relative, atol=0)
        if steps:
            t = (torch.from_numpy(official[f"i_{head}_{steps}"]).double() + 1) / steps
            z = per_example(Cosine().alpha(t), x) * x + per_example(Cosine().sigma(t), x) * eps
            target = distillation_target(teacher, z, t, t - 1 / steps)
            theirs = torch.from_numpy(official[f"xtarget_{head}_{steps}"]).double()
            torch.testing.assert_close(target, theirs, rtol=0, atol=2e-6 if steps <= 4 else 2e-4)


def test_the_loss_visits_the_students_grid_evenly() -> None:
    """t = 1 - floor(u N) / N: each of 1/N, ..., 1 as often as the others, never 0."""
    seen: list[Tensor] = []

    class Spy(OfficialDenoiser):
        def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            seen.append(t)
            return z

    u = torch.linspace(0, 1, 4001, dtype=torch.float64)[:-1]
    x = torch.zeros(4000, 1)
    distillation_loss(Spy(0), OfficialDenoiser(0), x, x, u, steps=4, weighting=WEIGHTINGS["constant"])
    values, counts = seen[0].unique(return_counts=True)
    assert values.tolist() == [0.25, 0.5, 0.75, 1]
    assert counts.tolist() == [1000] * 4


def test_a_student_that_is_the_target_has_no_loss() -> None:
    teacher = mixture(Cosine())

    class Perfect:
        schedule = Cosine()

        def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            return distillation_target(teacher, z, t, t - 1 / 8, substeps=3)

    x, eps = torch.randn(2, 32, 2, dtype=torch.float64)
    u = torch.rand(32, dtype=torch.float64)
    arguments = {"steps": 8, "substeps": 3, "weighting": WEIGHTINGS["snr_plus_one"]}
    assert float(distillation_loss(Perfect(), teacher, x, eps, u, **arguments).max()) < 1e-20
    assert float(distillation_loss(teacher, teacher, x, eps, u, **arguments).max()) > 1e-6
