"""The mathematical checks that every schedule, parameterization and sampler passes, built-in or your own."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch

from progdist.diffusion.analytic import Gaussian, Mixture
from progdist.diffusion.integrators import Step
from progdist.diffusion.parameterization import Parameterization
from progdist.diffusion.sampler import ddim, ddim_update
from progdist.diffusion.schedule import Schedule
from progdist.methods.progressive import distillation_target, substep_times
from support.toys import times


def mixture(schedule: Schedule) -> Mixture:
    """Three Gaussians in the plane."""
    means = torch.tensor([[-1.0, 0.4], [0.7, 0.9], [0.1, -0.8]]).double()
    return Mixture(schedule, means, 0.15, torch.tensor([0.2, 0.5, 0.3]).double())


def check_schedule(schedule: Schedule) -> None:
    """Rho falls, and rho and the log-SNR agree with alpha and sigma."""
    t = torch.linspace(0, 1, 2049, dtype=torch.float64)[1:-1]
    rho = schedule.rho(t)
    assert (rho.diff() < 0).all()
    torch.testing.assert_close(rho, schedule.alpha(t) / schedule.sigma(t))
    torch.testing.assert_close(schedule.log_snr(t), (schedule.alpha(t) ** 2 / schedule.sigma(t) ** 2).log())


def check_student_lands_where_the_teacher_lands(schedule: Schedule, substeps: int) -> None:
    """One DDIM step with the target equals k teacher steps, and the target itself at s = 0 is the last prediction."""
    teacher, steps = mixture(schedule), 8
    z = torch.randn(steps, 2, dtype=torch.float64)
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    s = t - 1 / steps
    target = distillation_target(teacher, z, t, s, substeps=substeps)
    moved = z
    grid = substep_times(t, s, substeps)
    for now, then in pairwise(grid[:-1]):
        moved = ddim(schedule, teacher, moved, now, then, None)
    last = teacher(moved, grid[-2])
    landed = ddim_update(schedule, moved, last, grid[-2], grid[-1])
    ours = ddim_update(schedule, z, target, t, s)
    torch.testing.assert_close(ours[1:], landed[1:], rtol=0, atol=1e-12)
    torch.testing.assert_close(target[0], last[0], rtol=0, atol=1e-12)


def check_round_trip(schedule: Schedule, parameterization: Parameterization) -> None:
    """A perfect network's output denoises to x at every t, 0 and 1 among them."""
    t = torch.linspace(0, 1, 129, dtype=torch.float64)
    x, eps = torch.randn(2, 129, 2, 3, 3, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    z = alpha[:, None, None, None] * x + sigma[:, None, None, None] * eps
    output = parameterization.output(x, eps, alpha, sigma)
    assert output.shape[1] == parameterization.heads * x.shape[1]
    torch.testing.assert_close(parameterization.denoise(output, z, alpha, sigma), x, rtol=0, atol=1e-11)


def measured_order(schedule: Schedule, method: Callable[[], Step], counts: list[int]) -> float:
    """The error against the exact flow of Gaussian data falls as N^-order, regressed over the step counts."""
    gaussian = Gaussian(schedule, torch.tensor(0.3).double(), 0.5)
    z, start, end, errors = torch.randn(64, 2, dtype=torch.float64), 0.9, 0.2, []
    exact = gaussian.flow(z, times(start)[0], times(end)[0])
    for count in counts:
        grid, moved, step = torch.linspace(start, end, count + 1, dtype=torch.float64), z, method()
        for t, s in pairwise(grid):
            moved = step(schedule, gaussian, moved, t, s, None)
        errors.append(float((moved - exact).abs().max()))
    return float(-np.polyfit(np.log(counts), np.log(errors), 1)[0])
