"""Text-to-video pipelines: two or three frames of latents of 8x8."""

# pyright: reportArgumentType=false, reportPrivateImportUsage=false

from collections.abc import Sequence
from typing import Any

import diffusers
import transformers
from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeGuidance
from transformers.models.t5gemma2.modeling_t5gemma2 import T5Gemma2Encoder

from support.text import autoencoder
from tiny.parts import cogvideox_autoencoder, flow, hunyuan_autoencoder, wan_autoencoder
from tiny.registry import pipeline
from tiny.text import (
    MROPE,
    SIZES,
    SMALL_VISION,
    chat_tokenizer,
    clip,
    gemma,
    llama,
    qwen_vl,
    t5,
    t5_of,
    templates,
)

Components = dict[str, Any]


@pipeline("CogVideoXPipeline", height=64, width=64, num_frames=5, max_sequence_length=32)
def cogvideox(prompts: Sequence[str]) -> Components:
    """CogVideoX: v-prediction with zero terminal SNR."""
    encoder, words = t5(16, prompts)
    return {
        "tokenizer": words,
        "text_encoder": encoder,
        "vae": cogvideox_autoencoder(),
        "transformer": diffusers.CogVideoXTransformer3DModel(**COGVIDEOX),
        "scheduler": diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True),
    }


COGVIDEOX: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 8,
    "text_embed_dim": 16,
    "num_layers": 2,
    "sample_width": 8,
    "sample_height": 8,
    "sample_frames": 5,
    "patch_size": 2,
    "max_text_seq_length": 32,
}
"""Of CogVideoX's transformer."""


WHOLE_PROMPT = {"template": "{}", "crop_start": 0}
"""HunyuanVideo's own template is longer than the 256 tokens that it reads, if tokens are letters."""


@pipeline(
    "HunyuanVideoPipeline", height=64, width=64, num_frames=5, max_sequence_length=32, prompt_template=WHOLE_PROMPT
)
def hunyuan_video(prompts: Sequence[str]) -> Components:
    """HunyuanVideo, whose transformer takes a guidance scale."""
    encoder, words = llama(prompts, num_hidden_layers=3)
    pooled, tokens = clip(prompts, length=77)
    return {
        "text_encoder": encoder,
        "tokenizer": words,
        "transformer": diffusers.HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=10,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=2,
            patch_size_t=1,
            text_embed_dim=16,
            pooled_projection_dim=16,
            rope_axes_dim=(2, 4, 4),
        ),
        "vae": hunyuan_autoencoder(),
        "scheduler": flow(shift=7.0),
        "text_encoder_2": pooled,
        "tokenizer_2": tokens,
    }


@pipeline("AllegroPipeline", height=64, width=64, num_frames=8, max_sequence_length=32)
def allegro(prompts: Sequence[str]) -> Components:
    """Allegro."""
    encoder, words = t5(24, prompts)
    return {
        "tokenizer": words,
        "text_encoder": encoder,
        "vae": diffusers.AutoencoderKLAllegro(
            down_block_types=("AllegroDownBlock3D",) * 4,
            up_block_types=("AllegroUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
        ),
        "transformer": diffusers.AllegroTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            cross_attention_dim=24,
            sample_width=8,
            sample_height=8,
            sample_frames=2,
            caption_channels=24,
        ),
        "scheduler": diffusers.EulerAncestralDiscreteScheduler(),
    }


@pipeline("LattePipeline", height=16, width=16, video_length=2, clean_caption=False)
def latte(prompts: Sequence[str]) -> Components:
    """Latte, which also gives a variance."""
    encoder, words = t5(16, prompts)
    return {
        "tokenizer": words,
        "text_encoder": encoder,
        "vae": autoencoder(),
        "transformer": diffusers.LatteTransformer3DModel(
            sample_size=8,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=16,
            in_channels=4,
            cross_attention_dim=16,
            out_channels=8,
            attention_bias=True,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            norm_eps=1e-6,
            video_length=2,
        ),
        "scheduler": diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False),
    }


@pipeline("MochiPipeline", height=64, width=64, num_frames=7, max_sequence_length=32)
def mochi(prompts: Sequence[str]) -> Components:
    """Mochi 1."""
    encoder, words = t5(16, prompts)
    transformer = diffusers.MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=16,
        time_embed_dim=4,
        activation_fn="swiglu",
        max_sequence_length=32,
    )
    return {
        "scheduler": flow(invert_sigmas=True),
        "vae": diffusers.AutoencoderKLMochi(
            latent_channels=12,
            encoder_block_out_channels=(32,) * 4,
            decoder_block_out_channels=(32,) * 4,
            layers_per_block=(1,) * 5,
        ),
        "text_encoder": encoder,
        "tokenizer": words,
        "transformer": transformer,
    }


