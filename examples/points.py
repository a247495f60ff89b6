"""Two dimensions, a small network, one call: python examples/points.py points.png (a minute on two cores)."""

import sys

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

import progdist


class Network(nn.Module):
    """Any module called as network(z, timestep) will do; this one is four linear layers."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [(2 + 32, 128), (128, 128), (128, 128), (128, 2)]
        self.layers = nn.Sequential(*[layer for a, b in sizes for layer in (nn.SiLU(), nn.Linear(a, b))][1:])

    def forward(self, z: Tensor, timestep: Tensor) -> Tensor:
        """v (B, 2) from z (B, 2) and timestep (B,), which counts to 1024."""
        angles = timestep[:, None] / 1024 * torch.pi * torch.arange(1, 17)
        return self.layers(torch.cat([z, angles.sin(), angles.cos()], dim=1))


torch.manual_seed(0)
turn = torch.rand(20_000, 1).sqrt() * 3 * torch.pi
data = torch.cat([turn.cos(), turn.sin()], dim=1) * turn / 10 + 0.02 * torch.randn(20_000, 2)  # a spiral

teacher = progdist.Denoiser(Network(), progdist.Cosine(), "v_prediction")
optimizer = torch.optim.Adam(teacher.parameters(), lr=2e-3)
for _ in range(6000):
    x, u = data[torch.randint(len(data), (512,))], torch.rand(512, dtype=torch.float64)
    weighting = progdist.WEIGHTINGS["snr_plus_one"]
    progdist.denoising_loss(teacher, x, torch.randn_like(x), u, weighting=weighting).mean().backward()
    optimizer.step()
    optimizer.zero_grad()

student = progdist.distill(teacher, data, [64, 32, 16, 8, 4], updates=1000, batch=512, learning_rate=1e-3)

noise, figure = torch.randn(3000, 2), plt.figure(figsize=(12, 4))
shown = {"teacher, 64 steps": (teacher, 64), "teacher, 4 steps": (teacher, 4), "student, 4 steps": (student, 4)}
for place, (title, (denoiser, steps)) in enumerate(shown.items(), 1):
    points = progdist.sample(denoiser, noise, steps)
    axes = figure.add_subplot(1, 3, place, title=title, aspect="equal", xlim=(-1.2, 1.2), ylim=(-1.2, 1.2))
    axes.scatter(*points.T, s=1)
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "points.png")
