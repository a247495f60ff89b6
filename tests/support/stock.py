"""Stock diffusers: a small network, and sampling with stock code alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

SaveStock = Callable[..., Path]
"""The fixture `stock`: (scheduler, classes) -> a pipeline folder."""


def stock_network(classes: int | None = None) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        num_class_embeds=classes,
    ).eval()


def load_unet(folder: Path) -> Any:  # noqa: ANN401  (diffusers' own annotations fit few of its uses)
    return UNet2DModel.from_pretrained(folder, subfolder="unet")


def load_ddim(folder: Path) -> Any:  # noqa: ANN401
    return DDIMScheduler.from_pretrained(folder, subfolder="scheduler")


@torch.no_grad()
def stock_samples(unet: Any, scheduler: Any, noise: Tensor, steps: int, **condition: Tensor) -> Tensor:  # noqa: ANN401
    """A stock sampling loop, from given noise."""
    scheduler.set_timesteps(steps)
    return stock_steps(unet, scheduler, noise, **condition)


@torch.no_grad()
def stock_steps(unet: Any, scheduler: Any, noise: Tensor, **condition: Tensor) -> Tensor:  # noqa: ANN401
    """The same through timesteps that are set."""
    images = noise * getattr(scheduler, "init_noise_sigma", 1)
    scaled = getattr(scheduler, "scale_model_input", lambda images, t: images)
    for t in scheduler.timesteps:
        images = scheduler.step(unet(scaled(images, t), t, **condition).sample, t, images).prev_sample
    return images
