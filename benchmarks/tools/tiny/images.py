"""Text-to-image pipelines of transformers: latents of 8x8."""

# pyright: reportArgumentType=false, reportPrivateImportUsage=false

from collections.abc import Sequence
from typing import Any

import diffusers
import transformers
from diffusers.guiders import AdaptiveProjectedMixGuidance
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

from support.text import autoencoder
from tiny.parts import autoencoder_8, deep_compression, flow
from tiny.registry import pipeline
from tiny.text import (
    SIZES,
    bert_tokenizer,
    clip,
    gemma,
    llama,
    qwen,
    qwen_vl,
    t5,
    t5_of,
    templates,
    umt5,
)

Components = dict[str, Any]


SANA: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 8,
    "cross_attention_dim": 16,
    "caption_channels": 16,
    "sample_size": 8,
}
"""Of Sana's transformer."""


@pipeline(
    "SanaPipeline",
    height=32,
    width=32,
    max_sequence_length=32,
    complex_human_instruction=None,
    use_resolution_binning=False,
)
def sana(prompts: Sequence[str]) -> Components:
    """Sana."""
    encoder, words = gemma(prompts)
    return {
        "tokenizer": words,
        "text_encoder": encoder,
        "vae": deep_compression(),
        "transformer": diffusers.SanaTransformer2DModel(**SANA),
        "scheduler": flow(shift=3.0),
    }


Z_IMAGE: dict[str, Any] = {
    "in_channels": 4,
    "dim": 32,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "cap_feat_dim": 16,
    "axes_dims": [8, 4, 4],
    "axes_lens": [256, 32, 32],
}
"""Of Z-Image's transformers."""


@pipeline("ZImagePipeline", height=16, width=16, max_sequence_length=64)
def z_image(prompts: Sequence[str]) -> Components:
    """Z-Image: images and prompts in lists."""
    encoder, words = qwen(prompts)
    return {
        "scheduler": flow(shift=3.0),
        "vae": autoencoder(shift_factor=0.1),
        "text_encoder": encoder,
        "tokenizer": words,
        "transformer": diffusers.ZImageTransformer2DModel(**Z_IMAGE),
    }


@pipeline("Lumina2Pipeline", gain=1.5, height=64, width=64, max_sequence_length=256, system_prompt="draw")
def lumina2(prompts: Sequence[str]) -> Components:
    """Lumina-Image 2.0."""
    encoder, words = gemma(prompts)
    return {
        "transformer": diffusers.Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=32,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=[8, 4, 4],
            axes_lens=[300, 32, 32],
            cap_feat_dim=16,
        ),
        "scheduler": flow(shift=6.0),
        "vae": autoencoder_8(shift_factor=0.1),
        "text_encoder": encoder,
        "tokenizer": words,
    }


@pipeline("AuraFlowPipeline", gain=2.0, height=16, width=16, max_sequence_length=32)
def aura_flow(prompts: Sequence[str]) -> Components:
    """AuraFlow."""
    encoder, words = umt5(prompts)
    return {
        "tokenizer": words,
        "text_encoder": encoder,
        "vae": autoencoder(),
        "transformer": diffusers.AuraFlowTransformer2DModel(
            sample_size=8,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=16,
            pos_embed_max_size=64,
        ),
        "scheduler": flow(shift=1.73),
    }


pipeline(
    "SanaPAGPipeline",
    height=32,
    width=32,
    max_sequence_length=32,
    complex_human_instruction=None,
    use_resolution_binning=False,
)(lambda prompts: {**sana(prompts), "pag_applied_layers": "transformer_blocks.0"})


@pipeline(
    "SanaSprintPipeline",
    height=32,
    width=32,
    max_sequence_length=32,
    complex_human_instruction=None,
    use_resolution_binning=False,
    intermediate_timesteps=None,
)
def sana_sprint(prompts: Sequence[str]) -> Components:
    """Sana-Sprint: a consistency model in TrigFlow's coordinates, whose transformer takes a guidance scale."""
    transformer = diffusers.SanaTransformer2DModel(**SANA, qk_norm="rms_norm_across_heads", guidance_embeds=True)
    return {**sana(prompts), "transformer": transformer, "scheduler": diffusers.SCMScheduler()}


