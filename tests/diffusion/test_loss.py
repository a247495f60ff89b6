"""Weightings against the errors that the paper names."""

import pytest
import torch
from torch import Tensor

from progdist import WEIGHTINGS, Cosine, RectifiedFlow
from progdist.diffusion.loss import denoising_loss
from support.toys import times


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weightings_are_errors_of_what_the_paper_says(name: str) -> None:
    """Each weighted x-error equals the error of eps, of v, of the larger of x and eps, or of the velocity."""
    schedule = RectifiedFlow() if name == "velocity" else Cosine()
    x, eps, x_hat = torch.randn(3, 6, 4, dtype=torch.float64)
    u = times(0.05, 0.2, 0.4, 0.6, 0.8, 0.95)
    t = 1 - u
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    z = alpha * x + sigma * eps
    eps_hat = (z - alpha * x_hat) / sigma
    errors = {
        "x": (x - x_hat) ** 2,
        "eps": (eps - eps_hat) ** 2,
        "v": (alpha * (eps - eps_hat) - sigma * (x - x_hat)) ** 2,
        "velocity": (eps - eps_hat - x + x_hat) ** 2,
    }
    mean = {key: value.mean(1) for key, value in errors.items()}
    expected = {
        "constant": mean["x"],
        "snr": mean["eps"],
        "truncated_snr": torch.maximum(mean["x"], mean["eps"]),
        "snr_plus_one": mean["v"],
        "velocity": mean["velocity"],
    }[name]

    class Fixed:
        def __init__(self) -> None:
            self.schedule = schedule

        def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            return x_hat

    torch.testing.assert_close(denoising_loss(Fixed(), x, eps, u, weighting=WEIGHTINGS[name]), expected)
