"""Labels: what a source says about each image, a number or a name, as a class number.

Integers are labels themselves, and so are names that are integers: the images of a folder `7` have class 7, whatever
the other folders are. Other names are numbered in alphabetical order.
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

MAX_CLASSES = 2**20  # most classes counted by numeric labels without names


class NoClass(Exception):
    """A value that cannot be one image's class, such as a list or a measurement; its text describes it."""


@dataclass(frozen=True)
class Labels:
    """The labels of a source's images, and how to read further ones."""

    values: Tensor | None = None  # int64 (N,); None if the images have none
    names: tuple[str, ...] = ()  # of the classes, in the order of the labels; empty if they are numbers
    numbers: Mapping[str, int] = field(default_factory=dict)  # name -> label; empty if the source gives numbers
    notes: tuple[str, ...] = ()  # lines about them
    renumbered: tuple[int, ...] = ()  # the source's label -> the label of a model's class; empty if they are the same

    def relabelled(self, labels: Tensor, names: tuple[str, ...]) -> "Labels":
        """The labels as those of a model's classes: (classes,) for each label here, and the names there."""
        values = None if self.values is None else labels[self.values]
        return replace(self, values=values, names=names, renumbered=tuple(labels.tolist()))

    def number(self, value: object, image: str) -> int:
        """The label of a further image, named in messages. Raise a UserError if there is no such class."""
        plain = _label(value, image) if self.values is not None else 0
        if plain is None:
            raise UserError(f"{image} has no label, but others have one: add it, or remove the image")
        number = self._own_number(plain, image)
        label = self.renumbered[number] if self.renumbered else number
        if label < 0:
            raise UserError(f"{image} has label {shortened(str(plain))}, which is not a class of the model: remove it")
        return label

    def _own_number(self, plain: int | str, image: str) -> int:
        if isinstance(plain, str) and plain in self.numbers:
            return self.numbers[plain]
        number, classes = whole_number(plain), len(self.renumbered) or len(self.names)
        classes = classes or (0 if self.values is None else int(self.values.max()) + 1)
        if number is None or (self.numbers and self.names) or not 0 <= number < max(1, classes):
            before = counted(0 if self.values is None else len(self.values), "image")
            raise UserError(
                f"{image} has label {shortened(str(plain))}, but the {before} before it have "
                f"{counted(classes, 'class')}: shuffle the shards so that their first images cover every class"
            )
        return number


def read_labels(values: Sequence[object], image: Callable[[int], str], names: Sequence[str] = ()) -> Labels:
    """The labels of images from what a source says about each: integers, with optional `names`, or names.

    Integral floats, booleans and lists of one count as integers. There are no labels if no image has one, or if they
    cannot be classes. `image` names an image by its index in a UserError: for images without a label among labelled
    ones, negative numbers, numbers beyond the names, and numbers mixed with names.
    """
    try:
        plain = [_plain(value) for value in values]
    except NoClass as error:
        index = next(index for index, value in enumerate(values) if not _is_class(value))
        return Labels(notes=(f"{image(index)} has {error} for a label, which is not a class: read without labels",))
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
            f"labels mix numbers and names ({plain[0]!r} of {image(0)}, {plain[place]!r} of {image(place)}): use one "
            "kind"
        )
    numbers = number_classes(texts) if texts else {}
    labels = [numbers[value] if isinstance(value, str) else value for value in plain if value is not None]
    _check_range(labels, image, names)
    known = tuple(names) if names and not texts else class_names(numbers)
    return Labels(torch.tensor(labels, dtype=torch.int64), known, numbers)


def number_classes(names: Iterable[str]) -> dict[str, int]:
    """Class name -> label, in the order of the labels: its number if all names are numbers, else its rank.

    Numbers beyond MAX_CLASSES, such as dates, are names in numeric order. Raise a UserError if two names are the same
    number, or one is negative.
    """
    distinct = sorted(set(names))
    values = {name: number for name in distinct if (number := whole_number(name)) is not None}
    if len(values) < len(distinct):
        return {name: place for place, name in enumerate(distinct)}
    by_number = sorted(values, key=lambda name: values[name])
    if by_number and values[by_number[0]] < 0:
        raise UserError(f"class {by_number[0]} is negative, but labels count from 0: rename or remove it")
    for name, other in pairwise(by_number):
        if values[name] == values[other]:
            raise UserError(f"classes {name} and {other} are the same number: rename one of them")
    if by_number and values[by_number[-1]] >= MAX_CLASSES:
        return {name: place for place, name in enumerate(by_number)}
    return {name: values[name] for name in by_number}


def class_names(numbers: Mapping[str, int]) -> tuple[str, ...]:
    """The names of classes that `number_classes` numbered; empty if they are their numbers."""
    return () if all(whole_number(name) == number for name, number in numbers.items()) else tuple(numbers)


def whole_number(text: str | int) -> int | None:
    """An integer, itself or as decimal digits (7, 007, 7.0 or -7); None for other text."""
    if isinstance(text, int):
        return text
    found = re.fullmatch(r"([+-]?[0-9]{1,18})(?:\.0*)?", text)
    return int(found[1]) if found else None


def class_index(names: Sequence[str]) -> dict[str, int]:
    """Every spelling of some class names -> label; -1 if several classes share it.

    A name is found as written, in any case, with spaces for underscores, and by each synonym in a list like
    ImageNet's "tench, Tinca tinca".
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
    """The label of a name in a `class_index`; None if it has none, or several."""
    label = index.get(name, index.get(_plain_name(name), -1))
    return None if label < 0 else label


def are_numbers(names: Sequence[str]) -> bool:
    """Whether the classes' names are just their labels."""
    return all(name == str(label) for label, name in enumerate(names))


def _plain_name(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def stratified(counts: Tensor, total: int) -> Tensor:
    """`total` labels (total,), in proportion to the counts per class (classes,) and in a mixed order."""
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


def _plain(value: Any) -> int | str | None:  # noqa: ANN401  (any value of a table)
    """A label as an integer or a name; None for none. Raise NoClass for other values."""
    if hasattr(value, "tolist"):  # numpy and torch
        value = value.tolist()
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise NoClass("bytes that are not text") from None
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
            f"{image(labels.index(least))} has label {least}, expected labels from 0: remove images without a class"
        )
    if names and most >= len(names):
        raise UserError(
            f"{image(labels.index(most))} has label {most}, but there are names for {counted(len(names), 'class')}: "
            "fix one of them"
        )
    if most >= MAX_CLASSES:
        raise UserError(
            f"{image(labels.index(most))} has label {most}, beyond {MAX_CLASSES:,} classes: number them from 0"
        )
