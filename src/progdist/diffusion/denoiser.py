r"""A denoiser: (z_t, t) -> xh, the one contract between networks and everything that uses them.

    xh(z, t, c) = denoise(F(z, timestep, c), z, alpha_t, sigma_t),    timestep = T tau_t - offset

The condition c is tensors by name, each with a row for every example: labels, embeddings of captions, guidance scales.
tau_t is the time that the network receives: t itself, or sigma_t of a rectified flow, whose grid may be shifted. The
timestep is what stock diffusers hands the same network. Its DDIM counts a table of T noise levels from 0, so that
entry i is t = (i + 1) / T and the offset is 1; its flow matching hands over T sigma_t, and the offset is 0.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from progdist._utils.errors import UserError
from progdist.diffusion.parameterization import Parameterization, as_parameterization
from progdist.diffusion.schedule import RectifiedFlow, Schedule

MAX_TIMESTEPS = 1_000_000  # more than any network was trained with; stock schedulers hold a table of them


class DenoiserProtocol(Protocol):
    """Anything with a schedule that maps (z_t, t) to the denoised data."""

    @property
    def schedule(self) -> Schedule:
        """The schedule that its latents follow."""
        ...

    def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        """xh for latents z (B, ...) at times t, (B,) or ()."""
        ...


def call_network(network: nn.Module, z: Tensor, timestep: Tensor, **arguments: Any) -> Any:  # noqa: ANN401
    """The output of a network that takes latents (B, ...) and timesteps (B,) first."""
    return network(z, timestep, **arguments)


class Denoiser(nn.Module):
    """A network with the schedule and the meaning of its output.

    Args:
        network: called as network(z, timestep, **condition) with z (B, C, ...) and timestep (B,) in float32;
            returns a tensor (B, heads * C, ...), or an object whose `.sample` is one, as diffusers models do;
            channels beyond those are passed over.
        schedule: alpha and sigma over t in [0, 1].
        prediction_type: what the output means: diffusers' "v_prediction", "epsilon", "sample" or "flow_prediction", the
            paper's "v", "eps", "x" or "x_eps", or a `Parameterization` of your own.
        num_train_timesteps: T; 1024 for models trained here.
        offset: what is subtracted from T t; None for 0 with a rectified flow and 1 otherwise.
        arguments: the condition as the network's own keyword arguments; as it is by default.
        call: (network, z, timestep, **arguments) -> its output, for a network that is called otherwise than above.

    Raises:
        UserError: the output cannot denoise at some time of the schedule (eps at zero SNR), or T is not 1 to a million.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        prediction_type: str | Parameterization,
        *,
        num_train_timesteps: int = 1024,
        offset: float | None = None,
        arguments: Callable[..., Mapping[str, Any]] = dict,
        call: Callable[..., Any] = call_network,
    ) -> None:
        super().__init__()
        if not 1 <= num_train_timesteps <= MAX_TIMESTEPS:
            raise UserError(
                f"num_train_timesteps is {num_train_timesteps}: give the teacher's own, from 1 to {MAX_TIMESTEPS:,}"
            )
        self.network, self.schedule, self.arguments, self.call = network, schedule, arguments, call
        self.parameterization = as_parameterization(prediction_type)
        self.parameterization.check(schedule)
        self.num_train_timesteps = num_train_timesteps
        self.offset = offset if offset is not None else float(not isinstance(schedule, RectifiedFlow))

    def forward(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        """The denoised data xh, of the shape and precision of z.

        Args:
            z: latents (B, C, ...).
            t: times in [0, 1], float64, (B,) or ().
            condition: passed to the network by way of `arguments`, e.g. class_labels (B,) int64.
        """
        t = t.double()
        output = self.output(z, self.timestep(t).to(z.device, torch.float32).expand(z.shape[0]), **condition)
        return self.parameterization.denoise(output, z, *self.schedule.scales(t))

    def timestep(self, t: Tensor) -> Tensor:
        """The timestep that the network receives at times t: float64, of t's shape."""
        return self.num_train_timesteps * self.schedule.network_time(t) - self.offset

    def output(self, z: Tensor, timestep: Tensor, **condition: Tensor) -> Tensor:
        """F(z, timestep): the network's output without the learned variances that some give in channels beyond it."""
        output = self.call(self.network, z, timestep, **self.arguments(**condition))
        output = getattr(output, "sample", output)
        return output[:, : self.parameterization.heads * z.shape[1]]

    def parts(self) -> dict[str, Any]:
        """What it is made of: the arguments of Denoiser by name."""
        names = ("network", "schedule", "num_train_timesteps", "offset", "arguments", "call")
        return {"prediction_type": self.parameterization} | {name: getattr(self, name) for name in names}

    def with_parts(self, **parts: Any) -> "Denoiser":  # noqa: ANN401  (each is an argument of Denoiser)
        """The same with some of its parts replaced."""
        return Denoiser(**{**self.parts(), **parts})

    def with_network(self, network: nn.Module) -> "Denoiser":
        """The same schedule, meaning and timesteps around another network."""
        return self.with_parts(network=network)

    def with_form_of(self, other: "Denoiser") -> "Denoiser":
        """The network, schedule and meaning of another, with whatever else belongs to this one."""
        return other
