"""Broadcast a per-example vector over a batch."""

from torch import Tensor


def per_example(values: Tensor, batch: Tensor) -> Tensor:
    """Shape `values` to multiply `batch`, on its device and in its precision.

    Args:
        values: one number per example (B,), or one for all ().
        batch: (B, ...).

    Returns:
        (B, 1, ..., 1) or ().
    """
    values = values.to(batch)
    return values.reshape(values.shape + (1,) * (batch.ndim - 1)) if values.ndim else values
