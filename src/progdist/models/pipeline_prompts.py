"""Prompts for any stock pipeline, whose network is called as the pipeline is observed to call it.

The pipeline itself encodes prompts, around a network without weights: its run is stopped at the first call of the
network, whose arguments contain the encoded prompts.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from progdist._utils.digest import digest, digest_of_files
from progdist._utils.errors import UserError
from progdist.data.embeddings import padded
from progdist.diffusion.denoiser import Denoiser, DenoiserProtocol
from progdist.methods.guidance import Guided, Input
from progdist.models.calls import Call
from progdist.models.components import PipelineFolder
from progdist.models.conditioning import Rows as RowsOf
from progdist.models.conditioning import Shape, Spacing
from progdist.models.decoding import Decoding
from progdist.models.prompts import PromptConditions, Prompts
from progdist.models.watching import Step, Substitute, watch

BATCH = 16  # prompts encoded, and latents decoded, at a time
OTHERS = {"true_cfg_scale": 1.0, "pag_scale": 0.0, "sag_scale": 0.0}  # other kinds of guidance
OFF = ({"guidance_scale": 1.0, **OTHERS}, {"guidance_scale": 0.0, **OTHERS})
"""Arguments that turn these off, if a pipeline has them."""


@dataclass(frozen=True)
class Guiding:
    """How a pipeline is guided: u + (g + added) (c - u), with predictions c for the prompt and u for the negative one.

    Args:
        parameter: the argument of its call for g.
        default: the default of that argument.
        off: the value at which it calls its network once, without guidance.
        negative_first: whether the negative prompt comes first.
        added: added to g.
        normalized: whether the mixture is rescaled to the norm of c over its last axis, as outputs of the network.
        exact: whether this describes all that the pipeline does with the two.
    """

    parameter: str
    default: float
    off: float
    negative_first: bool = True
    added: float = 0.0
    normalized: bool = False
    exact: bool = True


@dataclass(frozen=True)
class Pipeline:
    """A folder with what was learned about its pipeline.

    Args:
        folder: the pipeline's folder.
        call: how it calls its network.
        latents: the shape of one example.
        arguments: arguments of the pipeline's call besides prompts, steps and guidance.
        off: further arguments that turn guidance off.
        guiding: how it is guided; None if its network takes the scale, or it is never guided.
        scale: the argument for the guidance scale of a network that takes it, and its default; None for none.
        spacing: how it spaces the times of N steps (see `progdist.models.conditioning.Spacing`).
        alone: whether prompts are encoded one at a time, since their encoding depends on the others of a batch.
        decoding: what its autoencoder receives for latents; None if that is not a rearrangement, scaled and shifted.
    """

    folder: PipelineFolder
    call: Call
    latents: Shape
    arguments: Mapping[str, Any] = field(default_factory=dict)
    off: Mapping[str, float] = field(default_factory=dict)
    guiding: Guiding | None = None
    scale: tuple[str, float] | None = None
    spacing: Spacing = "stock"
    alone: bool = False
    decoding: Decoding | None = None

    def asked(self, prompts: Sequence[str], steps: int, seed: int = 0, **more: Any) -> dict[str, Any]:  # noqa: ANN401
        """The arguments of an unguided call of the stock pipeline."""
        generator = torch.Generator().manual_seed(seed)
        own = {"prompt": list(prompts), "num_inference_steps": steps, "generator": generator}
        return {**self.arguments, **own, **self.off, **more}

    def rows(self, pipeline: Any, prompts: Sequence[str]) -> dict[str, Tensor]:  # noqa: ANN401
        """The condition of prompts by name, (N, ...), encoded by an opened pipeline."""
        size = 1 if self.alone else BATCH
        found = [
            self.call.rows(watch(pipeline, self.folder.network, self.asked(part, 2), until="call").calls[0].arguments)
            for part in (prompts[first : first + size] for first in range(0, len(prompts), size))
        ]
        return joined(found)

    def negative_rows(self, pipeline: Any, negative: str | None) -> dict[str, Tensor]:  # noqa: ANN401
        """The condition that it guides away from, each (1, ...)."""
        if self.guiding is None:
            return self.rows(pipeline, [negative or ""])
        substitute = Substitute(network=self.call.stand_in)
        parameter, scale = self.guiding.parameter, self.guiding.off + 1
        try:
            asked = self.guided(pipeline, [""], parameter, scale, negative)
            seen = watch(pipeline, self.folder.network, asked, until=1, substitute=substitute)
        except UserError:  # some pipelines require a negative prompt
            asked = self.guided(pipeline, [""], parameter, scale, negative or "")
            seen = watch(pipeline, self.folder.network, asked, until=1, substitute=substitute)
        rows = self.halves(seen.steps[0])[not self.guiding.negative_first]
        return {name: value[:1] for name, value in rows.items()}

    def guided(
        self,
        pipeline: Any,  # noqa: ANN401
        prompts: Sequence[str],
        parameter: str,
        scale: float,
        negative: str | None = None,
        steps: int = 2,
    ) -> dict[str, Any]:
        """The arguments of a call that is guided away from a negative prompt, or from its default."""
        takes = inspect.signature(type(pipeline).__call__).parameters
        if negative is None and parameter == "true_cfg_scale":
            negative = ""  # without one such a pipeline is not guided
        more: dict[str, Any] = {parameter: scale}
        if negative is not None and "negative_prompt" in takes:
            more["negative_prompt"] = [negative] * len(prompts)
        return self.asked(prompts, steps, **more)

    def halves(self, step: Step) -> list[dict[str, Tensor]]:
        """The rows of both conditions in a guided step, in the pipeline's order."""
        rows = [self.call.rows(call.arguments) for call in step.calls]
        if len(rows) == 2:
            return rows
        return [{name: value.chunk(2)[half] for name, value in rows[0].items()} for half in (0, 1)]


def joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate the conditions of several batches, padding shorter ones with zeros."""
    return {name: padded([row for part in parts for row in part[name]]) for name in parts[0]}


@dataclass(frozen=True)
class PipelinePrompts(Prompts):
    """The conditioning of a watched pipeline."""

    watched: Pipeline = field(kw_only=True)

    @property
    def task(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The task on the Hugging Face hub, by the pipeline's arguments."""
        taken = inspect.signature(self.watched.folder.pipeline.__call__).parameters
        if "num_frames" in taken:
            return "text-to-video"
        return "text-to-audio" if any(name.startswith("audio") for name in taken) else "text-to-image"

    @property
    def default_guidance(self) -> float:
        """The pipeline's default guidance scale; 1 if it is not guided."""
        return self.watched.scale[1] if self.watched.scale else getattr(self.watched.guiding, "default", 1.0)

    @property
    def part(self) -> str:
        """The network's part of the folder."""
        return self.watched.folder.network

    @property
    def spacing(self) -> Spacing:  # pyright: ignore[reportIncompatibleVariableOverride]
        """How the pipeline spaces the times of N steps."""
        return self.watched.spacing

    @property
    def takes_sizes(self) -> bool:
        """False: sizes are among the rows."""
        return False

    def shape(self, network: nn.Module) -> Shape | None:
        """The shape of the latents in the scheduler."""
        return self.watched.latents

    def takes_guidance(self, network: nn.Module) -> bool:
        """Whether the network takes the guidance scale."""
        return self.watched.call.takes_guidance

    def accepts_guidance(self, network: nn.Module) -> bool:
        """Whether it takes the scale already: no input can be added that the pipeline would fill."""
        return self.watched.call.takes_guidance

    def guided(self, predictions: Denoiser, scale: float | None, device: torch.device) -> DenoiserProtocol:
        """The predictions, guided as the pipeline does it, at its own scale."""
        guiding = self.watched.guiding
        if guiding is None:
            raise UserError(f"{self.pipeline} has no guidance to distil: remove guidance")
        scale = scale if scale is None else scale + guiding.added
        return Guided(predictions, self.unconditional(device), scale, normalized=guiding.normalized)

    def default_scale(self, network: nn.Module) -> float | None:
        """The pipeline's default, or the nearest in the learned range; None if the network takes none."""
        if not self.watched.call.takes_guidance:
            return None
        return self.learned.nearest(self.default_guidance) if isinstance(self.learned, Input) else self.default_guidance

    def conditions(
        self, network: nn.Module, scale: float | None, prompts: Sequence[str] = (), image: Shape | None = None
    ) -> PromptConditions:
        """The conditions of prompts; `image` is unused, since the pipeline passes its sizes itself."""
        return super().conditions(network, scale, prompts, None)

    def of_rows(self, rows: RowsOf, scale: float | None, image: Shape | None) -> PromptConditions:
        """The conditions of prompts whose rows are looked up by number."""
        return PromptConditions(rows, {}).at(scale)

    def encoder(self, device: torch.device | None = None) -> "PipelineEncoder":  # pyright: ignore[reportIncompatibleMethodOverride]
        """The pipeline around a network without weights, opened again at every call."""
        return PipelineEncoder(self.watched, self.watched.folder.open(device=device))

    def fingerprint(self) -> str:
        """Identifies its encoders and its call."""
        other = (self.part, "scheduler", "vae")
        parts = sorted(part for part in self.watched.folder.parts if part not in other)
        files = (file for part in parts for file in sorted((self.folder / part).rglob("*")) if file.is_file())
        asked = sorted((name, str(value)) for name, value in self.watched.arguments.items())
        return digest(self.pipeline, asked, digest_of_files(self.folder, files))

    def tokens(self, network: nn.Module) -> int | None:
        """None: the shift of a flow's times was observed."""
        return None

    def describe(self) -> str:
        """A short description for users."""
        return f"text-conditional ({self.pipeline})"


@dataclass(frozen=True)
class PipelineEncoder:
    """Encodes prompts into the condition of the network."""

    watched: Pipeline
    pipeline: Any  # opened

    def __call__(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The condition of N prompts by name, each (N, ...) on the CPU."""
        return self.watched.rows(self.pipeline, prompts)

    def unconditional(self, negative: str | None) -> dict[str, Tensor]:
        """The condition that the stock pipeline guides away from, each (1, ...)."""
        return self.watched.negative_rows(self.pipeline, negative)
