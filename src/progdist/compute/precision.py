r"""The precision in which networks compute: by name, or the one that is faster on the machine at hand.

`auto` is bfloat16 where it is at least MARGIN times as fast as float32, and float32 elsewhere. On CUDA the compute
capability tells: bfloat16 is in hardware from 8.0 on. On a CPU it is measured, by one matrix product in each
precision: processors differ by a factor of 400, and some say that they support bfloat16 where they emulate it.
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
MARGIN = 1.3  # how many times as fast as float32 bfloat16 must be, since casting takes time, too

SIZE, REPEATS = 256, 5  # of the square matrices multiplied: 50 ms where bfloat16 is emulated, 5 ms elsewhere


def resolve(precision: Precision, device: torch.device) -> Resolved:
    """The precision itself, or for `auto` the one that pays on the device."""
    if precision == "auto":
        return "bf16" if bf16_speedup(device.type) >= MARGIN else "float32"
    return precision


@lru_cache(maxsize=4)
def bf16_speedup(device: str) -> float:
    """How many times as fast as float32 a device type computes in bfloat16; below 1 where it is emulated.

    Measured on a CPU. On CUDA 2, the least that compute capability 8.0 promises, and 0 below; 0 on other devices.
    """
    if device == "cuda":
        return 2.0 if torch.cuda.get_device_capability()[0] >= 8 else 0.0
    if device != "cpu":
        return 0.0
    return _product_seconds(torch.float32) / _product_seconds(torch.bfloat16)


def _product_seconds(dtype: torch.dtype) -> float:
    """The least time that a matrix product took, after one that warms up."""
    matrix = torch.ones(SIZE, SIZE, dtype=dtype)
    took = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        torch.mm(matrix, matrix)
        took.append(time.perf_counter() - started)
    return min(took[1:])


def emulation_warning(device: torch.device) -> str | None:
    """The warning about bf16 on a device that is slower in it; None elsewhere."""
    speedup = bf16_speedup(device.type)
    if device.type != "cpu" or speedup >= 1:
        return None
    return (
        f"bf16 was asked for, and this processor computes {1 / speedup:.1f} times as fast in float32: "
        "use precision auto or float32"
    )


def autocast(device: torch.device, precision: Precision) -> torch.autocast | nullcontext[None]:
    """The context in which a network runs in a precision, whatever autocast the caller is in."""
    if resolve(precision, device) == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return outside_autocast(device)


def outside_autocast(device: torch.device) -> torch.autocast | nullcontext[None]:
    """The context in which a caller's autocast has no effect."""
    return torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()


def enable_gradient_checkpointing(network: nn.Module) -> None:
    """Have a network recompute its activations in the backward pass, as diffusers' networks can, or a UserError."""
    if not hasattr(network, "enable_gradient_checkpointing"):
        name = type(network).__name__
        raise UserError(f"{name} has no enable_gradient_checkpointing(): remove gradient_checkpointing, or give it one")
    cast(Any, network).enable_gradient_checkpointing()
