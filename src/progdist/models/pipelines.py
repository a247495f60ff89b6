"""Pipelines of U-Nets whose students can have further inputs: a range of guidance scales, and sizes.

Each is plain data: text encoders, prompts, defaults. Others are watched (see `progdist.teachers.pipeline`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class PipelineKind:
    """One stock pipeline."""

    network: str  # the class of its network
    encoders: tuple[str, ...]  # the parts that encode prompts
    prompts: Mapping[str, int]  # the network's inputs for prompts: name -> index in the result of `encode_prompt`
    negatives: Mapping[str, int]  # the same for the negative prompt; empty without negative prompts
    options: Mapping[str, Any] = field(default_factory=dict)  # further arguments of `encode_prompt`
    parts: Mapping[str, Any] = field(default_factory=dict)  # the values of its other parts where they are absent
    indexed: Mapping[str, Any] = field(default_factory=dict)  # settings in its model_index.json: defaults
    default_guidance: float = 1.0  # its default guidance scale
    shifts: tuple[str, ...] = ()  # fields of its autoencoder's config for latents that it uses besides the scale


PIPELINES: dict[str, PipelineKind] = {
    "StableDiffusionPipeline": PipelineKind(
        network="UNet2DConditionModel",
        encoders=("text_encoder", "tokenizer"),
        prompts={"encoder_hidden_states": 0},
        negatives={"encoder_hidden_states": 1},
        options={"num_images_per_prompt": 1},
        parts={"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
        default_guidance=7.5,
    ),
    "StableDiffusionXLPipeline": PipelineKind(
        network="UNet2DConditionModel",
        encoders=("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
        prompts={"encoder_hidden_states": 0, "text_embeds": 2},
        negatives={"encoder_hidden_states": 1, "text_embeds": 3},
        parts={"add_watermarker": False},
        indexed={"force_zeros_for_empty_prompt": True},
        default_guidance=5.0,
        shifts=("latents_mean", "latents_std"),
    ),
}
"""By class name."""
