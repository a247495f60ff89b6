"""Which settings of a distillation fit a card: memory and floating-point operations, from a pipeline's configs alone.

Needs neither weights nor a card. The count is for a stage with a frozen teacher in bf16 and a student that computes in
bf16, one batch at a time, as in `progdist.runs.estimate.memory`. Adapters on a base of 8 or 4 bits keep and compute the
same as on one in bf16: a weight is dequantized for its product and then freed. With gradient checkpointing the
activations are those kept between the blocks, plus the larger of two that are held at different moments: those of one
block, and the bf16 copies of the weights that autocast keeps until the end of the forward pass.

An update takes two evaluations of the teacher, and one training pass of the student.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

from torch import nn

from progdist._utils.names import Bits
from progdist.compute.placement import at_work, bytes_at_work, empty_copy
from progdist.models.components import PipelineFolder
from progdist.models.quantized_base import quantized_base
from progdist.runs.estimate.inputs import example_inputs
from progdist.runs.estimate.memory import META, Memory, training_memory
from progdist.runs.estimate.passes import TrainingPass, training_pass
from progdist.training.config import DEFAULTS, TrainConfig
from progdist.training.lora import add_lora

RANK = 64  # rank of the adapters
BATCHES = (1, 4)
LEFT = 0.1  # share of a card's memory for what is not counted: the CUDA context, temporary tensors, fragmentation
Training = Literal["AdamW", "adamw8bit", "LoRA"]
KINDS: Sequence[tuple[Training, Bits | None]] = (
    ("AdamW", None), ("adamw8bit", None), ("LoRA", None), ("LoRA", 8), ("LoRA", 4)
)  # fmt: skip
Arguments = Callable[[int], dict[str, Any]]


@dataclass(frozen=True)
class Setting:
    """The training settings of a student."""

    training: Training
    checkpointing: bool
    batch: int  # batch size of a pass
    bits: Bits | None = None  # bits of the base that adapters train on; None for bf16

    @property
    def config(self) -> TrainConfig:
        """The settings as a `TrainConfig`."""
        config = TrainConfig(1, self.batch, DEFAULTS["distill"]["learning_rate"], precision="bf16")
        config = replace(config, gradient_checkpointing=self.checkpointing)
        if self.training == "LoRA":
            return replace(config, lora_rank=RANK)
        return replace(config, optimizer="adamw8bit" if self.training == "adamw8bit" else "adamw")

    def options(self, batch: int = DEFAULTS["distill"]["batch"]) -> list[str]:
        """The recipe's keys, KEY=VALUE, that train every stage with these settings and updates of `batch`."""
        chosen = {
            "optimizer": "adamw8bit" if self.training == "adamw8bit" else None,
            "lora_rank": RANK if self.training == "LoRA" and not self.bits else None,
            "gradient_checkpointing": "true" if self.checkpointing else None,
            "gradient_accumulation_steps": batch // self.batch,
        }
        base = [f"lora={RANK}", f"base_bits={self.bits}"] if self.bits else []
        return [*base, *(f"distill.{name}={value}" for name, value in chosen.items() if value is not None)]


@dataclass(frozen=True)
class Fit:
    """A setting, its memory, and the cost of an update of one batch."""

    setting: Setting
    memory: Memory
    operations: int  # floating-point operations

    def fits(self, capacity: float) -> Literal["yes", "tight", "no"]:
        """Whether it fits a card of `capacity` bytes; "tight" if less than `LEFT` of it would remain."""
        total = self.memory.total
        return "no" if total > capacity else "tight" if total > (1 - LEFT) * capacity else "yes"


@dataclass(frozen=True)
class Fits:
    """The settings of a pipeline."""

    network: str  # class of the network
    parameters: int
    size: str  # size of a sample, in words
    evaluation: int  # floating-point operations of one evaluation of one example
    rows: tuple[Fit, ...]

    def best(self, capacity: float) -> Fit | None:
        """The first setting that fits with some memory left, in the order below; else None.

        Whole networks before LoRA; full moments before 8 bits; a full base before 8 and 4 bits; then no gradient
        checkpointing before gradient checkpointing, which computes the forward pass twice; then the larger batch.
        """
        order = sorted(self.rows, key=lambda row: (row.setting.checkpointing, -row.setting.batch))
        found = (row for kind in KINDS for row in order if (row.setting.training, row.setting.bits) == kind)
        return next((row for row in found if row.fits(capacity) == "yes"), None)


def fits(
    folder: PipelineFolder, *, height: int | None = None, width: int | None = None, frames: int | None = None
) -> Fits:
    """The settings of a pipeline in a folder of configs, for a size in pixels and frames (default: its call's).

    Raises:
        UserError: the folder is damaged, the network's inputs are not known, or it does not take the size.
    """
    network = folder.empty_network()
    inputs = example_inputs(folder, cast(Any, network).config, height=height, width=width, frames=frames)
    return network_fits(network, inputs.arguments, inputs.size)


def network_fits(network: nn.Module, arguments: Arguments, size: str) -> Fits:
    """The settings of a network, perhaps on the meta device; `arguments` makes the inputs of a batch."""
    network = empty_copy(network, META)
    whole = _passes(network, arguments)
    low_rank = _low_rank_passes(empty_copy(network, META), arguments)
    rows = list[Fit]()
    ways: dict[Training, dict[int, TrainingPass]] = {"AdamW": whole, "adamw8bit": whole, "LoRA": low_rank}
    bases = {bits: quantized_base(network, bits) if bits else network for bits in (None, *get_args(Bits))}
    for training, bits in KINDS:
        base, passes = bases[bits], ways[training]
        for checkpointing, batch in ((checkpointing, batch) for checkpointing in (False, True) for batch in BATCHES):
            setting, counted, one = Setting(training, checkpointing, batch, bits), passes[batch], passes[1]
            activations, operations = counted.kept, 2 * whole[1].forward + one.operations
            if checkpointing:
                activations = counted.between + max(counted.block, _copied(network, setting))
                operations += one.again
            memory = training_memory(base, setting.config, 1, bf16=True, activations=activations)
            rows.append(Fit(setting, memory, batch * operations))
    parameters = sum(each.numel() for each in network.parameters())
    return Fits(type(network).__name__, parameters, size, whole[1].forward, tuple(rows))


def _passes(network: nn.Module, arguments: Arguments) -> dict[int, TrainingPass]:
    """The passes of all batch sizes; operations are counted for one example."""
    return {batch: training_pass(network, arguments, batch, operations=batch == 1) for batch in BATCHES}


def _low_rank_passes(network: nn.Module, arguments: Arguments) -> dict[int, TrainingPass]:
    """The passes of a LoRA student, which shares the weights of a network in bf16."""
    student = add_lora(network, RANK, 0)
    with at_work(network, META, "bf16"):
        return _passes(student, arguments)


def _copied(network: nn.Module, setting: Setting) -> int:
    """Bytes of the bf16 copies of the trained weights."""
    if setting.training != "LoRA":
        return sum(each.nbytes for each in network.parameters()) - bytes_at_work(network, bf16=True)
    return training_memory(network, setting.config, 0, bf16=True).weights // 2
