r"""diffusers' networks that can be distilled: their data, their conditions, and how they are called.

UNet2DModel                 z (B, C, H, W) and the timestep, or for a score-based one its noise level; a class, if it
                            has classes
DiTTransformer2DModel       z, the timestep and a class
UNet2DConditionModel        z, the timestep, and embeddings of a prompt, for SDXL a pooled one and the image's size, too

A condition is a tensor by name with one row per example: `class_labels`, `encoder_hidden_states` and the like, and
`guidance`, the scales of a network that takes one. Networks of other pipelines are called as the pipelines are observed
to call them (see `progdist.models.calls`).
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from progdist._utils.broadcasting import per_example
from progdist._utils.errors import UserError
from progdist.diffusion.denoiser import Denoiser
from progdist.diffusion.network_call import call_network
from progdist.methods.guidance import Input
from progdist.models.calls import Call
from progdist.models.guidance_input import EMBEDDING_DIM, class_arguments, class_guidance, guidance_embedding
from progdist.models.guidance_input import with_class_guidance as _with_class_guidance

Network = TypeVar("Network", bound=nn.Module)
Config = Mapping[str, Any]
Shapes = dict[str, tuple[int, ...]]
CLIP_TOKENS = 77  # tokens per prompt of CLIP's text encoders


@dataclass(frozen=True)
class NetworkKind:
    """One class of diffusers' networks."""

    network: type[ModelMixin]  # the class
    part: Literal["unet", "transformer"]  # its part in a pipeline's folder
    prompt: Callable[[Config], Shapes] | None = None  # the shapes of its inputs for one prompt; None for no prompts
    classes: Callable[[Config], int] = lambda config: 0  # how many, including the null class
    takes_guidance: Callable[[Config], bool] = lambda config: False  # (config) -> whether it takes a guidance scale
    accepts_guidance: bool = False  # whether an input for the scale can be added, which its stock pipeline then fills
    # (config) -> the fields by which it takes further inputs, as they read in the config
    further: Callable[[Config], Sequence[str]] = lambda config: ()


def _without(allowed: Mapping[str, Sequence[object]], config: Config) -> list[str]:
    """The fields of a config whose values are not allowed."""
    return [
        f"{name} {str(config[name])[:50]!r} (expected {' or '.join(map(repr, values))})"
        for name, values in allowed.items()
        if config.get(name) not in values
    ]


UNET_INPUTS: dict[str, Sequence[object]] = {
    "class_embed_type": (None,),  # others take numbers or vectors instead of classes
    "time_embedding_type": ("positional", "fourier"),  # learned ones take only integers
}
"""The supported inputs of a UNet2DModel, by the fields that choose them."""

PROMPT_UNET_INPUTS: dict[str, Sequence[object]] = {
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "encoder_hid_dim_type": (None, "text_proj"),  # others take image embeddings
    "addition_embed_type": (None, "text", "text_time"),
}
"""Those of a UNet2DConditionModel."""


def _unet_prompt(config: Config) -> Shapes:
    attention = config["cross_attention_dim"]
    widths = set(attention) if isinstance(attention, list | tuple) else {attention}
    width = config["encoder_hid_dim"] or (widths.pop() if len(widths) == 1 else 0)
    words = {"encoder_hidden_states": (CLIP_TOKENS, width)}
    if config["addition_embed_type"] != "text_time":
        return words
    channels = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    return {**words, "text_embeds": (channels,), "time_ids": (6,)}


def _call_score(network: nn.Module, z: Tensor, sigma: Tensor, **condition: Tensor) -> Tensor:
    """The eps of a score-based network, for noise of deviation sigma added to images in [-1, 1].

    It takes images in [0, 1] with half the noise, and returns the score (see `progdist.teachers.score`).
    """
    level = sigma / 2
    output: Any = network((z + 1) / 2, level, **condition)
    return -per_example(level, z) * getattr(output, "sample", output)


NETWORKS: dict[str, NetworkKind] = {
    kind.network.__name__: kind
    for kind in (
        NetworkKind(
            UNet2DModel,
            "unet",
            classes=lambda config: config["num_class_embeds"] or 0,
            accepts_guidance=True,
            further=partial(_without, UNET_INPUTS),
        ),
        NetworkKind(
            DiTTransformer2DModel,
            "transformer",
            classes=lambda config: config["num_embeds_ada_norm"] + 1,  # its table has one more, the null class
            accepts_guidance=True,
        ),
        NetworkKind(
            UNet2DConditionModel,
            "unet",
            prompt=_unet_prompt,
            takes_guidance=lambda config: config["time_cond_proj_dim"] is not None,
            accepts_guidance=True,
            further=partial(_without, PROMPT_UNET_INPUTS),
        ),
    )
}
"""Networks that can be distilled, by the name in model_index.json."""


def kind_of(network: nn.Module) -> NetworkKind | None:
    """The kind of a network's class or base class; None if it is not a diffusers network."""
    kinds = ((NETWORKS.get(each.__name__), each) for each in type(network).__mro__)
    return next((kind for kind, each in kinds if kind and kind.network is each), None)


def _config(network: nn.Module) -> Config:
    return cast(Any, network).config


def image_shape(network: nn.Module) -> tuple[int, int, int] | None:
    """(channels, height, width) of the data of a diffusers network; None if its config does not give it."""
    if kind_of(network) is None:
        return None
    config = _config(network)
    size = config["sample_size"]
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    known = len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides)
    return (config["in_channels"], *sides) if known else None


