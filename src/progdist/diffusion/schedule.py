r"""Noise schedules: how much data and how much noise a latent holds at time t.

    z_t = alpha_t x + sigma_t eps,    t in [0, 1],    eps ~ N(0, I)

    rho_t    = alpha_t / sigma_t                    falls as t grows
    lambda_t = log(alpha_t^2 / sigma_t^2)           the log-SNR, 2 log rho_t

A variance-preserving schedule has alpha^2 + sigma^2 = 1, so one angle phi describes it:

    alpha = cos phi,    sigma = sin phi,    rho = cot phi

The angle and its complement psi = pi/2 - phi are computed separately, so that alpha = sin psi keeps
all its digits where it is small, and is exactly 0 where psi is.

Every function takes times as a float64 tensor of any shape and returns float64 of that shape, on its device; a
schedule itself is numbers (the angles of a table are cached). Source: Salimans & Ho 2022, section 2 and appendix E;
Liu et al. 2022 (arXiv 2209.03003) for the rectified flow; Karras et al. 2022 (arXiv 2206.00364) for EDM's noise.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from progdist._utils.broadcasting import scaled
from progdist._utils.errors import UserError


class Schedule(ABC):
    """alpha_t and sigma_t for t in [0, 1]; t = 1 is noise.

    Attributes:
        name: the name under which a model folder records it; your own schedule needs none, and cannot be saved.
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
        return self.alpha(t).double(), self.sigma(t).double()

    def noise_scale(self) -> float:
        """The standard deviation of the latents at which sampling starts: sigma_1."""
        return float(self.sigma(torch.ones((), dtype=torch.float64)))

    def rho(self, t: Tensor) -> Tensor:
        """alpha_t / sigma_t; infinite where sigma is 0."""
        alpha, sigma = self.scales(t)
        return alpha / sigma

    def log_snr(self, t: Tensor) -> Tensor:
        """lambda_t = 2 log rho_t; infinite where alpha or sigma is 0."""
        return 2 * self.rho(t).log()

    def network_time(self, t: Tensor) -> Tensor:
        """The time that a network receives: t itself, unless a schedule overrides it."""
        return t

    @property
    def data_scale(self) -> float:
        """d, the deviation of the data, by which z_t is divided for the network; 1 unless overridden."""
        return 1.0

    def unit_scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha_t, sigma_t / d), the scales of z_t / d for data x / d."""
        alpha, sigma = self.scales(t)
        return alpha, scaled(sigma, 1 / self.data_scale)

    def smooth_time(self, t: Tensor) -> Tensor:
        """A time in which alpha and sigma are differentiable, as integrators need; t itself, unless overridden.

        Override it together with `from_smooth_time`, its inverse, and `rates`.
        """
        return t

    def from_smooth_time(self, time: Tensor) -> Tensor:
        """The t that belongs to a smooth time."""
        return time

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The derivatives of alpha and sigma by the smooth time, at t."""
        with torch.enable_grad():
            time = t.detach().clone().requires_grad_()
            alpha, sigma = (torch.autograd.grad(scale(time).sum(), time)[0] for scale in (self.alpha, self.sigma))
        return alpha, sigma


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

    def noise_scale(self) -> float:
        """1: latents of data with variance 1 have variance 1 at every t, and stock samplers start from it."""
        return 1.0

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(sin psi_t, sin phi_t), from one pair of angles."""
        phi, psi = self.angles(t)
        return psi.sin(), phi.sin()


@dataclass(frozen=True)
class Cosine(VariancePreserving):
    """The angle is linear in t: phi_t = a t + b, with the log-SNR within [log_snr_min, log_snr_max].

    The defaults are the paper's (appendix E). With infinite bounds phi runs from 0 to pi/2 and both ends are exact.
    """

    name: ClassVar[str] = "cosine"
    log_snr_max: float = 20.0
    log_snr_min: float = -20.0

    def __post_init__(self) -> None:
        numbers = all(isinstance(bound, Real) for bound in (self.log_snr_max, self.log_snr_min))
        if not numbers or not self.log_snr_max > self.log_snr_min:
            raise UserError(
                f"expected numbers log_snr_max > log_snr_min, got log_snr_max={self.log_snr_max} and "
                f"log_snr_min={self.log_snr_min}: swap or correct them"
            )

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

    Clean data (phi = 0) is at t = 0. Entry i is timestep i of a diffusers scheduler, i.e. t = (i + 1) / T.

    Args:
        alphas_cumprod: T falling numbers in [0, 1), as a tuple, list, array or tensor.
    """

    name: ClassVar[str] = "discrete"
    alphas_cumprod: tuple[float, ...]

    def __post_init__(self) -> None:
        table = tuple(_numbers("alphas_cumprod", self.alphas_cumprod).tolist())
        object.__setattr__(self, "alphas_cumprod", table)
        _check_table(table)
        alpha_bar = torch.tensor((1.0, *table), dtype=torch.float64)
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        self._tables[torch.device("cpu")] = (torch.atan2(sigma, alpha), torch.atan2(alpha, sigma))

    @classmethod
    def from_betas(cls, betas: Sequence[float] | Tensor) -> Self:
        """alpha_bar_i = prod_{j <= i} (1 - beta_j), like diffusers' `trained_betas`."""
        return cls(tuple((1 - _numbers("betas", betas)).cumprod(0).tolist()))

    @classmethod
    def linear(cls, beta_start: float = 1e-4, beta_end: float = 0.02, num_train_timesteps: int = 1000) -> Self:
        """Evenly spaced betas (Ho et al. 2020); diffusers' `linear`."""
        return cls.from_betas(torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float64).tolist())

    @classmethod
    def scaled_linear(
        cls, beta_start: float = 8.5e-4, beta_end: float = 0.012, num_train_timesteps: int = 1000
    ) -> Self:
        """Evenly spaced square roots of the betas; diffusers' `scaled_linear`."""
        roots = torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps, dtype=torch.float64)
        return cls.from_betas((roots**2).tolist())

    def rescaled(self) -> Self:
        """The same table, ending in pure noise: alpha shifted to 0 at t = 1 and stretched to keep its first entry.

        Source: Lin et al. 2023, arXiv 2305.08891, algorithm 1.
        """
        alpha = torch.tensor(self.alphas_cumprod, dtype=torch.float64).sqrt()
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
        return type(self)(tuple((alpha**2).tolist()))

    def smooth_time(self, t: Tensor) -> Tensor:
        """The angle phi_t: derivatives by t jump at every entry."""
        return self.angles(t)[0]

    def from_smooth_time(self, time: Tensor) -> Tensor:
        """As `time`."""
        return self.time(time)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(-sin phi_t, cos phi_t)."""
        alpha, sigma = self.scales(t)
        return -sigma, alpha

    def time(self, phi: Tensor) -> Tensor:
        """The t whose angle is phi (any shape, float64), or 1 if phi is beyond the table's last entry."""
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
        if not torch.compiler.is_compiling():  # tensors of a trace do not outlive it
            self._tables[device] = copies
        return copies

    @cached_property
    def _tables(self) -> dict[torch.device, tuple[Tensor, Tensor]]:
        return {}


