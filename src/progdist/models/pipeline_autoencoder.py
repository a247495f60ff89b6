"""The latents of a watched pipeline to pictures, and images to its latents.

The picture of a video is its middle frame, that of a sound its spectrogram.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from progdist._utils.digest import digest, digest_of_state
from progdist._utils.errors import UserError
from progdist.compute.placement import empty_copy
from progdist.models.conditioning import Shape
from progdist.models.decoding import decoded, encoded, middle
from progdist.models.pipeline_prompts import BATCH, Pipeline
from progdist.models.watching import Substitute, watch


@dataclass(frozen=True)
class PipelineAutoencoder:
    """Decodes latents (N, ...) of a pipeline by its autoencoder, or, where that was not learned, by the whole pipeline.

    As of `progdist.models.autoencoder.Autoencoder`; images are (N, C, H, W) in [-1, 1].
    """

    watched: Pipeline

    part: ClassVar[str] = ""  # its folder has what decodes
    shifts: ClassVar[tuple[str, ...]] = ()

    @cached_property
    def network(self) -> nn.Module:
        """What works while it encodes or decodes, on whose device it does: the autoencoder, or all but the network."""
        if self.watched.decoding is not None:
            return self.watched.folder.component("vae").eval().requires_grad_(False)
        parts = self.pipeline.components.items()
        others = [each for name, each in parts if isinstance(each, nn.Module) and name != self.watched.folder.network]
        return nn.ModuleList(others)

    @cached_property
    def pipeline(self) -> Any:  # noqa: ANN401
        """The pipeline around a network without weights."""
        return self.watched.folder.open()

    @property
    def channels(self) -> int:
        """Of the latents, the first of their axes."""
        return self.watched.latents[0]

    @property
    def encodes(self) -> bool:
        """Whether it makes latents of images: not of videos, nor where a pipeline decodes in a way of its own."""
        decoding = self.watched.decoding
        return decoding is not None and (len(decoding.shape) == 3 or decoding.shape[1] == 1)

    def image(self, latent: Shape) -> Shape:
        """(channels, height, width) of a picture."""
        return self._picture

    @cached_property
    def _picture(self) -> Shape:
        if self.watched.decoding is None:
            return tuple(self.decode(torch.zeros(1, *self.watched.latents)).shape[1:])
        meta = torch.device("meta")
        with torch.no_grad():
            empty = torch.empty(1, *self.watched.decoding.shape, device=meta)
            return tuple(decoded(empty_copy(self.network, meta), empty).shape[1:])

    def fingerprint(self) -> str:
        """What tells it from other autoencoders: its weights, and how they are used."""
        decoding = self.watched.decoding
        assert decoding is not None  # or it does not encode
        used = (decoding.scale.tolist(), decoding.shift.tolist(), decoding.shape, self.watched.latents)
        return digest(used, digest_of_state(self.network.state_dict()))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Latents (N, ...) on the CPU; a UserError where it does not encode."""
        decoding, device = self.watched.decoding, next(self.network.parameters()).device
        if decoding is None or not self.encodes:
            name = self.watched.folder.name
            raise UserError(f"a {name} cannot encode images here: use --prompts FILE in place of --data")

        def latents(part: Tensor) -> Tensor:
            means = encoded(self.network, part.to(device), decoding.shape)
            return decoding.inverse(means, self.watched.latents).float().cpu()

        return torch.cat([latents(part) for part in images.split(BATCH)]).contiguous()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures on the CPU of latents (N, ...)."""
        device = next(self.network.parameters()).device
        return torch.cat([self.images(part.to(device)).float().cpu() for part in latents.split(BATCH)]).contiguous()

    def images(self, latents: Tensor) -> Tensor:
        """Pictures of latents (B, ...), on their device."""
        if self.watched.decoding is None:
            return pictures(whole(self.watched, self.pipeline, latents))
        return decoded(self.network, self.watched.decoding(latents))


def whole(watched: Pipeline, pipeline: Any, latents: Tensor) -> Any:  # noqa: ANN401
    """What an opened pipeline returns of latents (N, ...)."""
    substitute = Substitute(watched.call.stand_in, lambda sample: latents.to(sample))
    asked = watched.asked([""] * len(latents), 2, output_type="pt")
    return watch(pipeline, watched.folder.network, asked, substitute=substitute).result


def pictures(result: Any) -> Tensor:  # noqa: ANN401
    """Pictures (N, C, H, W) in [-1, 1] of what a pipeline returned: images, middle frames or spectrograms."""
    for name in ("images", "frames", "audios"):
        if (found := getattr(result, name, None)) is not None:
            values = torch.as_tensor(found).float().cpu()
            if name == "audios":
                return spectrograms(values)
            return 2 * (values if values.ndim == 4 else middle(values.transpose(1, 2))) - 1
    raise UserError(
        f"a pipeline that returns a {type(result).__name__} cannot be shown: expected images, frames or audios"
    )


def spectrograms(waves: Tensor, bins: int = 64) -> Tensor:
    """Spectrograms (N, 1, bins, time) of sounds (N, channels, samples): decibels over 80, in [-1, 1]."""
    mono = waves.mean(1) if waves.ndim == 3 else waves
    size = 2 * bins
    mono = torch.nn.functional.pad(mono, (0, max(0, size - mono.shape[-1])))
    spectrum = torch.stft(mono, size, size // 2, window=torch.hann_window(size), return_complex=True).abs()[:, :bins]
    decibels = 20 * spectrum.clamp(min=1e-4 * float(spectrum.max() or 1)).log10()
    return ((decibels - decibels.amax((1, 2), keepdim=True) + 80) / 40 - 1).unsqueeze(1)
