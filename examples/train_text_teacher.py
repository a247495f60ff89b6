"""A small text-to-image teacher made by stock diffusers and transformers alone, and the captioned images it saw.

    python examples/train_text_teacher.py digits runs/digits-captions runs/stock-text
    python examples/train_text_teacher.py fashion-mnist runs/fashion-captions runs/stock-fashion

The first folder gets captioned images, four wordings of each class: scikit-learn's handwritten digits at 16x16 ("a
handwritten seven"), in latents of 4x8x8, or Fashion-MNIST at 32x32 ("a photo of a sandal"), in latents of 8x8x8. The
second gets a StableDiffusionPipeline: a tokenizer learned from the captions, a CLIP text model with its first weights,
an autoencoder, and a U-Net that predicts eps with Stable Diffusion's betas and sees one caption in ten empty. Nothing
of progdist is used. On a GPU where there is one.
"""

# pyright: reportPrivateImportUsage=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportAttributeAccessIssue=false

import argparse
import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from PIL import Image
from sklearn.datasets import load_digits
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.nn.functional import interpolate, mse_loss
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TOKENS = 10
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class DataSet:
    """What the captions of a data set say, and the size of its images and latents.

    Attributes:
        names: of the classes.
        wordings: of a caption, each with a place for the name.
        size: of the images, height and width.
        latents: channels of the latents, which are 8x8.
        blocks: channels of the autoencoder, outermost first; each block but the first halves.
        divergence: weight of the latents' divergence from a standard normal distribution.
    """

    names: tuple[str, ...]
    wordings: tuple[str, ...]
    size: int
    latents: int
    blocks: tuple[int, ...]
    divergence: float


DIGITS = DataSet(
    ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    ("a handwritten {}", "the digit {}", "a picture of the number {}", "{}, drawn by hand"),
    size=16,
    latents=4,
    blocks=(16, 32),
    divergence=1e-4,
)
FASHION_MNIST = DataSet(
    ("t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"),
    ("a photo of a {}", "the {}", "a picture of one {}", "{}, from a catalogue"),
    size=32,
    latents=8,
    blocks=(8, 16, 32),
    divergence=1e-3,
)
DATA_SETS = {"digits": DIGITS, "fashion-mnist": FASHION_MNIST}


def read_images(name: str, folder: Path, count: int) -> tuple[torch.Tensor, list[int]]:
    """Grey images (N, 1, H, W) in [0, 1], `count` at most, and their classes; Fashion-MNIST's from its files."""
    if name == "digits":
        pixels, labels = load_digits(return_X_y=True)
        images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    else:
        content = [
            gzip.decompress((folder / f"train-{kind}-ubyte.gz").read_bytes()) for kind in ("images-idx3", "labels-idx1")
        ]
        pixels, labels = np.frombuffer(content[0], np.uint8, offset=16), np.frombuffer(content[1], np.uint8, offset=8)
        images = torch.tensor(pixels.reshape(-1, 1, 28, 28)[:count]).float() / 255
    return images[:count], labels[:count].tolist()


