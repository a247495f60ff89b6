"""Compare a student with its teacher, without data: the same noise, prompts or classes (`progdist compare`).

The student may be any folder that opens, including one distilled elsewhere, or a pipeline with LoRA files fused into
it, such as published few-step LoRA files. The teacher is guided at the scale that the student has learned, or at a
given one. A student that does not record its scale is guided at the teacher's, unless another one is given for it.
"""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from progdist._utils.errors import UserError
from progdist._utils.lora_files import lora_file
from progdist.diffusion.denoiser import DenoiserProtocol
from progdist.evaluation.compare import Candidate, candidates, noise_and_classes
from progdist.evaluation.features import FeatureSpace
from progdist.evaluation.generate import (
    Notify,
    SamplingOptions,
    check_images_finite,
    sample_in_batches,
    sampling_noise,
)
from progdist.evaluation.measures.estimate import Estimate
from progdist.evaluation.measures.frechet import Frechet, frechet_bias, resampled_frechet
from progdist.evaluation.measures.moments import moments
from progdist.evaluation.measures.pairs import Pairs, compare_pairs
from progdist.evaluation.measures.scores import clip_score
from progdist.evaluation.metrics import MOSTLY, MetricConfig, Metrics
from progdist.methods.guidance import Fixed, Input
from progdist.models.model import Model
from progdist.teachers.open import Teacher, open_teacher
from progdist.teachers.prepared import Source, prepare

RESAMPLES = 200  # of the Frechet distance


@dataclass(frozen=True)
class Space:
    """The results in one feature space."""

    features: str
    pairs: Pairs
    frechet: Estimate  # the distance of the student's images to the teacher's
    bias: float | None  # its approximate bias from too few images; None below four

    @property
    def too_few(self) -> bool:
        """Whether most of the Frechet distance is bias."""
        return self.bias is not None and self.bias > MOSTLY * self.frechet.value


@dataclass(frozen=True)
class Faithfulness:
    """A student compared with its teacher."""

    models: tuple[str, str]  # the folders of student and teacher
    steps: tuple[int, int]  # of both
    guidance: float | None  # of the teacher; None for none
    student_guidance: float | None  # of the student
    conditions: Sequence[str]  # the prompts, or the names of the classes; empty without either
    of_prompts: bool  # whether these are prompts
    labels: Tensor  # the index of each image's condition, (N,)
    rms: Estimate  # of pixels in [-1, 1]
    spaces: Sequence[Space]
    clip_scores: tuple[Estimate, Estimate] | None  # of student and teacher
    apart: Tensor = field(repr=False)  # the RMS difference of each pair in pixels, (N,)
    images: tuple[Tensor, Tensor] = field(repr=False)  # of both, uint8 (N, C, H, W)

    def worst_first(self) -> list[int]:
        """The indices of the images, the largest difference first."""
        return self.apart.argsort(descending=True, stable=True).tolist()

    def to_json(self) -> dict[str, Any]:
        """A JSON object, as printed by `progdist compare --json`."""
        student, teacher = self.models
        clip = [asdict(each) for each in self.clip_scores] if self.clip_scores else None
        return {
            "student": student,
            "teacher": teacher,
            "steps": list(self.steps),
            "guidance": self.guidance,
            "student_guidance": self.student_guidance,
            "images": len(self.labels),
            "conditions": len(self.conditions),
            "rms": asdict(self.rms),
            "spaces": {each.features: asdict(each) for each in self.spaces},
            "clip_scores": clip,
        }


