"""Distillation in one call: a teacher and data in, a student out; nothing here knows what an image is.

    student = progdist.distill(teacher, data, chain=[64, 32, 16, 8, 4])

The teacher is a `Denoiser` around any `torch.nn.Module`; data are tensors of any one shape: images, latents, vectors.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset

from progdist._utils.errors import UserError
from progdist._utils.names import Precision
from progdist._utils.random import position_seed
from progdist.diffusion.denoiser import Denoiser
from progdist.diffusion.loss import WEIGHTINGS
from progdist.methods.chain import Stage, distill_chain, stages
from progdist.methods.conversion import (
    conversion_loss,
    converted_form,
    ends_above_zero_snr,
    needs_conversion,
    zero_terminal_snr_of_students,
)
from progdist.methods.progressive import check_weighting, stage_loss
from progdist.models.guidance import guided, with_guidance
from progdist.training.batches import Batches
from progdist.training.callbacks import Progress
from progdist.training.config import TrainConfig
from progdist.training.distributed import make_accelerator
from progdist.training.loop import Batch, train


class TensorData(Dataset[tuple[Tensor, int]]):
    """Data of any one shape as (tensor, label) pairs; label 0 where there is none.

    Args:
        data: a tensor (N, ...), a map-style data set, or any iterable, which is then kept in memory; items are
            tensors or (tensor, label) pairs.

    Raises:
        UserError: there is no data, or items differ in shape.
    """

    def __init__(self, data: Any) -> None:  # noqa: ANN401  (whatever can be iterated)
        self.items = data if hasattr(data, "__getitem__") and hasattr(data, "__len__") else list(data)
        if not len(self.items):
            raise UserError("distill was given no data: give at least one example")
        self.shape: tuple[int, ...] = tuple(self._pair(0)[0].shape)

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.items)

    def _pair(self, index: int) -> tuple[Tensor, int]:
        item = self.items[index]
        tensor, label = item if isinstance(item, tuple | list) else (item, 0)
        return torch.as_tensor(tensor, dtype=torch.float32), int(label)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One example and its label."""
        tensor, label = self._pair(index)
        if tuple(tensor.shape) != self.shape:
            raise UserError(f"example {index} is {tuple(tensor.shape)}, the first is {self.shape}: give all one shape")
        return tensor, label


def distill(
    teacher: Denoiser,
    data: Tensor | Dataset[Any] | Iterable[Any],
    chain: Sequence[int] = (512, 256, 128, 64, 32, 16, 8, 4),
    *,
    updates: int | Mapping[int, int] = 1000,
    conversion_updates: int = 4000,
    batch: int = 64,
    learning_rate: float = 1e-4,
    lr_scheduler: Literal["linear", "constant"] = "linear",
    weighting: str = "truncated_snr",
    precision: Precision = "auto",
    gradient_accumulation_steps: int = 1,
    gradient_checkpointing: bool = False,
    label: str | None = None,
    guidance: float | tuple[float, float] | None = None,
    null_class: int | None = None,
    zero_terminal_snr: bool | None = None,
    seed: int = 0,
    observe: Callable[[int, Progress], None] = lambda steps, progress: None,
) -> Denoiser:
    """Distil a teacher along a chain of step counts (paper, Algorithm 2).

    Args:
        teacher: left as it is. One that predicts eps, or that is guided, first gets a student of output v (see
            `progdist.methods.conversion`).
        data: tensors of one shape (N, ...), about [-1, 1]; or a data set or iterable of tensors or (tensor, label).
        chain: the teacher's step count, then each student's; each divides the one before.
        updates: of every stage, or by the student's step count.
        conversion_updates: of the first student, where one is needed.
        batch: examples in an update.
        learning_rate: of Adam, at its highest.
        lr_scheduler: "linear" to 0 within each stage, or "constant".
        weighting: the name of one in WEIGHTINGS.
        precision: "float32", "bf16", or "auto" for what is faster on the device.
        gradient_accumulation_steps: parts of a batch, to save memory; the result is the same but for rounding.
        gradient_checkpointing: recompute activations in the backward pass; the network needs diffusers' method
            enable_gradient_checkpointing().
        label: the keyword under which the network takes the labels (B,); None for an unconditional one.
        guidance: the scale of classifier-free guidance that the student takes in, or the least and the largest of
            those that it takes as an input: the network of a UNet2DModel or DiTTransformer2DModel is given one, any
            other must have a keyword `guidance` (B,) that it can be called without.
        null_class: the label that stands for no class, which guidance leads away from.
        zero_terminal_snr: whether the student's schedule ends in pure noise, or where the teacher's ends; None for
            pure noise if the teacher predicts eps and is not guided.
        seed: of all randomness.
        observe: called with the student's step count (the teacher's in stage 0) and the progress, about a thousand
            times in each stage.

    Returns:
        The last student, on the device where the teacher was: sample it in `chain[-1]` steps.

    Raises:
        UserError: a chain that does not divide, no data, examples of different shapes, an option or a key of `updates`
            that is none, guidance without labels, zero_terminal_snr of a schedule that ends in pure noise as it is, or
            a loss that is not finite.
    """
    links, examples, accelerator = stages(chain), TensorData(data), make_accelerator()
    _check_names(weighting, precision, lr_scheduler)
    _check_at_least(conversion_updates=(conversion_updates, 1), seed=(seed, 0))
    weighting_function, counts = WEIGHTINGS[weighting], _updates(updates, [link.steps for link in links])
    if zero_terminal_snr is not None and not ends_above_zero_snr(teacher.schedule):
        raise UserError("zero_terminal_snr is of a schedule that ends above zero SNR, and the teacher's does not")
    in_noise = zero_terminal_snr_of_students(teacher, zero_terminal_snr, guided=guidance is not None)
    check_weighting(converted_form(teacher, zero_terminal_snr=in_noise).schedule, weighting_function, chain[-1])
    config = TrainConfig(
        1,
        batch,
        learning_rate,
        lr_scheduler=lr_scheduler,
        gradient_accumulation_steps=gradient_accumulation_steps,
        gradient_checkpointing=gradient_checkpointing,
        precision=precision,
    )
    scales = guidance if isinstance(guidance, tuple) else None
    trainer = _Trainer(examples, config, label, scales, seed, accelerator, observe)
    current = _frozen(teacher, accelerator.device)
    taught = guided(current, guidance, label, null_class)
    if needs_conversion(teacher, zero_terminal_snr=in_noise) or guidance is not None:
        begin = converted_form(_copy(current), zero_terminal_snr=in_noise)
        begin = with_guidance(begin, scales) if scales else begin
        loss = partial(conversion_loss, teacher=taught, weighting=weighting_function)
        current = _frozen(trainer.fit(begin, 0, loss, conversion_updates, chain[0]), accelerator.device)

    def train_student(number: int, stage: Stage, teacher: Denoiser) -> Denoiser:
        loss = stage_loss(teacher, stage, weighting_function)
        return _frozen(trainer.fit(_copy(teacher), number, loss, counts[stage.steps], stage.steps), accelerator.device)

    for _, student in distill_chain(current, links, train_student):
        current = student
    return teacher.with_form_of(current).to(_device(teacher))


