"""Losses, targets and samples stay on the device of the data, and CUDA gives what the CPU gives."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import progdist
from progdist import Cosine, Denoiser, sample
from progdist.diffusion.parameterization import PARAMETERIZATIONS
from progdist.diffusion.sampler import MULTISTEP_SAMPLERS, SAMPLERS


class Placed(nn.Module):
    """A network that takes what is on its own device, and nothing else."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, device=device))

    def forward(self, z: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> Tensor:
        inputs = (z, timestep) if class_labels is None else (z, timestep, class_labels)
        assert {tensor.device.type for tensor in inputs} == {self.weight.device.type}
        return self.weight * z


@pytest.mark.parametrize("method", ["ddim", "ancestral", "overshoot", "heun"])
def test_no_tensor_is_made_on_the_wrong_device(method: str) -> None:
    """On the meta device, which refuses the CPU's tensors: losses, targets and samples stay where the data are."""
    teacher, student = (Denoiser(Placed("meta"), Cosine(), PARAMETERIZATIONS["v"]) for _ in range(2))
    x, u = torch.zeros(4, 2, device="meta"), torch.rand(4, dtype=torch.float64)
    labels = torch.zeros(4, dtype=torch.int64, device="meta")
    weighting = progdist.WEIGHTINGS["truncated_snr"]
    loss = progdist.distillation_loss(student, teacher, x, x, u, steps=4, weighting=weighting, class_labels=labels)
    assert loss.device.type == "meta"
    assert progdist.denoising_loss(student, x, x, u, weighting=weighting).device.type == "meta"
    assert sample(student, x, 4, method=method, clip=True).device.type == "meta"


def on_cuda(denoiser: Denoiser) -> Denoiser:
    return copy.deepcopy(denoiser).to(torch.device("cuda"))


@pytest.mark.cuda
@pytest.mark.parametrize("classes", [0, 3])
def test_the_loss_on_cuda_is_that_on_the_cpu(tiny_model: Callable[..., Denoiser], classes: int) -> None:
    teacher, student = tiny_model(classes=classes), tiny_model(classes=classes)
    x, eps = torch.randn(2, 6, 1, 8, 8)
    u = torch.rand(6, dtype=torch.float64)
    labels: dict[str, Any] = {"class_labels": torch.arange(6) % classes} if classes else {}
    weighting = progdist.WEIGHTINGS["truncated_snr"]
    expected = progdist.distillation_loss(student, teacher, x, eps, u, steps=4, weighting=weighting, **labels)
    moved: dict[str, Any] = {name: value.cuda() for name, value in labels.items()}
    loss = progdist.distillation_loss(
        on_cuda(student), on_cuda(teacher), x.cuda(), eps.cuda(), u, steps=4, weighting=weighting, **moved
    )
    assert loss.device.type == "cuda"
    torch.testing.assert_close(loss.cpu(), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.cuda
@pytest.mark.parametrize("method", [*SAMPLERS, *MULTISTEP_SAMPLERS])
def test_samples_on_cuda_are_those_on_the_cpu(tiny_model: Callable[..., Denoiser], method: str) -> None:
    """Stochastic methods draw on the CPU, so the same generator gives the same images."""
    denoiser, noise = tiny_model(), torch.randn(4, 1, 8, 8)
    expected, images = (
        sample(model, z, 8, method=method, generator=torch.Generator().manual_seed(0))
        for model, z in ((denoiser, noise), (on_cuda(denoiser), noise.cuda()))
    )
    assert images.device.type == "cuda"
    torch.testing.assert_close(images.cpu(), expected, rtol=1e-3, atol=1e-3)
