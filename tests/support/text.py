"""Tiny text-to-image pipelines of U-Nets made by stock code alone, their weights random, and what samples them."""

# pyright: reportArgumentType=false

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from progdist.methods.conversion import student_form
from progdist.methods.guidance import Guidance, Input
from progdist.models.model import Model
from progdist.models.networks import network_interface, with_guidance_input
from progdist.models.prompts import Prompts
from progdist.teachers.open import open_teacher

RANGE = Input(1.0, 14.0)
"""Of the guidance scales that a student takes."""

PROMPTS = ["a handwritten seven", "the digit three, drawn", "a handwritten zero", "an eight"]

BETAS: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
"""Those of Stable Diffusion."""


def tokenizer(captions: Sequence[str], length: int = 12) -> CLIPTokenizer:
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


def write_sd(place: Path, prompts: Sequence[str] = PROMPTS, width: int = 16, **scheduler: Any) -> Path:  # noqa: ANN401
    """A StableDiffusionPipeline of 8x8 images in latents of 4x4, with a text encoder of some width."""
    torch.manual_seed(0)
    words = tokenizer(prompts)
    StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=CLIPTextModel(text_config(words, width)).eval(),
        tokenizer=words,
        unet=network(width),
        scheduler=DDIMScheduler(**BETAS, clip_sample=False, steps_offset=1, **scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(place)
    return place


def write_sdxl(
    place: Path,
    prompts: Sequence[str] = PROMPTS,
    scheduler: SchedulerMixin | None = None,
    widths: tuple[int, int] = (16, 16),
) -> Path:
    """A StableDiffusionXLPipeline of 8x8 images in latents of 4x4, with Euler's scheduler if none is given.

    `widths` are those of its text encoders.
    """
    torch.manual_seed(0)
    words = tokenizer(prompts)
    unet = network(
        sum(widths),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=widths[1] + 6 * 8,
    )
    StableDiffusionXLPipeline(
        vae=autoencoder(),
        text_encoder=CLIPTextModel(text_config(words, widths[0])).eval(),
        text_encoder_2=CLIPTextModelWithProjection(text_config(words, widths[1])).eval(),
        tokenizer=words,
        tokenizer_2=tokenizer(prompts),
        unet=unet,
        scheduler=scheduler or EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading"),
        add_watermarker=False,
    ).save_pretrained(place)
    return place


WRITERS = {
    "StableDiffusionPipeline": write_sd,
    "StableDiffusionXLPipeline": write_sdxl,
}
"""Writers of pipelines whose students take a guidance scale, by the class of the pipeline."""


def stock_pipeline(place: Path, kind: str) -> Any:  # noqa: ANN401
    """The pipeline in a folder, by its class name alone."""
    pipeline = getattr(diffusers, kind).from_pretrained(place)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def text_student(
    place: Path, guidance: Guidance | None = RANGE, steps: int = 4, *, zero_terminal_snr: bool = False
) -> Model:
    """A student of the teacher in a folder, whose guidance scale does something."""
    teacher = open_teacher(str(place)).model
    form, prompts = (
        student_form(teacher.denoiser, guided=False, zero_terminal_snr=zero_terminal_snr),
        teacher.conditioning,
    )
    assert isinstance(prompts, Prompts)
    network = form.network
    if isinstance(guidance, Input):
        network = with_guidance_input(network, guidance)
        nn.init.normal_(network.get_parameter("time_embedding.cond_proj.weight"), std=0.3)
    denoiser = form.with_parts(network=network, **network_interface(network))
    return replace(teacher, denoiser=denoiser, steps=(steps,), conditioning=prompts.after(guidance))
