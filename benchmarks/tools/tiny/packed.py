"""Text-to-image pipelines whose transformers see latents as tokens, four pixels of a latent in one."""

# pyright: reportArgumentType=false, reportPrivateImportUsage=false

from collections.abc import Sequence
from typing import Any

import diffusers
import transformers
from diffusers.pipelines.bria_fibo2.pipeline_bria_fibo2 import TEXT_ENCODER_OUT_LAYERS
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from diffusers.pipelines.ideogram4.pipeline_ideogram4 import QWEN3_VL_ACTIVATION_LAYERS

from support.text import autoencoder
from tiny.parts import (
    autoencoder_8,
    flow,
    qwen_autoencoder,
    wan_autoencoder,
)
from tiny.registry import pipeline
from tiny.text import (
    SIZES,
    chat_tokenizer,
    decoder,
    llama,
    qwen,
    qwen3_vl,
    qwen_vl,
    t5,
    templates,
)

Components = dict[str, Any]


@pipeline("QwenImagePipeline", height=64, width=64, max_sequence_length=256)
def qwen_image(prompts: Sequence[str]) -> Components:
    """Qwen-Image."""
    encoder, words = qwen_vl(prompts, templates(diffusers.QwenImagePipeline))
    return {
        "scheduler": flow(use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, shift_terminal=0.02),
        "vae": qwen_autoencoder(),
        "text_encoder": encoder,
        "tokenizer": words,
        "transformer": diffusers.QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4),
        ),
    }


@pipeline("ChromaPipeline", height=16, width=16, max_sequence_length=32)
def chroma(prompts: Sequence[str]) -> Components:
    """Chroma: Flux without guidance scale, prompts masked."""
    encoder, words = t5(16, prompts)
    return {
        "scheduler": flow(shift=3.0),
        "vae": autoencoder(shift_factor=0.1),
        "text_encoder": encoder,
        "tokenizer": words,
        "transformer": diffusers.ChromaTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(2, 2, 4),
            approximator_hidden_dim=16,
            approximator_layers=1,
            approximator_num_channels=8,
        ),
    }


FLUX_2: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "axes_dims_rope": (2, 2, 2, 2),
}
"""Of Flux 2's transformers."""


def flux_2_autoencoder() -> diffusers.AutoencoderKLFlux2:
    """Latents of 4 channels, half the size of the images."""
    return diffusers.AutoencoderKLFlux2(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=16,
    )


@pipeline("Flux2KleinPipeline", height=16, width=16, max_sequence_length=64, text_encoder_out_layers=(0, 1, 2))
def flux_2_klein(prompts: Sequence[str]) -> Components:
    """Flux 2 Klein."""
    encoder, words = qwen(prompts, "Qwen3ForCausalLM")
    return {
        "scheduler": flow(use_dynamic_shifting=True),
        "vae": flux_2_autoencoder(),
        "text_encoder": encoder,
        "tokenizer": words,
        "transformer": diffusers.Flux2Transformer2DModel(**FLUX_2, joint_attention_dim=48, guidance_embeds=False),
    }


@pipeline("BriaPipeline", height=16, width=16, max_sequence_length=32)
def bria(prompts: Sequence[str]) -> Components:
    """Bria 3.2."""
    encoder, words = t5(16, prompts)
    return {
        "transformer": diffusers.BriaTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=None,
            axes_dims_rope=[0, 4, 4],
        ),
        "scheduler": flow(shift=3.0),
        "vae": autoencoder(shift_factor=0.0),
        "text_encoder": encoder,
        "tokenizer": words,
        "image_encoder": None,
        "feature_extractor": None,
    }


