r"""Convert the paper's released checkpoints to a model folder.

A released file is one msgpack map, as written by flax.serialization: `ema_params` (nested maps of arrays),
`num_sample_steps` and `step`. Arrays are extension type 1 and numpy scalars type 3, each a msgpack array
[shape, dtype, bytes]. Nothing is unpickled and JAX is not needed. The network is inferred from the names and shapes of
the parameters.

Source: github.com/google-research/google-research, diffusion_distillation.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack
import torch
from torch import Tensor

from progdist._utils.errors import UserError
from progdist._utils.files import check_tensors_finite
from progdist.diffusion.denoiser import MAX_TIMESTEPS, Denoiser
from progdist.diffusion.parameterization import PARAMETERIZATIONS
from progdist.diffusion.schedule import Cosine
from progdist.models.conditioning import Classes, Conditioning
from progdist.models.model import Model
from progdist.models.networks import class_count
from progdist.teachers.jax_parameters import infer_network, translate

DTYPES = {
    name: getattr(torch, name)
    for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
}

TIMESTEPS = 1000
DAMAGE = (ValueError, TypeError, KeyError, OverflowError, RuntimeError, RecursionError, msgpack.UnpackException)
"""Errors that parsing a truncated or hostile file can raise."""


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], int]:
    """The averaged parameters by path, and the checkpoint's sampling steps (0 if it does not record them)."""
    try:
        tree = msgpack.unpackb(path.read_bytes(), ext_hook=_extension, strict_map_key=False)
        if not isinstance(tree, dict) or not isinstance(tree.get("ema_params"), dict):
            raise ValueError("it has no map with ema_params")
        steps = int(tree.get("num_sample_steps") or 0)
        if not 0 <= steps <= MAX_TIMESTEPS:
            raise ValueError(f"num_sample_steps is {str(steps)[:50]}")
        return dict(_leaves(tree["ema_params"])), steps
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except DAMAGE as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{path} is not a released checkpoint, or is truncated ({reason}): fetch it again") from error


def _extension(code: int, content: bytes) -> Tensor:
    if code not in (1, 3):
        raise ValueError(f"extension type {code}, expected 1 or 3")
    shape, dtype, raw = msgpack.unpackb(content)
    dtype = dtype.decode() if isinstance(dtype, bytes) else dtype
    if dtype not in DTYPES:
        raise ValueError(f"an array of {dtype}")
    if not all(isinstance(side, int) and 0 < side < 2**31 for side in shape):
        raise ValueError(f"an array of shape {shape}")
    count = math.prod(shape)
    if count * DTYPES[dtype].itemsize != len(raw):
        raise ValueError(f"an array of shape {shape} and {dtype} in {len(raw)} bytes")
    flat = torch.frombuffer(bytearray(raw), dtype=DTYPES[dtype]) if raw else torch.empty(0, dtype=DTYPES[dtype])
    return flat.reshape(tuple(shape))


def _leaves(tree: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, Tensor]]:
    """Every array with its path; chunked arrays are joined."""
    if tree.get("__msgpack_chunked_array__"):
        chunks, shape = tree["chunks"], tree["shape"]
        joined = torch.cat([chunks[str(index)].reshape(-1) for index in range(len(chunks))])
        return [(prefix, joined.reshape([int(shape[str(axis)]) for axis in range(len(shape))]))]
    leaves: list[tuple[str, Tensor]] = []
    for name, value in tree.items():
        path = f"{prefix}/{name}" if prefix else str(name)
        if isinstance(value, dict):
            leaves += _leaves(value, path)
        elif isinstance(value, Tensor):
            leaves.append((path, value))
        else:
            raise ValueError(f"{path} is a {type(value).__name__}, expected an array")
    return leaves


def import_checkpoint(path: Path, *, size: int | None, parameterization: str | None, chain_start: int = 0) -> Model:
    """A released checkpoint as a model, for images of height and width `size`, which the file does not record.

    `parameterization` is the meaning of its output, x_eps for two heads; `chain_start` is its steps, if the file does
    not record them.

    Raises:
        UserError: the file is damaged or of another network, or something is missing.
    """
    parameters, steps = read_checkpoint(path)
    if size is None:
        raise UserError("the file does not record the size of the images: give --image-size, or --recipe NAME")
    check_tensors_finite(parameters, path)
    network = infer_network(parameters, size)
    heads = network.config["out_channels"] // network.config["in_channels"]
    parameterization = parameterization or ("x_eps" if heads == 2 else None)
    if parameterization is None:
        raise UserError(
            "the file does not record the output's meaning: give --parameterization x, eps or v, or --recipe NAME"
        )
    if parameterization not in PARAMETERIZATIONS:
        raise UserError(f"parameterization {parameterization!r} is unknown: use one of {', '.join(PARAMETERIZATIONS)}")
    chosen = PARAMETERIZATIONS[parameterization]
    if chosen.heads != heads:
        raise UserError(f"{parameterization} has {chosen.heads} output heads, the network {heads}: use another")
    network.load_state_dict(translate(parameters, network))
    denoiser = Denoiser(network.eval(), Cosine(), chosen, num_train_timesteps=TIMESTEPS)
    count = steps or chain_start
    classes = tuple(map(str, range(class_count(network))))
    conditioning = Classes(classes) if classes else Conditioning()
    return Model(denoiser, (count,) if count else (), conditioning=conditioning, data=f"imported from {path.name}")
