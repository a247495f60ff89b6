"""The distance of models' samples to data, and to a teacher's images: `progdist.evaluate` and `progdist evaluate`."""

import logging
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from progdist._utils.errors import UserError
from progdist._utils.files import local_path
from progdist.data.examples import ExampleData
from progdist.data.formats import OVERSHOT, check_scale
from progdist.data.images import Images
from progdist.data.labels import Labels, read_labels
from progdist.data.shards import TensorShards
from progdist.data.sources import load_images
from progdist.data.survey import spread
from progdist.diffusion.denoiser import Denoiser, check_denoiser
from progdist.diffusion.sampler import network_evaluations
from progdist.evaluation.generate import Notify, SamplingOptions, generate_batches
from progdist.evaluation.metrics import MetricConfig, Metrics, Reference
from progdist.evaluation.record import EvaluationRecord
from progdist.evaluation.summary import Summary, join, summarize
from progdist.models.conditioning import UNCONDITIONAL
from progdist.models.example_conditioning import ExampleConditioning
from progdist.models.model import Model, conditioning_of
from progdist.models.networks import kind_of
from progdist.teachers.own import load

LOG = logging.getLogger("progdist")

RANGE_LOOKED = 256  # images in memory whose values are checked for their range

Source = str | Path | Denoiser  # a model folder, or a denoiser
SourceAtSteps = Source | tuple[Source, int]  # a model, or a model with its sampling steps
Opened = tuple[str, Model, SamplingOptions]  # a model's name, the model, and its own sampling options
Data = str | Images | Tensor | Dataset[Any] | Sequence[Any]  # a source as on the command line, or images


def evaluate(
    models: SourceAtSteps | list[SourceAtSteps],
    data: Data | None,
    sampling: SamplingOptions | None = None,
    metrics: MetricConfig | None = None,
    *,
    teacher: SourceAtSteps | None = None,
    label: str | None = None,
    notify: Notify = LOG.warning,
) -> list[EvaluationRecord]:
    """Measure models: the Frechet distance of their samples to data, further metrics, and fidelity to a teacher.

    With moments m, C of features of the data (a) and of the samples (b) the Frechet distance (Heusel et al. 2017) is

        |m_a - m_b|^2 + tr (C_a + C_b - 2 (C_a^(1/2) C_b C_a^(1/2))^(1/2)),

    which is the FID in the features of Inception. All models start from the noise of `progdist sample --seed`.

        (record,) = progdist.evaluate("student-0004", "digits", metrics=MetricConfig(("digits",)))
        record.quality[0].frechet

    Args:
        models: a folder or a denoiser, or a list of them, e.g. "student-0004"; (denoiser, 4) sets the steps.
        data: a source as in `load_images`, e.g. "digits" or "folder:PATH"; images (N, C, H, W) in [-1, 1]; or images
            with their labels or conditions in any form that `distill` takes. Your own network is sampled under the
            conditions of the examples, in turn. None if `metrics.references` replace the data. Classes are drawn in the
            data's proportions; without labels in the data, in those of the data that a folder's model was trained on,
            or in turn.
        sampling: how to sample, by default 2,048 images.
        metrics: what to measure, by default the distances of pixels.
        teacher: also measure the RMSE to its images, by default in 256 steps.
        label: as in `distill`, for your own network.
        notify: called with warnings.

    Returns:
        A record per model, in order; `quality` has an entry per feature space, with `frechet` (0 or more, 0 for samples
        like the data) and the ends of its 95 % interval, `frechet_low` and `frechet_high`; `rmse` is the root mean
        square difference from the teacher's images, in values in [-1, 1].

    Raises:
        UserError: images have another size than the model's, a guidance scale is given to a model that takes none, or
            as in `generate_images`, `load_images` and `MetricConfig.open`.
    """
    listed = models if isinstance(models, list) else [models]
    options, config = sampling or SamplingOptions(), metrics or MetricConfig()
    if label is not None and not any(_is_own(entry) for entry in listed):
        raise UserError("label applies only to your own networks: remove it")
    if label is None or data is None:
        return list(evaluations(listed, data, options, config, teacher=teacher, notify=notify))
    examples = ExampleData(load_images(data, notify=notify) if isinstance(data, str) else data, label, notify)
    return list(evaluations(listed, examples, options, config, teacher=teacher, notify=notify))