@pipeline("OvisImagePipeline", height=16, width=16, max_sequence_length=64)
def ovis(prompts: Sequence[str]) -> Components:
    """Ovis-Image."""
    words = chat_tokenizer(prompts, templates(diffusers.OvisImagePipeline))
    encoder = decoder(words, "Qwen3Model")
    return {
        "scheduler": flow(use_dynamic_shifting=True),
        "vae": autoencoder(shift_factor=0.1),
        "text_encoder": encoder,
        "tokenizer": words,
        "transformer": diffusers.OvisImageTransformer2DModel(
            patch_size=1,
            in_channels=16,
            out_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(2, 2, 4),
        ),
    }


@pipeline("Krea2Pipeline", height=64, width=64, max_sequence_length=64)
def krea(prompts: Sequence[str]) -> Components:
    """Krea 2."""
    encoder, words = qwen3_vl(prompts, "Qwen3VLModel", templates(diffusers.Krea2Pipeline))
    return {
        "scheduler": flow(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15),
        "vae": qwen_autoencoder(),
        "text_encoder": encoder,
        "tokenizer": words,
        "transformer": diffusers.Krea2Transformer2DModel(
            in_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=32,
            timestep_embed_dim=8,
            text_hidden_dim=16,
            num_text_layers=3,
            text_num_attention_heads=2,
            text_num_key_value_heads=1,
            text_intermediate_size=16,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 2, 2),
        ),
        "text_encoder_select_layers": (0, 1, 2),
    }


@pipeline("LongCatImagePipeline", height=64, width=64, enable_prompt_rewrite=False)
def longcat_image(prompts: Sequence[str]) -> Components:
    """LongCat-Image, without its rewriting of prompts."""
    encoder, words = qwen_vl(prompts, templates(diffusers.LongCatImagePipeline))
    return {
        "scheduler": flow(use_dynamic_shifting=True),
        "vae": autoencoder_8(16, shift_factor=0.1),
        "text_encoder": encoder,
        "tokenizer": words,
        "text_processor": words,
        "transformer": diffusers.LongCatImageTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            axes_dims_rope=[2, 2, 4],
        ),
    }


@pipeline("BriaFiboPipeline", height=64, width=64)
def bria_fibo(prompts: Sequence[str]) -> Components:
    """Bria FIBO: every block sees a layer of the language model."""
    encoder, words = llama(prompts, "SmolLM3ForCausalLM", vocab_size=128_001)  # the token of no prompt is 128,000
    return {
        "transformer": diffusers.BriaFiboTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            text_encoder_dim=16,
            axes_dims_rope=[0, 4, 4],
        ),
        "scheduler": flow(shift=3.0),
        "vae": wan_autoencoder(),
        "text_encoder": encoder,
        "tokenizer": words,
    }


@pipeline("NucleusMoEImagePipeline", height=64, width=64, max_sequence_length=256, return_index=-1)
def nucleus(prompts: Sequence[str]) -> Components:
    """Nucleus-Image: experts choose tokens."""
    encoder, words = qwen3_vl(prompts, "Qwen3VLForConditionalGeneration", templates(diffusers.NucleusMoEImagePipeline))
    return {
        "transformer": diffusers.NucleusMoEImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4),
            moe_enabled=False,
            capacity_factors=[8.0, 8.0],
        ),
        "scheduler": flow(shift=3.0),
        "vae": qwen_autoencoder(),
        "text_encoder": encoder,
        "processor": words,
    }


@pipeline("Ideogram4Pipeline", height=16, width=16, max_sequence_length=64, guidance_scale=7.0, guidance_schedule=None)
def ideogram(prompts: Sequence[str]) -> Components:
    """Ideogram 4: a network with prompts, and one without for guidance."""
    encoder, words = qwen3_vl(prompts, "Qwen3VLModel", layers=1 + max(QWEN3_VL_ACTIVATION_LAYERS))
    sizes = {
        "in_channels": 16,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "adaln_dim": 16,
        "llm_features_dim": 16 * len(QWEN3_VL_ACTIVATION_LAYERS),
        "mrope_section": (2, 1, 1),
    }
    return {
        "scheduler": flow(),
        "vae": flux_2_autoencoder(),
        "text_encoder": encoder,
        "tokenizer": words,
        "transformer": diffusers.Ideogram4Transformer2DModel(**sizes),
        "unconditional_transformer": diffusers.Ideogram4Transformer2DModel(**sizes),
    }


