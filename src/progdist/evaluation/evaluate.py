"""The distance of models' samples to data, and to a teacher's images: `progdist.evaluate` and `progdist evaluate`."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from progdist._utils.errors import UserError
from progdist.data.images import Images, ImageTransform
from progdist.data.shards import TensorShards
from progdist.data.sources import load_images
from progdist.diffusion.denoiser import Denoiser
from progdist.diffusion.sampler import network_evaluations
from progdist.evaluation.generate import Notify, SamplingOptions, generate_batches
from progdist.evaluation.metrics import MetricConfig, Metrics, Reference
from progdist.evaluation.record import EvaluationRecord
from progdist.evaluation.summary import Summary, join, summarize
from progdist.models.conditioning import UNCONDITIONAL, Classes
from progdist.models.model import Model
from progdist.models.networks import class_count
from progdist.teachers.own import load

LOG = logging.getLogger("progdist")

Source = str | Path | Denoiser  # a model folder, or a denoiser around a network of diffusers, as `progdist.load` gives
SourceAtSteps = Source | tuple[Source, int]  # a model, or a model with the sampling steps that it takes
Data = str | Images | Tensor | Dataset[Any] | Sequence[Any]  # a source as on the command line, or images


def evaluate(
    models: SourceAtSteps | list[SourceAtSteps],
    data: Data | None,
    sampling: SamplingOptions | None = None,
    metrics: MetricConfig | None = None,
    *,
    teacher: SourceAtSteps | None = None,
    notify: Notify = LOG.warning,
) -> list[EvaluationRecord]:
    """Measure models: the Frechet distance of their samples to data, further metrics, and fidelity to a teacher.

    With moments m, C of features of the data (a) and of the samples (b) the Frechet distance (Heusel et al. 2017) is

        |m_a - m_b|^2 + tr (C_a + C_b - 2 (C_a^(1/2) C_b C_a^(1/2))^(1/2)),

    in the features of Inception the FID. All models start from the same noise, that of `progdist sample --seed`.

        (record,) = progdist.evaluate("student-0004", "digits", metrics=MetricConfig(("digits",)))
        record.quality[0].frechet

    Args:
        models: a folder or a denoiser, or a list of them, e.g. "student-0004"; (denoiser, 4) says the steps. A denoiser
            is sampled with every label, and a folder's model with those that mean a class.
        data: a source as on the command line, e.g. "digits" or "folder:PATH"; images (N, C, H, W) in [-1, 1]; or a
            data set of images (C, H, W) or (image, label). None where `metrics.references` stand for the data.
        sampling: how to sample, by default 2,048 images.
        metrics: what to measure, by default the distances of pixels.
        teacher: also measure the RMSE to its images, by default in 256 steps.
        notify: called with warnings.

    Returns:
        A record for each model, in order; `quality` has an entry for each feature space.

    Raises:
        UserError: images of another size than the model's, a guidance scale for a model that takes none, or as in
            `generate_images`, `load_images` and `MetricConfig.open`.
    """
    listed = models if isinstance(models, list) else [models]
    options, config = sampling or SamplingOptions(count=2048), metrics or MetricConfig()
    return list(evaluations(listed, data, options, config, teacher=teacher, notify=notify))


def evaluations(
    models: Sequence[SourceAtSteps],
    data: Data | None,
    sampling: SamplingOptions,
    metrics: MetricConfig,
    *,
    teacher: SourceAtSteps | None,
    notify: Notify,
) -> Iterator[EvaluationRecord]:
    """The records of `evaluate`, each as soon as its model is measured; arguments and errors as there."""
    images, references = _images(data), dict[tuple[int, int, int], list[Reference]]()
    if sampling.guidance is not None:  # before any model is sampled
        for number, entry in enumerate([teacher, *models]):
            if entry is not None:
                _check_guidance(entry, number, sampling.guidance)
    with TemporaryDirectory() as scratch:
        shards, labels = None, ()
        if teacher:
            shards, labels = _teacher_images(teacher, sampling, images, Path(scratch), notify)
        for number, entry in enumerate(models, 1):
            name, model, options = _opened(entry, sampling, number)
            opened = metrics.open(model.image, captions=model.conditioning.takes_prompts)
            fitted = images_for_model(model, images, notify) if images else None
            if model.image not in references:
                references[model.image] = opened.references(fitted, options.count, options.seed)
            if shards is not None and shards[0].shape != model.image:
                raise UserError(f"the teacher makes images of {tuple(shards[0].shape)}, {name} {model.image}")
            if labels and model.labels and labels != model.labels:
                raise UserError(
                    f"the teacher makes {len(labels)} classes in turn, {name} {len(model.labels)}: the label that "
                    "stands for no class is null_class in progdist.json, add it where it is missing"
                )
            measure = Measurement(opened, references[model.image], notify, teacher=shards)
            record, _ = measure(name, model, with_prompts(model, options, fitted))
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
    teacher: TensorShards | None = None  # images of the same noise to give the RMSE to, a shard for each batch; or None
    resamples: int = 100  # of the distances' intervals
    keep: int = 0  # how many images to keep

    def __call__(self, name: str, model: Model, options: SamplingOptions) -> tuple[EvaluationRecord, Summary]:
        """The record of a model by its name, and what was kept of its samples."""
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


def _opened(entry: SourceAtSteps, sampling: SamplingOptions, number: int) -> tuple[str, Model, SamplingOptions]:
    """A model's name, itself, and its own sampling options; models are numbered from 1, and the teacher is 0."""
    source, steps = entry if isinstance(entry, tuple) else (entry, sampling.steps)
    if not isinstance(source, Denoiser):
        return str(source), load(Path(source)), replace(sampling, steps=steps)
    count = class_count(source.network)
    default = Classes(tuple(map(str, range(count)))) if count else UNCONDITIONAL
    conditioning, autoencoder = getattr(source, "conditioning", default), getattr(source, "autoencoder", None)
    model = Model(source, conditioning=conditioning, autoencoder=autoencoder)
    return f"model {number}" if number else "the teacher", model, replace(sampling, steps=steps)


