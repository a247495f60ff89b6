"""What a network takes per example besides z and t: nothing, a class, or a prompt. Chosen when a model is opened.

`Conditioning` is that of an unconditional model and defines what every kind provides; `Classes` is here, and prompts
are in `progdist.models.prompts`.
"""

import difflib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol, Self

import torch
from torch import Tensor, nn

from progdist._utils.errors import UserError
from progdist._utils.words import counted, listed, shortened
from progdist.data.images import CaptionedImages, Images
from progdist.data.labels import are_numbers, class_index, find_class, stratified, whole_number
from progdist.diffusion.denoiser import Denoiser, DenoiserProtocol
from progdist.methods.guidance import Guidance, Guided
from progdist.models.guidance_input import DEFAULT_SCALE, class_guidance
from progdist.models.networks import accepts_guidance, image_shape, takes_guidance


class Conditions(Protocol):
    """The condition of a batch's examples by name, (B, ...) each; the batch has `labels` (B,), and may have more."""

    def __call__(self, batch: Mapping[str, Tensor], /) -> dict[str, Tensor]: ...  # noqa: D102

    def at(self, scale: float | None) -> "Conditions":
        """The same with one guidance scale for all examples without their own; unchanged for None."""
        ...


Shape = tuple[int, ...]  # (channels, height, width) for images; any for other data

Spacing = Literal["stock", "given", "unknown"] | float
"""The times of N steps of a flow: "stock", the scheduler's from 1 to 1 / T; "given", the pipeline's from 1 to 1 / N;
or a number, with even ones from 1 to it, 0 if the pipeline sets the scheduler's last sigma to that."""

Rows = Callable[[Tensor], Mapping[str, Tensor]]
"""Prompt numbers (B,) on the CPU -> their embeddings by name, (B, ...) on the CPU, in any precision."""


