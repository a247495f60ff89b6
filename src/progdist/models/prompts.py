"""A text-conditional model beyond its network and its autoencoder: where its prompts are encoded, and how it is guided.

The network is stock diffusers' UNet2DConditionModel or one of TRANSFORMERS. It attends to `encoder_hidden_states`, some
take more of a caption, e.g. `text_embeds`, and one with a guidance dial `guidance`: conditions of one row for each
example, which `network_arguments` turns into the network's own keyword arguments.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from progdist._utils.errors import UserError
from progdist._utils.files import read_json
from progdist.diffusion.denoiser import call_network
from progdist.models.guidance_input import class_arguments, class_guidance
from progdist.models.pipelines import PIPELINES, PipelineKind
from progdist.models.prompt_encoder import PromptEncoder, guidance_embedding, prompt_encoder
from progdist.models.transformers import TRANSFORMERS
from progdist.models.unet import condition, image_shape, is_text_conditional

GUIDANCE_EMBEDDING_DIM = 256
"""Numbers in the embedding of a guidance scale."""

USUAL_SIDES = (128, 128)
"""(height, width) of the latents of a network that makes any size, as FluxPipeline makes them if none is said."""

TOKENS = 77
"""Of a caption, as CLIP's text encoders take it."""

Guidance = float | tuple[float, float]
"""One scale for all, or the least and the largest of a dial."""

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class TextPipeline:
    """What a stock text-to-image pipeline holds beside network and autoencoder.

    Attributes:
        folder: of the pipeline, whose other parts are copied when a student is saved.
        index: its model_index.json.
        guidance: what a student has taken in: the least and the largest scale of its dial, one scale for all of its
            images, or None; of a stock teacher None.
        negative: the prompt that its guidance leads away from, for good; None for the empty one.
        sides: (height, width) of the latents, where its network makes any size.
    """

    folder: Path
    index: Mapping[str, Any]
    guidance: Guidance | None = None
    negative: str | None = None
    sides: tuple[int, int] = USUAL_SIDES

    @property
    def kind(self) -> str:
        """The class of the stock pipeline."""
        return self.index["_class_name"]

    @property
    def particulars(self) -> PipelineKind:
        """What is particular to that class."""
        return PIPELINES[self.kind]

    @property
    def usual_guidance(self) -> float:
        """The scale that the stock pipeline takes if none is said, or the nearest on the dial."""
        usual = self.particulars.usual_guidance
        return min(max(usual, self.guidance[0]), self.guidance[1]) if isinstance(self.guidance, tuple) else usual

    def encoder(self, device: torch.device | None = None) -> PromptEncoder:
        """Its tokenizers and text encoders, read anew: let go of them when the prompts are encoded.

        Raises:
            UserError: a file is missing, damaged or a pickle, or the extra `text` is.
        """
        return prompt_encoder(self.folder, self.index, device or torch.device("cpu"))

    @property
    def takes_sizes(self) -> bool:
        """Whether the network is told the size of each image and where it was cropped."""
        return self.kind == "StableDiffusionXLPipeline"

    def constants(self, image: tuple[int, int, int]) -> dict[str, Tensor]:
        """What the network takes beside the caption to make images (C, H, W), the same for all: (1, ...) each."""
        if not self.takes_sizes:
            return {}
        _, height, width = image
        return {"time_ids": torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)}

    def latents(self, network: nn.Module) -> tuple[int, int, int] | None:
        """(channels, height, width) of a network's latents; None where its config tells no size."""
        if isinstance(network, FluxTransformer2DModel):
            return (network.config["in_channels"] // 4, *self.sides)
        return image_shape(network)

    def tokens(self, network: nn.Module) -> int | None:
        """Of an image, by which the pipeline of a flow shifts its times; None for other networks."""
        latents, config = self.latents(network), cast(Any, network).config
        if latents is None or not isinstance(network, FluxTransformer2DModel | SD3Transformer2DModel):
            return None
        patch = 2 if isinstance(network, FluxTransformer2DModel) else config["patch_size"]
        return (latents[1] // patch) * (latents[2] // patch)

    def guided(self, guidance: Guidance | None, negative: str | None) -> "TextPipeline":
        """The same for a student that has taken guidance in."""
        return replace(self, guidance=guidance, negative=negative)


def text_pipeline(folder: Path, network: nn.Module, sides: tuple[int, int] = USUAL_SIDES) -> TextPipeline | None:
    """The text side of a pipeline's folder; None where its network takes no captions.

    Args:
        folder: of the pipeline.
        network: of the pipeline.
        sides: (height, width) of the latents, where its network makes any size.

    Raises:
        UserError: it is not one of PIPELINES, or its index names parts elsewhere.
    """
    if not is_text_conditional(network):
        return None
    index = read_json(folder / "model_index.json")
    kind = index.get("_class_name")
    if kind not in PIPELINES or PIPELINES[kind].network != type(network).__name__:
        network_class, known = type(network).__name__, ", ".join(PIPELINES)
        raise UserError(
            f"{folder} is a {str(kind)[:50]} of a {network_class}: of text-conditional ones expected {known}"
        )
    if wrong := [name for name in index if not name.startswith("_") and Path(name).name != name]:
        raise UserError(f"{folder}/model_index.json names the part {wrong[0][:50]!r}: restore it")
    return TextPipeline(folder, index, sides=sides)


def guidance_input(network: nn.Module) -> int | None:
    """How many numbers of an embedded guidance scale the network takes; None where it takes none."""
    return network.config["time_cond_proj_dim"] if isinstance(network, UNet2DConditionModel) else None


def takes_guidance(network: nn.Module) -> bool:
    """Whether the network takes a guidance scale."""
    if isinstance(network, FluxTransformer2DModel):
        return bool(network.config["guidance_embeds"])
    return guidance_input(network) is not None


def has_dial(network: nn.Module) -> bool:
    """Whether students of the network can be given a guidance scale by their stock pipeline."""
    return isinstance(network, UNet2DConditionModel) or takes_guidance(network)


def with_guidance_input(network: Network, dim: int = GUIDANCE_EMBEDDING_DIM) -> Network:
    """A network that takes an embedded guidance scale, too, and does what it did before whatever the scale.

    Args:
        network: a UNet2DConditionModel without that input; left as it is, its weights are shared.
        dim: of the embedding.

    Returns:
        One with `time_cond_proj_dim`, whose projection is 0.
    """
    student: Any = deepcopy(network, {id(shared): shared for shared in network.parameters()})
    embedding = student.time_embedding
    embedding.cond_proj = nn.Linear(dim, embedding.linear_1.in_features, bias=False)
    nn.init.zeros_(embedding.cond_proj.weight)
    student.register_to_config(time_cond_proj_dim=dim)
    return student


def trial_condition(network: nn.Module, count: int, device: torch.device) -> dict[str, Tensor]:
    """A condition of the right shapes to time a network with: zeros (count, ...) for captions, the first class."""
    config: Any = getattr(network, "config", {})
    if isinstance(network, UNet2DConditionModel):
        shapes = _unet_caption(config)
    elif type(network) in TRANSFORMERS:
        shapes = TRANSFORMERS[type(network)].caption(config)
    else:
        return condition(network, torch.zeros(count, dtype=torch.int64, device=device))
    guidance = {"guidance": torch.ones(count, dtype=torch.float64)} if takes_guidance(network) else {}
    return {name: torch.zeros(count, *shape, device=device) for name, shape in shapes.items()} | guidance


def _unet_caption(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of what a UNet2DConditionModel is given of one caption."""
    words = {"encoder_hidden_states": (TOKENS, config["cross_attention_dim"])}
    if config["addition_embed_type"] != "text_time":
        return words
    channels = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    return {**words, "text_embeds": (channels,), "time_ids": (6,)}


def network_arguments(network: nn.Module) -> Callable[..., Mapping[str, Any]]:
    """What turns a condition into the keyword arguments of a stock network."""
    if isinstance(network, UNet2DConditionModel):
        return partial(_unet_arguments, guidance_input(network))
    if type(network) in TRANSFORMERS:
        return partial(_transformer_arguments, takes_guidance(network))
    return class_arguments if class_guidance(network) else dict


def network_interface(network: nn.Module) -> dict[str, Any]:
    """How a stock network is called: `arguments` and `call` of `progdist.diffusion.denoiser.Denoiser`."""
    call = TRANSFORMERS[type(network)].call if type(network) in TRANSFORMERS else call_network
    return {"arguments": network_arguments(network), "call": call}


def _check_guidance(given: bool, taken: bool) -> None:
    """Refuse a guidance scale that a network takes and is not given, or the other way round."""
    if given != taken:
        raise UserError(
            "the network takes a guidance scale, and none was given: give guidance=, one number for each example"
            if taken
            else "the network takes no guidance scale: leave guidance"
        )


def _unet_arguments(
    dim: int | None,
    *,
    encoder_hidden_states: Tensor,
    text_embeds: Tensor | None = None,
    time_ids: Tensor | None = None,
    guidance: Tensor | None = None,
) -> dict[str, Any]:
    """The keyword arguments of a UNet2DConditionModel whose guidance is embedded in `dim` numbers, if it takes any."""
    _check_guidance(guidance is not None, dim is not None)
    arguments: dict[str, Any] = {"encoder_hidden_states": encoder_hidden_states}
    if text_embeds is not None:
        arguments["added_cond_kwargs"] = {"text_embeds": text_embeds, "time_ids": time_ids}
    if guidance is not None and dim is not None:
        arguments["timestep_cond"] = guidance_embedding(guidance, dim).to(encoder_hidden_states)
    return arguments


def _transformer_arguments(taken: bool, *, guidance: Tensor | None = None, **caption: Tensor) -> dict[str, Tensor]:
    """The keyword arguments of a transformer, whose guidance is a float32 number, if it takes any."""
    _check_guidance(guidance is not None, taken)
    return caption if guidance is None else {**caption, "guidance": guidance.to(caption["encoder_hidden_states"])}
