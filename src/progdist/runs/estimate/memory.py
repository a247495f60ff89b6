r"""What the training of one network holds on its device, in bytes, without building or running it there.

    weights      4 n of the student; of a low-rank student its adapters alone
    gradients    4 for each weight that is trained
    moments      8 for each of them; with adamw8bit 2, and 8 for every 256, of tensors of 4,096 numbers or more
    average      4 for each of them, where the weights are averaged
    auxiliaries  16 for each weight of the networks that a method trains beside the student (see `auxiliaries`)
    teacher      4 n, or 2 n of what is held in bf16 (see `progdist.compute.placement`), or what there is of 8 or 4 bits
                 (see `progdist.compute.quantized`); a low-rank student shares them
    activations  what autograd keeps for the way back: some for every example, and what is kept whatever the batch
    at rest      where the device is the CPU, the run's other models, 4 n each

Activations are counted on fake tensors of the CPU, which have shapes and no numbers. Beside all of this a pass holds
what it needs for a moment: the output of a layer and its gradient, a weight of fewer bits that is dequantized, and with
gradient checkpointing those of one block.
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
EIGHT_BITS_FROM, BLOCK = 4096, 256  # bitsandbytes: numbers of a tensor with moments in 8 bits, and those of a block

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
        """All of it."""
        return sum(asdict(self).values())


def training_memory(
    network: nn.Module, config: TrainConfig, teachers: int, *, bf16: bool, activations: int = 0, resting: int = 0
) -> Memory:
    """What a stage holds that trains a network like this one, or adapters on it, which is left as it is.

    `teachers` is how many frozen networks of the same size there are, whose weights a student of low rank shares;
    `bf16` whether all compute in it. `activations` and `resting` are in bytes.
    """
    network = empty_copy(network, META)
    teacher = teachers * bytes_at_work(network, bf16)
    student = add_lora(network, config.lora_rank, 0) if config.lora_rank else network
    trained = [each for each in student.parameters() if each.requires_grad or not config.lora_rank]
    size = sum(each.nbytes for each in trained)
    moments = sum(_moments(each.numel(), config) for each in trained)
    return Memory(size, size, moments, size if config.ema else 0, teacher, activations, resting)


def _moments(count: int, config: TrainConfig) -> int:
    """Bytes of both moments of a tensor of so many numbers."""
    if config.optimizer == "adamw8bit" and count >= EIGHT_BITS_FROM:
        return 2 * (count + 4 * math.ceil(count / BLOCK))
    return 8 * count


def activation_bytes(denoiser: Denoiser, shape: Shape, batch: int, config: TrainConfig, *, bf16: bool) -> int:
    """Bytes that autograd keeps of a batch (B, C, H, W) = (batch, *shape) for the way back, without the weights.

    Those of a student of low rank are of its adapters, on weights that are frozen and at work.

    Of a linear model of the batch, a + b B, through batches of 1 and 2. 0 where it cannot be counted, as the network's
    call depends on values (e.g. of a mask), which nothing has here.
    """
    try:
        one, two = (_kept_by_a_batch(denoiser, shape, count, config, bf16=bf16) for count in (1, 2))
    except RuntimeError:  # of tensors without values
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
    """Bytes that autograd keeps of work for the way back, without the weights.

    `heard` is called with each storage when it is saved, and with whether that is the first time.
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
