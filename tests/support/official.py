"""Checkpoint files as flax writes them."""

import math
from typing import Any

import msgpack
import numpy as np
import torch

from progdist.teachers.jax import read_checkpoint
from support.paths import REFERENCE

CHECKPOINT = REFERENCE / "checkpoint_8"


def recorded_difference(network: Any) -> float:  # noqa: ANN401  (a UNet2DModel)
    """The largest difference from the recorded output when the network is given 1000 t' - 1."""
    io = np.load(REFERENCE / "unet_io.npz")
    log_snr = torch.from_numpy(io["logsnr"]).double()
    timestep = 1000 * torch.atan(torch.exp(-log_snr / 2)) / (math.pi / 2) - 1
    with torch.no_grad():
        output = network(
            torch.from_numpy(io["x"]).movedim(-1, 1), timestep.float(), torch.from_numpy(io["y"]).long()
        ).sample  # fmt: skip
    return float((output.movedim(1, -1) - torch.from_numpy(io["out"])).abs().max())


def pack(tree: dict[str, Any], chunk: int | None = None) -> bytes:
    """A file as flax writes it; arrays over `chunk` elements in chunks."""

    def encode(value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, dict):
            return {key: encode(item) for key, item in value.items()}
        if isinstance(value, np.generic):
            return msgpack.ExtType(3, msgpack.packb(((), value.dtype.name, value.tobytes())))
        if isinstance(value, torch.Tensor) and chunk and value.numel() > chunk:
            parts = value.flatten().split(chunk)
            return {
                "__msgpack_chunked_array__": True,
                "shape": {str(axis): size for axis, size in enumerate(value.shape)},
                "chunks": {str(index): encode(part) for index, part in enumerate(parts)},
            }
        if isinstance(value, torch.Tensor):
            raw = value.contiguous().view(torch.uint8).numpy().tobytes() if value.ndim else value.numpy().tobytes()
            name = str(value.dtype).removeprefix("torch.")
            return msgpack.ExtType(1, msgpack.packb((tuple(value.shape), name, raw)))
        return value

    return bytes(msgpack.packb(encode(tree)) or b"")


def nested(parameters: dict[str, torch.Tensor]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in parameters.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def known() -> dict[str, torch.Tensor]:
    return read_checkpoint(CHECKPOINT)[0]
