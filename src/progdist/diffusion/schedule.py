r"""Noise schedules: how much data and how much noise a latent holds at time t.

    z_t = alpha_t x + sigma_t eps,    t in [0, 1],    eps ~ N(0, I)

    rho_t    = alpha_t / sigma_t                    falls as t grows
    lambda_t = log(alpha_t^2 / sigma_t^2)           the log-SNR, 2 log rho_t

A variance-preserving schedule has alpha^2 + sigma^2 = 1, so one angle phi describes it:

    alpha = cos phi,    sigma = sin phi,    rho = cot phi

The angle and its complement psi = pi/2 - phi are computed each for itself, so that alpha = sin psi keeps
all its digits where it is small, and is exactly 0 where psi is.

Every function takes times as a float64 tensor of any shape and returns float64 of that shape, on its device; a
schedule itself is numbers (the angles of a table are cached). Source: Salimans & Ho 2022, section 2 and appendix E;
Liu et al. 2022 (arXiv 2209.03003) for the rectified flow.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import torch
from torch import Tensor

from progdist._utils.errors import UserError


class Schedule(ABC):
    """alpha_t and sigma_t for t in [0, 1]; t = 1 is noise.

    Attributes:
        name: under which a model folder records it; a schedule of your own needs none, and has no folder.
    """

    name: ClassVar[str] = "custom"

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """The scale of the data in z_t."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """The scale of the noise in z_t."""

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha_t, sigma_t)."""
        return self.alpha(t), self.sigma(t)

    def rho(self, t: Tensor) -> Tensor:
        """alpha_t / sigma_t; infinite where sigma is 0."""
        alpha, sigma = self.scales(t)
        return alpha / sigma

    def log_snr(self, t: Tensor) -> Tensor:
        """lambda_t = 2 log rho_t; infinite where alpha or sigma is 0."""
        return 2 * self.rho(t).log()

    def network_time(self, t: Tensor) -> Tensor:
        """The time in [0, 1] that a network receives: t itself, unless a schedule overrides it."""
        return t


