"""Networks of evaluation with weights that are drawn, since the published ones cannot be had here."""

from pathlib import Path
from zlib import crc32

import torch
from torch import Tensor

from progdist.evaluation.networks.inception import Inception


def drawn(name: str, shape: torch.Size) -> Tensor:
    """A tensor of Inception's weights: normal, of a size that keeps activations of the order of 1."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(crc32(name.encode())))
    if name.endswith("conv.weight"):
        return noise * (2 / noise[0].numel()) ** 0.5
    if name.startswith("fc."):
        return noise / 2048**0.5
    centre = 1.0 if name.endswith(("bn.weight", "running_var")) else 0.0
    return centre + 0.1 * (noise.abs() if name.endswith("running_var") else noise)


def inception_weights() -> dict[str, Tensor]:
    """All of them, by the names of the published ones."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Inception().state_dict().items()}
    return {
        name: torch.zeros((), dtype=torch.int64) if name.endswith("num_batches_tracked") else drawn(name, shape)
        for name, shape in shapes.items()
    }


def byte_images() -> Tensor:
    """Two images of bytes, (2, 3, 20, 24)."""
    return torch.randint(0, 256, (2, 3, 20, 24), generator=torch.Generator().manual_seed(0)).byte()


def write_inception(path: Path) -> Path:
    """A file of drawn weights."""
    torch.save(inception_weights(), path)
    return path


def feature_sets() -> tuple[Tensor, Tensor, Tensor]:
    """Features of data and of samples, (400, 8) each, and logits (400, 6) of the samples; float32."""
    draw = torch.Generator().manual_seed(3)
    data = torch.randn(400, 8, generator=draw)
    made = 0.9 * torch.randn(400, 8, generator=draw) + 0.3
    return data, made, 2 * torch.randn(400, 6, generator=draw)
