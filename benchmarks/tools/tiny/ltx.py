"""LTX-Video and LTX-2."""

# pyright: reportArgumentType=false, reportPrivateImportUsage=false

from collections.abc import Sequence
from typing import Any

import diffusers
import transformers
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder

from tiny.parts import (
    flow,
)
from tiny.registry import pipeline
from tiny.text import (
    SIZES,
    SMALL_VISION,
    gemma,
    t5,
)

Components = dict[str, Any]


@pipeline("LTXPipeline", height=32, width=32, num_frames=5, max_sequence_length=32)
def ltx(prompts: Sequence[str]) -> Components:
    """LTX-Video: latents as tokens, the shift by their number."""
    encoder, words = t5(16, prompts)
    return {
        "scheduler": flow(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, shift_terminal=0.1),
        "vae": diffusers.AutoencoderKLLTXVideo(
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
            spatio_temporal_scaling=(True, True, False, False),
            decoder_spatio_temporal_scaling=(True, True, False, False),
            decoder_inject_noise=(False,) * 5,
            upsample_residual=(False,) * 4,
            upsample_factor=(1,) * 4,
            patch_size=1,
            patch_size_t=1,
            encoder_causal=True,
            decoder_causal=False,
        ),
        "text_encoder": encoder,
        "tokenizer": words,
        "transformer": diffusers.LTXVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            num_layers=2,
            caption_channels=16,
        ),
    }


LTX_2: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 16,
    "audio_in_channels": 4,
    "audio_out_channels": 4,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 4,
    "audio_cross_attention_dim": 8,
    "num_layers": 2,
    "caption_channels": 16,
    "rope_double_precision": False,
    "rope_type": "split",
}
"""Of LTX-2's transformers."""


@pipeline("LTX2Pipeline", height=32, width=32, num_frames=5, max_sequence_length=32)
def ltx_2(prompts: Sequence[str]) -> Components:
    """LTX-2: a video and its sound from one transformer."""
    words = gemma(prompts)[1]
    config = transformers.Gemma3Config(
        text_config={**SIZES, "vocab_size": len(words), "max_position_embeddings": 512},
        vision_config=SMALL_VISION,
        mm_tokens_per_image=4,
    )
    connectors = {
        f"{kind}_connector_{field}": value
        for kind in ("video", "audio")
        for field, value in (
            ("num_attention_heads", 2),
            ("attention_head_dim", 8),
            ("num_layers", 1),
            ("num_learnable_registers", None),
        )
    }
    sound = diffusers.AutoencoderKLLTX2Audio(
        base_channels=4,
        ch_mult=(1,),
        num_res_blocks=1,
        resolution=32,
        latent_channels=2,
        mel_bins=8,
    )
    return {
        "scheduler": flow(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, shift_terminal=0.1),
        "vae": diffusers.AutoencoderKLLTX2Video(
            latent_channels=4,
            block_out_channels=(8, 8),
            down_block_types=("LTX2VideoDownBlock3D",) * 2,
            decoder_block_out_channels=(8, 8),
            layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1),
            spatio_temporal_scaling=(True, True),
            decoder_spatio_temporal_scaling=(True, True),
            decoder_inject_noise=(False,) * 3,
            downsample_type=("spatiotemporal", "spatiotemporal"),
            upsample_type=("spatiotemporal", "spatiotemporal"),
            upsample_residual=(False, False),
            upsample_factor=(1, 1),
            patch_size=1,
        ),
        "audio_vae": sound,
        "text_encoder": transformers.Gemma3ForConditionalGeneration(config),
        "tokenizer": words,
        "connectors": LTX2TextConnectors(
            caption_channels=16,
            text_proj_in_factor=SIZES["num_hidden_layers"] + 1,
            connector_rope_base_seq_len=32,
            rope_double_precision=False,
            rope_type="split",
            **connectors,
        ),
        "transformer": diffusers.LTX2VideoTransformer3DModel(**LTX_2),
        "vocoder": LTX2Vocoder(
            in_channels=16,
            hidden_channels=16,
            upsample_kernel_sizes=[4, 4],
            upsample_factors=[2, 2],
            resnet_kernel_sizes=[3],
            resnet_dilations=[[1, 3, 5]],
            output_sampling_rate=16_000,
        ),
    }


pipeline("LTXConditionPipeline", height=32, width=32, num_frames=9, max_sequence_length=32)(
    lambda prompts: {**ltx(prompts), "scheduler": flow()}
)


for _name in ("LTX2ConditionPipeline", "LTX2InContextPipeline", "LTX2HDRPipeline"):
    pipeline(_name, height=32, width=32, num_frames=9, max_sequence_length=32)(ltx_2)


@pipeline("LTX2DFRPipeline", height=32, width=32, num_frames=9, max_sequence_length=32)
def ltx_2_keyframes(prompts: Sequence[str]) -> Components:
    """LTX-2.5, which makes frames between others."""
    transformer = diffusers.LTX2VideoTransformer3DModel(**LTX_2, use_keyframes_abs_pos_embedding=True)
    return {**ltx_2(prompts), "transformer": transformer, "scheduler": flow()}
