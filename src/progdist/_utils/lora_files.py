"""How LoRA files are named beside a teacher: `FILE` or `FILE:weight`, as `style.safetensors:0.8`."""

import math
from dataclasses import dataclass

from progdist._utils.errors import UserError


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file and the weight with which it is fused."""

    path: str
    weight: float = 1.0


def lora_file(text: str) -> LoraFile:
    """The file and the weight of `FILE[:weight]`; what follows the last colon is a weight if it is a number.

    Raises:
        UserError: the file is no `.safetensors`, or the weight is 0 or not finite.
    """
    path, colon, last = text.rpartition(":")
    try:
        weight = float(last) if colon else 1.0
    except ValueError:
        weight = 1.0
        colon = ""
    path = path if colon else text
    if not path.endswith(".safetensors"):
        raise UserError(f"the LoRA file {text[:100]!r} is no FILE.safetensors[:weight]: save it as safetensors")
    if weight == 0 or not math.isfinite(weight):
        raise UserError(f"the LoRA file {text[:100]!r} has a weight of {weight:g}, expected a number other than 0")
    return LoraFile(path, weight)
