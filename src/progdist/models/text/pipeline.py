"""A text-conditional model beyond its network and its autoencoder: where its prompts are encoded, and how it is guided.

The network is stock diffusers' UNet2DConditionModel. It attends to `encoder_hidden_states`, that of SDXL takes
`text_embeds` and `time_ids`, too, and a student with a guidance dial `guidance`, too: conditions of one row for each
example, which `network_arguments` turns into the network's own keyword arguments.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from progdist._utils.errors import UserError
from progdist._utils.files import read_json
from progdist.models.guidance_input import class_arguments, class_guidance
from progdist.models.text.stock import PIPELINES, PromptEncoder, guidance_embedding, prompt_encoder
from progdist.models.unet import condition

GUIDANCE_EMBEDDING_DIM = 256
"""Numbers in the embedding of a guidance scale."""

TOKENS = 77
"""Of a caption, as CLIP's text encoders take it."""

USUAL_GUIDANCE = {"StableDiffusionPipeline": 7.5, "StableDiffusionXLPipeline": 5.0}
"""The guidance scale that a stock pipeline takes if none is said."""

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
    """

    folder: Path
    index: Mapping[str, Any]
    guidance: Guidance | None = None
    negative: str | None = None

    @property
    def kind(self) -> str:
        """The class of the stock pipeline."""
        return self.index["_class_name"]

    @property
    def usual_guidance(self) -> float:
        """The scale that the stock pipeline takes if none is said, or the nearest on the dial."""
        usual = USUAL_GUIDANCE[self.kind]
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

    def guided(self, guidance: Guidance | None, negative: str | None) -> "TextPipeline":
        """The same for a student that has taken guidance in."""
        return replace(self, guidance=guidance, negative=negative)


def text_pipeline(folder: Path, network: nn.Module) -> TextPipeline | None:
    """The text side of a pipeline's folder; None where its network takes no captions.

    Raises:
        UserError: it is not one of PIPELINES, or its index names parts elsewhere.
    """
    if not isinstance(network, UNet2DConditionModel):
        return None
    index = read_json(folder / "model_index.json")
    kind = index.get("_class_name")
    if kind not in PIPELINES:
        raise UserError(f"{folder} is a {str(kind)[:50]}: of text-conditional ones expected {' or '.join(PIPELINES)}")
    if wrong := [name for name in index if not name.startswith("_") and Path(name).name != name]:
        raise UserError(f"{folder}/model_index.json names the part {wrong[0][:50]!r}: restore it")
    return TextPipeline(folder, index)


def guidance_input(network: nn.Module) -> int | None:
    """How many numbers of an embedded guidance scale the network takes; None where it takes none."""
    return network.config["time_cond_proj_dim"] if isinstance(network, UNet2DConditionModel) else None


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
    if not isinstance(network, UNet2DConditionModel):
        return condition(network, torch.zeros(count, dtype=torch.int64, device=device))
    config: Any = network.config
    given = {"encoder_hidden_states": torch.zeros(count, TOKENS, config["cross_attention_dim"], device=device)}
    if config["addition_embed_type"] == "text_time":
        channels = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        given["text_embeds"] = torch.zeros(count, channels, device=device)
        given["time_ids"] = torch.zeros(count, 6, device=device)
    if guidance_input(network) is not None:
        given["guidance"] = torch.ones(count, dtype=torch.float64)
    return given


def network_arguments(network: nn.Module) -> Any:  # noqa: ANN401  (of several signatures)
    """What turns a condition into the keyword arguments of a stock network."""
    if isinstance(network, UNet2DConditionModel):
        return partial(_unet_arguments, guidance_input(network))
    return class_arguments if class_guidance(network) else dict


def _unet_arguments(
    dim: int | None,
    *,
    encoder_hidden_states: Tensor,
    text_embeds: Tensor | None = None,
    time_ids: Tensor | None = None,
    guidance: Tensor | None = None,
) -> dict[str, Any]:
    """The keyword arguments of a UNet2DConditionModel whose guidance is embedded in `dim` numbers, if it takes any."""
    if (guidance is None) != (dim is None):
        raise UserError(
            "the network takes a guidance scale, and none was given: give guidance=, one number for each example"
            if guidance is None
            else "the network takes no guidance scale: leave guidance"
        )
    arguments: dict[str, Any] = {"encoder_hidden_states": encoder_hidden_states}
    if text_embeds is not None:
        arguments["added_cond_kwargs"] = {"text_embeds": text_embeds, "time_ids": time_ids}
    if guidance is not None and dim is not None:
        arguments["timestep_cond"] = guidance_embedding(guidance, dim).to(encoder_hidden_states)
    return arguments
