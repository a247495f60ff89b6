"""Stock pipelines of latent models of 8x8 images."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTPipeline, LDMPipeline  # pyright: ignore[reportPrivateImportUsage]
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from support.commands import SHORT_EVALUATION, UNTRAINED, succeeds

AUTOENCODER: dict[str, Any] = {
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
}
"""Both kinds of autoencoder halve the side of an image."""

SHORT = ("--updates", 2, "--batch", 8, "--start", 8, *SHORT_EVALUATION)


def dit_transformer() -> DiTTransformer2DModel:
    """Two blocks of a class-conditional transformer that also gives a variance, its last layers not zero."""
    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=4,
        num_embeds_ada_norm=10,
    )
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return network.eval()


def save_dit(folder: Path) -> Path:
    torch.manual_seed(0)
    scheduler = DDPMScheduler(clip_sample=False)
    DiTPipeline(dit_transformer(), AutoencoderKL(**AUTOENCODER), scheduler).save_pretrained(folder)  # pyright: ignore
    return folder


def save_ldm(folder: Path) -> Path:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=4,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=4,
    )
    LDMPipeline(VQModel(latent_channels=3, **AUTOENCODER), unet, DDIMScheduler(clip_sample=False)).save_pretrained(
        folder
    )
    return folder


SAVE = {"DiT": save_dit, "LDM": save_ldm}


def distill_latent(teacher: Path, out: Path, *more: object) -> Path:
    """The folder of a student of four steps, after two updates a stage."""
    succeeds("distill", teacher, "--data", "digits", "--out", out, *SHORT, *UNTRAINED, *more)
    return out / "student-0004"


@torch.no_grad()
def stock_latent_images(folder: Path, noise: Tensor, steps: int, labels: list[int]) -> Tensor:
    """What the folder's own stock parts make of the noise, (N, C, H, W)."""
    index = json.loads((folder / "model_index.json").read_text())
    pipeline_class = DiTPipeline if index["_class_name"] == "DiTPipeline" else LDMPipeline
    pipeline: Any = pipeline_class.from_pretrained(folder)
    condition = {"class_labels": torch.tensor(labels)} if pipeline_class is DiTPipeline else {}
    network = pipeline.transformer if condition else pipeline.unet
    autoencoder = pipeline.vae if condition else pipeline.vqvae
    pipeline.scheduler.set_timesteps(steps)
    z = noise
    for t in pipeline.scheduler.timesteps:
        output = network(z, t.expand(len(z)), **condition).sample[:, : z.shape[1]]
        z = pipeline.scheduler.step(output, t, z).prev_sample
    return autoencoder.decode(z / autoencoder.config.scaling_factor).sample
