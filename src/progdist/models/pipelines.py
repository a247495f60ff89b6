"""Stock diffusers' text-to-image pipelines, each as plain data: text encoders, prompts, defaults."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class PipelineKind:
    """One stock pipeline."""

    network: str  # the class of its network
    encoders: Mapping[str, str]  # its text encoders, part -> class of transformers
    prompts: Mapping[str, int]  # what its network takes of prompts: name -> place in what `encode_prompt` returns
    negatives: Mapping[str, int]  # the same of what guidance leads away from; empty without negative prompts
    options: Mapping[str, Any] = field(default_factory=dict)  # further arguments of `encode_prompt`
    parts: Mapping[str, Any] = field(default_factory=dict)  # what else it is made of, as far as it can do without
    indexed: Mapping[str, Any] = field(default_factory=dict)  # settings in its model_index.json: defaults
    default_guidance: float = 1.0  # its default guidance scale
    passes_sigmas: bool = False  # it gives its scheduler sigmas evenly spaced from 1 to 1 / N
    shifts: tuple[str, ...] = ()  # what of its autoencoder's config it shifts and scales latents by, beside the scale
    call: str = ""  # what a model card adds to its call, in terms of `height` and `width`

    @property
    def part(self) -> str:
        """Where its network lies in a folder."""
        return "unet" if self.network.startswith("UNet") else "transformer"


TOKENIZERS = {
    "CLIPTextModel": "CLIPTokenizer",
    "CLIPTextModelWithProjection": "CLIPTokenizer",
    "T5EncoderModel": "T5TokenizerFast",
}
"""The class of the tokenizer of each class of text encoder."""

VOCABULARIES = {
    "CLIPTokenizer": ("tokenizer.json", "vocab.json"),
    "T5TokenizerFast": ("tokenizer.json", "spiece.model"),
}
"""The files of which a tokenizer of each class needs one; without any it would know no words, and not say so."""

PIPELINES: dict[str, PipelineKind] = {
    "StableDiffusionPipeline": PipelineKind(
        network="UNet2DConditionModel",
        encoders={"text_encoder": "CLIPTextModel"},
        prompts={"encoder_hidden_states": 0},
        negatives={"encoder_hidden_states": 1},
        options={"num_images_per_prompt": 1},
        parts={"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
        default_guidance=7.5,
    ),
    "StableDiffusionXLPipeline": PipelineKind(
        network="UNet2DConditionModel",
        encoders={"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"},
        prompts={"encoder_hidden_states": 0, "text_embeds": 2},
        negatives={"encoder_hidden_states": 1, "text_embeds": 3},
        parts={"add_watermarker": False},
        indexed={"force_zeros_for_empty_prompt": True},
        default_guidance=5.0,
        shifts=("latents_mean", "latents_std"),
    ),
    "PixArtSigmaPipeline": PipelineKind(
        network="PixArtTransformer2DModel",
        encoders={"text_encoder": "T5EncoderModel"},
        prompts={"encoder_hidden_states": 0, "encoder_attention_mask": 1},
        negatives={"encoder_hidden_states": 2, "encoder_attention_mask": 3},
        options={"clean_caption": True},
        default_guidance=4.5,
        call=", use_resolution_binning=False",
    ),
    "StableDiffusion3Pipeline": PipelineKind(
        network="SD3Transformer2DModel",
        encoders={
            "text_encoder": "CLIPTextModelWithProjection",
            "text_encoder_2": "CLIPTextModelWithProjection",
            "text_encoder_3": "T5EncoderModel",
        },
        prompts={"encoder_hidden_states": 0, "pooled_projections": 2},
        negatives={"encoder_hidden_states": 1, "pooled_projections": 3},
        options={"prompt_2": None, "prompt_3": None},
        default_guidance=7.0,
        shifts=("shift_factor",),
    ),
    "FluxPipeline": PipelineKind(
        network="FluxTransformer2DModel",
        encoders={"text_encoder": "CLIPTextModel", "text_encoder_2": "T5EncoderModel"},
        prompts={"encoder_hidden_states": 0, "pooled_projections": 1},
        negatives={},
        default_guidance=3.5,
        shifts=("shift_factor",),
        passes_sigmas=True,
        call=", height={height}, width={width}",
    ),
}
"""By class name."""
