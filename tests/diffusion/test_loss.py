"""Weightings against the errors that the paper names."""

import pytest
import torch
from torch import Tensor

from progdist import WEIGHTINGS, Cosine, Discrete, RectifiedFlow, UserError
from progdist.diffusion.loss import check_weighting, denoising_loss, output_weight
from progdist.diffusion.parameterization import PARAMETERIZATIONS
from progdist.diffusion.schedule import Schedule
from support.toys import label, times


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


NO_SIGNAL = [Cosine(), Cosine(float("inf"), -float("inf")), RectifiedFlow(), RectifiedFlow(3.0)]
TABLE_WITHOUT = Discrete.scaled_linear().rescaled()


@pytest.mark.parametrize("output", ["x", "v", "velocity", "x_eps"])
@pytest.mark.parametrize("schedule", [*NO_SIGNAL, TABLE_WITHOUT], ids=label)
def test_a_weighting_that_vanishes_where_sampling_begins_is_refused(schedule: Schedule, output: str) -> None:
    form = schedule, PARAMETERIZATIONS[output]
    with pytest.raises(UserError, match=r"is .* at t = 1, where sampling starts, and .* at t = 0.5"):
        check_weighting("snr", *form)
    with pytest.raises(UserError, match="at t = 1"):
        check_weighting(lambda snr: 1e-6 * snr.clamp(max=5), *form)
    for name in WEIGHTINGS.keys() - {"snr"}:
        check_weighting(name, *form)
    check_weighting(lambda snr: 1e-9 * (snr + 1), *form)  # a factor of all is none


@pytest.mark.parametrize("schedule", [Discrete.linear(), Discrete.scaled_linear(), Cosine(6, -6), Cosine()], ids=label)
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_no_weighting_vanishes_for_a_network_that_predicts_eps(name: str, schedule: Schedule) -> None:
    """The SNR weighs an error of x as 1 weighs one of eps, so that a network that predicts eps learns it everywhere."""
    form, t = (schedule, PARAMETERIZATIONS["eps"]), times(0.1, 0.6, 1.0)
    check_weighting(name, *form)
    torch.testing.assert_close(output_weight("snr", *form, t), torch.ones(3, dtype=torch.float64))


def test_a_table_that_ends_with_signal_may_be_weighed_by_it() -> None:
    check_weighting("snr", Discrete.scaled_linear(), PARAMETERIZATIONS["v"])


@pytest.mark.parametrize("output", PARAMETERIZATIONS)
def test_the_outputs_weight_is_its_gradients(output: str) -> None:
    """By autograd: the derivative of xh by each head, squared and summed, times the weight."""
    schedule, parameterization, t = Discrete.linear(), PARAMETERIZATIONS[output], times(0.2, 0.7, 1.0)
    made = torch.randn(3, parameterization.heads, 1, dtype=torch.float64, requires_grad=True)
    z = torch.randn(3, 1, 1, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(parameterization.denoise(made, z, *schedule.scales(t)).sum(), made)
    expected = schedule.rho(t) ** 2 * gradient.square().sum((1, 2))
    torch.testing.assert_close(output_weight("snr", schedule, parameterization, t), expected)
