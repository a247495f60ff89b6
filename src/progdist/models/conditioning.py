"""What a network is told of each example beside z and t: nothing, a class, or a prompt. Chosen when a model is opened.

`Conditioning` is that of an unconditional model and says what every kind must know; `Classes` is here, and prompts are
in `progdist.models.prompts`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from progdist._utils.errors import UserError
from progdist.data.images import CaptionedImages, Images
from progdist.methods.guidance import Guidance
from progdist.models.guidance_input import DEFAULT_SCALE, class_guidance
from progdist.models.networks import image_shape


class Conditions(Protocol):
    """The condition of a batch's examples by name, (B, ...) each; the batch has `labels` (B,), and may have more."""

    def __call__(self, batch: Mapping[str, Tensor], /) -> dict[str, Tensor]: ...  # noqa: D102

    def at(self, scale: float | None) -> "Conditions":
        """The same with one guidance scale for all examples that bring none; itself for None."""
        ...


Shape = tuple[int, int, int]  # (channels, height, width)

Rows = Callable[[Tensor], Mapping[str, Tensor]]
"""Numbers of prompts (B,) on the CPU -> their embeddings by name, (B, ...) on the CPU, of any precision."""


@dataclass(frozen=True)
class Conditioning:
    """Of an unconditional model."""

    takes_prompts: ClassVar[bool] = False  # whether images are made of prompts
    takes_sizes: ClassVar[bool] = False  # whether the network is told the size of each image, and where it was cropped
    task: ClassVar[str] = "unconditional-image-generation"  # on the Hugging Face hub
    pipeline: ClassVar[str | None] = None  # the class of the stock pipeline that encodes its prompts
    passes_sigmas: ClassVar[bool] = False  # whether that pipeline tells its scheduler the noise levels

    @property
    def default_guidance(self) -> float:
        """The guidance scale at which models of a range are measured."""
        return DEFAULT_SCALE

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        return ()

    @property
    def labels(self) -> tuple[int, ...]:
        """The labels that mean a class."""
        return ()

    def choices(self, prompts: Sequence[str]) -> Sequence[int]:
        """What images are made of in turn: the labels of classes, or the numbers of prompts."""
        return self.labels

    def describe(self) -> str:
        """For people."""
        return "unconditional"

    def shape(self, network: nn.Module) -> Shape | None:
        """What the network sees; None where its config does not say."""
        return image_shape(network)

    def guidance(self, network: nn.Module) -> Guidance | None:
        """The guidance that a student has learned: a fixed scale, or the range that it takes as an input."""
        part = class_guidance(network)
        return part.range if part else None

    def default_scale(self, network: nn.Module) -> float | None:
        """The guidance scale that a network takes by default; None where it takes none."""
        part = class_guidance(network)
        return part.default_scale if part else None

    def conditions(
        self, network: nn.Module, scale: float | None, prompts: Sequence[str] = (), image: Shape | None = None
    ) -> Conditions:
        """What the network is told where images are sampled, at a guidance scale (None for a network that takes none).

        Of a model of prompts their numbers are the labels, and `image` is the shape of its images.

        Raises:
            UserError: prompts are given to a model without, or none to one of prompts.
        """
        if prompts:
            raise UserError("--prompt applies only to text-to-image models: remove it")
        return LabelConditions(self._keyword, scale)

    @property
    def _keyword(self) -> str | None:
        return None

    def check_data(self, images: Images) -> None:
        """Refuse data that do not suit the model, with a UserError that says what is expected."""
        if isinstance(images, CaptionedImages):
            raise UserError(f"{images.name} holds captions, and the teacher takes none: give folder:FOLDER")

    def for_guidance(self, *, negative: str | None, null_class: int | None, data_classes: int = 0) -> Self:
        """The same with what guidance leads away from: a negative prompt (None: "") or a null class (None: the last).

        A UserError where there is nothing to guide away from, or an argument does not apply.
        """
        raise UserError("the teacher has no classes, so there is nothing to guide: remove guidance")

    def unconditional(self, device: torch.device) -> Mapping[str, Tensor]:
        """What takes the place of the condition where guidance is computed, each (1, ...)."""
        raise NotImplementedError

    def after(self, guidance: Guidance | None) -> Self:
        """That of a student which has learned a guidance."""
        return self

    def of_images(
        self, network: nn.Module, scale: float | None, image: Shape, captions: Callable[[], Rows]
    ) -> Conditions:
        """What the network is told of data sets' images; `captions` encodes theirs, and is called for prompts alone."""
        return self.conditions(network, scale)

    def prompts_of(self, images: Images | None, labels: Tensor) -> tuple[str, ...]:
        """The prompts that some labels (N,) of a data set stand for; a UserError where a model of prompts has none."""
        return ()

    def to_json(self, network: nn.Module) -> dict[str, Any]:
        """The keys of progdist.json."""
        guidance = self.guidance(network)
        return {"class_guidance": guidance.to_json()} if guidance else {}


