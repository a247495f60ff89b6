r"""Latent models: an autoencoder between images and what the network sees.

    latents = scale (E(image) - shift),    image = D(latents / scale + shift)

E is the mean of the encoder's distribution, scale and shift are the autoencoder's config's (Rombach et al. 2022, arXiv
2112.10752, section 3.3). The data are encoded once, into a cache, and distillation never sees an image.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from torch import Tensor

BATCH = 64  # images encoded or decoded at a time


@dataclass(frozen=True)
class Autoencoder:
    """Images (B, C, H, W) in [-1, 1] to latents (B, c, h, w) and back."""

    network: AutoencoderKL | VQModel  # diffusers' autoencoder
    part: str  # its name in a pipeline folder, `vae` or `vqvae`

    @property
    def factor(self) -> int:
        """How many times smaller latents are than images, in height and width."""
        return 2 ** (len(cast(Any, self.network).config["block_out_channels"]) - 1)

    def image(self, latent: tuple[int, int, int]) -> tuple[int, int, int]:
        """(channels, height, width) of the images of latents of such a shape."""
        _, height, width = latent
        return cast(Any, self.network).config["out_channels"], self.factor * height, self.factor * width

    @property
    def _scale(self) -> tuple[float, float]:
        config = cast(Any, self.network).config
        return config["scaling_factor"], config.get("shift_factor") or 0.0

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Latents on the CPU of images (N, C, H, W) in [-1, 1]."""
        scale, shift = self._scale
        device = next(self.network.parameters()).device

        def means(part: Tensor) -> Tensor:
            encoded: Any = self.network.encode(part.to(device))
            return encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents

        return torch.cat([scale * (means(part) - shift).cpu() for part in images.split(BATCH)]).contiguous()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images on the CPU, about [-1, 1], of latents (N, c, h, w)."""
        device = next(self.network.parameters()).device
        return torch.cat([self.images(part.to(device)).float().cpu() for part in latents.split(BATCH)]).contiguous()

    def images(self, latents: Tensor) -> Tensor:
        """Images of latents (B, c, h, w), on their device."""
        scale, shift = self._scale
        decoded: Any = self.network.decode(cast(Any, latents / scale + shift))
        return decoded.sample
