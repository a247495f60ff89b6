"""A model: a denoiser with what its folder says of it."""

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
    """A denoiser of latents with the autoencoder that decodes them, and what the network is told of each example."""

    def __init__(
        self, denoiser: Denoiser, autoencoder: Autoencoder | PipelineAutoencoder, conditioning: Conditioning
    ) -> None:
        super().__init__(**denoiser.parts())
        self.autoencoder, self.conditioning = autoencoder, conditioning


def conditioning_of(denoiser: Denoiser) -> Conditioning:
    """What a denoiser's network is told: what its `conditioning` says, if that is of as many classes, or a label."""
    known, count = getattr(denoiser, "conditioning", UNCONDITIONAL), class_count(denoiser.network)
    if known.takes_prompts or len(known.classes) == count:
        return known
    return Classes(tuple(map(str, range(count)))) if count else UNCONDITIONAL


@dataclass(frozen=True)
class LoraWeights:
    """A student as LoRA adapters for the stock pipeline that it was distilled from."""

    base: str  # the pipeline that they are for, as it was named: a folder, or hub:OWNER/NAME
    weights: Mapping[str, Tensor] = field(default_factory=dict)  # A and B by their names in peft; none before training
    base_bits: Bits | None = None  # of the base that they were trained on; None for the one that they are for, in full

    @property
    def rank(self) -> int:
        """Of the adapters, the rows of any A."""
        return next(len(tensor) for name, tensor in self.weights.items() if "lora_A" in name)


@dataclass(frozen=True)
class Model:
    """A denoiser with what its folder says of it."""

    denoiser: Denoiser  # ready to sample
    steps: Sequence[int] = ()  # the step counts it was trained for; empty for a model of any step count
    lineage: Sequence[int] = ()  # the step counts of its ancestors, teacher first
    conditioning: Conditioning = UNCONDITIONAL  # what the network is told of each example
    data: str = ""  # the source of its training images
    training: Mapping[str, Any] = field(default_factory=dict)  # numbers of its training, for the record
    autoencoder: Autoencoder | PipelineAutoencoder | None = (
        None  # of a latent model; None where the network sees images
    )
    lora: LoraWeights | None = None  # what makes it of a stock pipeline, as LoRA adapters; None where it is none
    fused: Sequence[str] = ()  # LoRA files that were fused into its first teacher, FILE:weight
    method: str = "progressive"  # what it learned as a student, by its name in METHODS; another of your own

    @property
    def history(self) -> dict[str, Any]:
        """What is known of its making."""
        return {name: getattr(self, name) for name in ("steps", "lineage", "data", "training", "method", "fused")}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels; empty if unconditional."""
        return self.conditioning.classes

    @property
    def labels(self) -> tuple[int, ...]:
        """The labels that mean a class; empty if unconditional."""
        return self.conditioning.labels

    @property
    def shape(self) -> Shape:
        """(channels, height, width) of what the network sees, images or latents; a UserError if not in its config."""
        shape = self.conditioning.shape(self.denoiser.network)
        if shape is None:
            network_class = type(self.denoiser.network).__name__
            raise UserError(
                f"this {network_class} does not tell the shape of its data: set sample_size in its config.json"
            )
        return shape

    @property
    def image(self) -> Shape:
        """(channels, height, width) of the images it makes."""
        return self.autoencoder.image(self.shape) if self.autoencoder else self.shape

    @property
    def guidance(self) -> Guidance | None:
        """The guidance it has learned: the range of scales that it takes, a fixed one (of prompts), or None."""
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
        """The guidance scale that it is sampled at: the requested one, or its default; None where it takes none."""
        default = self.conditioning.default_scale(self.denoiser.network)
        if default is not None:
            return default if requested is None else requested
        if requested is not None:
            what = "has no guidance input" if self.guidance is None else f"was distilled for {self.guidance} alone"
            raise UserError(f"guidance {requested:g} has no effect: this model {what}")
        return None

    def conditions(self, guidance: float | None = None, prompts: Sequence[str] = ()) -> Conditions:
        """What its network is told of classes, or of prompts, at a guidance scale; None for its default.

        Raises:
            UserError: a scale for a model that takes none, or prompts for one without, or none for one of prompts.
        """
        scale = self.scale(guidance)
        image = self.image if self.conditioning.takes_sizes else None
        return self.conditioning.conditions(self.denoiser.network, scale, prompts, image)

    @contextmanager
    def at_work(self, device: torch.device, precision: Precision = "float32") -> Iterator[None]:
        """Itself on a device meanwhile, its network held in the precision in which it is autocast."""
        with ExitStack() as stack:
            stack.enter_context(at_work(self.denoiser, device, precision))
            if self.autoencoder:
                stack.enter_context(at_work(cast(nn.Module, self.autoencoder.network), device))
            yield

    def to(self, device: torch.device) -> "Model":
        """Itself, moved to a device."""
        self.denoiser.to(device)
        if self.autoencoder:
            self.autoencoder.network.to(device)  # pyright: ignore[reportArgumentType]
        return self
