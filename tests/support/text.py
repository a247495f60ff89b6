"""Tiny text-to-image pipelines made by stock code alone, their weights random, and what samples them."""

# pyright: reportArgumentType=false

import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import PixArtSigmaPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

Network = TypeVar("Network", bound=torch.nn.Module)

PROMPTS = ["a handwritten seven", "the digit three, drawn", "a handwritten zero", "an eight"]

BETAS: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
"""Those of Stable Diffusion."""


def tokenizer(captions: list[str], length: int = 12) -> CLIPTokenizer:
    """CLIP's tokenizer with a byte-pair vocabulary learned from some captions."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=150, end_of_word_suffix="</w>", show_progress=False)
    bpe.train_from_iterator([caption.lower() for caption in captions], trainer)
    learned = json.loads(bpe.to_str())["model"]
    vocabulary = dict(learned["vocab"])
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    pairs = [tuple(pair) for pair in learned["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=length)


def text_config(words: CLIPTokenizer, channels: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=channels,
        intermediate_size=2 * channels,
        projection_dim=channels,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=words.model_max_length,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )


def network(attention: int, **more: Any) -> UNet2DConditionModel:  # noqa: ANN401
    return UNet2DConditionModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=attention,
        attention_head_dim=2,
        norm_num_groups=4,
        **more,
    ).eval()


def autoencoder(**more: Any) -> AutoencoderKL:  # noqa: ANN401
    return AutoencoderKL(
        block_out_channels=(4, 8),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=8,
        **more,
    ).eval()


def write_sd(place: Path, **scheduler: Any) -> Path:  # noqa: ANN401
    """A StableDiffusionPipeline of 8x8 images in latents of 4x4."""
    torch.manual_seed(0)
    words = tokenizer(PROMPTS)
    StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=CLIPTextModel(text_config(words, 16)).eval(),
        tokenizer=words,
        unet=network(16),
        scheduler=DDIMScheduler(**BETAS, clip_sample=False, steps_offset=1, **scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(place)
    return place


def write_sdxl(place: Path) -> Path:
    """A StableDiffusionXLPipeline of 8x8 images in latents of 4x4."""
    torch.manual_seed(0)
    words = tokenizer(PROMPTS)
    unet = network(
        32,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
    )
    StableDiffusionXLPipeline(
        vae=autoencoder(),
        text_encoder=CLIPTextModel(text_config(words, 16)).eval(),
        text_encoder_2=CLIPTextModelWithProjection(text_config(words, 16)).eval(),
        tokenizer=words,
        tokenizer_2=tokenizer(PROMPTS),
        unet=unet,
        scheduler=EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading"),
        add_watermarker=False,
    ).save_pretrained(place)
    return place


def t5(channels: int) -> tuple[T5EncoderModel, T5Tokenizer]:
    """An encoder of T5's kind, whose tokens are the letters of PROMPTS."""
    letters = sorted(set("".join(PROMPTS)) - {" "})
    scores = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *((letter, -3.0) for letter in letters)]
    words = T5Tokenizer(vocab=scores, extra_ids=0, model_max_length=512)
    config = T5Config(vocab_size=32, d_model=channels, d_kv=channels // 2, d_ff=2 * channels, num_layers=2, num_heads=2)
    return T5EncoderModel(config).eval(), words


def drawn_anew(network: Network) -> Network:
    """A network whose layers that begin at zero do something."""
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network


def write_pixart(place: Path, **network: Any) -> Path:  # noqa: ANN401
    """A PixArtSigmaPipeline of 8x8 images in latents of 4x4, which also gives a variance."""
    torch.manual_seed(0)
    encoder, words = t5(16)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=4,
        **network,
    )
    PixArtSigmaPipeline(
        tokenizer=words,
        text_encoder=encoder,
        vae=autoencoder(),
        transformer=drawn_anew(transformer).eval(),
        scheduler=DPMSolverMultistepScheduler(beta_schedule="linear", beta_start=0.0001, beta_end=0.02),
    ).save_pretrained(place)
    return place


def write_sd3(place: Path, **scheduler: Any) -> Path:  # noqa: ANN401
    """A StableDiffusion3Pipeline of 8x8 images in latents of 4x4, its times shifted by 3."""
    torch.manual_seed(0)
    words = tokenizer(PROMPTS)
    encoder, letters = t5(32)
    transformer = SD3Transformer2DModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
    )
    StableDiffusion3Pipeline(
        transformer=drawn_anew(transformer).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
        vae=autoencoder(shift_factor=0.1),
        text_encoder=CLIPTextModelWithProjection(text_config(words, 16)).eval(),
        tokenizer=words,
        text_encoder_2=CLIPTextModelWithProjection(text_config(words, 16)).eval(),
        tokenizer_2=words,
        text_encoder_3=encoder,
        tokenizer_3=letters,
    ).save_pretrained(place)
    return place


def write_flux(place: Path, **network: Any) -> Path:  # noqa: ANN401
    """A FluxPipeline whose latents are half the size of images and whose network takes a guidance scale."""
    torch.manual_seed(0)
    words = tokenizer(PROMPTS)
    encoder, letters = t5(16)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(2, 2, 4),
        **{"guidance_embeds": True, **network},
    )
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=autoencoder(shift_factor=0.1),
        text_encoder=CLIPTextModel(text_config(words, 16)).eval(),
        tokenizer=words,
        text_encoder_2=encoder,
        tokenizer_2=letters,
        transformer=drawn_anew(transformer).eval(),
    ).save_pretrained(place)
    return place


WRITERS = {
    "StableDiffusionPipeline": write_sd,
    "StableDiffusionXLPipeline": write_sdxl,
}
"""Writers of pipelines whose students have a guidance dial, by the class of the pipeline."""

TRANSFORMER_WRITERS = {
    "PixArtSigmaPipeline": write_pixart,
    "StableDiffusion3Pipeline": write_sd3,
    "FluxPipeline": write_flux,
}
"""Writers of pipelines of transformers."""