@pipeline("EasyAnimatePipeline", gain=2.0, height=64, width=64, num_frames=5, guidance_scale=1.0)
def easy_animate(prompts: Sequence[str]) -> Components:
    """EasyAnimate 5.1."""
    encoder, words = qwen_vl(prompts, kind="Qwen2VL")
    return {
        "vae": diffusers.AutoencoderKLMagvit(
            latent_channels=4,
            down_block_types=("SpatialDownBlock3D", *("SpatialTemporalDownBlock3D",) * 3),
            up_block_types=("SpatialUpBlock3D", *("SpatialTemporalUpBlock3D",) * 3),
            block_out_channels=(8,) * 4,
            layers_per_block=1,
            norm_num_groups=2,
            spatial_group_norm=False,
        ),
        "text_encoder": encoder,
        "tokenizer": words,
        "transformer": diffusers.EasyAnimateTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=8,
            text_embed_dim=16,
            num_layers=2,
            sample_width=8,
            sample_height=8,
            patch_size=2,
        ),
        "scheduler": flow(shift=3.0),
    }


@pipeline("HunyuanVideo15Pipeline", gain=1.5, height=32, width=32, num_frames=5)
def hunyuan_video_15(prompts: Sequence[str]) -> Components:
    """HunyuanVideo 1.5, whose guidance is a component of the pipeline."""
    words = chat_tokenizer(prompts, templates(diffusers.HunyuanVideo15Pipeline))
    glyphs = transformers.ByT5Tokenizer()
    config = transformers.Qwen2_5_VLTextConfig(
        **{key: value for key, value in SIZES.items() if key != "head_dim"}
        | {"vocab_size": len(words), "num_hidden_layers": 3, "rope_scaling": MROPE}
    )
    return {
        "text_encoder": transformers.Qwen2_5_VLTextModel(config),
        "tokenizer": words,
        "transformer": diffusers.HunyuanVideo15Transformer3DModel(
            in_channels=9,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            num_refiner_layers=1,
            mlp_ratio=2.0,
            patch_size=1,
            patch_size_t=1,
            text_embed_dim=16,
            text_embed_2_dim=16,
            image_embed_dim=12,
            rope_axes_dim=(2, 2, 4),
            target_size=16,
            task_type="t2v",
        ),
        "vae": diffusers.AutoencoderKLHunyuanVideo15(
            latent_channels=4,
            block_out_channels=(16, 16),
            layers_per_block=1,
            spatial_compression_ratio=4,
            temporal_compression_ratio=2,
            downsample_match_channel=False,
            upsample_match_channel=False,
        ),
        "scheduler": flow(shift=7.0),
        "text_encoder_2": t5_of(len(glyphs)),
        "tokenizer_2": glyphs,
        "guider": ClassifierFreeGuidance(guidance_scale=1.0),
    }


@pipeline(
    "SanaVideoPipeline",
    frames=5,
    height=64,
    width=64,
    max_sequence_length=32,
    complex_human_instruction=None,
    use_resolution_binning=False,
)
def sana_video(prompts: Sequence[str]) -> Components:
    """Sana-Video."""
    encoder, words = gemma(prompts)
    return {
        "tokenizer": words,
        "text_encoder": encoder,
        "vae": wan_autoencoder(),
        "transformer": diffusers.SanaVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=12,
            cross_attention_dim=24,
            caption_channels=16,
            mlp_ratio=2.5,
            sample_size=8,
            patch_size=(1, 2, 2),
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=32,
        ),
        "scheduler": diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0
        ),
    }


@pipeline("MotifVideoPipeline", height=64, width=64, num_frames=5, max_sequence_length=32)
def motif(prompts: Sequence[str]) -> Components:
    """Motif-Video, whose guidance is a component of the pipeline."""
    words = gemma(prompts)[1]
    text = {**SIZES, "vocab_size": len(words), "max_position_embeddings": 128, "dropout_rate": 0.0}
    config = transformers.T5Gemma2EncoderConfig(text_config=text, vision_config=SMALL_VISION)
    return {
        "scheduler": flow(shift=7.0),
        "vae": wan_autoencoder(),
        "text_encoder": T5Gemma2Encoder(config),
        "tokenizer": words,
        "transformer": diffusers.MotifVideoTransformer3DModel(
            in_channels=9,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=1,
            num_single_layers=1,
            patch_size=2,
            text_embed_dim=16,
            rope_axes_dim=(4, 4, 4),
        ),
        "guider": AdaptiveProjectedGuidance(),
        "feature_extractor": None,
    }
