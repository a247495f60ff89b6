"""Labels: what a source says of each image, a number or a name, as the number of a class.

Whole numbers are labels themselves, and so are names that are whole numbers: the images of a folder `7` are of class 7,
whichever other folders there are. Other names are numbered in alphabetical order.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from progdist._utils.errors import UserError
from progdist._utils.words import counted, shortened

MAX_CLASSES = 2**20  # classes that the labels of a data set may count without naming them


class NoClass(Exception):
    """A value that is no class of one image, as a list or a measurement; its text says what it is."""


@dataclass(frozen=True)
class Labels:
    """The labels of a source's images, and how further ones are read."""

    values: Tensor | None = None  # int64 (N,); None where the images have none
    names: tuple[str, ...] = ()  # of the classes, in the order of the labels; empty where they are numbers
    numbers: Mapping[str, int] = field(default_factory=dict)  # name -> label; empty where the source gives numbers
    notes: tuple[str, ...] = ()  # what is to be said of them
    renumbered: tuple[int, ...] = ()  # label that the source means -> label of a model's class; empty for the same

    def relabelled(self, labels: Tensor, names: tuple[str, ...]) -> "Labels":
        """The same as labels of a model's classes: those (classes,) of the labels here, which have names there."""
        values = None if self.values is None else labels[self.values]
        return replace(self, values=values, names=names, renumbered=tuple(labels.tolist()))

    def number(self, value: object, image: str) -> int:
        """The label of a further image, for which a message has a name; a UserError where there is no such class."""
        plain = _label(value, image) if self.values is not None else 0
        if plain is None:
            raise UserError(f"{image} has no label, and others have one: add it, or remove the image")
        number = self._own_number(plain, image)
        label = self.renumbered[number] if self.renumbered else number
        if label < 0:
            raise UserError(
                f"{image} has label {shortened(str(plain))}, which is none of the model's classes: remove it"
            )
        return label

    def _own_number(self, plain: int | str, image: str) -> int:
        if isinstance(plain, str) and plain in self.numbers:
            return self.numbers[plain]
        number, classes = whole_number(plain), len(self.renumbered) or len(self.names)
        classes = classes or (0 if self.values is None else int(self.values.max()) + 1)
        if number is None or (self.numbers and self.names) or not 0 <= number < max(1, classes):
            before = counted(0 if self.values is None else len(self.values), "image")
            raise UserError(
                f"{image} has label {shortened(str(plain))}, and the {before} before it have "
                f"{counted(classes, 'class')}: shuffle the shards so that their first images hold every class"
            )
        return number


def read_labels(values: Sequence[object], image: Callable[[int], str], names: Sequence[str] = ()) -> Labels:
    """The labels of images from what a source says of each: whole numbers, of `names` if it has them, or names.

    Whole floats, booleans and lists of one count as numbers. Where no image has a label, or the labels cannot be
    classes, there are none. `image` names an image by its index in a UserError: for some images without
    a label, negative numbers, numbers beyond the names, and numbers beside names.
    """
    try:
        plain = [_plain(value) for value in values]
    except NoClass as error:
        index = next(index for index, value in enumerate(values) if not _is_class(value))
        return Labels(notes=(f"{image(index)} has {error} for a label, which is no class: read without labels",))
    missing = [index for index, value in enumerate(plain) if value is None]
    if len(missing) == len(plain):
        return Labels()
    if missing:
        raise UserError(
            f"{len(missing)} of {len(plain)} images have no label, the first is {image(missing[0])}: add the labels, "
            "or remove those images"
        )
    texts = [value for value in plain if isinstance(value, str)]
    if texts and len(texts) < len(plain):
        place = next(place for place, value in enumerate(plain) if isinstance(value, str) != isinstance(plain[0], str))
        raise UserError(
            f"labels are numbers and names ({plain[0]!r} of {image(0)}, {plain[place]!r} of {image(place)}): use one "
            "kind"
        )
    numbers = number_classes(texts) if texts else {}
    labels = [numbers[value] if isinstance(value, str) else value for value in plain if value is not None]
    _check_range(labels, image, names)
    known = tuple(names) if names and not texts else class_names(numbers)
    return Labels(torch.tensor(labels, dtype=torch.int64), known, numbers)