def _check_guidance(entry: SourceAtSteps, number: int, guidance: float) -> None:
    """Refuse a guidance scale that a model does not take."""
    name, model, _ = _opened(entry, SamplingOptions(), number)
    try:
        model.scale(guidance)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def _images(data: Data | None) -> Images | None:
    """Data as images in [-1, 1]; their labels are not used."""
    if isinstance(data, str):
        return load_images(data)
    if data is None or isinstance(data, Images):
        return data
    items: Any = data  # whatever has a length and items

    def get(index: int) -> Tensor:
        image = torch.as_tensor(items[index][0] if isinstance(items[index], tuple | list) else items[index])
        if not image.is_floating_point():
            raise UserError(f"image {index} is {image.dtype}: give numbers from -1 to 1")
        return image.float()

    if len(items) and get(0).ndim != 3:
        raise UserError(f"an image is {tuple(get(0).shape)}, expected (channels, height, width)")
    return Images("data", len(items), get, None)


def _teacher_images(
    teacher: SourceAtSteps, sampling: SamplingOptions, data: Images | None, folder: Path, notify: Notify
) -> tuple[TensorShards, tuple[int, ...]]:
    """A teacher's images on disk, a shard for each batch, and its labels."""
    shards = TensorShards(folder, sampling.count, sampling.batch)
    _, model, options = _opened(teacher if isinstance(teacher, tuple) else (teacher, 256), sampling, 0)
    batches, _ = generate_batches(model, with_prompts(model, options, data), notify)
    for number, images, _ in batches:
        shards.write(number, [images])
    return shards, model.labels


def with_prompts(model: Model, options: SamplingOptions, images: Images | None) -> SamplingOptions:
    """The options with captions as the data has them, for a text-to-image model."""
    labels = images.stratified_labels(options.count) if images else torch.empty(0)
    return replace(options, prompts=model.conditioning.prompts_of(images, labels))


def images_for_model(model: Model, images: Images, notify: Notify) -> Images:
    """The data, brought to the size and channels that the model makes; a UserError where they cannot be."""
    source, shape = images.name, model.image
    if images.shape != shape and shape[1] == shape[2]:
        notify(f"{source} is brought to the model's {shape[1]}x{shape[2]}")
        images = images.reframed(ImageTransform(shape[1], 3 if shape[0] == 3 else 1))
    if images.shape != shape:
        raise UserError(f"{source} holds images of {images.shape}, the model makes {shape} (channels, height, width)")
    return images
