"""Stand-ins for networks of other libraries: each takes what theirs does, and knows N(mean, 0.1^2) exactly.

So what samples of a teacher must be is known: a time, a schedule or an output that is taken for another shows in them.
`mean` is a parameter, so that there is something to train.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

WIDTH = 0.1  # the standard deviation of all data


def _wide(numbers: Tensor, like: Tensor) -> Tensor:
    return numbers.reshape(-1, *(1,) * (like.ndim - 1)).to(like)


class Gaussian(nn.Module):
    """E[x | z] of x ~ N(mean, WIDTH^2) and z = alpha x + sigma eps."""

    def __init__(self, mean: float = 0.3) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean))

    def denoised(self, z: Tensor, alpha: Tensor, sigma: Tensor, shift: Tensor | float = 0.0) -> Tensor:
        alpha, sigma, mean = _wide(alpha, z), _wide(sigma, z), self.mean + shift
        return mean + alpha * WIDTH**2 / (alpha**2 * WIDTH**2 + sigma**2) * (z - alpha * mean)

    def v(self, z: Tensor, alpha: Tensor, sigma: Tensor, shift: Tensor | float = 0.0) -> Tensor:
        return (_wide(alpha, z) * z - self.denoised(z, alpha, sigma, shift)) / _wide(sigma, z)

    def eps(self, z: Tensor, alpha: Tensor, sigma: Tensor, shift: Tensor | float = 0.0) -> Tensor:
        return (z - _wide(alpha, z) * self.denoised(z, alpha, sigma, shift)) / _wide(sigma, z)


class DiscreteUnet(Gaussian):
    """Called as model(x, time, x_self_cond), time 0 to T - 1, predicting v."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table)

    def scales(self, time: Tensor) -> tuple[Tensor, Tensor]:
        assert ((time >= 0) & (time <= len(self.table) - 1) & (time % 1 == 0)).all()
        alpha_bar = self.table[time.long()]
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def forward(self, x: Tensor, time: Tensor, x_self_cond: Tensor | None = None) -> Tensor:
        return self.v(x, *self.scales(time))


def gaussian_diffusion() -> Any:  # noqa: ANN401
    """What holds a model and a table in float32 with cosine betas of at most 0.999 (Nichol & Dhariwal 2021)."""
    angle = torch.cos((torch.linspace(0, 1000, 1001).double() / 1000 + 0.008) / 1.008 * torch.pi / 2) ** 2
    table = torch.cumprod(1 - (1 - angle[1:] / angle[:-1]).clip(0, 0.999), 0).float()
    return SimpleNamespace(model=DiscreteUnet(table), alphas_cumprod=table)


class Preconditioned(Gaussian):
    """Called as net(x, sigma, class_labels), x = data + sigma noise, returning denoised data."""

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        assert ((sigma >= 0.002 * 0.999) & (sigma <= 80 * 1.001)).all()
        return self.denoised(x, torch.ones_like(sigma), sigma)


class Raw(Gaussian):
    """Called as net(c_in x, c_noise, class_labels), which EDM's preconditioning makes denoised data of (table 1)."""

    def __init__(self, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.sigma_data = sigma_data

    def forward(self, scaled: Tensor, c_noise: Tensor, class_labels: Tensor | None = None) -> Tensor:
        sigma, d = _wide((4 * c_noise).exp(), scaled), self.sigma_data
        assert ((sigma >= 0.002 * 0.999) & (sigma <= 80 * 1.001)).all()
        norm = (sigma**2 + d**2).sqrt()
        x = scaled * norm
        denoised = self.denoised(x, torch.ones_like(sigma), sigma)
        return (denoised - (d / norm) ** 2 * x) * norm / (sigma * d)


class Schedule(nn.Module):
    """alpha = alpha_min^(t^2), sigma^2 = 1 - alpha^2 + sigma_min^2."""

    def alpha(self, t: Tensor) -> Tensor:
        return 0.001 ** (t**2)

    def sigma(self, t: Tensor) -> Tensor:
        return (1 - self.alpha(t) ** 2 + 0.001**2).sqrt()


class Posterior(Gaussian):
    """Called as denoiser(x_t, t) with t in [0, 1], returning a distribution."""

    def forward(self, xt: Tensor, t: Tensor) -> torch.distributions.Normal:
        assert ((t > 0) & (t <= 1)).all()
        return torch.distributions.Normal(self.denoised(xt, Schedule().alpha(t), Schedule().sigma(t)), 1.0)


class Flow(Gaussian):
    """Called as net(t, x) with noise at t = 0 and data at t = 1, predicting data - noise."""

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        assert t.ndim == 1
        assert ((t >= 0) & (t < 1)).all()
        return self.denoised(x, t, 1 - t) - self.eps(x, t, 1 - t)


def _cosine(timestep: Tensor) -> tuple[Tensor, Tensor]:
    """The paper's schedule at timestep 1024 t - 1."""
    t, end = (timestep.double() + 1) / 1024, torch.tensor(-10.0).double().exp().atan()
    phi = end + t * (torch.pi / 2 - 2 * end)
    return phi.cos(), phi.sin()


class Audio(Gaussian):
    """(B, 1, L) whose mean is moved by a pitch (B,) and an instrument (B,)."""

    def forward(self, z: Tensor, timestep: Tensor, pitch: Tensor, instrument: Tensor) -> Tensor:
        assert (pitch.dtype, instrument.dtype) == (torch.float32, torch.int64)
        return self.v(z, *_cosine(timestep), _wide(pitch - 0.2 * instrument, z))


class Table(Gaussian):
    """Rows (B, 12) whose mean is moved by the alcohol (B,); a DDPM of 100 timesteps in an `nn.Embedding`."""

    def __init__(self) -> None:
        super().__init__()
        alpha_bar = (1 - torch.linspace(1e-3, 0.2, 100).double()).cumprod(0)
        self.scales = nn.Embedding.from_pretrained(torch.stack([alpha_bar.sqrt(), (1 - alpha_bar).sqrt()], 1).float())

    def forward(self, z: Tensor, timestep: Tensor, alcohol: Tensor) -> Tensor:
        return self.v(z, *self.scales(timestep).unbind(1), _wide(alcohol, z))


class SuperResolution(Gaussian):
    """eps (B, 3, H, W) of latents and images of low resolution in one input (B, 6, H, W): the mean is moved by them."""

    def forward(self, inputs: Tensor, timestep: Tensor) -> tuple[Tensor]:
        z, low = inputs.chunk(2, 1)
        alpha_bar = (1 - torch.linspace(1e-4, 0.02, 1000).double()).cumprod(0)
        position = (timestep.double() + 1).clamp(0, 1000)
        angle = torch.cat([torch.zeros(1).double(), torch.atan2((1 - alpha_bar).sqrt(), alpha_bar.sqrt())])
        below = position.floor().clamp(max=999).long()
        phi = angle[below].lerp(angle[below + 1], position - below)
        return (self.eps(z, phi.cos(), phi.sin(), low),)
