"""Pipelines of U-Nets whose students can take what their teachers do not: a range of guidance scales, and sizes.

Each as plain data: text encoders, prompts, defaults. Every other one is watched (see `progdist.teachers.pipeline`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class PipelineKind:
    """One stock pipeline."""

    network: str  # the class of its network
    encoders: tuple[str, ...]  # the parts that encode prompts
    prompts: Mapping[str, int]  # what its network takes of prompts: name -> place in what `encode_prompt` returns
    negatives: Mapping[str, int]  # the same of what guidance leads away from; empty without negative prompts
    options: Mapping[str, Any] = field(default_factory=dict)  # further arguments of `encode_prompt`
    parts: Mapping[str, Any] = field(default_factory=dict)  # what else it is made of, as far as it can do without
    indexed: Mapping[str, Any] = field(default_factory=dict)  # settings in its model_index.json: defaults
    default_guidance: float = 1.0  # its default guidance scale
    shifts: tuple[str, ...] = ()  # what of its autoencoder's config it shifts and scales latents by, beside the scale


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
