"""Kandinsky 5 and 6."""

# pyright: reportArgumentType=false, reportPrivateImportUsage=false

from collections.abc import Sequence
from typing import Any

import diffusers

from tiny.parts import (
    autoencoder_8,
    flow,
    hunyuan_autoencoder,
)
from tiny.registry import pipeline
from tiny.text import (
    clip,
    qwen_vl,
    templates,
)

Components = dict[str, Any]


KANDINSKY: dict[str, Any] = {
    "in_visual_dim": 4,
    "in_text_dim": 16,
    "in_text_dim2": 16,
    "time_dim": 16,
    "out_visual_dim": 4,
    "patch_size": (1, 2, 2),
    "model_dim": 16,
    "ff_dim": 32,
    "num_text_blocks": 1,
    "num_visual_blocks": 2,
    "axes_dims": (2, 2, 4),
    "attention_type": "regular",
}
"""Of Kandinsky 5's transformers."""


@pipeline("Kandinsky5T2VPipeline", height=64, width=64, num_frames=5, max_sequence_length=64)
def kandinsky_5(prompts: Sequence[str]) -> Components:
    """Kandinsky 5."""
    encoder, words = qwen_vl(prompts, templates(diffusers.Kandinsky5T2VPipeline))
    pooled, tokens = clip(prompts, length=77)
    return {
        "transformer": diffusers.Kandinsky5Transformer3DModel(**KANDINSKY),
        "vae": hunyuan_autoencoder(),
        "text_encoder": encoder,
        "tokenizer": words,
        "text_encoder_2": pooled,
        "tokenizer_2": tokens,
        "scheduler": flow(shift=5.0),
    }


@pipeline("Kandinsky6TI2VAPipeline", height=64, width=64, num_frames=5, max_sequence_length=64, sample_audio=False)
def kandinsky_6(prompts: Sequence[str]) -> Components:
    """Kandinsky 6, without sound."""
    sizes = {key: value for key, value in KANDINSKY.items() if key != "attention_type"}
    transformer = diffusers.Kandinsky6Transformer3DModel(**sizes)
    return {**kandinsky_5(prompts), "transformer": transformer, "audio_vae": None, "vocoder": None}


@pipeline("Kandinsky5T2IPipeline", height=64, width=64, max_sequence_length=64)
def kandinsky_5_image(prompts: Sequence[str]) -> Components:
    """Kandinsky 5 for images."""
    encoder, words = qwen_vl(prompts, templates(diffusers.Kandinsky5T2IPipeline))
    pooled, tokens = clip(prompts, length=77)
    return {
        "transformer": diffusers.Kandinsky5Transformer3DModel(**KANDINSKY, visual_cond=False),
        "vae": autoencoder_8(),
        "text_encoder": encoder,
        "tokenizer": words,
        "text_encoder_2": pooled,
        "tokenizer_2": tokens,
        "scheduler": flow(shift=5.0),
    }
