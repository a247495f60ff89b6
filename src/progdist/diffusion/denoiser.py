r"""A denoiser: (z_t, t) -> xh, the one contract between networks and the code that uses them.

    xh(z, t, c) = d denoise(F(z / d, timestep, c), z / d, alpha_t, sigma_t / d),    timestep = T tau_t - offset

d is 1, or for EDM's networks the standard deviation of their data (see `progdist.diffusion.schedule.Karras`).
The condition c is tensors by name, each with one row per example: labels, caption embeddings, guidance scales.
tau_t is the time that the network receives: t itself, or sigma_t of a rectified flow, whose grid may be shifted. The
timestep is what stock diffusers passes to the same network. Its DDIM counts a table of T noise levels from 0, so that
entry i is t = (i + 1) / T and the offset is 1; its flow matching passes T sigma_t, and the offset is 0.
"""

import logging
from collections.abc import Callable, Mapping
from numbers import Real
from os import PathLike
from types import MappingProxyType
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from progdist._utils.broadcasting import scaled
from progdist._utils.errors import UserError
from progdist.diffusion.network_call import call_network, check_call, prediction, tables, whole_timesteps
from progdist.diffusion.parameterization import Parameterization, as_parameterization
from progdist.diffusion.schedule import Discrete, Karras, RectifiedFlow, Schedule, VarianceExploding, check_schedule

LOG = logging.getLogger("progdist")
MAX_TIMESTEPS = 1_000_000  # more than any network was trained with; stock schedulers keep a table of them
UNCOUNTED = 1024  # most steps of a network that receives times in [0, 1] or noise levels


class DenoiserProtocol(Protocol):
    """Any callable with a schedule that maps (z_t, t) to the denoised data."""

    @property
    def schedule(self) -> Schedule:
        """The schedule that its latents follow."""
        ...

    def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        """xh for latents z (B, ...) at times t, (B,) or ()."""
        ...


