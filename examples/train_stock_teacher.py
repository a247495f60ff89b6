"""A teacher made by stock diffusers alone, in its own training idiom, to be distilled afterwards.

    python examples/train_stock_teacher.py ddpm runs/stock-ddpm      # epsilon, linear betas, unconditional
    python examples/train_stock_teacher.py flow runs/stock-flow      # rectified flow, class-conditional

Real handwritten digits at 16x16. Nothing of progdist is used.
"""

# pyright: reportPrivateImportUsage=false, reportArgumentType=false

import argparse
from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from sklearn.datasets import load_digits
from torch.nn.functional import interpolate, mse_loss


def digits(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (1797, 1, size, size) in [-1, 1] and labels."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    return interpolate(images, (size, size), mode="bilinear").clamp(-1, 1), torch.tensor(labels)


def network(classes: int | None) -> UNet2DModel:
    """A small U-Net of diffusers' usual blocks."""
    return UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=16,
        num_class_embeds=classes,
    )


def main() -> None:
    """Train and save a pipeline folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["ddpm", "flow"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--updates", type=int, default=3000)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    images, labels = digits(16)
    flow = arguments.kind == "flow"
    model = network(10 if flow else None)
    noising = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, arguments.updates)
    average = EMAModel(model.parameters(), decay=0.995)
    for update in range(arguments.updates):
        chosen = torch.randint(len(images), (64,))
        clean, noise = images[chosen], torch.randn(64, 1, 16, 16)
        if flow:
            sigma = torch.rand(64)
            noisy = torch.lerp(clean, noise, sigma[:, None, None, None])
            loss = mse_loss(model(noisy, 1000 * sigma, class_labels=labels[chosen]).sample, noise - clean)
        else:
            timesteps = torch.randint(1000, (64,))
            noisy = noising.add_noise(clean, noise, timesteps)
            loss = mse_loss(model(noisy, timesteps).sample, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        average.step(model.parameters())
        if update % 500 == 0:
            print(f"update {update}: loss {loss.item():.4f}", flush=True)
    average.copy_to(model.parameters())
    DDPMPipeline(model, FlowMatchEulerDiscreteScheduler() if flow else noising).save_pretrained(arguments.out)
    print(arguments.out)


if __name__ == "__main__":
    main()
