"""Per-example numbers: where they are computed, and how they are broadcast over a batch."""

import torch
from torch import Tensor


def time_device(device: torch.device) -> torch.device:
    """Where times are computed for batches on a device: there, or on the CPU if the device has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def scaled(values: Tensor, factor: float) -> Tensor:
    """Values times a number; themselves for 1."""
    return values if factor == 1 else values * factor


def per_example(values: Tensor, batch: Tensor) -> Tensor:
    """Values (B,) or () -> (B, 1, ..., 1) or (), to multiply a batch (B, ...), on its device and in its precision."""
    values = values.to(batch)
    return values.reshape(values.shape + (1,) * (batch.ndim - 1)) if values.ndim else values