@pipeline("CogView3PlusPipeline", height=16, width=16, max_sequence_length=32)
def cogview_3(prompts: Sequence[str]) -> Components:
    """CogView3-Plus: v-prediction with zero terminal SNR."""
    encoder, words = t5(16, prompts)
    return {
        "tokenizer": words,
        "text_encoder": encoder,
        "vae": autoencoder(),
        "transformer": diffusers.CogView3PlusTransformer2DModel(
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            out_channels=4,
            text_embed_dim=16,
            time_embed_dim=16,
            condition_dim=8,
            pos_embed_max_size=8,
            sample_size=8,
        ),
        "scheduler": diffusers.CogVideoXDDIMScheduler(
            prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
        ),
    }


@pipeline("CogView4Pipeline", height=16, width=16, max_sequence_length=32)
def cogview_4(prompts: Sequence[str]) -> Components:
    """CogView4."""
    encoder, words = llama(prompts, "GlmModel")
    return {
        "tokenizer": words,
        "text_encoder": encoder,
        "vae": autoencoder(),
        "transformer": diffusers.CogView4Transformer2DModel(
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            out_channels=4,
            text_embed_dim=16,
            time_embed_dim=16,
            condition_dim=8,
            rope_axes_dim=(8, 8),
        ),
        "scheduler": flow(
            base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True, time_shift_type="linear"
        ),
    }


@pipeline("HunyuanDiTPipeline", height=64, width=64, use_resolution_binning=False)
def hunyuan_dit(prompts: Sequence[str]) -> Components:
    """Hunyuan-DiT: v-prediction."""
    words = bert_tokenizer(prompts)
    encoder, letters = t5(16, prompts)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    return {
        "vae": autoencoder_8(),
        "text_encoder": transformers.BertModel(config),
        "tokenizer": words,
        "transformer": diffusers.HunyuanDiT2DModel(
            sample_size=8,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=2,
            in_channels=4,
            cross_attention_dim=16,
            cross_attention_dim_t5=16,
            pooled_projection_dim=16,
            hidden_size=16,
            activation_fn="gelu-approximate",
        ),
        "scheduler": diffusers.DDPMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.03, prediction_type="v_prediction"
        ),
        "text_encoder_2": encoder,
        "tokenizer_2": letters,
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


pipeline("HunyuanDiTPAGPipeline", height=64, width=64, use_resolution_binning=False)(
    lambda prompts: {**hunyuan_dit(prompts), "pag_applied_layers": "blocks.1"}
)


@pipeline("LuminaPipeline", height=64, width=64, max_sequence_length=32, clean_caption=False)
def lumina(prompts: Sequence[str]) -> Components:
    """Lumina-Next, which also gives a variance."""
    encoder, words = gemma(prompts, "GemmaModel")
    return {
        "transformer": diffusers.LuminaNextDiT2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            hidden_size=16,
            num_layers=2,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            learn_sigma=True,
            qk_norm=True,
            cross_attention_dim=16,
            scaling_factor=1.0,
        ),
        "scheduler": flow(shift=4.0),
        "vae": autoencoder_8(),
        "text_encoder": encoder,
        "tokenizer": words,
    }


@pipeline("HiDreamImagePipeline", height=16, width=16, max_sequence_length=32)
def hidream(prompts: Sequence[str]) -> Components:
    """HiDream-I1: four text encoders."""
    first, words = clip(prompts, projection=True, length=32)
    second, words_2 = clip(prompts, projection=True, length=32)
    third, letters = t5(16, prompts)
    fourth, words_4 = llama(prompts, "LlamaForCausalLM")
    return {
        "scheduler": flow(shift=3.0),
        "vae": autoencoder(shift_factor=0.1),
        "text_encoder": first,
        "tokenizer": words,
        "text_encoder_2": second,
        "tokenizer_2": words_2,
        "text_encoder_3": third,
        "tokenizer_3": letters,
        "text_encoder_4": fourth,
        "tokenizer_4": words_4,
        "transformer": diffusers.HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=[16, 16],
            text_emb_dim=32,
            num_routed_experts=2,
            num_activated_experts=2,
            axes_dims_rope=(4, 2, 2),
            max_resolution=(32, 32),
            llama_layers=(0, 1),
        ),
    }


