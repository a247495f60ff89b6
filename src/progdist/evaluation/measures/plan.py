"""What is to be measured, by name, and opened: feature spaces with their weights, reference statistics, captions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from progdist._utils.errors import UserError
from progdist._utils.names import Metric
from progdist.evaluation.features import FeatureSpace, clip_space, feature_space
from progdist.evaluation.measures.clip_score import clip_score
from progdist.evaluation.measures.estimate import Estimate
from progdist.evaluation.measures.frechet import Frechet
from progdist.evaluation.measures.moments import moments
from progdist.evaluation.measures.statistics import Statistics, read_statistics
from progdist.evaluation.summary import Summary


@dataclass(frozen=True)
class Captions:
    """CLIP: its embeddings of images as a space, and what embeds captions."""

    space: FeatureSpace
    embed: Callable[[Sequence[str]], Tensor]

    def score(self, samples: Summary, numbers: Tensor, captions: Sequence[str]) -> Estimate:
        """The CLIP score of samples and their captions, which are given by their numbers (N,)."""
        used, place = numbers.unique(return_inverse=True)
        embedded = self.embed([captions[int(number)] for number in used])
        return clip_score(samples.features[self.space.name], embedded[place])


@dataclass(frozen=True)
class Instruments:
    """What measures samples.

    Attributes:
        spaces: where samples are compared with the data.
        metrics: what is measured beside the two distances.
        references: statistics that are to stand for the data, by feature space.
        captions: what scores captions, or None.
    """

    spaces: Sequence[FeatureSpace]
    metrics: tuple[Metric, ...] = ()
    references: Mapping[str, Statistics] = field(default_factory=dict)
    captions: Captions | None = None

    @cached_property
    def every_space(self) -> list[FeatureSpace]:
        """The spaces in which features of samples are kept."""
        return [*self.spaces, *([self.captions.space] if self.captions else [])]

    def distance(self, space: FeatureSpace, data: Tensor | None) -> Frechet:
        """The Frechet distance to the reference of a space, or else to features (N, D) of the data.

        Raises:
            UserError: there is neither, or the reference is of other features.
        """
        known = self.references.get(space.name)
        if known is None and data is None:
            raise UserError(f"nothing is known of the data in {space.name} features: give the data, or a reference")
        if known is not None and data is not None:
            _check_width(space.name, known, data)
        return Frechet(known.moments if known else moments(data if data is not None else torch.empty(0)))


@dataclass(frozen=True)
class Plan:
    """What is to be measured, by name; arguments as of `Instruments`, weights and references by their files."""

    features: tuple[str, ...] = ("pixels",)
    metrics: tuple[Metric, ...] = ()
    weights: Mapping[str, Path] = field(default_factory=dict)
    references: Mapping[str, Path] = field(default_factory=dict)

    def check(self, *, captions: bool) -> None:
        """Refuse what can be refused before a file is read, for images with captions or without.

        Raises:
            UserError: a name is given twice or has no effect, or captions are scored where there are none.
        """
        networks = {name.partition("_")[0] for name in self.features}
        networks |= {"clip"} if "clip_score" in self.metrics else set()
        for kind, named in (("features", self.features), ("metric", self.metrics)):
            if again := [name for place, name in enumerate(named) if name in named[:place]]:
                raise UserError(f"{kind} {again[0]} is named twice: name it once")
        for kind, names, known in (("weights", self.weights, networks), ("reference", self.references, self.features)):
            if idle := [name for name in names if name not in known]:
                raise UserError(f"{kind} {idle[0]}={names[idle[0]]} is of nothing that is measured: leave it out")
        if "clip_score" in self.metrics and not captions:
            raise UserError("clip_score is of captions, and the model or the data has none: leave it out")

    def open(self, image: tuple[int, int, int], *, captions: bool) -> Instruments:
        """The instruments for images (channels, height, width), with captions or without.

        Raises:
            UserError: as in `check`, a name is unknown, weights or statistics cannot be read, or the statistics are of
                other features.
        """
        self.check(captions=captions)
        references = {name: read_statistics(path, name) for name, path in self.references.items()}
        spaces = [feature_space(name, image, self.weights) for name in self.features]
        if "inception_score" in self.metrics and not any(space.read_out for space in spaces):
            raise UserError(
                "inception_score is of a classifier's features, and none are measured: add digits, fashion-mnist or "
                "inception to the features, or leave it out"
            )
        for space in spaces:
            if space.name in references:
                _check_width(space.name, references[space.name], space(torch.zeros(1, *image)))
        scored = Captions(*clip_space(self.weights)) if "clip_score" in self.metrics else None
        return Instruments(spaces, self.metrics, references, scored)


def _check_width(name: str, reference: Statistics, features: Tensor) -> None:
    """Refuse a reference of another number of features than (N, D)."""
    known, found = len(reference.moments.mean), features.shape[1]
    if known != found:
        raise UserError(f"the reference of {name} is of {known} features, the samples have {found}: name another")