def evaluations(
    models: Sequence[SourceAtSteps],
    data: Data | None,
    sampling: SamplingOptions,
    metrics: MetricConfig,
    *,
    teacher: SourceAtSteps | None,
    notify: Notify,
) -> Generator[EvaluationRecord]:
    """The records of `evaluate`, each as soon as its model is measured; same arguments and errors."""
    data = ExampleData(data, None, notify) if isinstance(data, Mapping | tuple) else data
    images, references = _images(data, notify), dict[tuple[int, ...], list[Reference]]()
    examples = data if isinstance(data, ExampleData) else images
    entries = [_at_256(teacher), *models] if teacher else models
    listed = (_opened(entry, sampling, number, examples) for number, entry in enumerate(entries, 0 if teacher else 1))
    if sampling.guidance is not None:  # before any model is sampled
        listed = _that_take(list(listed), sampling.guidance)
    with TemporaryDirectory() as scratch:
        shards, labels = None, torch.empty(0)
        if teacher:
            _, model, options = next(listed)
            shards, labels = _teacher_images(model, options, images, Path(scratch), notify)
        for name, model, options in listed:
            opened = metrics.open(model.image, captions=model.conditioning.takes_prompts)
            fitted = images_for_model(model, images, notify) if images else None
            if model.image not in references:
                references[model.image] = opened.references(fitted, options.count, options.seed)
            if shards is not None and shards[0].shape != model.image:
                raise UserError(
                    f"the teacher makes images of {tuple(shards[0].shape)}, but {name} of {model.image}: use another"
                )
            options = drawn_from(model, options, fitted)
            if shards is not None and model.labels and not torch.equal(labels, options.labels_of(model)):
                raise UserError(
                    f"the teacher makes images of other classes than {name}: give data with labels, in whose "
                    "proportions both draw their classes (the null class is null_class in progdist.json)"
                )
            measure = Measurement(opened, references[model.image], notify, teacher=shards)
            record, _ = measure(name, model, options)
            for quality in record.quality:
                if quality.warning:
                    notify(f"warning: {quality.warning}")
            yield record


@dataclass(frozen=True)
class Measurement:
    """Samples models and measures their samples, a batch in memory at a time."""

    metrics: Metrics  # what to measure
    references: Sequence[Reference]  # what samples are compared with, in every feature space
    notify: Notify  # called with warnings
    teacher: TensorShards | None = None  # images from the same noise for the RMSE, a shard per batch; or None
    resamples: int = 100  # for the distances' intervals
    keep: int = 0  # how many images to keep

    def __call__(self, name: str, model: Model, options: SamplingOptions) -> tuple[EvaluationRecord, Summary]:
        """The record of a model, by its name, and a summary of its samples."""
        batches, steps = generate_batches(model, options, self.notify)
        parts, seconds, started = [], 0.0, time.perf_counter()
        for number, images, labels in batches:
            seconds += time.perf_counter() - started
            reference = None if self.teacher is None else self.teacher.shard(number)
            keep = max(0, self.keep - number * options.batch)
            classes = labels if model.classes else None
            parts.append(summarize(self.metrics.every_space, images, classes, reference=reference, keep=keep))
            started = time.perf_counter()
        samples, method = join(parts), options.method if isinstance(options.method, str) else "a step of your own"
        rmse = None if self.teacher is None else samples.rmse
        quality = self.metrics.measure(samples, self.references, self.resamples)
        clip_score = self.metrics.clip_score(samples, options.labels_of(model), options.prompts)
        record = EvaluationRecord(
            name, steps, method, network_evaluations(steps, method), seconds / len(samples), rmse, quality,
            model.training, guidance=model.scale(options.guidance), clip_score=clip_score,
        )  # fmt: skip
        return record, samples


def _is_own(entry: SourceAtSteps) -> bool:
    """Whether a model has a network that is not from diffusers."""
    source = entry[0] if isinstance(entry, tuple) else entry
    return isinstance(source, Denoiser) and not kind_of(source.network)


