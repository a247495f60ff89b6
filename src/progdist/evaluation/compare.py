"""The distance of models' samples to data, and to a teacher's: what `progdist evaluate` does."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from progdist._utils.errors import UserError
from progdist.data.images import CaptionedImages, Images, ImageTransform
from progdist.data.shards import TensorShards
from progdist.diffusion.sampler import network_evaluations
from progdist.evaluation.features import features_of
from progdist.evaluation.generate import Notify, SamplingOptions, generate_batches
from progdist.evaluation.measures.plan import Instruments, Plan
from progdist.evaluation.metrics import summary_quality
from progdist.evaluation.summary import Summary, join, summarize
from progdist.models.model import Model
from progdist.students.folder import load


@dataclass(frozen=True)
class Reference:
    """A teacher's folder and the steps it takes, for fidelity."""

    folder: Path
    steps: int


def compare(
    folders: Sequence[Path],
    opened: Images | None,
    options: SamplingOptions,
    plan: Plan,
    reference: Reference | None,
    notify: Notify,
) -> Iterator[dict[str, Any]]:
    """The quality of each model's samples against the data, and their RMSE to a teacher's from the same noise.

    Args:
        folders: of the models.
        opened: the data; None where reference statistics stand for them.
        options: what to make.
        plan: what to measure.
        reference: the teacher, or None.
        notify: told of warnings.

    Yields:
        One record for every model and feature space.

    Raises:
        UserError: images of another size than the model's, a guidance scale for a model that takes none, or as in
            `generate_images`, `load_images` and `Plan.open`.
    """
    known = dict[tuple[int, int, int], list[Tensor | None]]()
    if options.guidance is not None:
        _check_guidance([*([reference.folder] if reference else []), *folders], options.guidance)
    with TemporaryDirectory() as scratch:
        labels, taught = (), None
        if reference:
            labels, taught = _reference_images(reference, options, opened, Path(scratch), notify)
        for folder in folders:
            model = load(folder)
            instruments = plan.open(model.image, captions=model.text is not None)
            images = images_for_model(model, opened, notify) if opened else None
            if model.image not in known:
                known[model.image] = data_features(instruments, images, max(options.count, 10_000), options.seed)
            if taught is not None and taught[0].shape != model.image:
                raise UserError(f"the teacher makes images of {tuple(taught[0].shape)}, {folder} {model.image}")
            if labels and model.labels and labels != model.labels:
                raise UserError(
                    f"the teacher makes {len(labels)} classes in turn, {folder} {len(model.labels)}: the label that "
                    "stands for no class is null_class in progdist.json, add it where it is missing"
                )
            own = of_captions(model, options, images)
            samples, steps, seconds = summarized(model, own, instruments, taught, notify)
            score = instruments.captions and instruments.captions.score(samples, own.labels_of(model), own.prompts)
            for space, data in zip(instruments.spaces, known[model.image], strict=True):
                result = summary_quality(
                    space, data, samples,
                    distance=instruments.distance(space, data), metrics=instruments.metrics,
                )  # fmt: skip
                if result.warning:
                    notify(f"warning: {result.warning}")
                yield {
                    "model": str(folder),
                    "steps": steps,
                    "guidance": model.scale(options.guidance),
                    "network_evaluations": network_evaluations(steps, options.method),
                    "seconds_per_image": seconds / len(samples),
                    "rmse": None if taught is None else samples.rmse,
                    "clip_score": asdict(score) if score else None,
                    **asdict(result),
                }


def _check_guidance(folders: Sequence[Path], guidance: float) -> None:
    """Refuse a guidance scale that one of the models does not take, before any is sampled."""
    for folder in folders:
        try:
            load(folder).scale(guidance)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from error


def data_features(instruments: Instruments, images: Images | None, count: int, seed: int) -> list[Tensor | None]:
    """Features of `count` images of the data in every space; without images those of the reference, if it has them."""
    if images is None:
        found = (instruments.references.get(space.name) for space in instruments.spaces)
        return [statistics.features if statistics else None for statistics in found]
    chosen = images.chosen(count, seed)
    return [features_of(space, images, chosen) for space in instruments.spaces]


def of_captions(model: Model, options: SamplingOptions, images: Images | None) -> SamplingOptions:
    """The options with captions as the data has them, for a text-conditional model."""
    if model.text is None:
        return options
    if not isinstance(images, CaptionedImages):
        raise UserError(
            f"the model makes images of captions, and {images.name if images else 'no data'} has none: give "
            "captions:FOLDER, or name their --caption-column"
        )
    return replace(options, prompts=tuple(images.classes[n] for n in images.stratified_labels(options.count).tolist()))


def _reference_images(
    reference: Reference, options: SamplingOptions, data: Images | None, folder: Path, notify: Notify
) -> tuple[tuple[int, ...], TensorShards]:
    """A teacher's labels, and its images on disk, a shard for each batch."""
    shards = TensorShards(folder, options.count, options.batch)
    model = load(reference.folder)
    wanted = replace(of_captions(model, options, data), steps=reference.steps)
    batches, _ = generate_batches(model, wanted, notify)
    for number, images, _ in batches:
        shards.write(number, [images])
    return model.labels, shards


def summarized(
    model: Model,
    options: SamplingOptions,
    instruments: Instruments,
    taught: TensorShards | None,
    notify: Notify,
    *,
    keep: int = 0,
) -> tuple[Summary, int, float]:
    """What is kept of a model's samples, the first `keep` images among it, the steps they took and the seconds."""
    batches, steps = generate_batches(model, options, notify)
    parts, seconds, started = [], 0.0, time.perf_counter()
    for number, images, labels in batches:
        seconds += time.perf_counter() - started
        reference = None if taught is None else taught.shard(number)
        first, wanted = number * options.batch, labels if model.classes else None
        kept = max(0, keep - first)
        parts.append(summarize(instruments.every_space, images, wanted, reference=reference, keep=kept))
        started = time.perf_counter()
    return join(parts), steps, seconds


def images_for_model(model: Model, images: Images, notify: Notify) -> Images:
    """The data, brought to the size and channels that the model makes.

    Raises:
        UserError: they cannot be.
    """
    source, shape = images.name, model.image
    if images.shape != shape and shape[1] == shape[2]:
        notify(f"{source} is brought to the model's {shape[1]}x{shape[2]}")
        images = images.reframed(ImageTransform(shape[1], 3 if shape[0] == 3 else 1))
    if images.shape != shape:
        raise UserError(f"{source} holds images of {images.shape}, the model makes {shape} (channels, height, width)")
    return images
