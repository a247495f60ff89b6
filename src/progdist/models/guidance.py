"""Guidance of any class-conditional network: a student that takes its scale, and what it is given."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from progdist._utils.errors import UserError
from progdist.diffusion.denoiser import Denoiser, DenoiserProtocol
from progdist.methods.guidance import Guided


def guided(
    teacher: Denoiser, guidance: float | tuple[float, float] | None, label: str | None, null_class: int | None
) -> DenoiserProtocol:
    """The teacher's guided predictions, or its own where there is no guidance.

    Args:
        teacher: class-conditional.
        guidance: one scale for all, or the least and the largest, of which every example brings its own; or None.
        label: the keyword of the labels.
        null_class: the label that stands for no class.

    Raises:
        UserError: no labels, no class that stands for none, or a scale or range that is none.
    """
    if guidance is None:
        if null_class is not None:
            raise UserError("null_class is what guidance leads away from, and there is none: give guidance, too")
        return teacher
    scales = guidance if isinstance(guidance, tuple) else (guidance,)
    if not (0 < scales[0] < float("inf") and (len(scales) == 1 or scales[0] < scales[1] < float("inf"))):
        raise UserError(f"guidance is {guidance}, expected a scale above 0, or the least and the largest: (1, 8)")
    if label is None or null_class is None:
        raise UserError("guidance leads away from a class that stands for none: give label and null_class, too")
    null = {label: torch.tensor([null_class])}
    return Guided(teacher, null, None if isinstance(guidance, tuple) else float(guidance))


def with_guidance(student: Denoiser, scales: tuple[float, float]) -> Denoiser:
    """The student around a network that takes a guidance scale (B,) as `guidance`, which changes nothing yet.

    A network with such a keyword is taken as it is.

    Raises:
        UserError: it has none, and none can be added (see `progdist.models.guidance_input`).
    """
    if _has_keyword(student.network):
        return student
    from progdist.models.guidance_input import with_class_guidance
    from progdist.models.prompts import network_arguments

    network = with_class_guidance(student.network, scales)
    return student.with_parts(network=network, arguments=network_arguments(network))


def scales_of(denoiser: DenoiserProtocol, guidance: float, count: int) -> Tensor:
    """The guidance scale for so many examples, (count,) float64.

    Raises:
        UserError: the denoiser takes none.
    """
    network: Any = getattr(denoiser, "network", None)
    if not isinstance(network, nn.Module) or not (_has_keyword(network) or _has_part(network)):
        raise UserError("guidance is of models that were distilled for a range of it, and this is none: leave it out")
    return torch.full((count,), guidance, dtype=torch.float64)


def _has_keyword(network: nn.Module) -> bool:
    return "guidance" in inspect.signature(network.forward).parameters


def _has_part(network: nn.Module) -> bool:
    from progdist.models.guidance_input import class_guidance

    return class_guidance(network) is not None