class Denoiser(nn.Module):
    """A network with its schedule and the meaning of its output.

    Args:
        network: called as network(z, timestep, **condition) with z (B, C, ...) and timestep (B,) in float32, or int64
            if it looks them up in an `nn.Embedding`. Returns a tensor (B, heads * C, ...), a tuple that starts with
            one, or an output with `sample`, a key or attribute, as diffusers models do. If it has twice as many
            channels, the second half is ignored as learned variances.
        schedule: alpha and sigma over t in [0, 1], rho falling.
        prediction_type: what the output means: diffusers' "v_prediction", "epsilon", "sample" or "flow_prediction", the
            paper's "v", "eps", "x" or "x_eps", "edm" for the raw network of an EDM, or your own `Parameterization`.
        num_train_timesteps: T; by default the length of a `Discrete` schedule's table, 1 for `VarianceExploding` and
            `Karras`, whose networks receive a noise level, and 1024 otherwise. Use 1 for a network of times in [0, 1].
        offset: what is subtracted from T t. By default 0 if T = 1 is given, or with a rectified flow,
            `VarianceExploding` or `Karras`, and 1 otherwise.
        arguments: maps the condition to the network's own keyword arguments; unchanged by default.
        call: (network, z, timestep, **arguments) -> its output, for a network with another signature, e.g.
            lambda network, z, t: -network(1 - t, z) for a flow from noise at 0 to data at 1 that takes time first.

    `with_parts` and `with_network` keep a subclass, with its overrides and attributes.

    Raises:
        UserError: `network` is not a network; `schedule` is not a schedule, or its SNR rises with t; the output cannot
            denoise at some time of the schedule (eps at zero SNR); or T is not 1 to a million.
    """

    history: Mapping[str, Any] = MappingProxyType({})
    """What `progdist.save` records about its making: `steps`, `lineage`, `method`, `data`, `training`."""

    arguments: Callable[..., Mapping[str, Any]]
    call: Callable[..., Any]

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        prediction_type: str | Parameterization,
        *,
        num_train_timesteps: int | None = None,
        offset: float | None = None,
        arguments: Callable[..., Mapping[str, Any]] = dict,
        call: Callable[..., Any] = call_network,
    ) -> None:
        super().__init__()
        self._seen: set[str] = set()  # facts about the network, shared by all denoisers made from this one
        check_schedule(schedule)
        count = _timesteps(schedule) if num_train_timesteps is None else num_train_timesteps
        continuous = isinstance(schedule, RectifiedFlow | VarianceExploding | Karras) or num_train_timesteps == 1
        self._set(
            network=network,
            schedule=schedule,
            prediction_type=prediction_type,
            num_train_timesteps=count,
            offset=float(not continuous) if offset is None else offset,
            arguments=arguments,
            call=call,
        )

    def _set(
        self,
        *,
        network: nn.Module,
        schedule: Schedule,
        prediction_type: str | Parameterization,
        num_train_timesteps: int,
        offset: float,
        **how: Callable[..., Any],
    ) -> None:
        """Set these parts; raises as the class does."""
        if not isinstance(network, nn.Module):
            raise UserError(f"network is a {type(network).__name__}, expected a torch.nn.Module")
        if network is not self._modules.get("network"):
            self.network = network
        self.parameterization = as_parameterization(prediction_type)
        if schedule is not self.__dict__.get("schedule"):
            check_schedule(schedule)
        self.schedule = schedule
        self.parameterization.check(schedule)
        _check_number("num_train_timesteps", num_train_timesteps, 1, MAX_TIMESTEPS)
        _check_number("offset", offset, -MAX_TIMESTEPS, MAX_TIMESTEPS)
        self.num_train_timesteps, self.offset = num_train_timesteps, offset
        for name, function in how.items():
            if not callable(function):
                raise UserError(f"{name} is a {type(function).__name__}, expected a function")
            setattr(self, name, function)

    def forward(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        """The denoised data xh, with the shape and precision of z.

        Args:
            z: latents (B, C, ...).
            t: times in [0, 1], float64, (B,) or ().
            condition: passed to the network through `arguments`, e.g. class_labels (B,) int64.
        """
        t, unit = t.double(), self.schedule.data_scale
        z = scaled(z, 1 / unit)
        output = self.output(z, self.timestep(t).to(z.device, torch.float32).expand(z.shape[0]), **condition)
        return scaled(self.parameterization.denoise(output, z, *self.schedule.unit_scales(t)), unit)

    def timestep(self, t: Tensor) -> Tensor:
        """The timestep that the network receives at times t: float64, with t's shape."""
        return self.num_train_timesteps * self.schedule.network_time(t) - self.offset

    def output(self, z: Tensor, timestep: Tensor, **condition: Tensor) -> Tensor:
        """F(z, timestep): the network's output without the channels of learned variances that some networks add.

        Raises:
            UserError: the network returns anything else, or a timestep is missing from its table.
        """
        arguments, candidates = self.arguments(**condition), tables(self.network)
        if not candidates or self.num_train_timesteps == 1:
            output = self._called(z, timestep, arguments)
        else:
            with whole_timesteps(candidates, timestep, self.num_train_timesteps, condition, self._found_table):
                output = self._called(z, timestep, arguments)
        return prediction(output, z, self.parameterization.heads, self._halved)

    def _called(self, z: Tensor, timestep: Tensor, arguments: Mapping[str, Any]) -> Any:  # noqa: ANN401
        try:
            return self.call(self.network, z, timestep, **arguments)
        except TypeError:
            if self.call is call_network:
                check_call(self.network, z, timestep, arguments)
            raise

    def _found_table(self) -> None:
        self._seen.add("table")

    def _halved(self, output: Tensor) -> None:
        """Warn once that half of the output of a network of vectors is ignored; for images variances are common."""
        if output.ndim == 2 and "halved" not in self._seen:
            self._seen.add("halved")
            LOG.warning(
                f"the network returns {output.shape[1]} numbers for {output.shape[1] // 2} of the data: the second "
                "half is ignored as learned variances; check the network's width if it learns none"
            )

    @property
    def whole_timesteps(self) -> bool:
        """Whether the network has been seen to look its timesteps up in a table, so that they must be integers."""
        return "table" in self._seen

    @property
    def most_steps(self) -> int:
        """The largest number of sampling steps: T, or 1024 if its network counts no timesteps."""
        return self.num_train_timesteps if self.num_train_timesteps > 1 else UNCOUNTED

    def parts(self) -> dict[str, Any]:
        """The arguments of Denoiser, by name."""
        names = ("network", "schedule", "num_train_timesteps", "offset", "arguments", "call")
        return {"prediction_type": self.parameterization} | {name: getattr(self, name) for name in names}

    def with_parts(self, **parts: Any) -> Self:  # noqa: ANN401  (each is an argument of Denoiser)
        """A copy of the same class with some parts replaced and all other attributes kept."""
        if unknown := parts.keys() - self.parts().keys():
            raise TypeError(f"Denoiser has no part {min(unknown)!r}")
        other = self.__new__(type(self))
        other.__dict__ = self.__dict__.copy()
        for registered in ("_parameters", "_buffers", "_modules"):
            other.__dict__[registered] = self.__dict__[registered].copy()
        other._set(**{**self.parts(), **parts})
        return other

    def with_network(self, network: nn.Module) -> Self:
        """A copy with the same schedule, meaning and timesteps around another network."""
        return self.with_parts(network=network)


def _timesteps(schedule: Schedule) -> int:
    """The default T: a table's length, 1 for a network that receives a noise level, 1024 otherwise."""
    if isinstance(schedule, Discrete):
        return len(schedule.alphas_cumprod)
    return 1 if isinstance(schedule, VarianceExploding | Karras) else UNCOUNTED


def _check_number(name: str, value: object, low: int, high: int) -> None:
    """Raise a UserError for anything but a number from `low` to `high`."""
    if not isinstance(value, Real) or isinstance(value, bool) or not low <= float(value) <= high:
        raise UserError(f"{name} is {repr(value)[:50]}, expected a number from {low:,} to {high:,}")


def check_denoiser(denoiser: object, *, own: bool = False) -> None:
    """Raise a UserError for anything but a denoiser; with `own`, anything but a `Denoiser`, which can be trained."""
    if isinstance(denoiser, Denoiser):
        return
    name = type(denoiser).__name__
    if isinstance(getattr(denoiser, "schedule", None), Schedule) and callable(denoiser):
        if own:
            raise UserError(f"expected a progdist.Denoiser, got a {name} around one: pass the denoiser itself")
    elif isinstance(denoiser, nn.Module):
        raise UserError(
            f"expected a denoiser, got the network {name}: "
            "wrap it in progdist.Denoiser(network, schedule, prediction_type)"
        )
    else:
        hint = ": load its folder with progdist.load(folder)" if isinstance(denoiser, str | PathLike) else ""
        raise UserError(f"expected a progdist.Denoiser, got a {name}{hint}")