def check_inputs(network: nn.Module, where: Path) -> None:
    """Refuse a network, read from a folder, with inputs that its kind is not known to take."""
    kind = kind_of(network)
    if kind and (fields := kind.further(_config(network))):
        raise UserError(
            f"{where} has {', '.join(fields)}, so its network is called in its own way: wrap it in a "
            "progdist.Denoiser and distil it with progdist.distill (docs/your-network.md)"
        )


def without_variance(network: Network) -> Network:
    """The network itself, without a U-Net's output channels for a learned variance.

    Only ancestral samplers use them, and no stock pipeline accepts a U-Net that has them.
    """
    if isinstance(network, UNet2DModel):
        channels, last = network.config["in_channels"], network.conv_out
        if last.out_channels == 2 * channels:
            narrow = nn.Conv2d(last.in_channels, channels, last.kernel_size[0], padding=last.padding[0])
            narrow.load_state_dict({name: tensor[:channels].clone() for name, tensor in last.state_dict().items()})
            network.conv_out = narrow
            network.register_to_config(out_channels=channels)
    return network


def receives_levels(network: nn.Module) -> bool:
    """Whether a diffusers network is score-based, and so receives a noise level instead of a timestep."""
    kind = kind_of(network)
    return kind is not None and kind.part == "unet" and _config(network).get("time_embedding_type") == "fourier"


def class_count(network: nn.Module) -> int:
    """How many classes the network is conditioned on, including the null class; 0 for none."""
    kind = kind_of(network)
    return kind.classes(_config(network)) if kind else 0


def takes_guidance(network: nn.Module) -> bool:
    """Whether a diffusers network takes a guidance scale (B,), as the condition `guidance`."""
    kind = kind_of(network)
    return kind is not None and (class_guidance(network) is not None or kind.takes_guidance(_config(network)))


def accepts_guidance(network: nn.Module) -> bool:
    """Whether students of the network can take a guidance scale as an input."""
    kind = kind_of(network)
    return takes_guidance(network) or (kind.accepts_guidance if kind else has_guidance_keyword(network))


def has_guidance_keyword(network: nn.Module) -> bool:
    """Whether your own network has a keyword `guidance`."""
    return kind_of(network) is None and "guidance" in inspect.signature(network.forward).parameters


def with_guidance_input(network: Network, guidance: Input) -> Network:
    """Add an input for a range of guidance scales to a network, without changing its output; its weights are shared.

    A UNet2DConditionModel gets `time_cond_proj_dim`, a class-conditional network a `GuidedClasses`, and your own
    network with a keyword `guidance` is returned unchanged.

    Raises:
        UserError: no input can be added.
    """
    if takes_guidance(network) or has_guidance_keyword(network):
        return network
    if not isinstance(network, UNet2DConditionModel):
        return _with_class_guidance(network, guidance)
    student: Any = deepcopy(network, {id(shared): shared for shared in network.parameters()})
    embedding = student.time_embedding
    embedding.cond_proj = nn.Linear(EMBEDDING_DIM, embedding.linear_1.in_features, bias=False)
    nn.init.zeros_(embedding.cond_proj.weight)
    student.register_to_config(time_cond_proj_dim=EMBEDDING_DIM)
    return student


def network_interface(network: nn.Module) -> dict[str, Any]:
    """How a network is called: `arguments` and `call` of `progdist.diffusion.denoiser.Denoiser`."""
    kind = kind_of(network)
    if kind is None or kind.prompt is None:
        call = _call_score if receives_levels(network) else call_network
        return {"arguments": class_arguments if class_guidance(network) else dict, "call": call}
    return {"arguments": partial(_unet_arguments, _config(network)["time_cond_proj_dim"]), "call": call_network}


def example_condition(denoiser: Denoiser, count: int, device: torch.device) -> dict[str, Tensor]:
    """A condition of the right shapes for timing a network: zeros (count, ...) for prompts, the first class."""
    if isinstance(denoiser.call, Call):
        return denoiser.call.example(count, device)
    network = denoiser.network
    kind = kind_of(network)
    if kind is None or kind.prompt is None:
        labels = torch.zeros(count, dtype=torch.int64, device=device)
        return {"class_labels": labels} if class_count(network) else {}
    guidance = {"guidance": torch.ones(count, dtype=torch.float64)} if takes_guidance(network) else {}
    shapes = kind.prompt(_config(network))
    return {name: torch.zeros(count, *shape, device=device) for name, shape in shapes.items()} | guidance


def _check_guidance(guidance: Tensor | None, expected: bool) -> None:
    """Refuse a guidance scale that is missing, or that the network does not take."""
    if expected and guidance is None:
        raise UserError("the network requires a guidance scale: pass guidance=, one number per example")
    if guidance is not None and not expected:
        raise UserError("the network takes no guidance scale: remove guidance")


def _unet_arguments(
    dim: int | None,
    *,
    encoder_hidden_states: Tensor,
    text_embeds: Tensor | None = None,
    time_ids: Tensor | None = None,
    guidance: Tensor | None = None,
) -> dict[str, Any]:
    """Keyword arguments of a UNet2DConditionModel, whose guidance scale is embedded in `dim` numbers, if any."""
    _check_guidance(guidance, dim is not None)
    arguments: dict[str, Any] = {"encoder_hidden_states": encoder_hidden_states}
    if text_embeds is not None:
        arguments["added_cond_kwargs"] = {"text_embeds": text_embeds, "time_ids": time_ids}
    if guidance is not None and dim is not None:
        arguments["timestep_cond"] = guidance_embedding(guidance, dim).to(encoder_hidden_states)
    return arguments
