"""Per-example numbers: the device they are computed on, and how they broadcast over a batch."""

import torch
from torch import Tensor


def time_device(device: torch.device) -> torch.device:
    """The device on which to compute times for a batch: the batch's own, or the CPU if it has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def scaled(values: Tensor, factor: float) -> Tensor:
    """Multiply values by a number; return them unchanged for 1."""
    return values if factor == 1 else values * factor


def per_example(values: Tensor, batch: Tensor) -> Tensor:
    """Reshape values (B,) or () to (B, 1, ..., 1) or (), on the device and in the precision of a batch (B, ...)."""
    values = values.to(batch)
    return values.reshape(values.shape + (1,) * (batch.ndim - 1)) if values.ndim else values
