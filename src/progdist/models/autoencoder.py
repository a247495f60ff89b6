r"""Latent models: an autoencoder between images and what the network sees.

    latents = scale (E(image) - shift) / std,    image = D(std latents / scale + shift)

E is the mean of the encoder's distribution (Rombach et al. 2022, arXiv 2112.10752, section 3.3). Scale, shift and std
come from the autoencoder's config: `scaling_factor`, 1 by default; `shift_factor`, or `latents_mean` per channel, 0 by
default; and `latents_std` per channel, 1 by default, as in the stock pipelines of SDXL and SD3. The data are encoded
once, into a cache, and distillation never sees an image.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from torch import Tensor

from progdist._utils.digest import digest, digest_of_state

BATCH = 64  # images encoded or decoded at a time


@dataclass(frozen=True)
class Autoencoder:
    """Encodes images (B, C, H, W) in [-1, 1] to latents (B, c, h, w), and decodes them."""

    network: AutoencoderKL | VQModel  # diffusers' autoencoder
    part: str  # its name in a pipeline folder, `vae` or `vqvae`

    @property
    def factor(self) -> int:
        """How many times smaller latents are than images, in height and width."""
        return 2 ** (len(cast(Any, self.network).config["block_out_channels"]) - 1)

    def image(self, latent: tuple[int, ...]) -> tuple[int, ...]:
        """(channels, height, width) of the images decoded from latents of this shape."""
        _, height, width = latent
        return cast(Any, self.network).config["out_channels"], self.factor * height, self.factor * width

    def fingerprint(self) -> str:
        """Identifies the autoencoder by its config and weights."""
        config = {name: value for name, value in cast(Any, self.network).config.items() if not name.startswith("_")}
        return digest(sorted(config.items()), digest_of_state(self.network.state_dict()))

    @property
    def channels(self) -> int:
        """The channels of the latents."""
        return cast(Any, self.network).config["latent_channels"]

    @property
    def shifts(self) -> tuple[str, ...]:
        """The config's names of what it uses besides a scale."""
        config = cast(Any, self.network).config
        return tuple(name for name in ("shift_factor", "latents_mean", "latents_std") if config.get(name))

    def _numbers(self, device: torch.device) -> tuple[float, Tensor, Tensor]:
        """(scale, shift, std); the last two are (c, 1, 1) or (1, 1, 1)."""
        config = cast(Any, self.network).config
        shift = config.get("latents_mean") or [config.get("shift_factor") or 0.0]
        std = config.get("latents_std") or [1.0]
        shift, std = (
            torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1) for values in (shift, std)
        )
        return config["scaling_factor"], shift, std

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Latents, on the CPU, of images (N, C, H, W) in [-1, 1]."""
        device = next(self.network.parameters()).device
        scale, shift, std = self._numbers(device)

        def means(part: Tensor) -> Tensor:
            encoded: Any = self.network.encode(part.to(device))
            return encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents

        return torch.cat([(scale * (means(part) - shift) / std).cpu() for part in images.split(BATCH)]).contiguous()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images, on the CPU, roughly in [-1, 1], of latents (N, c, h, w)."""
        device = next(self.network.parameters()).device
        return torch.cat([self.images(part.to(device)).float().cpu() for part in latents.split(BATCH)]).contiguous()

    def images(self, latents: Tensor) -> Tensor:
        """Images of latents (B, c, h, w), on their device."""
        scale, shift, std = self._numbers(latents.device)
        decoded: Any = self.network.decode(cast(Any, (std * latents / scale + shift).to(latents.dtype)))
        return decoded.sample
