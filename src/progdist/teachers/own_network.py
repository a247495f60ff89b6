"""Read a folder of your own network into one of the same class: see `progdist.students.own_network`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from progdist._utils.errors import UserError
from progdist._utils.files import read_tensors
from progdist.compute.weights import check_finite, unwrapped
from progdist.diffusion.denoiser import Denoiser
from progdist.diffusion.parameterization import PARAMETERIZATIONS
from progdist.diffusion.schedule import Schedule

WEIGHTS = "network.safetensors"
PARTS = ("schedule", "prediction_type", "arguments", "call")  # parts of a denoiser that may be your own code


def is_own(metadata: Mapping[str, Any]) -> bool:
    """Whether a progdist.json describes your own network."""
    return "network" in metadata


def read_denoiser(
    folder: Path,
    metadata: Mapping[str, Any],
    schedule: Schedule | None,
    network: nn.Module | None,
    parts: Mapping[str, Any],
) -> Denoiser:
    """The denoiser of a folder, with its weights loaded into the given network.

    Raises:
        UserError: there is no network, or it does not fit; or parts that are your own code are missing.
    """
    saved = str(metadata["network"])
    if network is None:
        name = saved.rpartition(".")[2]
        raise UserError(
            f"{folder} holds the weights of your own network, {saved[:100]}: load it from Python with an instance, "
            f"progdist.load(folder, {name[:50]}(...))"
        )
    if isinstance(network, type):
        raise UserError(f"network is the class {network.__name__}: pass an instance, {network.__name__}(...)")
    own = {str(part): str(name) for part, name in metadata["own"].items()}
    if unknown := sorted(parts.keys() - set(PARTS)):
        raise UserError(f"load has no argument {unknown[0]!r}: use one of {', '.join(PARTS)}")
    for part in PARTS:
        if part in own and part not in parts:
            raise UserError(f"{folder} was saved with your own {part}, {own[part][:100]}: pass it as {part}=...")
        if part in parts and part not in own:
            raise UserError(f"{part} has no effect: {folder} records the one it was saved with; remove it")
    inner = unwrapped(network)
    weights = read_tensors(folder / WEIGHTS)
    _check_fit(inner, weights, folder, saved)
    inner.load_state_dict(weights)
    check_finite(inner, str(folder / WEIGHTS))
    given: dict[str, Any] = {"schedule": schedule, **parts}
    given.setdefault("prediction_type", PARAMETERIZATIONS.get(str(metadata["parameterization"])))
    return Denoiser(
        network.eval(),
        **given,
        num_train_timesteps=int(metadata["timesteps"]),
        offset=float(metadata["timestep_offset"]),
    )


def _check_fit(network: nn.Module, weights: Mapping[str, Any], folder: Path, saved: str) -> None:
    """Refuse a network whose weights have other names or shapes."""
    held = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    kept = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    odd = next((name for name in (*kept, *held) if held.get(name) != kept.get(name)), None)
    if odd is None:
        return
    there, here = (f"of {each[odd]}" if odd in each else "missing" for each in (kept, held))
    raise UserError(
        f"the given {type(network).__name__} does not fit {folder}, of a {saved[:100]}: {odd[:100]} is {there} in the "
        f"folder and {here} in the network: make it with the arguments it was saved with"
    )