def number_classes(names: Iterable[str]) -> dict[str, int]:
    """Name of a class -> its label, in the order of the labels: the number that it is where all are, or its place.

    Numbers beyond MAX_CLASSES, as dates are, are names in numeric order. A UserError where two names are one number, or
    one is negative.
    """
    distinct = sorted(set(names))
    values = {name: number for name in distinct if (number := whole_number(name)) is not None}
    if len(values) < len(distinct):
        return {name: place for place, name in enumerate(distinct)}
    by_number = sorted(values, key=lambda name: values[name])
    if by_number and values[by_number[0]] < 0:
        raise UserError(f"class {by_number[0]} is negative; labels count from 0: rename or remove it")
    for name, other in pairwise(by_number):
        if values[name] == values[other]:
            raise UserError(f"classes {name} and {other} are the same number: rename one of them")
    if by_number and values[by_number[-1]] >= MAX_CLASSES:
        return {name: place for place, name in enumerate(by_number)}
    return {name: values[name] for name in by_number}


def class_names(numbers: Mapping[str, int]) -> tuple[str, ...]:
    """The names of classes that `number_classes` numbered, or none where they are their numbers."""
    return () if all(whole_number(name) == number for name, number in numbers.items()) else tuple(numbers)


def whole_number(text: str | int) -> int | None:
    """A whole number, itself or as decimal digits (7, 007, 7.0 or -7); None for any other text."""
    if isinstance(text, int):
        return text
    found = re.fullmatch(r"([+-]?[0-9]{1,18})(?:\.0*)?", text)
    return int(found[1]) if found else None


def class_index(names: Sequence[str]) -> dict[str, int]:
    """Every spelling of some classes' names -> label; -1 where several classes share one.

    A name is found as it is, in any case, with spaces for underscores, and by each of the synonyms that it lists, as
    ImageNet's "tench, Tinca tinca" does.
    """
    found: dict[str, int] = {}
    for spellings in (lambda name: [name], lambda name: [_plain_name(each) for each in (name, *name.split(","))]):
        here: dict[str, int] = {}
        for label, name in enumerate(names):
            for spelling in set(spellings(name)):
                here[spelling] = -1 if spelling in here else label
        found = here | found
    return found


def find_class(index: Mapping[str, int], name: str) -> int | None:
    """The label of a name in a `class_index`; None where there is none, or several."""
    label = index.get(name, index.get(_plain_name(name), -1))
    return None if label < 0 else label


def are_numbers(names: Sequence[str]) -> bool:
    """Whether classes have no names but their labels."""
    return all(name == str(label) for label, name in enumerate(names))


def _plain_name(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def stratified(counts: Tensor, total: int) -> Tensor:
    """`total` labels (total,), in the shares of the classes' counts (classes,) and a mixed order."""
    even = torch.arange(total) * int(counts.sum()) // max(1, total)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0))
    return torch.searchsorted(counts.cumsum(0), even, right=True)[order]


def _label(value: object, image: str) -> int | str | None:
    try:
        return _plain(value)
    except NoClass as error:
        raise UserError(f"{image} has {error} for a label, expected a number or a name: fix it") from error


def _is_class(value: object) -> bool:
    try:
        _plain(value)
    except NoClass:
        return False
    return True


def _plain(value: Any) -> int | str | None:  # noqa: ANN401  (whatever a table can hold)
    """A label as a whole number or a name; None for none. NoClass where it is neither."""
    if hasattr(value, "tolist"):  # of numpy and torch
        value = value.tolist()
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise NoClass("bytes that are no text") from None
    if isinstance(value, str):
        return " ".join(value.split()) or None
    if value is None or (isinstance(value, float | Decimal) and math.isnan(value)):
        return None
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float | Decimal):
        if float(value).is_integer():
            return int(value)
        raise NoClass(f"the number {float(value):g}")
    if isinstance(value, list | tuple):
        raise NoClass(f"a list of {len(value)}")
    raise NoClass(f"a {type(value).__name__}")


def _check_range(labels: Sequence[int], image: Callable[[int], str], names: Sequence[str]) -> None:
    """Refuse labels below 0, or beyond the names of the classes."""
    least, most = min(labels), max(labels)
    if least < 0:
        raise UserError(
            f"{image(labels.index(least))} has label {least}, which is negative; labels count from 0: remove images "
            "without a class"
        )
    if names and most >= len(names):
        raise UserError(
            f"{image(labels.index(most))} has label {most}, and there are names of {counted(len(names), 'class')}: fix "
            "one of them"
        )
    if most >= MAX_CLASSES:
        raise UserError(
            f"{image(labels.index(most))} has label {most}, beyond {MAX_CLASSES:,} classes: number them from 0"
        )
