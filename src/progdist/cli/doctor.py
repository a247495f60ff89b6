"""Inspect a teacher before it is distilled: what is inferred, and what would go wrong, with the remedy."""

import math
from collections.abc import Iterator

import torch

from progdist.compute.precision import resolve
from progdist.data.embeddings import row_bytes
from progdist.data.images import CaptionedImages, Images
from progdist.data.sources import load_images
from progdist.data.tables import Columns
from progdist.diffusion.parameterization import Eps
from progdist.evaluation.check_on_images import check_on_images
from progdist.methods.conversion import needs_conversion
from progdist.models.prompts import has_dial, takes_guidance
from progdist.recipes.from_teacher import chain_for, frame
from progdist.runs.estimate.cost import Rates, measure
from progdist.runs.estimate.memory import activation_bytes, training_memory
from progdist.teachers.check import TeacherCheck
from progdist.teachers.open import Teacher, read_teacher
from progdist.training.config import TrainConfig

TRIAL = TrainConfig(updates=1, batch=64, learning_rate=1e-4)


def examine(
    source_model: str, source: str | None, columns: Columns, offset: float | None = None, seed: int = 0
) -> Iterator[str]:
    """A line for each finding; lines that begin with `!` are what would go wrong.

    Args:
        source_model: a teacher's folder or hub name.
        source: data on which its output is read in every way; None for none.
        columns: of its table, those that are named.
        offset: of the timestep, in place of its folder's.
        seed: of the noise and the choice of images.

    Raises:
        UserError: the folder cannot be read as a teacher, or the data cannot be brought to its shape.
    """
    teacher = read_teacher(source_model, offset)
    yield from teacher.summary
    yield from _about_the_form(teacher)
    yield from _about_guidance(teacher)
    denoiser = teacher.model.denoiser
    if chain := _some_chain(teacher):
        yield f"a chain that fits: {' -> '.join(map(str, chain))}"
    yield from _cost(measure(denoiser, teacher.model.shape, TRIAL.batch, TRIAL), teacher)
    if source is None:
        yield "give --data to try its output and its timesteps"
        return
    images = load_images(source, frame(teacher, source, columns).transform(), columns)
    yield from _caches(teacher, images)
    if teacher.model.steps:
        yield "it was distilled and knows only the times of its own steps: its output is not tried on data"
        return
    yield from _trial(check_on_images(teacher.model, images, seed))
    if len(teacher.model.classes) > len(images.classes) > 0:
        spare = len(teacher.model.classes) - 1
        yield f"more classes than {source} has: if class {spare} stands for none, --guidance can be taken in"


def _caches(teacher: Teacher, images: Images) -> Iterator[str]:
    """What is encoded once and kept in the run's folder, and how large that is."""
    model = teacher.model
    if (model.text is None) != (not isinstance(images, CaptionedImages)):
        lacks, remedy = ("the data have no", "captions") if model.text else ("the teacher takes no", "folder")
        yield f"! {lacks} captions: give {remedy}:FOLDER" + (", or name their --caption-column" if model.text else "")
        return
    if model.text:
        size = len(images.classes) * row_bytes(model.text.encoder())
        yield (
            f"{len(images)} pairs of image and caption, {len(images.classes)} distinct captions: "
            f"{size / 1000:,.1f} kB of embeddings"
        )
    if model.autoencoder:
        yield f"{4 * len(images) * math.prod(model.shape) / 1000:,.1f} kB of latents"


def _about_the_form(teacher: Teacher) -> Iterator[str]:
    denoiser = teacher.model.denoiser
    if isinstance(denoiser.parameterization, Eps):
        yield "it predicts eps, which says nothing of the image where all is noise: stage 0 teaches a v student first"
    else:
        yield "it can be halved as it is"
    learner = "stage 0" if needs_conversion(denoiser) else "the first student"
    if teacher.threshold is not None:
        yield f"its sampler thresholds denoised images dynamically: {learner} learns the thresholded predictions"
    elif teacher.clip is not None:
        bound = f"[-{teacher.clip:g}, {teacher.clip:g}]"
        yield f"its sampler keeps denoised images within {bound}: {learner} learns the clipped predictions"


def _about_guidance(teacher: Teacher) -> Iterator[str]:
    """Which guidance a student has taken in; what --guidance does for a teacher of captions."""
    text, network, taken = teacher.model.text, teacher.model.denoiser.network, teacher.model.guidance
    if isinstance(taken, tuple):
        yield f"it takes a guidance scale from {taken[0]:g} to {taken[1]:g}, and so do its students"
    elif taken is not None:
        yield f"it is guided by {taken:g} for good, and so are its students"
    if text is None or taken is not None or teacher.model.steps:
        return
    usual = text.particulars.usual_guidance
    if takes_guidance(network):
        yield (
            f"its network takes a guidance scale, and so do its students: {usual:g}, or what --guidance says, without "
            "another stage"
        )
    elif has_dial(network):
        yield f"--guidance LO:HI gives its students a dial, --guidance {usual:g} guides them by that scale for good"
    else:
        yield (
            f"a {text.kind} gives its network no guidance scale: --guidance {usual:g} guides its students by that for "
            "good"
        )


def _some_chain(teacher: Teacher) -> list[int]:
    """A chain to few steps; empty for a teacher of one step."""
    if tuple(teacher.model.steps) == (1,):
        return []
    most = max(teacher.model.steps, default=teacher.model.denoiser.timesteps)
    target = next(count for count in (4, 3, 5, 2, 1) if most % count == 0 and count < most)
    return chain_for(teacher, target, 256)


def _cost(rates: Rates, teacher: Teacher) -> Iterator[str]:
    denoiser, bf16 = teacher.model.denoiser, resolve(TRIAL.precision, torch.device("cpu")) == "bf16"
    kept = activation_bytes(denoiser, teacher.model.shape, TRIAL.batch, TRIAL, bf16=bf16)
    held = training_memory(denoiser.network, TRIAL, taught=1, bf16=bf16, activations=kept)
    update = TRIAL.batch * (2 * rates.evaluation + rates.training) + rates.optimizer
    threads = torch.get_num_threads()
    device = "CUDA" if torch.cuda.is_available() else f"CPU, {threads} thread{'s' * (threads > 1)}"
    yield (
        f"a stage of 1,000 updates of {TRIAL.batch} images: about {1000 * update / 60:.0f} min here ({device}), "
        f"{held.total / 2**30:.1f} GiB"
    )


def _trial(check: TeacherCheck) -> Iterator[str]:
    listed = ", ".join(f"{name} {error:.3g}" for name, error in check.errors.items())
    yield f"its output read as (error of the denoised data, less is better): {listed}"
    listed = ", ".join(f"{shift:+d} {error:.4g}" for shift, error in check.shifts.items())
    yield f"its timestep shifted by: {listed}"
    yield f"! {check.problem}" if check.problem else "what its folder says agrees with the data"
