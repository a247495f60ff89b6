r"""Calls of a network: check that it accepts its arguments and returns a prediction.

A network that looks timesteps up in a table (`nn.Embedding`) accepts only integers. It receives integer timesteps, and
is never called between two entries or beyond the last.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from progdist._utils.errors import UserError

ROUNDING = 1e-6  # the float64 rounding error of T t - 1 at timestep 0


def call_network(network: nn.Module, z: Tensor, timestep: Tensor, **arguments: Any) -> Any:  # noqa: ANN401
    """Call a network that takes latents (B, ...) and timesteps (B,) first."""
    return network(z, timestep, **arguments)


def check_call(network: nn.Module, z: Tensor, timestep: Tensor, arguments: Mapping[str, Any]) -> None:
    """Raise a UserError if a network cannot be called as network(z, timestep, **arguments)."""
    try:
        signature(network.forward).bind(z, timestep, **arguments)
    except TypeError as error:
        given = "".join(f", {name}=..." for name in arguments)
        raise UserError(
            f"{type(network).__name__} cannot be called as network(z, timestep{given}) ({error}): pass its conditions "
            "by name, or your own call="
        ) from error


def prediction(output: Any, z: Tensor, heads: int, halved: Callable[[Tensor], None]) -> Tensor:  # noqa: ANN401
    """Extract a network's prediction (B, heads * C, ...) from its output for latents z (B, C, ...).

    The output is a tensor, a tuple that starts with one, or has one as `sample`, a key or attribute. Learned variances,
    as many channels again, are dropped, and `halved` is called with the whole tensor.

    Raises:
        UserError: the output is none of these, or has another shape.
    """
    tensor = output
    if isinstance(output, Mapping) and "sample" in output:
        tensor = output["sample"]
    elif isinstance(output, tuple | list) and output:
        tensor = output[0]
    elif not isinstance(output, Tensor):
        tensor = getattr(output, "sample", output)
    if not isinstance(tensor, Tensor):
        keys = f" of {', '.join(map(str, output))[:100]}" if isinstance(output, Mapping) else ""
        raise UserError(
            f"the network returned a {type(output).__name__}{keys}, expected a tensor, a tuple that starts with one, "
            "or an output with `sample`"
        )
    if z.ndim < 2:
        raise UserError(f"expected latents (B, C, ...), got {tuple(z.shape)}: pass numbers as (B, 1)")
    channels = heads * z.shape[1]
    rest = tensor.shape[:1] + tensor.shape[2:] == z.shape[:1] + z.shape[2:] and tensor.ndim == z.ndim
    if not rest or tensor.shape[1] not in (channels, 2 * channels):
        expected = (z.shape[0], channels, *z.shape[2:])
        time_first = "; if it takes time first, pass call=lambda network, z, t: network(t, z)"
        raise UserError(
            f"the network returned {tuple(tensor.shape)} for latents {tuple(z.shape)}, expected {expected}: it must "
            f"predict every number of its input{time_first if tensor.ndim == 1 else ''}"
        )
    if tensor.shape[1] != channels:
        halved(tensor)
    return tensor[:, :channels]


def tables(network: nn.Module) -> Sequence[nn.Embedding]:
    """The embedding tables of a network, one of which may hold its timesteps; none of a compiled network."""
    if hasattr(network, "_orig_mod"):
        return ()
    return tuple(module for module in network.modules() if isinstance(module, nn.Embedding))


@contextmanager
def whole_timesteps(
    candidates: Sequence[nn.Embedding],
    timestep: Tensor,
    count: int,
    condition: Mapping[str, Any],
    found: Callable[[], None],
) -> Iterator[None]:
    """The context of a call in which a table that looks up the timesteps (B,), of `count` in all, gets integers.

    `found` is called when one does. Raise a UserError for a timestep that the table does not hold.
    """
    with ExitStack() as stack:
        for table in candidates:
            hook = partial(_as_integers, timestep, count, tuple(condition.values()), found)
            stack.callback(table.register_forward_pre_hook(hook).remove)
        yield


def _as_integers(
    timestep: Tensor,
    count: int,
    conditions: Sequence[Any],
    found: Callable[[], None],
    table: nn.Embedding,
    arguments: tuple[Any, ...],
) -> tuple[Any, ...] | None:
    """The arguments of a table that looks up timesteps, as integers; None for those of other tables."""
    index = arguments[0] if arguments else None
    if not isinstance(index, Tensor) or index.numel() != timestep.numel() or any(index is each for each in conditions):
        return None
    if index.is_cuda and torch.cuda.is_current_stream_capturing():
        return None
    size = table.num_embeddings
    suspect = size in (count, count + 1) or bool((timestep >= size).any())
    if not _same(index, timestep) and not (suspect and _cut(index, timestep)):
        return None
    found()
    between = timestep[(timestep - timestep.round()).abs() > ROUNDING]
    if len(between) and (timestep < size).all():
        raise UserError(
            f"the network looks its timesteps up in a table of {size}, but was called at {float(between[0]):g}, "
            "between two entries: use step counts that divide num_train_timesteps, and a method that calls it at "
            "whole steps, e.g. ddim"
        )
    beyond = timestep[(timestep < -ROUNDING) | (timestep >= size)]
    if len(beyond):
        raise UserError(
            f"the network looks its timesteps up in a table of {size}, but was called at {float(beyond[0]):g}: set its "
            "num_train_timesteps, and offset=0 if it counts from 1"
        )
    return (timestep.round().long().reshape(index.shape), *arguments[1:])


def _same(index: Tensor, timestep: Tensor) -> bool:
    return index.is_floating_point() and torch.equal(index.flatten().to(timestep), timestep)


def _cut(index: Tensor, timestep: Tensor) -> bool:
    """Whether `index` is the timesteps, truncated or rounded."""
    whole = index.flatten().to(timestep)
    return torch.equal(whole, timestep.trunc()) or torch.equal(whole, timestep.round())
