r"""The precision in which networks compute: chosen by name, or the faster one on this machine.

`auto` is bfloat16 where it is at least MARGIN times as fast as float32, and float32 elsewhere. On CUDA the compute
capability decides: from 8.0 on, bfloat16 is in hardware. On a CPU it is measured, by one matrix product in each
precision: processors differ by a factor of 400, and some report support for bfloat16 that they emulate.
"""

import time
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, Literal, cast

import torch
from torch import nn

from progdist._utils.errors import UserError
from progdist._utils.names import Precision

Resolved = Literal["float32", "bf16"]  # what a network computes in
MARGIN = 1.3  # the speedup over float32 that bfloat16 must reach, since casting takes time, too

SIZE, REPEATS = 256, 5  # of the square matrices multiplied: 50 ms where bfloat16 is emulated, 5 ms elsewhere


def resolve(precision: Precision, device: torch.device) -> Resolved:
    """Return the precision itself, or the one that `auto` selects on the device."""
    if precision == "auto":
        return "bf16" if bf16_speedup(device.type) >= MARGIN else "float32"
    return precision


@lru_cache(maxsize=4)
def bf16_speedup(device: str) -> float:
    """The speedup of bfloat16 over float32 on a type of device; below 1 where it is emulated.

    It is measured on a CPU. On CUDA it is 2, the least that compute capability 8.0 promises, and 0 below; else 0.
    """
    if device == "cuda":
        return 2.0 if torch.cuda.get_device_capability()[0] >= 8 else 0.0
    if device != "cpu":
        return 0.0
    return _product_seconds(torch.float32) / _product_seconds(torch.bfloat16)


def _product_seconds(dtype: torch.dtype) -> float:
    """The shortest time of a matrix product, after a warm-up."""
    matrix = torch.ones(SIZE, SIZE, dtype=dtype)
    took = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        torch.mm(matrix, matrix)
        took.append(time.perf_counter() - started)
    return min(took[1:])


def emulation_warning(device: torch.device) -> str | None:
    """The warning about a device that is slower in bf16; None elsewhere."""
    speedup = bf16_speedup(device.type)
    if device.type != "cpu" or speedup >= 1:
        return None
    return (
        f"precision is bf16, but this processor is {1 / speedup:.1f} times as fast in float32: use precision auto or "
        "float32"
    )


def autocast(device: torch.device, precision: Precision) -> torch.autocast | nullcontext[None]:
    """The context in which a network runs in a precision, whatever the caller's autocast."""
    if resolve(precision, device) == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return outside_autocast(device)


def outside_autocast(device: torch.device) -> torch.autocast | nullcontext[None]:
    """The context that disables a caller's autocast."""
    return torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()


def enable_gradient_checkpointing(network: nn.Module) -> None:
    """Recompute activations in the backward pass, as diffusers' networks can; raise a UserError for other networks."""
    if not hasattr(network, "enable_gradient_checkpointing"):
        name = type(network).__name__
        raise UserError(f"gradient_checkpointing requires {name}.enable_gradient_checkpointing(): remove it or add one")
    cast(Any, network).enable_gradient_checkpointing()
