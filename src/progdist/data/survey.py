"""The kinds of images in a set, from the headers of some of them, evenly spread."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from progdist._utils.errors import UserError
from progdist.data.pictures import WHITES, extremes, is_deep, is_grey, stated_white, white_of

LOOKED = 1_000  # images whose headers decide a set's channels
TOLD = 10_000  # images counted for messages about a set

Open = Callable[[int], AbstractContextManager[Image.Image]]
"""index -> the context in which an image is open."""


@dataclass
class Survey:
    """How many images there are of each kind."""

    looked: int = 0  # examined images that can be opened
    grey: int = 0  # without colour
    transparent: int = 0  # with alpha
    frames: int = 0  # with several frames
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (width, height) as headers say -> how many
    deep: dict[str, list[int]] = field(default_factory=dict)  # the indices of those of more than 8 bits, by mode
    unreadable: list[str] = field(default_factory=list)  # errors of those that cannot be opened


def spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` indices, sorted and evenly spread."""
    return [number * count // most for number in range(most)] if count > most else list(range(count))


def survey(open_image: Open, count: int, most: int) -> Survey:
    """Examine at most `most` of `count` images."""
    found = Survey()
    for index in spread(count, most):
        try:
            with open_image(index) as image:
                found.looked += 1
                found.grey += is_grey(image)
                found.transparent += image.has_transparency_data
                found.frames += getattr(image, "is_animated", False)
                found.sizes[image.size] += 1
                if is_deep(image):
                    found.deep.setdefault(image.mode, []).append(index)
        except UserError as error:
            found.unreadable.append(str(error))
    return found


def whites(open_image: Open, found: Survey) -> dict[str, float]:
    """The value of white of each deep mode, from the values of examined images where the files do not state it.

    Images with an unknown range are ignored: they are refused when read.
    """
    known = {}
    for mode, indices in found.deep.items():
        greatest = max(_greatest(open_image, indices), default=None)
        if greatest is not None:
            with suppress(ValueError):  # all are nearly black
                known[mode] = white_of(mode, 0.0, greatest)
    return known


def _greatest(open_image: Open, indices: list[int]) -> Iterator[float]:
    """The largest values of those images whose files do not state white."""
    for index in indices:
        with suppress(UserError), open_image(index) as image:
            if stated_white(image) is None:
                low, high = extremes(np.asarray(image))
                if low >= 0 and high <= WHITES[-1]:
                    yield high


def told(found: Survey, background: str, deep: Mapping[str, float], count: int, *, mixed: bool) -> list[str]:
    """A line about everything that is converted; `mixed` if grey and coloured images are to be counted apart."""
    of = f"of {count} images" if found.looked + len(found.unreadable) == count else f"of {found.looked} examined"
    lines = []
    if found.unreadable:
        lines.append(f"warning: {len(found.unreadable)} {of} cannot be read, the first: {found.unreadable[0]}")
    if found.transparent:
        lines.append(f"{found.transparent} {of} have transparency: they are composed on {background} (data.background)")
    if found.frames:
        lines.append(f"{found.frames} {of} have several frames: the first is read")
    for mode, indices in found.deep.items():
        ends = f" of 0 to {deep[mode]:,.5g}" if mode in deep else ""
        lines.append(f"{len(indices)} {of} have more than 8 bits (mode {mode}): their range{ends} is scaled to 8")
    if mixed and 0 < found.grey < found.looked:
        lines.append(f"{found.grey} {of} are grey, the others in colour: all are read as RGB")
    return lines
