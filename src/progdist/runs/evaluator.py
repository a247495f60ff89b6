"""Evaluation of a run's models: samples from one noise, compared with the data and with the teacher's own samples.

A report shows the first SHOWN images one by one, with their captions. A model that takes the guidance scale as an input
is sampled SHOWN times more at each of up to three other scales, from the same noise.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from progdist._utils.digest import digest
from progdist._utils.files import local_path
from progdist._utils.names import LEAST_SAMPLES
from progdist._utils.random import EVALUATION_NOISE, RowGenerator, generator
from progdist.compute.cuda_graphs import accelerated
from progdist.data.grid import GRID, write_grid
from progdist.data.images import CaptionedImages, Images
from progdist.data.shards import TensorShards
from progdist.diffusion.denoiser import Denoiser, DenoiserProtocol
from progdist.diffusion.integrators import Step
from progdist.diffusion.sampler import network_evaluations
from progdist.evaluation.features import ROWS, FeatureSpace, feature_space, write_features
from progdist.evaluation.generate import SamplingOptions, noise_in_batches, sample_in_batches
from progdist.evaluation.measures.neighbors import neighbors
from progdist.evaluation.measures.statistics import Statistics, write_statistics
from progdist.evaluation.metrics import DATA_IMAGES, DEFAULT_METRICS, MetricConfig, Metrics, Reference
from progdist.evaluation.record import EvaluationRecord, Quality
from progdist.evaluation.summary import Summary, join, summarize
from progdist.methods.guidance import Input
from progdist.models.model import Model
from progdist.recipes.recipe import Recipe, student_name
from progdist.runs.context import RunContext
from progdist.students.folder import write_card

SHOWN = 8  # images shown one by one: the first row of a grid

Fidelity = Callable[[int, Tensor], Tensor]  # batch number and images -> the images of its noise to compare by RMSE


def metric_config(recipe: Recipe, images: Images) -> MetricConfig:
    """The metrics of a recipe; if it names none, the default ones, if samples and images are enough for them."""
    settings = recipe.evaluate
    enough = min(settings.samples, len(images)) >= LEAST_SAMPLES
    metrics = DEFAULT_METRICS * enough if settings.metrics is None else settings.metrics
    weights = {name: Path(path) for name, path in settings.weights.items()}
    references = {name: local_path(path) for name, path in settings.reference.items()}
    return MetricConfig(settings.features, metrics, weights, references)


def open_metrics(recipe: Recipe, images: Images) -> Metrics:
    """The metrics of a recipe, ready to measure; errors as in `MetricConfig.open`."""
    return metric_config(recipe, images).open(images.shape, captions=isinstance(images, CaptionedImages))


def guidance_scales(guidance: Input, measured: float) -> tuple[float, ...]:
    """The lowest scale, one a third of the way (two digits), the measured one and the highest, in ascending order.

    Scales within a tenth of the measured one, whose images look the same, are skipped if the range has others.
    """
    low, high = guidance.low, guidance.high
    third = guidance.nearest(float(f"{low + (high - low) / 3:.2g}"))
    apart = {scale for scale in (low, third, high) if abs(scale - measured) > measured / 10}
    return tuple(sorted({measured, *(apart or {low, high})}))


@dataclass(frozen=True)
class Evaluator:
    """Samples and measures the models of one run."""

    context: RunContext  # the run's recipe, data, folder and processes
    metrics: Metrics  # the metrics

    def evaluate(
        self, name: str, model: Model, steps: int, denoiser: DenoiserProtocol | None = None, method: str = "ddim"
    ) -> None:
        """Measure a model at a step count, unless there is a record of it; keep the record and a grid of its samples.

        The first measured model is the reference of fidelity. `name` is the model of the `EvaluationRecord`; a
        denoiser, e.g. a guided one, is sampled in place of the model's own.
        """
        context, distributed = self.context, self.context.distributed
        if distributed.on_main_process(
            lambda: any((record.model, record.steps) == (name, steps) for record in context.folder.evaluations())
        ):
            return
        is_written = distributed.on_main_process(self.reference_images.agrees)
        started = time.perf_counter()
        fidelity = self._read_reference if is_written else self._write_reference
        samples = self.samples(model, steps, method, denoiser, fidelity)
        seconds = time.perf_counter() - started
        self._write_guidance_grids(name, model, steps, method, denoiser)
        distributed.on_main_process(lambda: self._write_record(name, model, steps, method, samples, seconds))

    @cached_property
    def chosen(self) -> Tensor:
        """Indices of the images to compare samples with: one per sample, at least DATA_IMAGES, or all."""
        return self.context.images.chosen(
            max(self.context.recipe.evaluate.samples, DATA_IMAGES), self.context.recipe.seed
        )

    @cached_property
    def pixels(self) -> FeatureSpace:
        """The space in which the nearest training images are searched."""
        return feature_space("pixels", self.context.images.shape)

    @cached_property
    def data(self) -> dict[str, Tensor]:
        """Features of the chosen data by space, read from or written to the run's folder; only in the first process.

        The spaces are those that are measured, and pixels.
        """
        context, folder = self.context, self.context.folder.data_features()
        spaces = list({space.name: space for space in (self.pixels, *self.metrics.spaces)}.values())
        shards = {space.name: TensorShards(folder / space.name, len(self.chosen), ROWS) for space in spaces}
        context.distributed.on_main_process(lambda: [self._begin_features(space, self.chosen) for space in spaces])
        context.distributed.on_every_process(partial(write_features, spaces, context.images, self.chosen, folder))
        first = context.distributed.is_main_process
        return {name: each.read(range(len(each))) for name, each in shards.items()} if first else {}

    def _begin_features(self, space: FeatureSpace, chosen: Tensor) -> None:
        """Make the folder of the data's features in a space, replacing features of other data or another network."""
        images, folder = self.context.images, self.context.folder.data_features()
        source = digest(images.fingerprint, chosen, space.name, space.checksum)
        if TensorShards(folder / space.name, len(chosen), ROWS, source).begin():
            (folder / f"{space.name}.npz").unlink(missing_ok=True)
            self.context.callback.note(f"{folder / space.name} was made from other data than {images.name}: made again")

    @cached_property
    def references(self) -> list[Reference]:
        """The reference in every space: the recipe's statistics, or those of the data, which are kept."""
        references = []
        for space in self.metrics.spaces:
            references.append(self.metrics.reference(space, self.data[space.name]))
            path = self.context.folder.data_features() / f"{space.name}.npz"
            if space.name not in self.metrics.statistics and not path.is_file():
                write_statistics(path, {space.name: Statistics(references[-1].frechet.data)}, self.context.images.name)
        return references

    @cached_property
    def reference_images(self) -> TensorShards:
        """The teacher's own images, the reference of fidelity, a shard for each batch."""
        settings = self.context.recipe.evaluate
        return TensorShards(self.context.folder.reference(), settings.samples, settings.batch)

    def _read_reference(self, number: int, images: Tensor) -> Tensor:
        return self.reference_images.shard(number)

    def _write_reference(self, number: int, images: Tensor) -> Tensor:
        self.reference_images.write(number, [images])
        return images

    def samples(
        self,
        model: Model,
        steps: int,
        method: str | Step = "ddim",
        denoiser: DenoiserProtocol | None = None,
        fidelity: Fidelity | None = None,
    ) -> list[Summary]:
        """Summarize the samples of the run's noise, batch by batch; empty except in the first process.

        The noise is the same for every model and step count; classes are as in the data. Arguments as in `evaluate`;
        `fidelity` returns the images to compare with by RMSE.
        """
        context, settings, seed = self.context, self.context.recipe.evaluate, self.context.recipe.seed
        options = self._options(steps, method, settings.batch)
        labels = context.labels(settings.samples).split(settings.batch)
        noise = noise_in_batches(settings.samples, model.shape, settings.batch, generator(seed, EVALUATION_NOISE))
        drawn, draw = enumerate(noise), RowGenerator((seed, EVALUATION_NOISE, 1), range(settings.samples))
        conditions, denoiser = context.conditions(model), denoiser or model.denoiser
        if isinstance(denoiser, Denoiser):
            network = accelerated(denoiser.network, compiled=False, graphs=settings.cuda_graphs)
            denoiser = denoiser.with_network(network)
        sampled = partial(sample_in_batches, conditions=conditions, denoiser=denoiser)

        def summary(index: int) -> Summary:
            z, classes = next(z for number, z in drawn if number == index), labels[index]
            images = sampled(model, z, classes, options, generator=draw.part(index * settings.batch, len(z)))
            reference, keep = fidelity and fidelity(index, images), max(0, GRID - index * settings.batch)
            classes = classes if model.classes else None
            return summarize(self.metrics.every_space, images, classes, reference=reference, keep=keep)

        with model.at_work(context.distributed.device, settings.precision):
            return context.distributed.map_to_main_process(summary, len(labels))

    def qualities(self, model: Model, steps: int, method: str | Step = "ddim") -> Sequence[Quality] | None:
        """Compare a model's samples with the data in every feature space; None if samples are not finite."""
        _ = self.data
        samples = self.samples(model, steps, method)

        def compared() -> Sequence[Quality] | None:
            every = join(samples)
            return self._measure(every) if every.finite else None

        return self.context.distributed.on_main_process(compared)

    def _measure(self, samples: Summary) -> tuple[Quality, ...]:
        return self.metrics.measure(samples, self.references, self.context.recipe.evaluate.resamples)

    def _options(self, steps: int, method: str | Step, batch: int) -> SamplingOptions:
        """The recipe's sampling options."""
        settings = self.context.recipe.evaluate
        return SamplingOptions(
            steps, settings.samples, method=method, clip=settings.clip, batch=batch, precision=settings.precision
        )

    def _write_record(
        self, name: str, model: Model, steps: int, method: str, samples: list[Summary], seconds: float
    ) -> None:
        """Compare samples with the data; write the record, the grid and the card."""
        every, scales, images, folder = join(samples), self._scales(name), self.context.images, self.context.folder
        numbered = all(model.classes[label].isdecimal() for label in model.labels)
        named = isinstance(images, CaptionedImages) or not numbered
        names = [images.classes[label] for label in self._shown_labels.tolist()] if named or scales else []
        self.reference_images.write_index()
        clip_score = self.metrics.clip_score(every, self.context.labels(len(every)), images.classes)
        record = EvaluationRecord(
            name, steps, method, network_evaluations(steps, method), seconds / len(every), every.rmse,
            self._measure(every), dict(model.training),
            captions=tuple(names if named else (f"class {each}" for each in names)),
            guidance=self.context.measured_scale if scales else None, guidance_grids=scales, clip_score=clip_score,
        )  # fmt: skip
        write_grid(every.images, folder.grid(name, steps))
        self._write_nearest(every.images[:SHOWN], folder.nearest(name, steps))
        folder.append("evaluations", record.to_json())
        if (path := self._model_folder(name, steps)) and path.is_dir():
            records = [each for each in folder.evaluations() if each.model == name]
            write_card(model, path, [each for each in records if name != "student" or each.steps == steps])
        self.context.callback.evaluated(record)

    def _write_nearest(self, samples: Tensor, path: Path) -> None:
        """Write samples (B, C, H, W) above the nearest of the chosen training images, by pixel distance."""
        _, rows = neighbors(self.pixels(samples), self.data[self.pixels.name], 1)
        nearest, _ = self.context.images.at(self.chosen[rows])
        write_grid(torch.cat([samples, nearest]), path, len(samples))

    def _model_folder(self, name: str, steps: int) -> Path | None:
        """The folder whose card shows a measurement; None for a teacher outside the run."""
        if name == "student":
            return self.context.folder.model(student_name(steps))
        return self.context.folder.model(name) if name == self.context.model_names[0] else None

    def _scales(self, name: str) -> tuple[float, ...]:
        """The guidance scales at which a model's images are shown; none without a guidance input.

        Stage 0's student is shown beside its teacher at the measured scale.
        """
        guidance, measured = self.context.guidance, self.context.measured_scale
        if guidance is None or measured is None:
            return ()
        return (measured,) if name == "converted" else guidance_scales(guidance, measured)

    @property
    def _shown_labels(self) -> Tensor:
        """The classes or caption numbers of the shown images: (SHOWN,), or fewer if fewer are sampled."""
        return self.context.labels(self.context.recipe.evaluate.samples)[:SHOWN]

    def _write_guidance_grids(
        self, name: str, model: Model, steps: int, method: str, denoiser: DenoiserProtocol | None
    ) -> None:
        """Write a grid of the shown images for every guidance scale except the measured one."""
        context, settings = self.context, self.context.recipe.evaluate
        scales = [scale for scale in self._scales(name) if scale != context.measured_scale]
        if not scales:
            return
        draw = generator(context.recipe.seed, EVALUATION_NOISE)
        noise = next(noise_in_batches(settings.samples, model.shape, SHOWN, draw))
        sampled = partial(sample_in_batches, model, noise, self._shown_labels, self._options(steps, method, SHOWN))

        def at_scale(index: int) -> Tensor:
            draw = RowGenerator((context.recipe.seed, EVALUATION_NOISE, 1), range(len(noise)))
            return sampled(conditions=context.conditions(model, scales[index]), denoiser=denoiser, generator=draw)

        with model.at_work(context.distributed.device, settings.precision):
            images = context.distributed.map_to_main_process(at_scale, len(scales))
        for scale, row in zip(scales, images, strict=False):  # empty except in the first process
            write_grid(row, context.folder.grid(name, steps, scale), SHOWN)