@dataclass(frozen=True)
class RectifiedFlow(Schedule):
    """Straight lines from data to noise: alpha = 1 - sigma.

        sigma_t = shift t / (1 + (shift - 1) t)

    A shift above 1 spends more of the steps at high noise, as large images need (Esser et al. 2024, arXiv
    2403.03206, section 5.3.2). The network receives sigma_t, so one network serves every shift.
    """

    name: ClassVar[str] = "rectified_flow"
    shift: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.shift, Real) or not 0 < self.shift < math.inf:
            raise UserError(f"shift is {self.shift}, expected a positive number: use 1 for no shift")

    def alpha(self, t: Tensor) -> Tensor:
        """1 - sigma_t."""
        t = t.double()
        return (1 - t) / (1 + (self.shift - 1) * t)

    def sigma(self, t: Tensor) -> Tensor:
        """Shift t / (1 + (shift - 1) t)."""
        t = t.double()
        return self.shift * t / (1 + (self.shift - 1) * t)

    def noise_scale(self) -> float:
        """1, sigma at t = 1."""
        return 1.0

    def network_time(self, t: Tensor) -> Tensor:
        """sigma_t."""
        return self.sigma(t)


@dataclass(frozen=True)
class VarianceExploding(Schedule):
    """Noise added to data that keep their scale (Karras et al. 2022, arXiv 2206.00364, equation 5): alpha = 1.

        sigma_t = (sigma_min^(1/p) + t (sigma_max^(1/p) - sigma_min^(1/p)))^p

    The network receives sigma_t and the unscaled latents: it is called as D(x, sigma), like EDM's own.

    Args:
        sigma_min: sigma at t = 0.
        sigma_max: sigma at t = 1, where sampling starts.
        power: p, EDM's rho; a higher one spends more of the steps at low noise. Infinite: the logarithm of sigma is
            linear in t, as in Song et al. 2021 (arXiv 2011.13456).
    """

    name: ClassVar[str] = "variance_exploding"
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    power: float = 7.0

    def __post_init__(self) -> None:
        _check_levels(self.sigma_min, self.sigma_max, self.power)

    def alpha(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t, dtype=torch.float64)

    def sigma(self, t: Tensor) -> Tensor:
        """A linear function of t, to the power p."""
        return _levels(self.sigma_min, self.sigma_max, self.power, t)

    def network_time(self, t: Tensor) -> Tensor:
        """sigma_t."""
        return self.sigma(t)


