r"""Memory of the training of one network on its device, in bytes, without building or running it there.

    weights      4 n for the student; for a low-rank student only its adapters
    gradients    4 for each trained weight
    moments      8 for each of them; with adamw8bit 2, and 8 for every 256, of tensors of 4,096 numbers or more
    average      4 for each of them, if the weights are averaged
    auxiliaries  16 for each weight of the networks that a method trains beside the student (see `auxiliaries`)
    teacher      4 n, or 2 n of what is held in bf16 (see `progdist.compute.placement`), or the size in 8 or 4 bits
                 (see `progdist.compute.quantized`); a low-rank student shares them
    activations  what autograd keeps for the backward pass: a part per example, and a part independent of the batch
    at rest      if the device is the CPU, the run's other models, 4 n each

Activations are counted on fake tensors of the CPU, which have shapes but no values. A pass also needs temporary memory,
which is not counted: the output of a layer and its gradient, a dequantized weight, and with gradient checkpointing the
activations of one block.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from progdist.compute.placement import at_work, bytes_at_work, empty_copy
from progdist.compute.precision import autocast, enable_gradient_checkpointing
from progdist.diffusion.denoiser import Denoiser
from progdist.models.networks import example_condition
from progdist.training.config import TrainConfig
from progdist.training.lora import add_lora

META = torch.device("meta")
EIGHT_BITS_FROM, BLOCK = 4096, 256  # bitsandbytes: smallest tensor with moments in 8 bits, and its block size

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Memory:
    """Bytes on the device while one network trains."""

    weights: int
    gradients: int
    moments: int
    average: int
    teacher: int
    activations: int
    resting: int
    auxiliaries: int = 0

    @property
    def total(self) -> int:
        """The sum."""
        return sum(asdict(self).values())


def training_memory(
    network: nn.Module, config: TrainConfig, teachers: int, *, bf16: bool, activations: int = 0, resting: int = 0
) -> Memory:
    """The memory of a stage that trains a network like this one, or adapters on it.

    `teachers` is the number of frozen networks of the same size, whose weights a low-rank student shares; `bf16` is
    whether all compute in bf16. `activations` and `resting` are in bytes. The network is not modified.
    """
    network = empty_copy(network, META)
    teacher = teachers * bytes_at_work(network, bf16)
    student = add_lora(network, config.lora_rank, 0) if config.lora_rank else network
    trained = [each for each in student.parameters() if each.requires_grad or not config.lora_rank]
    size = sum(each.nbytes for each in trained)
    moments = sum(_moments(each.numel(), config) for each in trained)
    return Memory(size, size, moments, size if config.ema else 0, teacher, activations, resting)


def _moments(count: int, config: TrainConfig) -> int:
    """Bytes of both moments of a tensor of `count` numbers."""
    if config.optimizer == "adamw8bit" and count >= EIGHT_BITS_FROM:
        return 2 * (count + 4 * math.ceil(count / BLOCK))
    return 8 * count


def activation_bytes(denoiser: Denoiser, shape: Shape, batch: int, config: TrainConfig, *, bf16: bool) -> int:
    """Bytes that autograd keeps of a batch (B, C, H, W) = (batch, *shape) for the backward pass, without the weights.

    For a low-rank student they are those of its adapters, on frozen weights at work.

    Uses a linear model of the batch, a + b B, through batches of 1 and 2. Returns 0 if they cannot be counted, because
    the network's call depends on values (e.g. of a mask), which fake tensors lack.
    """
    try:
        one, two = (_kept_by_a_batch(denoiser, shape, count, config, bf16=bf16) for count in (1, 2))
    except RuntimeError:  # tensors without values
        return 0
    return one + (batch - 1) * (two - one)


def _kept_by_a_batch(denoiser: Denoiser, shape: Shape, batch: int, config: TrainConfig, *, bf16: bool) -> int:
    device, precision = torch.device("cpu"), "bf16" if bf16 else "float32"
    mode, base = FakeTensorMode(allow_non_fake_inputs=True), empty_copy(denoiser.network, META)
    student = add_lora(base, config.lora_rank, 0) if config.lora_rank else base
    with at_work(base, META, precision) if config.lora_rank else nullcontext(), mode:
        network = empty_copy(student, device)
    if config.gradient_checkpointing:
        enable_gradient_checkpointing(network.train())
    trial = denoiser.with_network(network)
    with mode:
        z, timestep = torch.randn(batch, *shape), torch.ones(batch)
        condition = example_condition(denoiser, batch, device)

        def passes() -> None:
            with autocast(device, precision):
                loss = trial.output(z, timestep, **condition).square().mean()
            loss.backward()

        return kept_bytes(passes, network)


def kept_bytes(
    work: Callable[[], object],
    network: nn.Module,
    heard: Callable[[torch.UntypedStorage, bool], None] = lambda storage, new: None,
) -> int:
    """Bytes that autograd keeps of `work` for the backward pass, without the weights.

    `heard` is called with each storage when it is saved, and whether it is saved for the first time.
    """
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            heard(storage, storage._cdata not in kept)
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(storage.nbytes() for storage in kept.values())
