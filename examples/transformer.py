"""A transformer instead of a U-Net, digits as 16 patches of 2x2: python examples/transformer.py digits.png."""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

import progdist
from progdist.data.grid import write_grid
from progdist.data.sources import load_images


class Transformer(nn.Module):
    """Patches in, patches out, the time and the class as two more tokens."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.patches, self.places = nn.Linear(4, width), nn.Parameter(0.02 * torch.randn(18, width))
        self.time = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.labels, self.out = nn.Embedding(10, width), nn.Linear(width, 4)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)

    def forward(self, z: Tensor, timestep: Tensor, digit: Tensor) -> Tensor:
        """v (B, 1, 8, 8) from z (B, 1, 8, 8), timestep (B,) that counts to 1024, and digit (B,)."""
        angles = timestep[:, None] / 1024 * torch.pi * torch.arange(1, 17)
        tokens = self.patches(pixel_unshuffle(z, 2).flatten(2).mT)
        time = self.time(torch.cat([angles.sin(), angles.cos()], dim=1))
        tokens = torch.cat([tokens, time[:, None], self.labels(digit)[:, None]], dim=1) + self.places
        return pixel_shuffle(self.out(self.layers(tokens)[:, :16]).mT.unflatten(2, (4, 4)), 2)


torch.manual_seed(0)
data = load_images("digits")
x_all, labels = data.sample(len(data), 0)
teacher = progdist.Denoiser(Transformer(), progdist.Cosine(), "v_prediction")
optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-3)
for _ in range(2000):
    chosen, u = torch.randint(len(data), (128,)), torch.rand(128, dtype=torch.float64)
    x, weighting = x_all[chosen], progdist.WEIGHTINGS["truncated_snr"]
    eps = torch.randn_like(x)
    progdist.denoising_loss(teacher, x, eps, u, weighting=weighting, digit=labels[chosen]).mean().backward()
    optimizer.step()
    optimizer.zero_grad()

chain, how = [64, 32, 16, 8, 4], {"updates": 300, "batch": 64, "learning_rate": 5e-4, "label": "digit"}
student = progdist.distill(teacher, data, chain, **how)

noise, digit = torch.randn(32, 1, 8, 8), torch.arange(32) % 8
rows = [progdist.sample(one, noise, steps, digit=digit) for one, steps in ((teacher, 64), (teacher, 4), (student, 4))]
write_grid(torch.cat(rows), Path(sys.argv[1] if len(sys.argv) > 1 else "digits.png"))