@dataclass(frozen=True)
class Conditioning:
    """The conditioning of an unconditional model."""

    takes_prompts: ClassVar[bool] = False  # whether images are made from prompts
    takes_sizes: ClassVar[bool] = False  # whether the network takes each image's size and crop position
    task: ClassVar[str] = "unconditional-image-generation"  # on the Hugging Face hub
    pipeline: ClassVar[str | None] = None  # the class of the stock pipeline that encodes its prompts
    spacing: ClassVar["Spacing"] = "stock"  # how that pipeline spaces the times of N steps

    @property
    def default_guidance(self) -> float:
        """The guidance scale at which models for a range are measured."""
        return DEFAULT_SCALE

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        return ()

    @property
    def labels(self) -> tuple[int, ...]:
        """The labels of actual classes."""
        return ()

    def drawn(self, count: int, prompts: Sequence[str] = (), shares: Sequence[int] = ()) -> Tensor:
        """What `count` images are made from, (count,): prompt numbers in turn, or labels in proportion to the classes.

        `shares` are the images per class of some data; by default those that the model was trained on, and if these
        are unknown all classes in turn.
        """
        return torch.zeros(count, dtype=torch.int64)

    @property
    def shares(self) -> Sequence[int]:
        """The number of training images per class; empty if unknown, or without classes."""
        return ()

    def shares_of(self, images: Images | None) -> Sequence[int]:
        """The number of images per class in some data; empty if they have no labels, or the model no classes."""
        return ()

    def label_of(self, label: int | str) -> int:
        """The label itself, or the label of a class name. Raise a UserError if there is none."""
        raise UserError(f"label {shortened(str(label))} has no effect: this model has no classes; remove it")

    def fitted(self, images: Images, notify: Callable[[str], None]) -> Images:
        """The data with labels of the model's classes; `notify` is called with a line for every change.

        Raise a UserError for classes that the model does not have.
        """
        return images

    def of_data(self, images: Images) -> Self:
        """The conditioning of a model that is trained on some data."""
        return self

    def describe(self) -> str:
        """A short description for users."""
        return "unconditional"

    def shape(self, network: nn.Module) -> Shape | None:
        """The shape of the network's input; None if its config does not give it."""
        return image_shape(network)

    def takes_guidance(self, network: nn.Module) -> bool:
        """Whether the network takes a guidance scale."""
        return takes_guidance(network)

    def accepts_guidance(self, network: nn.Module) -> bool:
        """Whether students of the network can take a guidance scale as an input."""
        return accepts_guidance(network)

    def guided(self, predictions: Denoiser, scale: float | None, device: torch.device) -> DenoiserProtocol:
        """The predictions, guided by one scale, or by each example's own."""
        return Guided(predictions, self.unconditional(device), scale)

    def guidance(self, network: nn.Module) -> Guidance | None:
        """The guidance of a student: a fixed scale, or the range of its input."""
        part = class_guidance(network)
        return part.range if part else None

    def default_scale(self, network: nn.Module) -> float | None:
        """The default guidance scale of a network; None if it takes none."""
        part = class_guidance(network)
        return part.default_scale if part else None

    def conditions(
        self, network: nn.Module, scale: float | None, prompts: Sequence[str] = (), image: Shape | None = None
    ) -> Conditions:
        """The condition for sampling, at a guidance scale (None for a network that takes none).

        For a model of prompts the labels are the prompts' numbers, and `image` is the shape of its images.

        Raises:
            UserError: prompts are given to a model that takes none, or none to one that needs them.
        """
        if prompts:
            raise UserError("prompt applies only to text-to-image models: remove it")
        return LabelConditions(self._keyword, scale)

    @property
    def _keyword(self) -> str | None:
        return None

    def check_data(self, images: Images) -> None:
        """Refuse data that do not suit the model, with a UserError that says what is expected."""
        if isinstance(images, CaptionedImages):
            raise UserError(f"{images.name} holds captions, but the teacher takes none: use folder:FOLDER")

    def for_guidance(
        self,
        *,
        negative: str | None,
        null_class: int | None,
        data_classes: int = 0,
        notify: Callable[[str], None] = lambda text: None,
    ) -> Self:
        """The same with what guidance leads away from: a negative prompt (None: "") or a null class (None: detect it).

        `notify` gets a line that names the class. Raise a UserError if the model cannot be guided, no class is clearly
        the null class, or an argument does not apply.
        """
        raise UserError("guidance requires a teacher with classes or prompts, and it has neither: remove guidance")

    def unconditional(self, device: torch.device) -> Mapping[str, Tensor]:
        """The values that replace the condition in the unconditional prediction, each (1, ...)."""
        raise NotImplementedError

    def after(self, guidance: Guidance | None) -> Self:
        """The conditioning of a student that has learned a guidance."""
        return self

    def of_images(
        self, network: nn.Module, scale: float | None, image: Shape, captions: Callable[[], Rows]
    ) -> Conditions:
        """The condition for a data set's images; `captions` encodes their captions, and is called only for prompts."""
        return self.conditions(network, scale)

    def prompts_of(self, images: Images | None, labels: Tensor) -> tuple[str, ...]:
        """The prompts for some labels (N,) of a data set. Raise a UserError if a model of prompts has none."""
        return ()

    def to_json(self, network: nn.Module) -> dict[str, Any]:
        """The keys of progdist.json."""
        guidance = self.guidance(network)
        return {"class_guidance": guidance.to_json()} if guidance else {}


UNCONDITIONAL = Conditioning()

MOST_IMAGES = 10**12  # most training images, so that the proportions of any number of samples fit in 64 bits
NULL_NAMES = {"none", "null", "noclass", "nullclass", "unconditional", "uncond"}
"""The letters in the name of a null class."""


