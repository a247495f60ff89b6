"""The splits of a data set, by the names of its folders or files: `train` is trained on, held-out splits are not."""

import re
from collections.abc import Sequence

from progdist._utils.errors import UserError
from progdist._utils.words import listed

_TRAINING = "train|training"
_HELD_OUT = "val|valid|validation|dev|eval|evaluation|test|testing|holdout|unlabell?ed|unsup|unsupervised|extra"
_PART = re.compile(rf"(?:({_TRAINING})|({_HELD_OUT}))[-_ ]?(?:set|images|data|\d[-_\w]*)?", re.IGNORECASE)


def training_part(names: Sequence[str], source: str) -> str | None:
    """The training split among names without suffixes, or the only split; None if they are not splits.

    Next to a training and a held-out split, all other names are splits, too. Raise a UserError if they are splits, e.g.
    `val` and `test`, and it is unclear which is meant.
    """
    parts = {name: found for name in names if (found := _PART.fullmatch(name))}
    training = [name for name, found in parts.items() if found[1]]
    if not parts or (len(parts) < len(names) and len(training) in (0, len(parts))):
        return None
    chosen = training if len(parts) > 1 else list(parts)
    if len(chosen) != 1:
        raise UserError(f"{source} has the splits {listed(sorted(parts))}: name the one to train on")
    return chosen[0]


def seeming_parts(names: Sequence[str]) -> list[str]:
    """The names that are those of splits."""
    return [name for name in names if _PART.fullmatch(name)]


def training_shards(stems: Sequence[str], source: str) -> list[str]:
    """The shards of the training split, as in `training_part`, by the first word in which they differ.

    Of train-00000 and test-00000, or cc3m-train-0000 and cc3m-validation-0000, that is train; of one split, all.
    """
    words = [re.findall(r"[^\W\d_]+|\d+", stem) for stem in stems]
    differ = (place for place, each in enumerate(zip(*words, strict=False)) if len(set(each)) > 1)
    common = next(differ, min(map(len, words), default=0))
    heads = [(rest[common:] or [""])[0] for rest in words]
    distinct = list(dict.fromkeys(heads))
    part = training_part(distinct, source) if len(distinct) > 1 else None
    return [stem for stem, head in zip(stems, heads, strict=True) if part in (None, head)]
