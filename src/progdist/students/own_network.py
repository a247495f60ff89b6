"""A student around a custom network: its weights, and their meaning.

    network.safetensors     the weights and buffers by their names in the network
    progdist.json           schedule, prediction type, timesteps, step counts, lineage, versions

Code is not saved: `progdist.teachers.own_network` reads such a folder into a network of the same class. Other custom
code, e.g. a schedule, an output or a call, is recorded by name and must be passed again.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from torch import Tensor

from progdist._utils.errors import UserError
from progdist.compute.weights import unwrapped
from progdist.diffusion.denoiser import Denoiser
from progdist.diffusion.network_call import call_network
from progdist.diffusion.parameterization import PARAMETERIZATIONS
from progdist.diffusion.schedule import SCHEDULES
from progdist.teachers.own_network import WEIGHTS


def write_weights(denoiser: Denoiser, folder: Path) -> None:
    """Write a network's weights and buffers; a UserError if its state_dict holds anything else."""
    network, tensors = unwrapped(denoiser.network), dict[str, Tensor]()
    for name, value in network.state_dict().items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"{name} in the state_dict of {type(network).__name__} is a {type(value).__name__}, expected a tensor: "
                "store it as a buffer"
            )
        if value.dtype == torch.complex128:
            raise UserError(f"{name} is complex128, which safetensors cannot hold: use complex64 or two real tensors")
        tensors[name] = value.detach().cpu().contiguous().clone()  # tied tensors separately
    folder.joinpath(WEIGHTS).write_bytes(safetensors.torch.save(tensors))


def described(denoiser: Denoiser) -> dict[str, Any]:
    """The keys of progdist.json that describe the network and the custom code of its denoiser."""
    network, schedule, output = unwrapped(denoiser.network), denoiser.schedule, denoiser.parameterization
    own: dict[str, object] = {}
    if type(schedule) is not SCHEDULES.get(schedule.name):
        own["schedule"] = type(schedule)
    if type(output) is not type(PARAMETERIZATIONS.get(output.name)):
        own["prediction_type"] = type(output)
    if denoiser.arguments is not dict:
        own["arguments"] = denoiser.arguments
    if denoiser.call is not call_network:
        own["call"] = denoiser.call
    return {
        "network": _name(type(network)),
        "own": {part: _name(code) for part, code in own.items()},
        "schedule": None if "schedule" in own else {"kind": schedule.name, **asdict(cast(Any, schedule))},
        "parameterization": None if "prediction_type" in own else output.name,
    }


def _name(code: object) -> str:
    """The name of a class or a function, if any."""
    named: Any = code if hasattr(code, "__qualname__") else type(code)
    return f"{named.__module__}.{named.__qualname__}"