def mistral(prompts: Sequence[str], kind: str, chats: Sequence[str] = ()) -> tuple[Any, Any]:
    """Mistral 3, which reads text here: `kind` is the name of its class."""
    words = chat_tokenizer(prompts, chats)
    vision = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 30,
        "patch_size": 6,
    }
    config = transformers.Mistral3Config(
        text_config={"model_type": "mistral", **SIZES, "vocab_size": len(words), "max_position_embeddings": 512},
        vision_config=vision,
        image_token_index=words.convert_tokens_to_ids("<|image_pad|>"),
    )
    return getattr(transformers, kind)(config), words


@pipeline("Flux2Pipeline", gain=1.5, height=16, width=16, max_sequence_length=128, text_encoder_out_layers=(0, 1, 2))
def flux_2(prompts: Sequence[str]) -> Components:
    """Flux 2, whose transformer takes a guidance scale."""
    encoder, words = mistral(prompts, "Mistral3ForConditionalGeneration", [SYSTEM_MESSAGE])
    return {
        "scheduler": flow(use_dynamic_shifting=True),
        "vae": flux_2_autoencoder(),
        "text_encoder": encoder,
        "tokenizer": words,
        "transformer": diffusers.Flux2Transformer2DModel(**FLUX_2, joint_attention_dim=48),
    }


@pipeline("ErnieImagePipeline", height=64, width=64)
def ernie(prompts: Sequence[str]) -> Components:
    """ERNIE-Image, without its rewriting of prompts."""
    encoder, words = mistral(prompts, "Mistral3Model")
    return {
        "transformer": diffusers.ErnieImageTransformer2DModel(
            hidden_size=16,
            num_attention_heads=2,
            num_layers=2,
            ffn_hidden_size=32,
            in_channels=16,
            out_channels=16,
            text_in_dim=16,
            rope_axes_dim=(4, 2, 2),
        ),
        "vae": flux_2_autoencoder(),
        "text_encoder": encoder,
        "tokenizer": words,
        "scheduler": flow(shift=3.0),
    }


pipeline("Flux2KleinKVPipeline", height=16, width=16, max_sequence_length=64, text_encoder_out_layers=(0, 1, 2))(
    flux_2_klein
)


@pipeline("BriaFibo2Pipeline", height=16, width=16)
def bria_fibo_2(prompts: Sequence[str]) -> Components:
    """Bria FIBO 2: bundles of the language model's layers enter at as many places."""
    layers = 1 + max(max(bundle) for bundle in TEXT_ENCODER_OUT_LAYERS)
    chats = templates(diffusers.BriaFibo2Pipeline)
    encoder, words = qwen3_vl(prompts, "Qwen3VLForConditionalGeneration", chats, layers)
    bundles = len(TEXT_ENCODER_OUT_LAYERS)
    transformer = diffusers.BriaFibo2Transformer2DModel(
        in_channels=4,
        dim=16,
        n_layers=bundles - 1,
        n_refiner_layers=1,
        n_heads=2,
        cap_feat_dim=16 * len(TEXT_ENCODER_OUT_LAYERS[0]),
        injection_layer_ids=tuple(range(bundles - 1)),
        perceiver_num_layers=1,
        min_num_gist_tokens=4,
        max_num_gist_tokens=8,
        gist_step=2,
        axes_dims=(4, 2, 2),
        axes_lens=(256, 32, 32),
    )
    return {
        "transformer": transformer,
        "scheduler": flow(use_dynamic_shifting=True),
        "vae": flux_2_autoencoder(),
        "text_encoder": encoder,
        "processor": words,
    }