@dataclass(frozen=True)
class Karras(Schedule):
    r"""The same noise, in latents that keep the deviation d of the data: EDM's raw networks F(c_in x, c_noise).

    For data y of deviation d = `sigma_data`, noise s_t and EDM's x = y + s_t eps the latent is

        z_t = x / sqrt(1 + (s_t / d)^2) = cos(phi_t) y + d sin(phi_t) eps,    tan(phi_t) = s_t / d

    so z_t / d, of data y / d, is variance-preserving, and EDM's preconditioning (Karras et al. 2022, table 1) is

        c_in x = z / d,    y / d = c_skip x / d + c_out F / d = cos(phi) z / d + sin(phi) F

    whose F is -v of the data y / d: the output `edm`. The network receives z / d and c_noise.

    Args:
        sigma_min: s at t = 0.
        sigma_max: s at t = 1, where sampling starts.
        power: EDM's rho, as in `VarianceExploding`.
        sigma_data: d, the deviation of the data for which the network was preconditioned.
        spacing: how times, and so a student's steps, are spaced: "power", like EDM's own sampler, or "angle", with
            phi_t linear in t, like `Cosine`.
        c_noise: what the network receives for s: "log", log(s) / 4, as in EDM and k-diffusion; "atan", 2 atan(s) / pi,
            as in Stable Audio.
    """

    name: ClassVar[str] = "karras"
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    power: float = 7.0
    sigma_data: float = 0.5
    spacing: Literal["power", "angle"] = "power"
    c_noise: Literal["log", "atan"] = "log"

    def __post_init__(self) -> None:
        _check_levels(self.sigma_min, self.sigma_max, self.power)
        if not isinstance(self.sigma_data, Real) or not 0 < self.sigma_data < math.inf:
            raise UserError(f"sigma_data is {self.sigma_data}, expected the standard deviation of the data")
        for name, value, known in (("spacing", self.spacing, SPACINGS), ("c_noise", self.c_noise, C_NOISES)):
            if value not in known:
                raise UserError(f"{name} is {str(value)[:50]!r}, expected one of {', '.join(known)}")

    def level(self, t: Tensor) -> Tensor:
        """s_t, the deviation of the noise added to data that keep their scale; float64 with t's shape."""
        if self.spacing == "power":
            return _levels(self.sigma_min, self.sigma_max, self.power, t)
        phi_0, phi_1 = (math.atan2(level, self.sigma_data) for level in (self.sigma_min, self.sigma_max))
        psi_0, psi_1 = (math.atan2(self.sigma_data, level) for level in (self.sigma_min, self.sigma_max))
        t = t.double()
        phi, psi = phi_0 + (phi_1 - phi_0) * t, psi_1 + (psi_0 - psi_1) * (1 - t)
        return self.sigma_data * phi.sin() / psi.sin()

    def alpha(self, t: Tensor) -> Tensor:
        """cos phi_t."""
        return (1 + (self.level(t) / self.sigma_data) ** 2).rsqrt()

    def sigma(self, t: Tensor) -> Tensor:
        """d sin phi_t."""
        return self.scales(t)[1]

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(cos phi_t, s_t cos phi_t), from one level."""
        level = self.level(t)
        alpha = (1 + (level / self.sigma_data) ** 2).rsqrt()
        return alpha, level * alpha

    def noise_scale(self) -> float:
        """That of stock samplers, alpha_1 sqrt(1 + sigma_max^2), for latents of data with variance 1."""
        return math.sqrt((1 + self.sigma_max**2) / (1 + (self.sigma_max / self.sigma_data) ** 2))

    @property
    def data_scale(self) -> float:
        """d."""
        return self.sigma_data

    def network_time(self, t: Tensor) -> Tensor:
        """c_noise of s_t."""
        level = self.level(t)
        return level.log() / 4 if self.c_noise == "log" else 2 / math.pi * level.atan()


SPACINGS, C_NOISES = ("power", "angle"), ("log", "atan")


def _levels(low: float, high: float, power: float, t: Tensor) -> Tensor:
    """From low at t = 0 to high at t = 1, linear in t in its root or logarithm: float64 with t's shape."""
    t = t.double()
    if power == math.inf:
        return low * (math.log(high / low) * t).exp()
    first, last = low ** (1 / power), high ** (1 / power)
    return (first + t * (last - first)) ** power


