"""A LoRA fine-tune of a text-to-image pipeline, as diffusers' own training scripts make one, on rotated pictures.

    python examples/train_text_teacher.py digits runs/digits-captions runs/stock-text
    python examples/fine_tune_lora.py runs/stock-text runs/digits-captions runs/rotated-captions runs/rotated-lora

The captions stay, and every picture is turned by 90 degrees: after it "a handwritten seven" is a seven that lies on its
back. The third folder gets these pairs, the fourth `pytorch_lora_weights.safetensors`, by the pipeline's own
`save_lora_weights`. peft adds the adapters, the U-Net's own weights stay as they are, and one caption in ten is seen
empty. Layers keep peft's names: `convert_state_dict_to_diffusers` renames those of attention alone, and of such a mixed
file stock loaders read a part. Nothing of progdist is used. On a GPU where there is one.
"""

# pyright: reportPrivateImportUsage=false

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from torch.nn.functional import mse_loss

LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "conv1", "conv2"]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def turn(pairs: Path, out: Path) -> tuple[torch.Tensor, list[str]]:
    """Write the pairs with every picture turned counterclockwise; returns them, (N, 3, H, W) in [-1, 1]."""
    out.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in (pairs / "metadata.jsonl").read_text().splitlines()]
    pictures = []
    for line in lines:
        picture = Image.open(pairs / line["file_name"]).transpose(Image.Transpose.ROTATE_90)
        picture.save(out / line["file_name"])
        pictures.append(torch.from_numpy(np.array(picture.convert("RGB"))))
    shutil.copyfile(pairs / "metadata.jsonl", out / "metadata.jsonl")
    pixels = torch.stack(pictures).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    return pixels, [line["text"] for line in lines]


@torch.no_grad()
def encode(pipeline: Any, images: torch.Tensor, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ANN401
    """Latents (N, C, h, w), and embeddings of the captions and, last, of none (N + 1, tokens, channels)."""
    vae, tokenizer = pipeline.vae, pipeline.tokenizer
    latents = torch.cat([vae.encode(part.to(DEVICE)).latent_dist.mean for part in images.split(256)])
    given = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    tokens = tokenizer([*captions, ""], max_length=tokenizer.model_max_length, **given).input_ids
    texts = torch.cat([pipeline.text_encoder(part.to(DEVICE))[0] for part in tokens.split(256)])
    return latents * vae.config.scaling_factor, texts


def fine_tune(unet: Any, scheduler: Any, latents: torch.Tensor, texts: torch.Tensor, how: Any) -> None:  # noqa: ANN401
    """Train adapters in the U-Net to predict eps of these latents and texts."""
    unet.requires_grad_(False)
    config = LoraConfig(r=how.rank, lora_alpha=how.rank, init_lora_weights="gaussian", target_modules=LAYERS)
    unet.add_adapter(config)
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    print(f"{sum(each.numel() for each in trained):,} parameters in the adapters", flush=True)
    optimizer = torch.optim.AdamW(trained, lr=how.learning_rate)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, how.updates)
    unet.train()
    for update in range(how.updates):
        chosen = torch.randint(len(latents), (how.batch,))
        timesteps = torch.randint(1000, (how.batch,), device=DEVICE)
        clean, noise = latents[chosen], torch.randn(how.batch, *latents.shape[1:], device=DEVICE)
        dropped = (torch.rand(how.batch, device=DEVICE) < 0.1)[:, None, None]
        given = torch.where(dropped, texts[-1], texts[chosen])
        output = unet(scheduler.add_noise(clean, noise, timesteps), timesteps, given).sample
        loss = mse_loss(output, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        if update % 200 == 0:
            print(f"update {update}: loss {loss.item():.4f}", flush=True)
    unet.eval()


def main() -> None:
    """Write the turned pairs, train the adapters, save them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="a StableDiffusionPipeline")
    parser.add_argument("pairs", type=Path, help="what it was trained on")
    parser.add_argument("turned", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    images, captions = turn(arguments.pairs, arguments.turned)
    pipeline: Any = StableDiffusionPipeline.from_pretrained(arguments.base).to(DEVICE)
    latents, texts = encode(pipeline, images, captions)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    fine_tune(pipeline.unet, scheduler, latents, texts, arguments)
    layers: dict[str, Any] = get_peft_model_state_dict(pipeline.unet)
    StableDiffusionPipeline.save_lora_weights(arguments.out, unet_lora_layers=layers, safe_serialization=True)
    print(arguments.out)


if __name__ == "__main__":
    main()
