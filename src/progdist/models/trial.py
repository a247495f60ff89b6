"""Call a model from a folder once, without weights or memory, to find errors before anything runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch

from progdist._utils.errors import UserError
from progdist.compute.placement import empty_copy
from progdist.models.autoencoder import Autoencoder
from progdist.models.conditioning import Shape
from progdist.models.model import Model
from progdist.models.networks import example_condition
from progdist.models.safe_loading import quiet

META = torch.device("meta")  # tensors with shapes only
_SHAPES: dict[tuple[str, ...], tuple[int, ...]] = {}  # by network and inputs: the models of a chain share them


def try_shapes(model: Model, folder: Path) -> None:
    """Refuse a model whose network cannot be called on its data, or does not return predictions for them.

    The output may have as many channels as the data, or twice as many: for two heads, or an ignored variance.

    Raises:
        UserError: the network or the autoencoder is damaged, or their shapes do not match.
    """
    part = folder / ("unet" if (folder / "unet").is_dir() else "transformer")
    channels, *sides = shape = model.shape
    if isinstance(model.autoencoder, Autoencoder):
        _try_autoencoder(model.autoencoder, shape, folder)
    condition = example_condition(model.denoiser, 1, META)
    output = _called(part, (model.denoiser.network, shape, condition), lambda: _output(model, shape))
    heads = model.denoiser.parameterization.heads
    if output not in ((1, heads * channels, *sides), (1, 2 * channels, *sides)):
        got, expected = ("x".join(map(str, each)) for each in (output[1:], (heads * channels, *sides)))
        raise UserError(
            f"{part}: the network's output for data of {'x'.join(map(str, shape))} (channels, height, width) is {got}, "
            f"expected {expected}: a network that predicts something else, or takes more than its data, cannot be "
            "distilled"
        )


def _output(model: Model, shape: Shape) -> tuple[int, ...]:
    """The shape of the network's output for one example."""
    denoiser = model.denoiser
    network: Any = empty_copy(denoiser.network, META)
    z, timestep = torch.empty(1, *shape, device=META), torch.ones(1, device=META)
    condition = example_condition(denoiser, 1, META)
    call, arguments = cast(Any, denoiser.call), cast(Any, denoiser.arguments)
    output = call(network, z, timestep, **arguments(**condition))
    return tuple(getattr(output, "sample", output).shape)


def _try_autoencoder(autoencoder: Autoencoder, shape: Shape, folder: Path) -> None:
    """Refuse an autoencoder that cannot be called, or whose latents do not fit the network."""
    part = folder / autoencoder.part
    if autoencoder.channels != shape[0]:
        raise UserError(
            f"{folder}: its network takes {shape[0]} channels, but the latents of its {autoencoder.part}/ have "
            f"{autoencoder.channels}: expected a network that takes only latents"
        )

    def latents() -> tuple[int, ...]:
        network: Any = empty_copy(cast(Any, autoencoder.network), META)
        encoded = network.encode(torch.empty(1, *autoencoder.image(shape), device=META))
        code = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        network.decode(code)
        return tuple(code.shape)

    if (found := _called(part, (autoencoder.network, shape), latents)) != (1, *shape):
        raise UserError(f"{part} makes latents of {found[1:]}, but the network takes {shape}: restore the folder")


def _called(part: Path, inputs: tuple[Any, ...], work: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
    """The shape that a call returns, for a network and its other inputs. Raise a UserError for any error."""
    network, *others = inputs
    config = {name: value for name, value in network.config.items() if name != "_name_or_path"}
    key = (repr(network), repr(config), repr(others))
    if key in _SHAPES:
        return _SHAPES[key]
    try:
        with torch.no_grad(), quiet():
            return _SHAPES.setdefault(key, work())
    except Exception as error:  # diffusers checks few config values: any other error means damage
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{part} cannot be called ({reason}): restore it, or save the pipeline again") from error
