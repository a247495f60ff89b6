"""A model's own samples as data, in place of a data set: `teacher`, or `teacher:COUNT`.

    00000.safetensors ...   samples as the network sees them, with one shape of any rank, made shard by shard

A network trains on `Samples`, its own output with the label or prompt number of each. Measurements need images:
`SampledImages` decodes the same shards when they are read. Prompts are lines of a text file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from progdist._utils.errors import UserError
from progdist._utils.files import local_path
from progdist._utils.words import counted
from progdist.data.images import split_indices
from progdist.data.shards import TensorShards

MOST = 10**8  # the largest number of samples accepted


def is_teacher(source: str) -> bool:
    """Whether a source of data is the teacher itself."""
    return source.partition(":")[0] == "teacher"


def sample_count(source: str) -> int | None:
    """COUNT of `teacher:COUNT`, None for `teacher`. Raise a UserError for anything else."""
    kind, colon, count = source.partition(":")
    if kind != "teacher" or (colon and not (count.isascii() and count.isdigit() and 1 <= int(count[:10]) <= MOST)):
        raise UserError(
            f"source is {source[:50]!r}, expected teacher:COUNT, e.g. teacher:5000, for 1 to {MOST:,} samples"
        )
    return int(count) if colon else None


def in_words(count: int) -> str:
    """A number of samples, in words."""
    return f"{count:,} {'sample' if count == 1 else 'samples'} of the teacher"


def read_prompts(path: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The prompts of a UTF-8 text file, one per line, and a note about the blank lines that were skipped.

    Raises:
        UserError: the file is missing, empty, or not text.
    """
    try:
        lines = local_path(path).read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(
            f"prompts {path} cannot be read ({reason}): give a text file with one prompt per line"
        ) from error
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise UserError(f"prompts {path} is empty: give a text file with one prompt per line")
    blank = len(lines) - len(prompts)
    return prompts, (f"{path}: skipped {counted(blank, 'blank line')}",) if blank else ()


@dataclass(frozen=True)
class Samples:
    """Examples of one shape and any rank, each with its label or prompt number."""

    get: Callable[[int], Tensor]  # index -> sample
    shape: tuple[int, ...]  # of each sample
    labels: Tensor  # int64 (N,), zeros if there are no classes
    indices: Tensor | None = None  # the samples in this part of the whole set; None for all

    def __len__(self) -> int:
        return len(self.labels) if self.indices is None else len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """A sample and its label."""
        index = index if self.indices is None else int(self.indices[index])
        return self.get(index), int(self.labels[index])

    def split(self, count: int, seed: int) -> tuple["Samples", "Samples"]:
        """(all but `count`, those `count`), chosen by the seed; a UserError if either would be empty."""
        parts = split_indices(len(self), count, seed, f"there are {len(self)} samples")
        most, held_out = (part if self.indices is None else self.indices[part] for part in parts)
        return replace(self, indices=most), replace(self, indices=held_out)


@dataclass(frozen=True)
class SampledImages:
    """The images of samples in shards, decoded when read: implements what `Images` reads by index."""

    shards: TensorShards
    decode: Callable[[Tensor], Tensor]  # samples (B, ...) -> images (B, C, H, W)
    identity: Callable[[], str]  # identifies them

    def __call__(self, index: int) -> Tensor:
        """Image (C, H, W)."""
        return self.rows([index])[0]

    def rows(self, indices: Sequence[int]) -> Tensor:
        """The images (B, C, H, W) at these indices."""
        return self.decode(torch.stack([self.shards[index] for index in indices]))

    def fingerprint(self) -> str:
        """As in `Reader`."""
        return self.identity()
