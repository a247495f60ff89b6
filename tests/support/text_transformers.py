"""Tiny pipelines of text-conditional transformers made by stock code alone, their weights random."""

# pyright: reportArgumentType=false

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import PixArtSigmaPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from progdist._utils.files import read_json
from progdist.methods.conversion import student_form
from progdist.methods.guidance import Input
from progdist.models.model import Model
from progdist.models.prompts import Prompts
from progdist.teachers.open import open_teacher
from support.text import PROMPTS, autoencoder, text_config, tokenizer

Network = TypeVar("Network", bound=torch.nn.Module)


def letter_tokenizer(prompts: Sequence[str] = PROMPTS) -> T5Tokenizer:
    """T5's tokenizer, whose tokens are the letters of some prompts."""
    letters = sorted(set("".join(prompts)) - {" "})
    scores = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *((letter, -3.0) for letter in letters)]
    return T5Tokenizer(vocab=scores, extra_ids=0, model_max_length=512)


def t5(channels: int, prompts: Sequence[str] = PROMPTS) -> tuple[T5EncoderModel, T5Tokenizer]:
    """An encoder of T5's kind, whose tokens are the letters of some prompts."""
    words = letter_tokenizer(prompts)
    sizes = {"d_model": channels, "d_kv": channels // 2, "d_ff": 2 * channels, "num_layers": 2, "num_heads": 2}
    return T5EncoderModel(T5Config(vocab_size=max(32, len(words)), **sizes)).eval(), words


def drawn_anew(network: Network) -> Network:
    """A network whose layers that begin at zero do something."""
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network


def write_pixart(place: Path, prompts: Sequence[str] = PROMPTS, **network: Any) -> Path:  # noqa: ANN401
    """A PixArtSigmaPipeline of 8x8 images in latents of 4x4, which also gives a variance."""
    torch.manual_seed(0)
    encoder, words = t5(16, prompts)
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


def write_sd3(place: Path, prompts: Sequence[str] = PROMPTS, **scheduler: Any) -> Path:  # noqa: ANN401
    """A StableDiffusion3Pipeline of 8x8 images in latents of 4x4, its times shifted by 3."""
    torch.manual_seed(0)
    words = tokenizer(prompts)
    encoder, letters = t5(32, prompts)
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


def write_flux(place: Path, prompts: Sequence[str] = PROMPTS, **network: Any) -> Path:  # noqa: ANN401
    """A FluxPipeline whose latents are half the size of images and whose network takes a guidance scale."""
    torch.manual_seed(0)
    words = tokenizer(prompts)
    encoder, letters = t5(16, prompts)
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


TRANSFORMER_WRITERS = {
    "PixArtSigmaPipeline": write_pixart,
    "StableDiffusion3Pipeline": write_sd3,
    "FluxPipeline": write_flux,
}
"""Writers of pipelines of transformers."""


CALLS: dict[str, dict[str, Any]] = {
    "PixArtSigmaPipeline": {"use_resolution_binning": False},
    "StableDiffusion3Pipeline": {},
    "FluxPipeline": {"height": 8, "width": 8},
}
"""What each pipeline is called with beside prompts, to make images of 8x8."""


def call_words(kind: str) -> list[str]:
    """The same as options of a command."""
    return [word for name, value in CALLS[kind].items() for word in ("--call", f"{name}={value}")]


def open_transformer(place: Path) -> Model:
    """The teacher in a folder of one of these pipelines."""
    return open_teacher(str(place), call=CALLS[read_json(place / "model_index.json")["_class_name"]]).model


def transformer_student(place: Path, steps: int) -> Model:
    """A student of the teacher in a folder, in the form that it would have."""
    teacher = open_transformer(place)
    assert isinstance(teacher.conditioning, Prompts)
    guidance = Input(1.0, 5.0) if teacher.takes_guidance else None
    form = student_form(teacher.denoiser, guided=False, zero_terminal_snr=True)
    return replace(teacher, denoiser=form, steps=(steps,), conditioning=teacher.conditioning.after(guidance))