def _check_levels(low: object, high: object, power: object) -> None:
    """Raise a UserError for anything but rising noise levels."""
    numbers = all(isinstance(each, Real) for each in (low, high, power))
    if not numbers or not (0 < low < high < math.inf and power > 0):  # pyright: ignore[reportOperatorIssue]
        raise UserError(
            f"expected positive numbers sigma_min < sigma_max, and power > 0, got sigma_min={low}, "
            f"sigma_max={high}, power={power}"
        )


def _numbers(name: str, values: Any) -> Tensor:  # noqa: ANN401  (anything that a tensor can be made of)
    """Convert a list of numbers in any form to float64 (T,)."""
    try:
        table = torch.as_tensor(values, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{name} is a {type(values).__name__}, expected numbers in a list, array or tensor") from error
    if table.ndim != 1:
        raise UserError(f"{name} is {tuple(table.shape)}, expected one number per timestep, (T,)")
    return table


def _check_table(table: Sequence[float]) -> None:
    """Raise a UserError for anything but falling numbers in [0, 1)."""
    if not table:
        raise UserError("alphas_cumprod is empty: expected numbers that fall from below 1 to at least 0")
    if table[0] == 1:
        raise UserError("alphas_cumprod starts with 1, expected numbers that fall from below 1: drop the first one")
    for number, (before, value) in enumerate(zip((1.0, *table), table, strict=False)):
        if not 0 <= value < before:
            rises = ": pass betas to Discrete.from_betas" if value >= before else ""
            raise UserError(
                f"alphas_cumprod has {value:g} at {number} after {before:g}, expected numbers that fall from below 1 "
                f"to at least 0{rises}"
            )


def check_schedule(schedule: object) -> None:
    """Raise a UserError for anything but a schedule whose signal-to-noise ratio falls as t grows."""
    if not isinstance(schedule, Schedule):
        if isinstance(schedule, type) and issubclass(schedule, Schedule):
            raise UserError(f"schedule is the class {schedule.__name__}: pass an instance, {schedule.__name__}()")
        table = ": pass Discrete(scheduler.alphas_cumprod)" if hasattr(schedule, "alphas_cumprod") else ""
        raise UserError(f"schedule is a {type(schedule).__name__}, expected a progdist.Schedule{table}")
    t = torch.linspace(0, 1, 65, dtype=torch.float64)[1:]
    alpha, sigma = schedule.scales(t)
    angle = torch.atan2(sigma, alpha)  # grows as rho falls, without a division
    if not (angle.diff() >= 0).all() or angle[0] == angle[-1]:
        raise UserError(
            f"the signal-to-noise ratio of {type(schedule).__name__} does not fall as t grows: t = 1 must be noise; "
            "replace t by 1 - t"
        )
    if not (alpha.isfinite() & sigma.isfinite() & (sigma > 0) & (alpha >= 0)).all():
        raise UserError(f"{type(schedule).__name__}: expected finite alpha >= 0 and sigma > 0, got other values")


SCHEDULES: dict[str, type[Cosine] | type[Discrete] | type[RectifiedFlow] | type[VarianceExploding] | type[Karras]] = {
    schedule.name: schedule for schedule in (Cosine, Discrete, RectifiedFlow, VarianceExploding, Karras)
}