def _opened(
    entry: SourceAtSteps, sampling: SamplingOptions, number: int, examples: ExampleData | Images | None
) -> Opened:
    """Open a model; models count from 1, and the teacher is 0. The examples are conditions for your own network."""
    source, steps = entry if isinstance(entry, tuple) else (entry, sampling.steps)
    if not isinstance(source, Denoiser | str | Path):
        check_denoiser(source, own=True)
    if not isinstance(source, Denoiser):
        return str(source), load(local_path(source)), replace(sampling, steps=steps)
    conditioning, autoencoder = conditioning_of(source), getattr(source, "autoencoder", None)
    if _is_own(source) and examples is not None and conditioning == UNCONDITIONAL:
        conditioning = ExampleConditioning(
            examples=examples if isinstance(examples, ExampleData) else ExampleData(examples)
        )
    model = Model(source, conditioning=conditioning, autoencoder=autoencoder)
    return f"model {number}" if number else "the teacher", model, replace(sampling, steps=steps)


def _at_256(teacher: SourceAtSteps) -> SourceAtSteps:
    """A teacher with its steps, 256 by default."""
    return teacher if isinstance(teacher, tuple) else (teacher, 256)


def _that_take(listed: Sequence[Opened], guidance: float) -> Iterator[Opened]:
    """The same models. Raise a UserError for a guidance scale that one of them does not take."""
    for name, model, _ in listed:
        try:
            model.scale(guidance)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
    return iter(listed)


def _images(data: Data | None, notify: Notify) -> Images | None:
    """Data as images in [-1, 1], with labels if they have any."""
    if isinstance(data, str):
        return load_images(data, notify=notify)
    if data is None or isinstance(data, Images):
        return data
    if isinstance(data, ExampleData):
        examples = data
        return Images("data", len(examples), lambda index: examples[index][0], None)
    items: Any = data  # an object with a length and items

    def get(index: int) -> Tensor:
        image = torch.as_tensor(items[index][0] if isinstance(items[index], tuple | list) else items[index])
        if not image.is_floating_point():
            raise UserError(f"image {index} is {image.dtype}: give numbers from -1 to 1")
        if not image.isfinite().all():
            raise UserError(f"image {index} has values that are not finite: fix or remove it")
        return image.float()

    if len(items) and get(0).ndim != 3:
        raise UserError(f"an image is {tuple(get(0).shape)}, expected (channels, height, width)")
    ends = [get(index).aminmax() for index in spread(len(items), RANGE_LOOKED)]
    if ends and (low := min(float(end.min) for end in ends)) >= -OVERSHOT:
        check_scale("the data are floats", low, max(float(end.max) for end in ends))
    known = Labels()
    if len(items) and isinstance(items[0], tuple | list) and len(items[0]) > 1:
        known = read_labels([items[index][1] for index in range(len(items))], "example {}".format)
    images = Images("data", len(items), get, known.values, known.names, notes=known.notes)
    for line in images.remarks():
        notify(line)
    return images


def _teacher_images(
    model: Model, options: SamplingOptions, data: Images | None, folder: Path, notify: Notify
) -> tuple[TensorShards, Tensor]:
    """A teacher's images on disk, a shard per batch, and their labels (N,)."""
    shards = TensorShards(folder, options.count, options.batch)
    options = drawn_from(model, options, model.conditioning.fitted(data, notify) if data else None)
    batches, _ = generate_batches(model, options, notify)
    for number, images, _ in batches:
        shards.write(number, [images])
    return shards, options.labels_of(model)


def drawn_from(model: Model, options: SamplingOptions, images: Images | None) -> SamplingOptions:
    """The options with the data's captions, for a text-to-image model, or its proportions of the model's classes."""
    labels = images.stratified_labels(options.count) if images else torch.empty(0)
    prompts = model.conditioning.prompts_of(images, labels)
    return replace(options, prompts=prompts, shares=tuple(model.conditioning.shares_of(images)))


def images_for_model(model: Model, images: Images, notify: Notify) -> Images:
    """The data in the model's size, channels and classes. Raise a UserError if they cannot be converted."""
    source, shape = images.name, model.image
    if shape[1] == shape[2] and (images.shape != shape or images.may_differ):
        if images.shape != shape:
            notify(f"{source} is resized to the model's {shape[1]}x{shape[2]}")
        images = images.resized(shape[1], 3 if shape[0] == 3 else 1)
    if images.shape != shape:
        raise UserError(f"{source} has images of {images.shape}, but the model makes {shape} (channels, height, width)")
    return model.conditioning.fitted(images, notify)
