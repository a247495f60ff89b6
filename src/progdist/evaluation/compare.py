"""Compare runs and models: the same noise for all, and paired resamples (`progdist compare`).

A run's folder stands for its students. Each model is compared with the one of the first name that takes as many steps,
or else with the very first; the ratio of their Frechet distances has an interval from resamples of the same rows.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from torch import Tensor

from progdist._utils.errors import UserError
from progdist._utils.files import local_path
from progdist.data.grid import GRID
from progdist.data.images import Images
from progdist.evaluation.evaluate import Measurement, drawn_from, images_for_model
from progdist.evaluation.generate import Notify, SamplingOptions
from progdist.evaluation.measures.estimate import Estimate
from progdist.evaluation.measures.frechet import ratio, verdict
from progdist.evaluation.metrics import MetricConfig
from progdist.evaluation.record import EvaluationRecord, Quality
from progdist.models.model import Model
from progdist.teachers.own import load


@dataclass(frozen=True)
class Candidate:
    """A model to compare."""

    word: str  # its name on the command line
    folder: Path  # of the model
    steps: int | None  # sampling steps; None for its own


@dataclass(frozen=True)
class Comparison:
    """One model compared with another, in one feature space."""

    label: str  # a letter
    record: EvaluationRecord  # of the model
    quality: Quality  # of that record, in this feature space
    images: Tensor = field(repr=False, compare=False)  # its first samples, (B, C, H, W)
    against: str | None = None  # the label of the model that it is compared with; None for the first of all
    ratio: Estimate | None = None  # its Frechet distance over that model's
    verdict: str | None = None  # `better`, `worse` or `undecided`, e.g. if either has too few samples

    def to_json(self) -> dict[str, Any]:
        """A flat JSON object, as printed by `progdist compare --json`; an infinite end of a ratio is null."""
        row = self.record.row(self.quality)
        for name in ("guidance", "network_evaluations", "rmse"):
            del row[name]
        ends = asdict(self.ratio) if self.ratio else {}
        ratio = {name: value if isfinite(value) else None for name, value in ends.items()} or None
        return {"label": self.label, **row, "against": self.against, "ratio": ratio, "verdict": self.verdict}


def candidates(words: Sequence[str]) -> list[Candidate]:
    """Every model of some folders of runs and models, MODEL or MODEL@STEPS."""
    listed = []
    for word in words:
        name, _, steps = word.rpartition("@") if "@" in word and not local_path(word).exists() else (word, "", "")
        if steps and not (steps.isascii() and steps.isdigit() and int(steps) > 0):
            raise UserError(f"{word}: {steps!r} is not a number of steps: give MODEL@STEPS, e.g. {name}@4")
        folder = local_path(name)
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder: name runs or models")
        models = [folder]
        if (folder / "recipe.yaml").is_file():
            models = sorted((path.parent for path in folder.glob("student-*/progdist.json")), reverse=True)
        if not models:
            raise UserError(
                f"{folder} is a run without a student yet: wait for one, or name its teacher as MODEL@STEPS"
            )
        listed += [Candidate(word, model, int(steps) if steps else None) for model in models]
    return listed


def compare(
    words: Sequence[str],
    images: Images,
    sampling: SamplingOptions,
    metrics: MetricConfig,
    *,
    resamples: int,
    notify: Notify,
) -> list[Comparison]:
    """Sample models, named as in `candidates`, from one noise, and compare them with the data in every feature space.

    Raises:
        UserError: a folder is missing, there are fewer than two models or models of different noise, or as in
            `evaluate`.
    """
    listed = candidates(words)
    if len(listed) < 2:
        raise UserError("compare requires at least two models: name another run or model")
    if len(listed) > len(ascii_lowercase):
        raise UserError(f"expected at most {len(ascii_lowercase)} models, got {len(listed)}: name fewer")
    models = [load(each.folder) for each in listed]
    first, fitted = models[0], images_for_model(models[0], images, notify)
    for each, model in zip(listed, models, strict=True):
        if each.steps is None and not model.steps:
            raise UserError(f"{each.folder} supports any number of steps: choose one, e.g. {each.folder}@256")
        if noise_and_classes(model) != noise_and_classes(first):
            raise UserError(
                f"{each.folder} and {listed[0].folder} do not sample from the same noise and classes: compare models "
                "of one kind"
            )
    opened = metrics.open(first.image, captions=first.conditioning.takes_prompts)
    references = opened.references(fitted, sampling.count, sampling.seed)
    measure = Measurement(opened, references, notify, resamples=resamples, keep=GRID)
    spaces: list[list[Comparison]] = [[] for _ in opened.spaces]
    for label, each, model in zip(ascii_lowercase, listed, models, strict=False):
        notify(f"{label}: {each.folder}")
        options = replace(drawn_from(model, sampling, fitted), steps=each.steps)
        record, samples = measure(str(each.folder), model, options)
        for space, quality in zip(spaces, record.quality, strict=True):
            space.append(Comparison(label, record, quality, samples.images))
    named_first = [each.word == listed[0].word for each in listed]
    compared = [one for space in spaces for one in compared_with_the_first(space, named_first)]
    for warning in dict.fromkeys(one.quality.warning for one in compared if one.quality.warning):
        notify(f"warning: {warning}")
    return compared


def noise_and_classes(model: Model) -> tuple[object, ...]:
    """What two models share if they make images from the same noise and conditions."""
    return model.shape, model.image, model.classes, model.labels


def compared_with_the_first(space: Sequence[Comparison], named_first: Sequence[bool]) -> list[Comparison]:
    """Each model of one feature space, compared with its reference."""
    firsts, compared = [one for one, first in zip(space, named_first, strict=True) if first], []
    for one, first in zip(space, named_first, strict=True):
        same_steps = (other for other in firsts if other.record.steps == one.record.steps)
        against = firsts[0] if first else next(same_steps, firsts[0])
        resampled, other = one.quality.resampled, against.quality.resampled
        if against is not one and resampled and other:
            estimate, few = ratio(resampled, other), one.quality.too_few or against.quality.too_few
            said = "undecided" if few else verdict(estimate)
            one = replace(one, against=against.label, ratio=estimate, verdict=said)
        compared.append(one)
    return compared
