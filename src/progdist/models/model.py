"""A model: a denoiser with the content of its folder's record."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from progdist._utils.errors import UserError
from progdist._utils.names import Bits, Precision
from progdist.compute.placement import at_work
from progdist.diffusion.denoiser import Denoiser
from progdist.methods.guidance import Guidance
from progdist.models.autoencoder import Autoencoder
from progdist.models.conditioning import UNCONDITIONAL, Classes, Conditioning, Conditions, Shape
from progdist.models.networks import class_count
from progdist.models.pipeline_autoencoder import PipelineAutoencoder


class LatentDenoiser(Denoiser):
    """A denoiser of latents, with the autoencoder that decodes them and the network's conditioning."""

    def __init__(
        self, denoiser: Denoiser, autoencoder: Autoencoder | PipelineAutoencoder, conditioning: Conditioning
    ) -> None:
        super().__init__(**denoiser.parts())
        self.autoencoder, self.conditioning = autoencoder, conditioning


def conditioning_of(denoiser: Denoiser) -> Conditioning:
    """The conditioning of a denoiser's network: its `conditioning` if that has as many classes, or a label."""
    known, count = getattr(denoiser, "conditioning", UNCONDITIONAL), class_count(denoiser.network)
    if known.takes_prompts or len(known.classes) == count:
        return known
    return Classes(tuple(map(str, range(count)))) if count else UNCONDITIONAL


@dataclass(frozen=True)
class LoraWeights:
    """A student as LoRA adapters for the stock pipeline that it was distilled from."""

    base: str  # the pipeline that they are for, as given: a folder, or hub:OWNER/NAME
    weights: Mapping[str, Tensor] = field(default_factory=dict)  # A and B by their names in peft; empty before training
    base_bits: Bits | None = None  # bits of the base they were trained on; None for the full base

    @property
    def rank(self) -> int:
        """The rank of the adapters, the rows of any A."""
        return next(len(tensor) for name, tensor in self.weights.items() if "lora_A" in name)


@dataclass(frozen=True)
class Base:
    """The stock pipeline that a model was distilled from, as its card names it."""

    name: str  # hub:OWNER/NAME, or the name of its folder or file
    licence: Mapping[str, str] = field(default_factory=dict)  # license, license_name, license_link of its model card

    @property
    def repository(self) -> str | None:
        """OWNER/NAME on the Hugging Face hub; None if that is not known."""
        return self.name.removeprefix("hub:") if self.name.startswith("hub:") else None


@dataclass(frozen=True)
class Model:
    """A denoiser with the content of its folder's record."""

    denoiser: Denoiser  # ready to sample
    steps: Sequence[int] = ()  # the step counts it was trained for; empty for a model of any step count
    lineage: Sequence[int] = ()  # the step counts of its ancestors, teacher first
    conditioning: Conditioning = UNCONDITIONAL  # what the network takes per example
    data: str = ""  # the source of its training images
    training: Mapping[str, Any] = field(default_factory=dict)  # numbers of its training, for the record
    autoencoder: Autoencoder | PipelineAutoencoder | None = None  # for latents; None if the network sees images
    lora: LoraWeights | None = None  # LoRA adapters that make it from a stock pipeline; None if it has none
    fused: Sequence[str] = ()  # LoRA files fused into its first teacher, FILE:weight
    method: str = "progressive"  # how it was distilled, by name in METHODS, or your own
    base: Base | None = None  # the stock pipeline of its first teacher; None if that was trained here

    @property
    def history(self) -> dict[str, Any]:
        """What is known about its making."""
        names = ("steps", "lineage", "data", "training", "method", "fused", "base")
        return {name: getattr(self, name) for name in names}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels; empty if unconditional."""
        return self.conditioning.classes

    @property
    def labels(self) -> tuple[int, ...]:
        """The labels of actual classes; empty if unconditional."""
        return self.conditioning.labels

    @property
    def shape(self) -> Shape:
        """(channels, height, width) of the network's input. Raise a UserError if its config does not give it."""
        shape = self.conditioning.shape(self.denoiser.network)
        if shape is None:
            network_class = type(self.denoiser.network).__name__
            raise UserError(
                f"this {network_class} does not give the shape of its data: set sample_size in its config.json"
            )
        return shape

    @property
    def image(self) -> Shape:
        """(channels, height, width) of the images it makes."""
        return self.autoencoder.image(self.shape) if self.autoencoder else self.shape

    @property
    def guidance(self) -> Guidance | None:
        """Its guidance: the range of its input, a fixed scale (of prompts), or None."""
        return self.conditioning.guidance(self.denoiser.network)

    @property
    def takes_guidance(self) -> bool:
        """Whether its network takes a guidance scale."""
        return self.conditioning.takes_guidance(self.denoiser.network)

    @property
    def accepts_guidance(self) -> bool:
        """Whether its students can take a guidance scale as an input."""
        return self.conditioning.accepts_guidance(self.denoiser.network)

    def scale(self, requested: float | None) -> float | None:
        """The guidance scale to sample it at: the requested one, or its default; None if it takes none."""
        default = self.conditioning.default_scale(self.denoiser.network)
        if default is not None:
            return default if requested is None else requested
        if requested is not None:
            what = "has no guidance input" if self.guidance is None else f"was distilled for {self.guidance} only"
            raise UserError(f"guidance {requested:g} has no effect: this model {what}; remove it")
        return None

    def conditions(self, guidance: float | None = None, prompts: Sequence[str] = ()) -> Conditions:
        """The conditions of its network for classes or prompts, at a guidance scale; None for its default.

        Raises:
            UserError: a scale or prompts are given to a model that takes none, or no prompts to one that needs them.
        """
        scale = self.scale(guidance)
        image = self.image if self.conditioning.takes_sizes else None
        return self.conditioning.conditions(self.denoiser.network, scale, prompts, image)

    @contextmanager
    def at_work(self, device: torch.device, precision: Precision = "float32") -> Iterator[None]:
        """Move it to a device inside the context, with its network held in the precision of its autocast."""
        with ExitStack() as stack:
            stack.enter_context(at_work(self.denoiser, device, precision))
            if self.autoencoder:
                stack.enter_context(at_work(cast(nn.Module, self.autoencoder.network), device))
            yield

    def to(self, device: torch.device) -> "Model":
        """Move it to a device."""
        self.denoiser.to(device)
        if self.autoencoder:
            self.autoencoder.network.to(device)  # pyright: ignore[reportArgumentType]
        return self
