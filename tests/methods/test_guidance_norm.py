"""Guidance whose mixture keeps the norm of the conditional prediction, and conditions of different lengths."""

import pytest
import torch
from torch import Tensor, nn

from progdist import Cosine, Denoiser, RectifiedFlow
from progdist.diffusion.schedule import Schedule
from progdist.methods.guidance import Guided, of_one_shape


class Twofold(nn.Module):
    """Says one of two tensors, by the condition."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.said = nn.Parameter(torch.randn(2, 1, 3, 4, dtype=torch.float64, generator=draw))

    def forward(self, z: Tensor, timestep: Tensor, prompt: Tensor) -> Tensor:
        return self.said[prompt[:, 0].long()].squeeze(1)


@pytest.mark.parametrize(("schedule", "output"), [(RectifiedFlow(3.0), "velocity"), (Cosine(), "v"), (Cosine(), "x")])
def test_the_networks_output_has_the_norm_of_the_conditional_one(schedule: Schedule, output: str) -> None:
    """F = F_mix |F_c| / |F_mix| over the last axis, written out, and the x that it means."""
    network, scale = Twofold(), 4.0
    denoiser = Denoiser(network, schedule, output)
    z, t = torch.randn(2, 3, 4, dtype=torch.float64), torch.tensor([0.3, 0.9], dtype=torch.float64)
    guided = Guided(denoiser, {"prompt": torch.zeros(1, 1)}, scale, normalized=True)
    got = guided(z, t, prompt=torch.ones(2, 1))
    u, c = network.said
    mixed = u + scale * (c - u)
    wanted = mixed * c.norm(dim=-1, keepdim=True) / mixed.norm(dim=-1, keepdim=True)
    exact = denoiser.parameterization.denoise(wanted.expand(2, 3, 4), z, *schedule.scales(t))
    torch.testing.assert_close(got, exact, rtol=1e-10, atol=1e-10)


def test_at_a_scale_of_one_nothing_is_changed() -> None:
    denoiser = Denoiser(Twofold(), RectifiedFlow(), "velocity")
    z, t = torch.randn(1, 3, 4, dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    guided = Guided(denoiser, {"prompt": torch.zeros(1, 1)}, 1.0, normalized=True)
    torch.testing.assert_close(guided(z, t, prompt=torch.ones(1, 1)), denoiser(z, t, prompt=torch.ones(1, 1)))


def test_the_shorter_condition_is_filled_with_zeros() -> None:
    rows, batch = {"words": torch.ones(1, 5, 2), "mask": torch.ones(1, 5)}, {"words": torch.ones(3, 2, 2)}
    batch["mask"] = torch.ones(3, 2)
    single, filled = of_one_shape(rows, batch)
    assert single["words"].shape == filled["words"].shape == (3, 5, 2)
    assert filled["mask"].tolist() == [[1, 1, 0, 0, 0]] * 3
    assert filled["words"][:, 2:].abs().sum() == 0
    single, filled = of_one_shape({"mask": torch.ones(1, 1)}, {"mask": torch.ones(2, 3)})
    assert single["mask"].tolist() == [[1, 0, 0]] * 2
    assert filled["mask"].tolist() == [[1, 1, 1]] * 2