def write_pairs(images: torch.Tensor, labels: list[int], data: DataSet, place: Path) -> tuple[torch.Tensor, list[str]]:
    """Write the images in the size of the data set, with captions; returns them, (N, 3, H, W) in [-1, 1]."""
    images = interpolate(images, (data.size, data.size), mode="bilinear").clamp(0, 1).mul(255).round().byte()
    wordings = data.wordings
    captions = [wordings[n % len(wordings)].format(data.names[label]) for n, label in enumerate(labels)]
    place.mkdir(parents=True, exist_ok=True)
    names = [f"{number:05d}.png" for number in range(len(captions))]
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image[0].numpy()).save(place / name)
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in zip(names, captions, strict=True)]
    (place / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return images.float().div(127.5).sub(1).expand(-1, 3, -1, -1).contiguous(), captions


def learn_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """CLIP's tokenizer with a byte-pair vocabulary of these captions."""
    pairs = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    setattr(pairs, "pre_tokenizer", pre_tokenizers.Whitespace())  # noqa: B010  (its stub has no setter)
    trainer = trainers.BpeTrainer(vocab_size=200, end_of_word_suffix="</w>", show_progress=False)
    pairs.train_from_iterator(captions, trainer)
    learned = json.loads(pairs.to_str())["model"]
    words = dict(learned["vocab"])
    for special in ("<|startoftext|>", "<|endoftext|>"):
        words[special] = len(words)
    return CLIPTokenizer(vocab=words, merges=[tuple(pair) for pair in learned["merges"]], model_max_length=TOKENS)


def text_model(words: CLIPTokenizer) -> CLIPTextModel:
    """A small one that is not trained: captions need only be told apart."""
    special: dict[str, Any] = {f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPTextConfig(vocab_size=len(words), max_position_embeddings=TOKENS, **sizes, **special)
    return CLIPTextModel(config).eval().requires_grad_(False)


def learn_autoencoder(images: torch.Tensor, data: DataSet, updates: int, batch: int) -> AutoencoderKL:
    """Images to latents of 8x8, with a standard deviation of 1 once scaled."""
    vae = AutoencoderKL(
        block_out_channels=data.blocks,
        down_block_types=("DownEncoderBlock2D",) * len(data.blocks),
        up_block_types=("UpDecoderBlock2D",) * len(data.blocks),
        latent_channels=data.latents,
        norm_num_groups=8,
        sample_size=data.size,
    ).to(DEVICE)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for update in range(updates):
        seen = images[torch.randint(len(images), (batch,))].to(DEVICE)
        latents = vae.encode(seen).latent_dist
        error = mse_loss(vae.decode(latents.sample()).sample, seen)
        loss = error + data.divergence * latents.kl().mean() / 256
        step(loss, vae, optimizer, rate)
        tell("autoencoder", update, loss)
    return vae.eval().requires_grad_(False)


def encode(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """The latents of images, scaled to a standard deviation of 1, which the autoencoder's configuration is told."""
    latents = torch.cat([vae.encode(part.to(DEVICE)).latent_dist.mean for part in images.split(256)]).cpu()
    vae.register_to_config(scaling_factor=1 / float(latents.std()))
    return latents * vae.config["scaling_factor"]


def learn_network(
    latents: torch.Tensor, embeddings: torch.Tensor, empty: torch.Tensor, updates: int, batch: int, width: int
) -> Any:  # noqa: ANN401
    """The text-conditional U-Net: latents (N, C, 8, 8), embeddings (N, tokens, channels) and that of no caption."""
    network = UNet2DConditionModel(
        sample_size=latents.shape[-1],
        in_channels=latents.shape[1],
        out_channels=latents.shape[1],
        block_out_channels=(width, 2 * width),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=embeddings.shape[-1],
        attention_head_dim=4,
        norm_num_groups=8,
    ).to(DEVICE)
    print(f"{sum(parameter.numel() for parameter in network.parameters()):,} parameters", flush=True)
    noising = schedule()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.048 / width)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    average = EMAModel(network.parameters(), decay=0.998)
    for update in range(updates):
        chosen, timesteps = torch.randint(len(latents), (batch,)), torch.randint(1000, (batch,))
        clean, noise = latents[chosen], torch.randn(batch, *latents.shape[1:])
        dropped = (torch.rand(batch) < 0.1)[:, None, None]
        given = torch.where(dropped, empty, embeddings[chosen])
        clean, noise, timesteps, given = (each.to(DEVICE) for each in (clean, noise, timesteps, given))
        output = network(noising.add_noise(clean, noise, timesteps), timesteps, given).sample
        loss = mse_loss(output, noise)
        step(loss, network, optimizer, rate)
        average.step(network.parameters())
        tell("network", update, loss)
    average.copy_to(network.parameters())
    return network.eval()


def schedule() -> DDPMScheduler:
    """Stable Diffusion's."""
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    return DDPMScheduler(**betas, clip_sample=False, steps_offset=1)


def step(loss: torch.Tensor, network: torch.nn.Module, optimizer: Any, rate: Any) -> None:  # noqa: ANN401
    """One update."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    rate.step()
    optimizer.zero_grad()


def tell(what: str, update: int, loss: torch.Tensor) -> None:
    """Print the loss now and then."""
    if update % 200 == 0:
        print(f"{what}, update {update}: loss {loss.item():.4f}", flush=True)


def main() -> None:
    """Write the pairs, train the parts, save the pipeline."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=DATA_SETS)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--files", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), help="of Fashion-MNIST"
    )
    parser.add_argument("--images", type=int, default=4000, help="at most")
    parser.add_argument("--updates", type=int, default=1500)
    parser.add_argument("--autoencoder-updates", type=int, default=400)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=int, default=24, help="channels of the U-Net at full resolution")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    data = DATA_SETS[arguments.data]
    images, captions = write_pairs(
        *read_images(arguments.data, arguments.files, arguments.images), data, arguments.pairs
    )
    words = learn_tokenizer(captions)
    encoder = text_model(words)
    with torch.no_grad():
        tokens = words([*captions, ""], padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
        *_, empty = embeddings = encoder(tokens.input_ids)[0]
    vae = learn_autoencoder(images, data, arguments.autoencoder_updates, arguments.batch)
    with torch.no_grad():
        latents = encode(vae, images)
    network = learn_network(latents, embeddings[:-1], empty, arguments.updates, arguments.batch, arguments.width)
    parts = {"vae": vae, "text_encoder": encoder, "tokenizer": words, "unet": network, "scheduler": schedule()}
    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionPipeline(**parts, **none).save_pretrained(arguments.out)
    print(arguments.out)


if __name__ == "__main__":
    main()
