"""The stock scheduler of a rectified flow against the grid itself, in float64."""

from typing import Any

import pytest
import torch

from progdist import RectifiedFlow
from progdist.diffusion.sampler import time_grid
from progdist.teachers.flow import flow_scheduler, stock_shift


@pytest.mark.parametrize("timesteps", [1000, 1024])
@pytest.mark.parametrize("shift", [0.5, 1.0, 1.5, 3.0, 3.16, 12.0])
def test_the_step_count_alone_gives_our_grid(shift: float, timesteps: int) -> None:
    for steps in (1, 2, 3, 4, 5, 8, 16, 50, 250):
        scheduler: Any = flow_scheduler(shift, timesteps, steps)
        again: Any = type(scheduler).from_config(scheduler.config)  # as a folder keeps it
        again.set_timesteps(steps)
        exact = RectifiedFlow(shift).sigma(time_grid(steps))
        torch.testing.assert_close(again.sigmas.double(), exact, rtol=0, atol=1e-6)
        torch.testing.assert_close(again.timesteps.double(), timesteps * exact[:-1], rtol=0, atol=1e-6 * timesteps)


def test_every_shift_has_a_scheduler_at_few_steps_and_usual_ones_at_any() -> None:
    """Where T > 4 N (N - 1); and up to (1 + sqrt(T)) / 2 at any number of them."""
    for steps in range(1, 17):
        assert all(stock_shift(shift, 1000, steps) for shift in (0.01, 0.5, 2.0, 10.0, 100.0, 1000.0))
    assert all(stock_shift((1 + 1000**0.5) / 2, 1000, steps) for steps in range(1, 1001))
    assert stock_shift(20.0, 1000, 500) is None


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 12.0])
@pytest.mark.parametrize("last", [0.0, 0.001, 0.1])
def test_the_grid_of_a_pipeline_that_spaces_its_times_itself(shift: float, last: float) -> None:
    """As CogView4, to 1 / T, or pipelines that set the scheduler's last sigma to 0 before its times are spaced."""
    for steps in (1, 2, 3, 4, 8):
        scheduler: Any = flow_scheduler(shift, 1000, steps, last)
        given = [1 - (1 - last) * number / max(1, steps - 1) for number in range(steps)]
        scheduler.set_timesteps(sigmas=given)
        exact = RectifiedFlow(shift).sigma(time_grid(steps))
        torch.testing.assert_close(scheduler.sigmas.double(), exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("shift", "steps"), [(3.0, None), (20.0, 500)])
def test_a_flow_of_no_count_is_given_its_sigmas(shift: float, steps: int | None) -> None:
    scheduler: Any = flow_scheduler(shift, 1000, steps)
    scheduler.set_timesteps(sigmas=[1 - i / 500 for i in range(500)])
    exact = RectifiedFlow(shift).sigma(time_grid(500))
    torch.testing.assert_close(scheduler.sigmas.double(), exact, rtol=0, atol=1e-6)