@pipeline("HunyuanImagePipeline", height=64, width=64)
def hunyuan_image(prompts: Sequence[str]) -> Components:
    """HunyuanImage 2.1, whose guidance is a component of the pipeline."""
    encoder, words = qwen_vl(prompts, templates(diffusers.HunyuanImagePipeline), layers=4)
    glyphs = transformers.ByT5Tokenizer()
    return {
        "scheduler": flow(shift=5.0),
        "vae": diffusers.AutoencoderKLHunyuanImage(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(32,) * 4,
            layers_per_block=1,
            spatial_compression_ratio=8,
            sample_size=64,
            scaling_factor=0.476986,
        ),
        "text_encoder": encoder,
        "tokenizer": words,
        "text_encoder_2": t5_of(len(glyphs)),
        "tokenizer_2": glyphs,
        "transformer": diffusers.HunyuanImageTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=(1, 1),
            text_embed_dim=16,
            text_embed_2_dim=16,
            rope_axes_dim=(4, 4),
        ),
        "guider": AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=2),
        "ocr_guider": AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=3),
    }


def prx_components(prompts: Sequence[str], channels: int, **transformer: Any) -> Components:  # noqa: ANN401
    """PRX without an autoencoder."""
    words = gemma(prompts)[1]
    words.model_max_length = 64
    sizes = SIZES | {"vocab_size": len(words), "max_position_embeddings": 64, "layer_types": ["full_attention"] * 2}
    config = transformers.T5GemmaConfig(
        encoder=transformers.T5GemmaModuleConfig(**sizes), is_encoder_decoder=False, vocab_size=len(words)
    )
    encoder = T5GemmaEncoder(config.encoder)
    encoder.config = config  # of which the loaded one takes the encoder's
    return {
        "transformer": diffusers.PRXTransformer2DModel(
            in_channels=channels, context_in_dim=16, hidden_size=16, mlp_ratio=2.0, num_heads=2, depth=2, **transformer
        ),
        "scheduler": flow(shift=3.0),
        "text_encoder": encoder,
        "tokenizer": words,
    }


@pipeline("PRXPipeline", height=16, width=16, guidance_scale=1.0, use_resolution_binning=False)
def prx(prompts: Sequence[str]) -> Components:
    """PRX in latents."""
    return {**prx_components(prompts, 4, patch_size=1, axes_dim=[4, 4]), "vae": autoencoder(shift_factor=0.1)}


@pipeline("PRXPixelPipeline", height=16, width=16, guidance_scale=1.0, use_resolution_binning=False)
def prx_pixel(prompts: Sequence[str]) -> Components:
    """PRX in pixels, of which the network says x."""
    encoder, words = qwen(prompts)
    transformer = diffusers.PRXTransformer2DModel(
        in_channels=3,
        context_in_dim=16,
        hidden_size=16,
        mlp_ratio=2.0,
        num_heads=2,
        depth=2,
        patch_size=4,
        axes_dim=[4, 4],
    )
    return {
        "transformer": transformer,
        "scheduler": flow(shift=3.0),
        "text_encoder": encoder,
        "tokenizer": words,
        "prompt_max_tokens": 64,
        "default_sample_size": 16,
    }


@pipeline("ZImageOmniPipeline", height=16, width=16, max_sequence_length=64)
def z_image_omni(prompts: Sequence[str]) -> Components:
    """Z-Image Omni without images to go by."""
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Siglip2VisionConfig(**vision, num_patches=16, patch_size=4)
    return {
        **z_image(prompts),
        "transformer": diffusers.ZImageTransformer2DModel(**Z_IMAGE, siglip_feat_dim=16),
        "siglip": transformers.Siglip2VisionModel(config),
        "siglip_processor": Siglip2ImageProcessorPil(patch_size=4, max_num_patches=16),
    }
