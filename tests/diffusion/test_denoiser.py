"""What the network is given, and what is refused."""

import math

import pytest
import torch

from progdist import PARAMETERIZATIONS, Cosine, Denoiser, RectifiedFlow, UserError
from support.toys import times

EXACT = Cosine(math.inf, -math.inf)


def test_eps_is_refused_where_noise_tells_nothing() -> None:
    for schedule in (EXACT, RectifiedFlow()):
        with pytest.raises(UserError, match="use v or x"):
            Denoiser(torch.nn.Identity(), schedule, PARAMETERIZATIONS["eps"])


def test_the_network_sees_its_timestep_and_condition() -> None:
    class Spy(torch.nn.Module):
        def forward(self, z: torch.Tensor, timestep: torch.Tensor, mark: torch.Tensor) -> torch.Tensor:
            self.seen = timestep, mark
            return z

    spy, mark = Spy(), torch.ones(2)
    for schedule, expected in ((Cosine(), [511, 1023]), (RectifiedFlow(), [512, 1024])):
        Denoiser(spy, schedule, PARAMETERIZATIONS["x"])(torch.zeros(2, 1, 1, 1), times(0.5, 1), mark=mark)
        assert spy.seen[0].tolist() == expected
        assert spy.seen[1] is mark
    Denoiser(spy, Cosine(), PARAMETERIZATIONS["x"], num_train_timesteps=1000)(
        torch.zeros(2, 1, 1, 1), times(1)[0], mark=mark
    )
    assert spy.seen[0].tolist() == [999, 999]