@dataclass(frozen=True)
class Classes(Conditioning):
    """The conditioning of a class-conditional model."""

    names: tuple[str, ...]  # of the classes, in the order of the labels
    null_class: int | None = None  # the label for no class; None if there is none
    keyword: str = "class_labels"  # the network's argument for the labels (B,)
    shares: tuple[int, ...] = ()  # pyright: ignore[reportIncompatibleMethodOverride]
    """The number of training images per class; empty if unknown."""

    def __post_init__(self) -> None:
        if self.null_class is not None and self.null_class not in range(len(self.names)):
            raise UserError(f"null_class is {str(self.null_class)[:50]}, expected a label below {len(self.names)}")
        counts = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in self.shares)
        if len(self.shares) not in (0, len(self.names)) or not counts or sum(self.shares) > MOST_IMAGES:
            raise UserError(
                f"class_counts of {counted(len(self.names), 'class')} are {_shares_in_words(self.shares)}, expected "
                f"one count of images per class, up to {MOST_IMAGES:,} in all"
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        return self.names

    @property
    def labels(self) -> tuple[int, ...]:
        """All labels but `null_class`."""
        return tuple(label for label in range(len(self.names)) if label != self.null_class)

    @property
    def _keyword(self) -> str:
        return self.keyword

    def to_json(self, network: nn.Module) -> dict[str, Any]:
        """The keys of progdist.json."""
        null_class = {} if self.null_class is None else {"null_class": self.null_class}
        shares = {"class_counts": list(self.shares)} if self.shares else {}
        return super().to_json(network) | null_class | shares

    def describe(self) -> str:
        """A short description for users."""
        return counted(len(self.names), "class")

    def drawn(self, count: int, prompts: Sequence[str] = (), shares: Sequence[int] = ()) -> Tensor:
        """Labels in proportion to the classes; the null class is never drawn."""
        known = torch.tensor([*(shares or self.shares or [0]), *[0] * len(self.names)])[: len(self.names)]
        known = known * (torch.arange(len(known)) != self.null_class)
        if known.any():
            return stratified(known, count)
        return torch.tensor(self.labels)[torch.arange(count) % len(self.labels)]

    def shares_of(self, images: Images | None) -> Sequence[int]:
        """The number of images per class in some data."""
        if images is None or images.labels is None or isinstance(images, CaptionedImages):
            return ()
        return tuple(images.labels.bincount(minlength=len(self.names)).tolist())

    def label_of(self, label: int | str) -> int:
        """The label for a number or a name, but not of the null class."""
        number = whole_number(label)
        if number is None:
            number = find_class(class_index(self.names), str(label))
        if number is None:
            near = difflib.get_close_matches(str(label), self.names, 1)
            hint = f"did you mean {near[0]}?" if near else f"use one of {listed(self.names)}, or a number"
            raise UserError(f"label {shortened(str(label))} is not a class of the model: {hint}")
        if not 0 <= number < len(self.names):
            raise UserError(f"label {number} is out of range: expected 0 to {max(self.labels)}")
        if number == self.null_class:
            raise UserError(f"label {label} is the null class: choose another label")
        return number

    def fitted(self, images: Images, notify: Callable[[str], None]) -> Images:
        """The data with their classes matched to the model's: by number if they have no names, else by name."""
        if images.labels is None or isinstance(images, CaptionedImages):
            return images
        if are_numbers(self.names) or are_numbers(images.classes):
            self._check_count(images)
        if images.classes == self.names[: len(images.classes)]:
            return images
        index, counts = class_index(self.names), images.labels.bincount(minlength=len(images.classes)).tolist()
        if are_numbers(images.classes):
            named = [f"{label} is {shortened(self.names[label])}" for label, count in enumerate(counts) if count]
            notify(f"{images.name} has labels without names: taken as the model's by number, {listed(named)}")
            return images
        found = [find_class(index, name) for name in images.classes]
        named = zip(images.classes, found, counts, strict=True)
        unknown = [name for name, label, count in named if label is None and count]
        of_all = f"{images.name} has {counted(len(images.classes), 'class')}, the model {len(self.names)}"
        if are_numbers(self.names):
            notify(f"{of_all}, which have no names: taken in order, {_numbered(images.classes, found=None)}")
            return images
        if len(unknown) == len(found) and _are_all_of_imagenet(images.classes):
            notify(f"{of_all}: the identifiers of ImageNet's classes are taken in order")
            return images
        if unknown:
            raise UserError(
                f"{images.name} has the classes {listed(unknown)}, but the model's are {listed(self.names)}: rename "
                "the data's classes to the model's, or to their numbers"
            )
        notify(f"{of_all}: matched by name, {_numbered(images.classes, found)}")
        labels = torch.tensor([-1 if label is None else label for label in found])  # -1: a class without images
        return images.relabelled(labels, self.names[: int(labels.max()) + 1])

    def of_data(self, images: Images) -> Self:
        """The same with the data's images per class."""
        return replace(self, shares=tuple(self.shares_of(images)))

    def _check_count(self, images: Images) -> None:
        if len(images.classes) > len(self.names):
            raise UserError(
                f"{images.name} has {counted(len(images.classes), 'class')}, but the model has {len(self.names)}: "
                "remove the images of the others"
            )

    def check_data(self, images: Images) -> None:
        """Refuse data with captions, without labels, or with more classes."""
        super().check_data(images)
        if not images.classes:
            raise UserError(
                f"the teacher has {counted(len(self.names), 'class')}, but {images.name} has no labels: add them"
            )
        self._check_count(images)

    def for_guidance(
        self,
        *,
        negative: str | None,
        null_class: int | None,
        data_classes: int = 0,
        notify: Callable[[str], None] = lambda text: None,
    ) -> Self:
        """The same with the null class: the given one, or the one that is clearly it."""
        if negative is not None:
            raise UserError(
                "conversion.negative applies only to text-to-image teachers: use conversion.null_class for a class"
            )
        if null_class is not None:
            return replace(self, null_class=null_class)
        null = self._clear_null(data_classes)
        if null is None:
            raise UserError(
                f"guidance requires a null class, and none of the teacher's {counted(len(self.names), 'class')} is "
                f"clearly one ({listed(self.names)}; the data have labels below {data_classes}): set it with --set "
                "conversion.null_class=N"
            )
        notify(f"guidance leads away from class {null} ({self.names[null]}): conversion.null_class=N names another")
        return replace(self, null_class=null)

    def _clear_null(self, data_classes: int) -> int | None:
        """The null class, if it is clear, and the data have no images of it.

        It is the one in the model's folder, the class with such a name, or the last: if it alone has no name, or if
        none has a name and the data have one class less.
        """
        if self.null_class is not None:
            return self.null_class
        last = len(self.names) - 1
        null = [label for label, name in enumerate(self.names) if _plain_letters(name) in NULL_NAMES]
        unnamed = [label for label, name in enumerate(self.names) if name == str(label)]
        if not null and (unnamed == [last] if len(unnamed) <= last else data_classes == last):
            null = [last]
        if len(null) != 1 or (self.shares[null[0]] > 0 if self.shares else null[0] == last < data_classes):
            return None
        return null[0]

    def unconditional(self, device: torch.device) -> Mapping[str, Tensor]:
        """The null class."""
        return {self.keyword: torch.tensor([self.null_class])}


def _shares_in_words(shares: Sequence[object]) -> str:
    """Some of the shares; Python cannot print integers of thousands of digits."""
    shown = [each if not isinstance(each, int) or abs(each) <= 10**18 else "more than 10^18" for each in shares]
    return shortened(str(shown))


def _plain_letters(name: str) -> str:
    return "".join(re.findall(r"[a-z]", name.casefold()))


def _numbered(names: Sequence[str], found: Sequence[int | None] | None) -> str:
    """The labels of some names, for users."""
    labels = zip(names, range(len(names)) if found is None else found, strict=True)
    return listed([f"{shortened(name)} is {label}" for name, label in labels if label is not None])


def _are_all_of_imagenet(names: Sequence[str]) -> bool:
    """Whether these are the 1,000 identifiers n01440764, ... of ILSVRC, in the order of all models' labels."""
    return len(names) == 1000 and all(re.fullmatch(r"n\d{8}", name) for name in names)


@dataclass(frozen=True)
class LabelConditions:
    """The condition of a batch: its labels under a keyword, if any, a guidance scale, and the examples' own."""

    keyword: str | None  # the argument for the labels
    scale: float | None = None  # of guidance, if a batch has none of its own
    own: Collection[str] = ()  # names of the examples' own conditions

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The condition by name, for a batch with `labels` (B,), and optionally `guidance` (B,)."""
        condition = {self.keyword: batch["labels"]} if self.keyword else {}
        if self.scale is not None:
            condition["guidance"] = torch.full((len(batch["labels"]),), self.scale, dtype=torch.float64)
        return condition | {name: batch[name] for name in (*self.own, "guidance") if name in batch}

    def at(self, scale: float | None) -> "LabelConditions":
        """The same at another guidance scale; unchanged for None."""
        return self if scale is None else replace(self, scale=scale)
