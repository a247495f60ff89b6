"""Wan and those made like it: SkyReels V2, AnyFlow, Helios."""

# pyright: reportArgumentType=false, reportPrivateImportUsage=false

from collections.abc import Sequence
from typing import Any

import diffusers

from tiny.parts import (
    flow,
    wan_autoencoder,
)
from tiny.registry import pipeline
from tiny.text import (
    umt5,
)

Components = dict[str, Any]


WAN: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}
"""Of the transformers of Wan's kind."""


@pipeline("WanPipeline", height=64, width=64, num_frames=5, max_sequence_length=32)
def wan(prompts: Sequence[str]) -> Components:
    """Wan 2.1: frames in one transformer."""
    encoder, words = umt5(prompts)
    return {
        "tokenizer": words,
        "text_encoder": encoder,
        "vae": wan_autoencoder(),
        "transformer": diffusers.WanTransformer3DModel(**WAN),
        "scheduler": flow(shift=3.0),
    }


@pipeline("WanPipeline/two experts", height=64, width=64, num_frames=5, max_sequence_length=32)
def wan_two(prompts: Sequence[str]) -> Components:
    """Wan 2.2: one transformer for times above 0.875, another for those below."""
    further = diffusers.WanTransformer3DModel(**WAN)
    return {**wan(prompts), "transformer_2": further, "boundary_ratio": 0.875}


@pipeline("SkyReelsV2Pipeline", height=64, width=64, num_frames=5, max_sequence_length=32)
def skyreels(prompts: Sequence[str]) -> Components:
    """SkyReels V2."""
    encoder, words = umt5(prompts)
    return {
        "tokenizer": words,
        "text_encoder": encoder,
        "vae": wan_autoencoder(),
        "transformer": diffusers.SkyReelsV2Transformer3DModel(**WAN),
        "scheduler": diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", flow_shift=8.0, use_flow_sigmas=True
        ),
    }


pipeline(
    "SkyReelsV2DiffusionForcingPipeline", height=64, width=64, num_frames=5, max_sequence_length=32, base_num_frames=5
)(skyreels)


@pipeline("AnyFlowPipeline", height=64, width=64, num_frames=5, max_sequence_length=32)
def any_flow(prompts: Sequence[str]) -> Components:
    """AnyFlow: a flow map, which sees the time that it goes to."""
    encoder, words = umt5(prompts)
    return {
        "tokenizer": words,
        "text_encoder": encoder,
        "transformer": diffusers.AnyFlowTransformer3DModel(**WAN),
        "vae": wan_autoencoder(),
        "scheduler": diffusers.FlowMapEulerDiscreteScheduler(shift=5.0),
    }


@pipeline("HeliosPipeline", height=64, width=64, num_frames=9, max_sequence_length=32)
def helios(prompts: Sequence[str]) -> Components:
    """Helios: a video in pieces, each of which sees those before it."""
    encoder, words = umt5(prompts)
    sizes = {key: value for key, value in WAN.items() if key != "rope_max_seq_len"}
    return {
        "tokenizer": words,
        "text_encoder": encoder,
        "vae": wan_autoencoder(),
        "scheduler": diffusers.HeliosScheduler(stage_range=[0, 1], stages=1, use_dynamic_shifting=True),
        "transformer": diffusers.HeliosTransformer3DModel(**sizes, rope_dim=(4, 4, 4)),
    }


@pipeline("AnyFlowFARPipeline", height=64, width=64, num_frames=9, max_sequence_length=32, chunk_partition=[1, 2])
def any_flow_far(prompts: Sequence[str]) -> Components:
    """AnyFlow that makes a video in chunks."""
    transformer = diffusers.AnyFlowFARTransformer3DModel(**WAN, chunk_partition=(1, 2))
    return {**any_flow(prompts), "transformer": transformer}


pipeline(
    "HeliosPyramidPipeline",
    height=64,
    width=64,
    num_frames=9,
    max_sequence_length=32,
    pyramid_num_inference_steps_list=[1, 1, 1],
)(lambda prompts: {**helios(prompts), "scheduler": diffusers.HeliosScheduler(stages=3, use_dynamic_shifting=True)})
