"""From a watched pipeline's latents to pictures, and from images to its latents.

The picture of a video is its middle frame, and that of a sound its spectrogram.
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
    """Decodes latents (N, ...) by the pipeline's autoencoder, or, if that was not learned, by the whole pipeline.

    It works like `progdist.models.autoencoder.Autoencoder`; images are (N, C, H, W) in [-1, 1].
    """

    watched: Pipeline

    part: ClassVar[str] = ""  # its folder contains what decodes
    shifts: ClassVar[tuple[str, ...]] = ()

    @cached_property
    def network(self) -> nn.Module:
        """The module that encodes and decodes, and sets the device: the autoencoder, or all parts but the network."""
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
        """The channels of the latents, their first axis."""
        return self.watched.latents[0]

    @property
    def encodes(self) -> bool:
        """Whether it encodes images: not for videos, nor if a pipeline decodes in its own way."""
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
        """Identifies the autoencoder by its weights and how they are used."""
        decoding = self.watched.decoding
        assert decoding is not None  # otherwise it does not encode
        used = (decoding.scale.tolist(), decoding.shift.tolist(), decoding.shape, self.watched.latents)
        return digest(used, digest_of_state(self.network.state_dict()))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Latents (N, ...) on the CPU. Raise a UserError if it does not encode."""
        decoding, device = self.watched.decoding, next(self.network.parameters()).device
        if decoding is None or not self.encodes:
            name = self.watched.folder.name
            raise UserError(f"a {name} cannot encode images here: use --prompts FILE instead of --data")

        def latents(part: Tensor) -> Tensor:
            means = encoded(self.network, part.to(device), decoding.shape)
            return decoding.inverse(means, self.watched.latents).float().cpu()

        return torch.cat([latents(part) for part in images.split(BATCH)]).contiguous()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures, on the CPU, of latents (N, ...)."""
        device = next(self.network.parameters()).device
        return torch.cat([self.images(part.to(device)).float().cpu() for part in latents.split(BATCH)]).contiguous()

    def images(self, latents: Tensor) -> Tensor:
        """Pictures of latents (B, ...), on their device."""
        if self.watched.decoding is None:
            return pictures(whole(self.watched, self.pipeline, latents))
        return decoded(self.network, self.watched.decoding(latents))


def whole(watched: Pipeline, pipeline: Any, latents: Tensor) -> Any:  # noqa: ANN401
    """The result of an opened pipeline for latents (N, ...)."""
    substitute = Substitute(watched.call.stand_in, lambda sample: latents.to(sample))
    asked = watched.asked([""] * len(latents), 2, output_type="pt")
    return watch(pipeline, watched.folder.network, asked, substitute=substitute).result


def pictures(result: Any) -> Tensor:  # noqa: ANN401
    """Pictures (N, C, H, W) in [-1, 1] from a pipeline's result: images, middle frames or spectrograms."""
    for name in ("images", "frames", "audios"):
        if (found := getattr(result, name, None)) is not None:
            values = torch.as_tensor(found).float().cpu()
            if name == "audios":
                return spectrograms(values)
            return 2 * (values if values.ndim == 4 else middle(values.transpose(1, 2))) - 1
    raise UserError(
        f"cannot show the result of a pipeline, a {type(result).__name__}: expected images, frames or audios"
    )


def spectrograms(waves: Tensor, bins: int = 64) -> Tensor:
    """Spectrograms (N, 1, bins, time) of sounds (N, channels, samples): decibels over 80, in [-1, 1]."""
    mono = waves.mean(1) if waves.ndim == 3 else waves
    size = 2 * bins
    mono = torch.nn.functional.pad(mono, (0, max(0, size - mono.shape[-1])))
    spectrum = torch.stft(mono, size, size // 2, window=torch.hann_window(size), return_complex=True).abs()[:, :bins]
    decibels = 20 * spectrum.clamp(min=1e-4 * float(spectrum.max() or 1)).log10()
    return ((decibels - decibels.amax((1, 2), keepdim=True) + 80) / 40 - 1).unsqueeze(1)