def compare_with_teacher(
    words: Sequence[str],
    sampling: SamplingOptions,
    metrics: MetricConfig,
    *,
    repeat: int | None = None,
    count: int | None = None,
    loras: Sequence[str] = (),
    student_guidance: float | None = None,
    notify: Notify,
) -> Faithfulness:
    """Compare a teacher and its student, named in this order as in `candidates`, by images from the same noise.

    Args:
        words: TEACHER@STEPS and STUDENT, or STUDENT@STEPS.
        sampling: its prompts, seed, batch, precision, method and clipping, and guidance: the scale of both.
        metrics: the feature spaces, and whether to compute a CLIP score.
        repeat: images per prompt or class, 4 by default.
        count: images of models without either, 2,048 by default.
        loras: LoRA files to fuse into the student's pipeline, FILE[:weight].
        student_guidance: the scale of a student that is guided by two evaluations; the teacher's by default.
        notify: called with a line per model.

    Raises:
        UserError: there are not two models, they use different noise, or options have no effect on them.
    """
    listed = candidates(words)
    if len(listed) != 2:
        raise UserError(
            f"without --data expected a teacher and its student, got {len(listed)} models: give TEACHER@STEPS "
            "STUDENT, or --data"
        )
    with ExitStack() as stack:
        teacher, student = open_teacher(str(listed[0].folder)), _student(listed[1], loras, stack)
        steps = _steps(listed[1], student.model), _steps(listed[0], teacher.model)
        conditions = _conditions(teacher.model, student.model, listed, sampling)
        if conditions and count is not None:
            raise UserError("--count applies only to models without prompts or classes: use --repeat")
        if not conditions and repeat is not None:
            raise UserError("--repeat applies only to models with prompts or classes: use --count")
        sampling = replace(sampling, count=(repeat or 4) * len(conditions) if conditions else count or 2048)
        scale = _scale(student.model, sampling.guidance)
        scales = _own_scale(student.model, student_guidance, scale), scale
        for opened, number in zip((teacher, student), steps[::-1], strict=True):
            replace(sampling, steps=number, guidance=None).check(opened.model, notify)
        numbers = torch.arange(sampling.count) % max(1, len(conditions))
        labels = torch.tensor(teacher.model.labels)[numbers] if teacher.model.labels else numbers
        named, made = (_named(listed[1], loras), str(listed[0].folder)), list[Tensor]()
        for number, (one, opened) in enumerate(zip(listed[::-1], (student, teacher), strict=True)):
            notify(f"{('student', 'teacher')[number]}: {named[number]}, {sampling.count:,} images")
            made.append(_images(one, opened, labels, scales[number], sampling))
        measured = metrics.open(teacher.model.image, captions=bool(sampling.prompts))
    ours, theirs = (images.clamp(-1, 1) for images in made)
    return Faithfulness(
        named,
        steps,
        scale,
        scales[0],
        conditions,
        bool(sampling.prompts),
        numbers,
        compare_pairs(ours.flatten(1), theirs.flatten(1), numbers, seed=sampling.seed).rms,
        [_in_space(space, made, numbers, sampling.seed) for space in measured.spaces],
        _clip_scores(measured, made, [conditions[int(number)] for number in numbers] if conditions else []),
        (ours - theirs).square().flatten(1).mean(1).sqrt(),
        ((ours * 127.5 + 127.5).round().byte(), (theirs * 127.5 + 127.5).round().byte()),
    )


def _student(one: Candidate, loras: Sequence[str], stack: ExitStack) -> Teacher:
    """The student, with LoRA files fused into it in a folder that lasts as long as the stack."""
    if not loras:
        return open_teacher(str(one.folder))
    place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    return open_teacher(str(prepare(Source(str(one.folder), tuple(loras)), place / one.folder.resolve().name)))


def _conditions(
    teacher: Model, student: Model, listed: Sequence[Candidate], sampling: SamplingOptions
) -> Sequence[str]:
    """The prompts, or the names of the classes, of both models; a UserError if they differ in these."""
    if teacher.conditioning.takes_prompts and not sampling.prompts:
        raise UserError("the models require prompts: give a text file with one per line, --prompts FILE")
    if sampling.prompts and not teacher.conditioning.takes_prompts:
        raise UserError("prompts apply only to text-to-image models: remove --prompts")
    if noise_and_classes(teacher) != noise_and_classes(student):
        raise UserError(
            f"{listed[1].folder} and {listed[0].folder} do not sample from the same noise and classes: compare a "
            "student with its own teacher"
        )
    return sampling.prompts or tuple(teacher.classes[label] for label in teacher.labels)