UNCONDITIONAL = Conditioning()


@dataclass(frozen=True)
class Classes(Conditioning):
    """Of a class-conditional model."""

    names: tuple[str, ...]  # of the classes, in the order of the labels
    null_class: int | None = None  # the label that stands for no class; None where each means one
    keyword: str = "class_labels"  # under which the network takes the labels (B,)

    def __post_init__(self) -> None:
        if self.null_class is not None and self.null_class not in range(len(self.names)):
            raise UserError(f"null_class is {str(self.null_class)[:50]}, expected a label below {len(self.names)}")

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        return self.names

    @property
    def labels(self) -> tuple[int, ...]:
        """All but `null_class`."""
        return tuple(label for label in range(len(self.names)) if label != self.null_class)

    @property
    def _keyword(self) -> str:
        return self.keyword

    def to_json(self, network: nn.Module) -> dict[str, Any]:
        """The keys of progdist.json."""
        null_class = {} if self.null_class is None else {"null_class": self.null_class}
        return super().to_json(network) | null_class

    def describe(self) -> str:
        """For people."""
        return f"{len(self.names)} classes"

    def check_data(self, images: Images) -> None:
        """Refuse data with captions, without labels, or with more classes."""
        super().check_data(images)
        if not images.classes:
            raise UserError(f"the teacher has {len(self.names)} classes, but {images.name} has no labels")
        if len(images.classes) > len(self.names):
            raise UserError(f"{images.name} has {len(images.classes)} classes, the teacher has {len(self.names)}")

    def for_guidance(self, *, negative: str | None, null_class: int | None, data_classes: int = 0) -> Self:
        """With the label that stands for no class: the one that is named, or the last where the data have fewer."""
        if negative is not None:
            raise UserError(
                "conversion.negative is a prompt, and the teacher takes none: use conversion.null_class for a class"
            )
        count = len(self.names)
        null = null_class if null_class is not None else count - 1
        if not 0 <= null < count:
            raise UserError(f"guidance needs a class that stands for none: {null} is not one of the model's")
        if null_class is None and count <= data_classes:
            raise UserError(
                f"guidance needs a class that stands for none, and the data have all {count} classes of the teacher: "
                "name it with --set conversion.null_class=N"
            )
        return replace(self, null_class=null)

    def unconditional(self, device: torch.device) -> Mapping[str, Tensor]:
        """The null class."""
        return {self.keyword: torch.tensor([self.null_class])}


@dataclass(frozen=True)
class LabelConditions:
    """The condition of a batch: its labels under a keyword, if any, a guidance scale, and what examples bring."""

    keyword: str | None  # of the labels
    scale: float | None = None  # of guidance, where a batch has none of its own
    own: Collection[str] = ()  # names of conditions that examples bring

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By name, for a batch that holds `labels` (B,), and may hold `guidance` (B,)."""
        condition = {self.keyword: batch["labels"]} if self.keyword else {}
        if self.scale is not None:
            condition["guidance"] = torch.full((len(batch["labels"]),), self.scale, dtype=torch.float64)
        return condition | {name: batch[name] for name in (*self.own, "guidance") if name in batch}

    def at(self, scale: float | None) -> "LabelConditions":
        """The same at another guidance scale; itself for None."""
        return self if scale is None else replace(self, scale=scale)
