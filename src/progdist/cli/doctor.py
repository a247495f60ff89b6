"""Check a teacher before it is distilled: what is inferred, and what would go wrong, with the remedy."""

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from progdist._utils.errors import UserError
from progdist._utils.words import counted
from progdist.compute.precision import resolve
from progdist.data.embeddings import row_bytes
from progdist.data.images import Images
from progdist.data.sources import open_source
from progdist.data.tables import Columns
from progdist.diffusion.parameterization import Eps
from progdist.methods.guidance import Input
from progdist.models.prompts import Prompts
from progdist.recipes.from_teacher import chain_for, frame
from progdist.runs.estimate.cost import Rates, measure
from progdist.runs.estimate.memory import activation_bytes, training_memory
from progdist.runs.prepared_teacher import prepared_teacher
from progdist.teachers.check import TeacherCheck, check_data, check_on_images
from progdist.teachers.open import Teacher, open_teacher
from progdist.teachers.prepared import Source
from progdist.training.config import TrainConfig

TRIAL = TrainConfig(updates=1, batch=64, learning_rate=1e-4)


@dataclass(frozen=True)
class Opening:
    """How a teacher is opened."""

    offset: float | None = None  # timestep offset, in place of the folder's
    call: Mapping[str, Any] | None = None  # arguments of a watched pipeline
    loras: Sequence[str] = ()  # LoRA files, FILE[:weight], fused into it
    config: str | None = None  # folder with the configs of a single-file checkpoint


def examine(
    source_model: str,
    source: str | None,
    columns: Columns,
    how: Opening = Opening(),
    seed: int = 0,
    background: str | None = None,
) -> Iterator[str]:
    """Yield a line for each finding about a teacher's folder or hub name; lines that begin with `!` are problems.

    Its output is tested on the data of `source`, if any. `seed` seeds the noise and the choice of images; transparent
    images are composed on `background`. Raises a UserError if the folder cannot be read as a teacher.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = prepared_teacher(Source(source_model, how.loras, how.config), Path(folder))
        yield from _examine(open_teacher(place, how.offset, call=how.call), source, columns, seed, background)


def _examine(
    teacher: Teacher, source: str | None, columns: Columns, seed: int, background: str | None
) -> Iterator[str]:
    yield from teacher.summary
    yield from _about_the_form(teacher)
    yield from _about_guidance(teacher)
    denoiser = teacher.model.denoiser
    if chain := _example_chain(teacher):
        yield f"possible chain: {' -> '.join(map(str, chain))}"
    yield "timing a training update"
    yield from _cost(measure(denoiser, teacher.model.shape, TRIAL.batch, TRIAL), teacher)
    if source is None:
        yield "use --data to test its output and timesteps"
        return
    yield f"reading {source}"
    images = open_source(source, frame(teacher, source, columns, background).transform(), columns)
    yield from images.remarks()
    notes = list[str]()
    try:
        images = teacher.model.conditioning.fitted(images, notes.append)
        yield from notes
        check_data(teacher.model, images)
    except UserError as error:
        yield f"! {error}"
        return
    yield from _caches(teacher, images)
    if teacher.model.steps:
        yield "its output is not tested on data: it is distilled, and was trained only at the times of its own steps"
        return
    yield "checking its output on data"
    yield from _trial(check_on_images(teacher.model, images, seed))
    if len(teacher.model.classes) > len(images.classes) > 0:
        spare = len(teacher.model.classes) - 1
        yield f"it has more classes than {source}: if class {spare} is the null class, --guidance can be distilled"


def _caches(teacher: Teacher, images: Images) -> Iterator[str]:
    """What a run encodes and caches, and its size."""
    model = teacher.model
    if isinstance(model.conditioning, Prompts):
        size = len(images.classes) * row_bytes(model.conditioning.encoder())
        yield (
            f"{len(images)} pairs of image and caption, {len(images.classes)} distinct captions: "
            f"{size / 1000:,.1f} kB of embeddings"
        )
    if model.autoencoder:
        yield f"{4 * len(images) * math.prod(model.shape) / 1000:,.1f} kB of latents"


def _about_the_form(teacher: Teacher) -> Iterator[str]:
    predicts_eps = isinstance(teacher.model.denoiser.parameterization, Eps)
    if predicts_eps:
        yield "it predicts eps: stage 0 first converts it to v-prediction, because eps gives no image at pure noise"
    else:
        yield "it can be distilled without stage 0"
    if teacher.limits:
        yield f"its sampler {teacher.limits}: {'stage 0' if predicts_eps else 'the first student'} learns that, too"


def _about_guidance(teacher: Teacher) -> Iterator[str]:
    """The guidance of a student; the effect of --guidance on a text-to-image teacher."""
    conditioning, learned = teacher.model.conditioning, teacher.model.guidance
    if isinstance(learned, Input):
        yield f"it takes a guidance scale from {learned}, and so do its students"
    elif learned is not None:
        yield f"guidance {learned} is distilled into it and its students"
    if not isinstance(conditioning, Prompts) or learned is not None or teacher.model.steps:
        return
    default = conditioning.default_guidance
    if teacher.model.takes_guidance:
        yield f"its network takes a guidance scale, and so do its students: {default:g} or --guidance, without stage 0"
    elif teacher.model.accepts_guidance:
        yield f"--guidance LO:HI makes the scale an input of its students, --guidance {default:g} distils that scale"
    else:
        yield (
            f"a {conditioning.pipeline} gives its network no guidance scale: --guidance {default:g} distils that scale"
        )


def _example_chain(teacher: Teacher) -> list[int]:
    """An example chain to few steps; empty for a one-step teacher."""
    if tuple(teacher.model.steps) == (1,):
        return []
    most = max(teacher.model.steps, default=teacher.model.denoiser.most_steps)
    target = next(count for count in (4, 3, 5, 2, 1) if most % count == 0 and count < most)
    return chain_for(teacher, target, 256)


def _cost(rates: Rates, teacher: Teacher) -> Iterator[str]:
    denoiser, bf16 = teacher.model.denoiser, resolve(TRIAL.precision, torch.device("cpu")) == "bf16"
    kept = activation_bytes(denoiser, teacher.model.shape, TRIAL.batch, TRIAL, bf16=bf16)
    if not kept:
        yield "memory excludes activations: they cannot be counted, because the network's call depends on values"
    held = training_memory(denoiser.network, TRIAL, teachers=1, bf16=bf16, activations=kept)
    update = TRIAL.batch * (2 * rates.evaluation + rates.training) + rates.optimizer
    threads = torch.get_num_threads()
    device = "CUDA" if torch.cuda.is_available() else f"CPU, {counted(threads, 'thread')}"
    yield (
        f"a stage of 1,000 updates of {TRIAL.batch} images: about {1000 * update / 60:.0f} min here ({device}), "
        f"{held.total / 2**30:.1f} GiB"
    )


def _trial(check: TeacherCheck) -> Iterator[str]:
    listed = ", ".join(f"{name} {error:.3g}" for name, error in check.errors.items())
    yield f"error of the denoised data by prediction type (lower is better): {listed}"
    listed = ", ".join(f"{shift:+d} {error:.4g}" for shift, error in check.shifts.items())
    if listed:
        yield f"error of the output at low noise by shift of its timesteps: {listed}"
    if check.problem:
        yield f"! {check.problem} (to use it anyway, e.g. untrained: --set teacher.trust=true)"
    else:
        yield "its configuration agrees with the data"