def _in_space(space: FeatureSpace, made: Sequence[Tensor], numbers: Tensor, seed: int) -> Space:
    """Compare the images of student and teacher in one feature space."""
    ours, theirs = (space(images) for images in made)
    distance = Frechet(moments(theirs))
    found = resampled_frechet(distance, ours, resamples=RESAMPLES, seed=seed)
    bias = frechet_bias(distance, ours, seed=seed)
    return Space(space.name, compare_pairs(ours, theirs, numbers, seed=seed), found.estimate, bias)


def _clip_scores(metrics: Metrics, made: Sequence[Tensor], captions: Sequence[str]) -> tuple[Estimate, Estimate] | None:
    """The scores of student and teacher; None if they are not requested."""
    if metrics.clip is None:
        return None
    texts = metrics.clip.embed(captions)
    ours, theirs = (clip_score(metrics.clip.space(images), texts) for images in made)
    return ours, theirs


def _scale(student: Model, asked: float | None) -> float | None:
    """The guidance scale of both: the given one, or what the student has learned; None for none."""
    learned = student.guidance
    if isinstance(learned, Fixed):
        if asked is not None and asked != learned.scale:
            raise UserError(f"guidance is {asked:g}, but the student was distilled for {learned.scale:g}: remove it")
        return learned.scale
    return student.scale(asked) if isinstance(learned, Input) or student.takes_guidance else asked


def _own_scale(student: Model, asked: float | None, scale: float | None) -> float | None:
    """The guidance scale of the student: the teacher's, or another for one that has learned none of its own."""
    if asked is None:
        return scale
    if student.guidance is not None or student.steps or not student.conditioning.takes_prompts:
        raise UserError(
            f"--student-guidance {asked:g} applies only to a pipeline that is guided by two evaluations, and this "
            "student is none: remove it"
        )
    return asked


def _named(one: Candidate, loras: Sequence[str]) -> str:
    files = [f"{Path(each.path).name}:{each.weight:g}" for each in map(lora_file, loras)]
    return " with ".join([str(one.folder), *([", ".join(files)] if files else [])])


def _steps(one: Candidate, model: Model) -> int:
    steps = one.steps or min(model.steps, default=None)
    if steps is None:
        raise UserError(f"{one.folder} supports any number of steps: choose one, e.g. {one.folder}@50")
    return steps


def _images(one: Candidate, opened: Teacher, labels: Tensor, scale: float | None, sampling: SamplingOptions) -> Tensor:
    """Images (N, C, H, W) of a model from the noise of the seed."""
    model, denoiser = opened.model, None
    options = replace(sampling, steps=_steps(one, opened.model), guidance=None)
    takes = model.takes_guidance or isinstance(model.guidance, Input)
    if scale is not None and not takes and model.guidance is None and not model.steps:
        denoiser = opened.limited(_guided(model, scale))
    elif not model.steps:
        denoiser = opened.limited(model.denoiser)
    conditions = model.conditions(scale if takes else None, sampling.prompts)
    noise = sampling_noise(model, sampling.count, sampling.seed)
    with model.at_work(_device(), sampling.precision):
        images = sample_in_batches(model, noise, labels, options, conditions=conditions, denoiser=denoiser)
    check_images_finite(images)
    return images


def _guided(model: Model, scale: float) -> DenoiserProtocol:
    """The guided predictions of a model that is not distilled."""
    conditioning = model.conditioning.for_guidance(negative=None, null_class=None)
    return conditioning.guided(model.denoiser, scale, _device())


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def as_rows(found: Faithfulness) -> Mapping[str, Sequence[tuple[str, Estimate]]]:
    """The results by feature space: names and numbers."""
    rows: dict[str, list[tuple[str, Estimate]]] = {"pixels in [-1, 1]": [("RMS difference", found.rms)]}
    for space in found.spaces:
        rows[f"{space.features} features"] = [
            ("difference / that of other noise", space.pairs.share),
            ("diversity / the teacher's", space.pairs.diversity),
            ("Fréchet distance to the teacher", space.frechet),
        ]
        if space.features != "pixels":
            rows[f"{space.features} features"].append(("distance of unit features", space.pairs.unit))
    if found.clip_scores:
        rows["CLIP score"] = list(zip(("student", "teacher"), found.clip_scores, strict=True))
    return rows
