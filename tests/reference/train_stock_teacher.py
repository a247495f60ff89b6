"""How tests/reference/stock_teacher was made: 3,000 updates of digits at 8x8 by stock code alone, about a minute.

python tests/reference/train_stock_teacher.py
"""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from sklearn.datasets import load_digits

UPDATES, BATCH = 3000, 32


def main() -> None:
    """Train and save."""
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    pixels: Any = load_digits().data  # pyright: ignore[reportAttributeAccessIssue]
    images = torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8) / 8 - 1
    noising = DDPMScheduler()
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, UPDATES)
    for _ in range(UPDATES):
        x = images[torch.randint(len(images), (BATCH,))]
        noise, timesteps = torch.randn_like(x), torch.randint(1000, (BATCH,))
        noisy: Any = noising.add_noise(x, noise, timesteps)  # pyright: ignore[reportArgumentType]
        (network(noisy, timesteps).sample - noise).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
    DDPMPipeline(network, noising).save_pretrained(Path(__file__).parent / "stock_teacher")


if __name__ == "__main__":
    main()