class VariancePreserving(Schedule):
    """alpha = sin psi, sigma = sin phi, with phi + psi = pi/2."""

    @abstractmethod
    def angles(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(phi_t, psi_t) in radians."""

    def alpha(self, t: Tensor) -> Tensor:
        """sin psi_t = cos phi_t."""
        return self.angles(t)[1].sin()

    def sigma(self, t: Tensor) -> Tensor:
        """sin phi_t."""
        return self.angles(t)[0].sin()

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(sin psi_t, sin phi_t), of one pair of angles."""
        phi, psi = self.angles(t)
        return psi.sin(), phi.sin()


@dataclass(frozen=True)
class Cosine(VariancePreserving):
    """The angle runs evenly: phi_t = a t + b, with the log-SNR within [log_snr_min, log_snr_max].

    The defaults are the paper's (appendix E). With infinite bounds phi runs from 0 to pi/2 and both ends are exact.
    """

    name: ClassVar[str] = "cosine"
    log_snr_max: float = 20.0
    log_snr_min: float = -20.0

    def angles(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(phi_t, psi_t): each linear in t between its ends."""
        t = t.double()
        phi_0 = math.atan(math.exp(-self.log_snr_max / 2))
        psi_1 = math.atan(math.exp(self.log_snr_min / 2))
        span = math.pi / 2 - phi_0 - psi_1
        return phi_0 + span * t, psi_1 + span * (1 - t)


@dataclass(frozen=True)
class Discrete(VariancePreserving):
    """A table of alpha_bar = alpha^2 at t = 1/T, 2/T, ..., 1, made continuous by interpolating the angle.

    Clean data (phi = 0) stands at t = 0. Entry i is timestep i of a diffusers scheduler, i.e. t = (i + 1) / T.

    Args:
        alphas_cumprod: T numbers in [0, 1), falling.
    """

    name: ClassVar[str] = "discrete"
    alphas_cumprod: tuple[float, ...]

    def __post_init__(self) -> None:
        table = self.alphas_cumprod
        falls = all(a > b for a, b in zip((1.0, *table), table, strict=False))
        if not table or not falls or table[-1] < 0:
            raise UserError("a discrete schedule needs alpha_bar values that fall from below 1 to at least 0")
        alpha_bar = torch.tensor((1.0, *table), dtype=torch.float64)
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        self._tables[torch.device("cpu")] = (torch.atan2(sigma, alpha), torch.atan2(alpha, sigma))

    @classmethod
    def from_betas(cls, betas: Sequence[float]) -> Self:
        """alpha_bar_i = prod_{j <= i} (1 - beta_j), as diffusers' `trained_betas`."""
        return cls(tuple((1 - torch.tensor(betas, dtype=torch.float64)).cumprod(0).tolist()))

    @classmethod
    def linear(cls, beta_start: float = 1e-4, beta_end: float = 0.02, num_train_timesteps: int = 1000) -> Self:
        """Betas spaced evenly (Ho et al. 2020); diffusers' `linear`."""
        return cls.from_betas(torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float64).tolist())

    @classmethod
    def scaled_linear(
        cls, beta_start: float = 8.5e-4, beta_end: float = 0.012, num_train_timesteps: int = 1000
    ) -> Self:
        """Square roots of the betas spaced evenly; diffusers' `scaled_linear`."""
        roots = torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps, dtype=torch.float64)
        return cls.from_betas((roots**2).tolist())

    def rescaled(self) -> Self:
        """The table that ends in pure noise: alpha shifted to 0 at t = 1 and stretched to keep its first entry.

        Source: Lin et al. 2023, arXiv 2305.08891, algorithm 1.
        """
        alpha = torch.tensor(self.alphas_cumprod, dtype=torch.float64).sqrt()
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
        return type(self)(tuple((alpha**2).tolist()))

    def time(self, phi: Tensor) -> Tensor:
        """The t whose angle is phi (any shape, float64), or 1 where phi is beyond the table's last."""
        table = self._table(phi.device)[0]
        above = torch.searchsorted(table, phi.contiguous()).clamp(1, len(self.alphas_cumprod))
        lower, upper = table.take(above - 1), table.take(above)
        part = ((phi - lower) / (upper - lower)).clamp(0, 1)
        return (above - 1 + part) / len(self.alphas_cumprod)

    def angles(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(phi_t, psi_t): each linear in t between the table's entries."""
        phi, psi = self._table(t.device)
        position = t.double() * len(self.alphas_cumprod)
        below = position.floor().long().clamp(0, len(self.alphas_cumprod) - 1)
        part = position - below
        phi_t, psi_t = (table.take(below).lerp(table.take(below + 1), part) for table in (phi, psi))
        return phi_t, psi_t

    def _table(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(phi, psi) at t = 0, 1/T, ..., 1, each (T + 1,): made with the schedule, copied once to each device."""
        if device in self._tables:
            return self._tables[device]
        phi, psi = self._tables[torch.device("cpu")]
        copies = phi.to(device), psi.to(device)
        if not torch.compiler.is_compiling():  # the tensors of a trace do not outlive it
            self._tables[device] = copies
        return copies

    @cached_property
    def _tables(self) -> dict[torch.device, tuple[Tensor, Tensor]]:
        return {}


@dataclass(frozen=True)
class RectifiedFlow(Schedule):
    """Straight lines from data to noise: alpha = 1 - sigma.

        sigma_t = shift t / (1 + (shift - 1) t)

    A shift above 1 spends more of the steps where there is more noise, as large images need (Esser et al. 2024, arXiv
    2403.03206, section 5.3.2). The network receives sigma_t, so one network serves every shift.
    """

    name: ClassVar[str] = "rectified_flow"
    shift: float = 1.0

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise UserError(f"shift is {self.shift}, expected a positive number: 1 for no shift")

    def alpha(self, t: Tensor) -> Tensor:
        """1 - sigma_t."""
        t = t.double()
        return (1 - t) / (1 + (self.shift - 1) * t)

    def sigma(self, t: Tensor) -> Tensor:
        """Shift t / (1 + (shift - 1) t)."""
        t = t.double()
        return self.shift * t / (1 + (self.shift - 1) * t)

    def network_time(self, t: Tensor) -> Tensor:
        """sigma_t."""
        return self.sigma(t)


SCHEDULES: dict[str, type[Cosine] | type[Discrete] | type[RectifiedFlow]] = {
    schedule.name: schedule for schedule in (Cosine, Discrete, RectifiedFlow)
}
