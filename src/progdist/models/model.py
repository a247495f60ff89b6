"""A denoiser with what its folder tells of it, and the stock scheduler that samples it on our grid."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import nn

from progdist._utils.errors import UserError
from progdist._utils.names import Precision
from progdist.compute.placement import at_work
from progdist.diffusion.denoiser import Denoiser
from progdist.diffusion.schedule import RectifiedFlow, VariancePreserving
from progdist.methods.transitive import STAGE_LOSSES
from progdist.models.autoencoder import Autoencoder
from progdist.models.guidance_input import class_guidance
from progdist.models.prompts import Guidance, TextPipeline, takes_guidance
from progdist.models.unet import image_shape, is_text_conditional
from progdist.students.lora_file import LoraFile
from progdist.teachers.flow import flow_scheduler

PREDICTION_TYPES: dict[str, Literal["sample", "epsilon", "v_prediction"]] = {
    "x": "sample",
    "eps": "epsilon",
    "v": "v_prediction",
}
"""Our parameterizations as DDIMScheduler names them."""


class LatentDenoiser(Denoiser):
    """A denoiser of latents with the autoencoder that makes images of them.

    Args:
        denoiser: of latents.
        autoencoder: decodes what is sampled.
        text: what a text-conditional model's prompts are encoded by; None for other models.
    """

    def __init__(self, denoiser: Denoiser, autoencoder: Autoencoder, text: TextPipeline | None = None) -> None:
        super().__init__(**denoiser.parts())
        self.autoencoder, self.text = autoencoder, text

    def with_network(self, network: nn.Module) -> "LatentDenoiser":
        """The same around another network."""
        return self.with_form_of(super().with_network(network))

    def with_form_of(self, other: Denoiser) -> "LatentDenoiser":
        """Another denoiser of these latents."""
        return LatentDenoiser(other, self.autoencoder, self.text)


@dataclass(frozen=True)
class Model:
    """A denoiser with what its folder tells of it.

    Attributes:
        denoiser: ready to sample.
        steps: the step counts it was trained for; empty for a model of any step count.
        lineage: the step counts of its ancestors, teacher first.
        classes: names of the classes, in the order of the labels; empty if unconditional.
        null_class: the label that stands for no class, where guidance was distilled in; None where each is a class.
        target: what it learned as a student, one of `progdist.methods.transitive.STAGE_LOSSES`.
        data: the source of its training images.
        training: numbers of its training, for the record.
        autoencoder: of a latent model; None where the network sees images.
        text: the text encoders and the guidance of a text-conditional model; None for other models.
        lora: what makes it of a stock pipeline, as a file of LoRA weights; None where it is none.
    """

    denoiser: Denoiser
    steps: Sequence[int] = ()
    lineage: Sequence[int] = ()
    classes: Sequence[str] = ()
    data: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    autoencoder: Autoencoder | None = None
    text: TextPipeline | None = None
    lora: LoraFile | None = None
    null_class: int | None = None
    target: str = "progressive"

    def __post_init__(self) -> None:
        """Raises: UserError: `null_class` is no label, or `target` is unknown."""
        if self.null_class is not None and self.null_class not in range(len(self.classes)):
            raise UserError(f"null_class is {str(self.null_class)[:50]}, expected a label below {len(self.classes)}")
        if self.target not in STAGE_LOSSES:
            raise UserError(f"target is {self.target[:50]}, expected one of {', '.join(STAGE_LOSSES)}")

    @property
    def labels(self) -> tuple[int, ...]:
        """The labels that mean a class, all but `null_class`; empty if unconditional."""
        return tuple(label for label in range(len(self.classes)) if label != self.null_class)

    @property
    def scheduler(self) -> DDIMScheduler | FlowMatchEulerDiscreteScheduler | None:
        """The stock scheduler of its folder, for its own step count, the least of several; None where there is none."""
        given = self.text is not None and self.text.particulars.passes_sigmas
        return stock_scheduler(self.denoiser, None if given else min(self.steps, default=None))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of what the network sees: images, or their latents."""
        network = self.denoiser.network
        shape = self.text.latents(network) if self.text else image_shape(network)
        if shape is None:
            network_class = type(network).__name__
            raise UserError(
                f"this {network_class} does not tell the shape of its data: set sample_size in its config.json"
            )
        return shape

    @property
    def image(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images it makes."""
        return self.autoencoder.image(self.shape) if self.autoencoder else self.shape

    @property
    def guidance(self) -> Guidance | None:
        """What it has taken in: the scales that it can be given, one for good (of captions), or None."""
        if self.text:
            return self.text.guidance
        classes = class_guidance(self.denoiser.network)
        return classes.scales if classes else None

    def scale(self, asked: float | None) -> float | None:
        """The guidance scale that it is given: what is asked for, or the usual one; None where it takes none.

        Raises:
            UserError: one is asked of a model that takes none.
        """
        taken, classes = self.guidance, class_guidance(self.denoiser.network)
        if classes or (self.text and takes_guidance(self.denoiser.network)):
            usual = self.text.usual_guidance if self.text else classes.usual if classes else None
            return usual if asked is None else asked
        if asked is not None:
            what = f"was distilled with a guidance of {taken:g}" if taken is not None else "takes no guidance scale"
            raise UserError(f"--guidance {asked:g} was given, and the model {what}: leave it out")
        return None

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


def stock_scheduler(
    denoiser: Denoiser, steps: int | None = None
) -> DDIMScheduler | FlowMatchEulerDiscreteScheduler | None:
    """The diffusers scheduler that samples this denoiser's network on our grid; None where there is none.

    That of a rectified flow is of one number of steps (see `progdist.teachers.flow`), any other of all that divide T.
    """
    schedule, output, count = denoiser.schedule, denoiser.parameterization.name, denoiser.timesteps
    if isinstance(schedule, VariancePreserving) and output in PREDICTION_TYPES and denoiser.offset == 1:
        t = torch.arange(count + 1, dtype=torch.float64) / count
        alpha_bar = schedule.alpha(t) ** 2
        betas = 1 - alpha_bar[1:] / alpha_bar[:-1].clone().index_fill_(0, torch.tensor(0), 1.0)
        return DDIMScheduler(
            num_train_timesteps=count,
            trained_betas=betas.tolist(),
            timestep_spacing="trailing",
            prediction_type=PREDICTION_TYPES[output],
            clip_sample=False,
            steps_offset=int(is_text_conditional(denoiser.network)),  # of no effect here, but stock pipelines ask for 1
        )
    if isinstance(schedule, RectifiedFlow) and output == "velocity" and denoiser.offset == 0:
        return flow_scheduler(schedule.shift, count, steps)
    return None
