"""Memory and time of a stage whose method trains further networks: its whole loss, forward and backward."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from progdist.compute.placement import empty_copy
from progdist.compute.precision import autocast, enable_gradient_checkpointing
from progdist.diffusion.denoiser import Denoiser
from progdist.methods import Method
from progdist.methods.chain import Stage
from progdist.models.networks import example_condition
from progdist.runs.estimate.memory import Shape, kept_bytes
from progdist.training.config import TrainConfig
from progdist.training.gradients import total

STATES = 4  # tensors per trained weight: itself, its gradient and two moments


@dataclass(frozen=True)
class MethodPass:
    """The loss of a stage on random examples, as an update computes it."""

    work: Callable[[], None]  # one pass, forward and backward
    networks: nn.ModuleList  # student, teacher and auxiliary networks
    auxiliaries: list[nn.Module]  # the auxiliary networks


def method_pass(
    method: Method, stage: Stage, teacher: Denoiser, shape: Shape, batch: int, config: TrainConfig
) -> MethodPass:
    """The pass of a batch (B, C, H, W) = (batch, *shape), on the teacher's device."""
    assert method.auxiliaries is not None
    network = teacher.network
    device = next(network.parameters()).device
    student = teacher.with_network(empty_copy(network, device).train())
    student.network.load_state_dict(network.state_dict())
    if config.gradient_checkpointing:
        enable_gradient_checkpointing(student.network)
    x, eps = torch.randn(2, batch, *shape, device=device)
    condition = example_condition(teacher, batch, device)
    with device:  # fake tensors cannot be moved to another device
        made = method.auxiliaries(method.options, teacher, x, condition)
    auxiliaries = {name: each.network for name, each in made.items()}
    noises = torch.randn(batch, method.noises, *shape, device=device)
    more = {"auxiliaries": auxiliaries, "noises": noises}
    loss = method.stage_loss(teacher, stage, "truncated_snr")
    u = torch.rand(batch, dtype=torch.float64)

    def work() -> None:
        with autocast(device, config.precision):
            losses = loss(student, x=x, eps=eps, u=u, **more, **condition)
        total(losses).float().mean().backward()

    others = list(auxiliaries.values())
    return MethodPass(work, nn.ModuleList([student.network, network, *others]), others)


def bytes_of(
    method: Method, stage: Stage, teacher: Denoiser, shape: Shape, batch: int, config: TrainConfig
) -> tuple[int, int]:
    """Bytes of the activations of a batch, and of the auxiliary networks with their gradients and moments."""
    held = 0

    def kept(count: int) -> int:
        nonlocal held
        with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about copies of fake tensors
            fake = teacher.with_network(empty_copy(teacher.network, torch.device("cpu")))
            one = method_pass(method, stage, fake, shape, count, config)
            trained = [each for other in one.auxiliaries for each in other.parameters() if each.requires_grad]
            held = STATES * sum(each.nbytes for each in trained)
            return kept_bytes(one.work, one.networks)

    one, two = kept(1), kept(2)
    return one + (batch - 1) * (two - one), held