@dataclass(frozen=True)
class _Trainer:
    """Trains the students of one call."""

    examples: TensorData
    config: TrainConfig
    label: str | None
    scales: tuple[float, float] | None
    seed: int
    accelerator: Accelerator
    observe: Callable[[int, Progress], None]

    def fit(self, student: Denoiser, number: int, loss: Callable[..., Tensor], updates: int, steps: int) -> Denoiser:
        """The student of stage `number`, of `steps` steps, trained in place for so many updates."""

        def loss_of_batch(network: nn.Module, batch: Batch) -> Tensor:
            told = {self.label: batch["labels"]} if self.label else {}
            told |= {"guidance": batch["guidance"]} if self.scales else {}
            return loss(student.with_network(network), x=batch["x"], eps=batch["eps"], u=batch["u"], **told)

        network, _, _ = train(
            student.network,
            loss_of_batch,
            Batches(self.examples, self.config.batch, self.seed, number, labelled=True, guidance=self.scales),
            replace(self.config, updates=updates),
            accelerator=self.accelerator,
            seed=position_seed(self.seed, number),
            observe=partial(self.observe, steps),
        )
        return student.with_network(network)


def _check_names(weighting: str, precision: str, lr_scheduler: str) -> None:
    """Refuse a name that is none."""
    schedulers = ("linear", "constant")
    for name, value, known in (
        ("weighting", weighting, tuple(WEIGHTINGS)),
        ("precision", precision, get_args(Precision)),
        ("lr_scheduler", lr_scheduler, schedulers),
    ):
        if value not in known:
            raise UserError(f"{name} {value!r} is unknown: use one of {', '.join(known)}")


def _check_at_least(**numbers: tuple[int, int]) -> None:
    """Refuse a number, by its name, that is below the least that it can be."""
    for name, (number, least) in numbers.items():
        if number < least:
            raise UserError(f"{name} is {number}, expected at least {least}")


def _updates(updates: int | Mapping[int, int], steps: Sequence[int]) -> Mapping[int, int]:
    """The updates of every stage, by the student's step count."""
    counts = updates if isinstance(updates, Mapping) else dict.fromkeys(steps, updates)
    if odd := sorted(counts.keys() ^ set(steps)):
        raise UserError(
            f"updates has the keys {sorted(counts)}, and the students' steps are {list(steps)}: fix {odd[0]}"
        )
    if wrong := [count for count in counts.values() if count < 1]:
        raise UserError(f"updates is {wrong[0]}: give every stage at least 1")
    return counts


def _device(denoiser: Denoiser) -> torch.device:
    """Where its weights are; the CPU if it has none."""
    return next((parameter.device for parameter in denoiser.parameters()), torch.device("cpu"))


def _copy(denoiser: Denoiser) -> Denoiser:
    return denoiser.with_network(copy.deepcopy(denoiser.network))


def _frozen(denoiser: Denoiser, device: torch.device) -> Denoiser:
    """A copy on the device that no gradient reaches, in evaluation mode."""
    return _copy(denoiser).to(device).eval()
