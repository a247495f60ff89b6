r"""DINOv2 and CLIP, from transformers (extras `dinov2` and `text`), read from folders of safetensors.

    DINOv2    the normalized class token of ViT-L/14 for images resized to 224 x 224, as in dgm-eval (Stein et al.
              2023, arXiv 2306.04675); transformers interpolates the position embeddings without torch.hub's offset
              of 0.1
    CLIP      projected embeddings of images, with the shorter side resized to 224 and the middle cropped, and of texts
              cut at 77 tokens (Radford et al. 2021, arXiv 2103.00020)

Both take bytes, resized by Pillow's bicubic filter and rounded again.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from progdist._utils.extras import import_extra
from progdist.evaluation.networks.resize import resize_bytes
from progdist.evaluation.networks.weights import Weights, read_folder

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP_MOMENTS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

Embed = Callable[[Tensor], Tensor]  # images (B, 1 or 3, H, W) in [-1, 1] -> embeddings (B, D)


def _normalized(pixels: Tensor, statistics: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    mean, deviation = (torch.tensor(each).to(pixels)[:, None, None] for each in statistics)
    return (pixels / 255 - mean) / deviation


def device() -> torch.device:
    """The device for networks of this size."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dinov2(weights: Weights) -> Embed:
    """DINOv2 from a folder. Raise a UserError if transformers is missing or the folder is damaged."""
    transformers = import_extra("transformers", "dinov2", "DINOv2")
    read = partial(transformers.Dinov2Model.from_pretrained, local_files_only=True, use_safetensors=True)
    network = read_folder(read, weights).eval().to(device())

    def embed(images: Tensor) -> Tensor:
        pixels = resize_bytes(images, 224, crop=False).to(device())
        return network(_normalized(pixels, IMAGENET)).pooler_output

    return embed


def clip(weights: Weights) -> tuple[Embed, Callable[[Sequence[str]], Tensor]]:
    """CLIP from a folder: functions that embed images and texts, to (N, D) on the CPU; raises as `dinov2` does."""
    transformers = import_extra("transformers", "text", "CLIP")

    def load(path: Path) -> tuple[Any, Any]:
        model = transformers.CLIPModel.from_pretrained(path, local_files_only=True, use_safetensors=True)
        return model, transformers.CLIPTokenizer.from_pretrained(path, local_files_only=True)

    network, tokenizer = read_folder(load, weights)
    network = network.eval().to(device())
    size, longest = network.config.vision_config.image_size, network.config.text_config.max_position_embeddings
    tokenize = partial(tokenizer, padding=True, truncation=True, max_length=longest, return_tensors="pt")

    def embed(images: Tensor) -> Tensor:
        pixels = _normalized(resize_bytes(images, size, crop=True).to(device()), CLIP_MOMENTS)
        return network.visual_projection(network.vision_model(pixels).pooler_output)

    @torch.no_grad()
    def embed_texts(texts: Sequence[str]) -> Tensor:
        parts = []
        for first in range(0, len(texts), 256):
            tokens = tokenize(list(texts[first : first + 256])).to(device())
            parts.append(network.text_projection(network.text_model(**tokens).pooler_output).float().cpu())
        return torch.cat(parts)

    return embed, embed_texts
