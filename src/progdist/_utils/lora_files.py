"""How LoRA files are given with a teacher: `FILE` or `FILE:weight`, e.g. `style.safetensors:0.8`."""

import math
from dataclasses import dataclass

from progdist._utils.errors import UserError


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file and the weight to fuse it with."""

    path: str
    weight: float = 1.0


def lora_file(text: str) -> LoraFile:
    """Parse `FILE[:weight]`; the text after the last colon is a weight if it is a number.

    Raises:
        UserError: the file is not `.safetensors`, or the weight is 0 or not finite.
    """
    path, colon, last = text.rpartition(":")
    try:
        weight = float(last) if colon else 1.0
    except ValueError:
        weight = 1.0
        colon = ""
    path = path if colon else text
    if not path.endswith(".safetensors"):
        raise UserError(f"expected a LoRA file FILE.safetensors[:weight], got {text[:100]!r}: save it as safetensors")
    if weight == 0 or not math.isfinite(weight):
        raise UserError(f"LoRA file {text[:100]!r}: expected a finite weight other than 0, got {weight:g}")
    return LoraFile(path, weight)
