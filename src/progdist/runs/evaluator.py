"""Evaluation of a run's models: samples from one noise, compared with the data and with the teacher's own samples."""

import time
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

from torch import Tensor

from progdist._utils.errors import UserError
from progdist._utils.random import EVALUATION_NOISE, generator
from progdist.compute.cuda_graphs import accelerated
from progdist.data.grid import GRID, write_grid
from progdist.data.images import CaptionedImages, Images
from progdist.data.shards import INDEX, TensorShards
from progdist.diffusion.denoiser import Denoiser, DenoiserProtocol
from progdist.diffusion.integrators import Step
from progdist.diffusion.sampler import network_evaluations
from progdist.evaluation.features import ROWS, write_features
from progdist.evaluation.measures.frechet import Frechet
from progdist.evaluation.measures.plan import Instruments, Plan
from progdist.evaluation.measures.statistics import Statistics, write_statistics
from progdist.evaluation.metrics import Quality, summary_quality
from progdist.evaluation.sampling import noise_in_batches, sample_in_batches
from progdist.evaluation.summary import Summary, join, summarize
from progdist.models.model import Model
from progdist.recipes.recipe import Recipe, student_name
from progdist.runs.folder import RunFolder
from progdist.runs.shown_images import ShownImages
from progdist.runs.stages import RunConditions
from progdist.students.folder import write_card
from progdist.training.callbacks import Callback
from progdist.training.distributed import Distributed


def measurement_plan(recipe: Recipe) -> Plan:
    """What a recipe measures, by name."""
    settings = recipe.evaluate
    weights = {name: Path(path) for name, path in settings.weights.items()}
    references = {name: Path(path).expanduser() for name, path in settings.reference.items()}
    return Plan(settings.features, settings.metrics, weights, references)


def instruments(recipe: Recipe, images: Images) -> Instruments:
    """What a recipe measures with.

    Raises:
        UserError: as in `Plan.open`.
    """
    return measurement_plan(recipe).open(images.shape, captions=isinstance(images, CaptionedImages))


@dataclass(frozen=True)
class Evaluator:
    """Samples and measures the models of one run.

    Attributes:
        recipe: of the run.
        images: the data.
        instruments: what samples are measured with.
        folder: where records and grids go.
        callback: told of every record.
        distributed: the processes that share the sampling.
        conditions: what the networks are told of each image.
    """

    recipe: Recipe
    images: Images
    instruments: Instruments
    folder: RunFolder
    callback: Callback
    distributed: Distributed
    conditions: RunConditions

    def evaluate(
        self, name: str, model: Model, steps: int, denoiser: DenoiserProtocol | None = None, method: str = "ddim"
    ) -> None:
        """Measure a model at a step count, unless there is a record of it; keep the record and a grid of its samples.

        Args:
            name: `teacher`, `student`, `teacher_dpmpp`, or `given` for the teacher as it was given.
            model: to measure.
            steps: to sample it in.
            denoiser: sampled in place of the model's own, e.g. guided.
            method: of sampling.
        """
        key = (name, steps)
        if self.distributed.on_main_process(
            lambda: key in {(one["model"], one["steps"]) for one in self.folder.read("evaluations")}
        ):
            return
        known = self.distributed.on_main_process(self._reference_is_there)
        started = time.perf_counter()
        samples = self.samples(model, steps, method, denoiser, reference=self._reference(), known=known)
        seconds = time.perf_counter() - started
        if name != "given":  # the page does not show it
            self.shown.write(name, model, steps, method, denoiser)
        self.distributed.on_main_process(lambda: self._write_record(name, model, steps, method, samples, seconds))

    @property
    def shown(self) -> ShownImages:
        """The images that the page shows one by one."""
        return ShownImages(self.recipe, self.images, self.folder, self.distributed, self.conditions)

    @cached_property
    def data(self) -> list[Tensor]:
        """The features of the data in every space, from the run's folder or put there; empty but in the first process.

        They are of as many images as are sampled, at least 10,000, or all.
        """
        chosen = self.images.chosen(max(self.recipe.evaluate.samples, 10_000), self.recipe.seed)
        folder, spaces = self.folder.data_features(), self.instruments.spaces
        shards = [TensorShards(folder / space.name, len(chosen), ROWS) for space in spaces]
        self.distributed.on_main_process(lambda: [begin(each) for each in shards])
        self.distributed.on_every_process(partial(write_features, spaces, self.images, chosen, folder))
        return [each.read(range(len(each))) for each in shards] if self.distributed.is_main_process else []

    @cached_property
    def distances(self) -> list[Frechet]:
        """The Frechet distance in every space, to the recipe's reference or to the data, whose statistics are kept."""
        found = []
        for space, data in zip(self.instruments.spaces, self.data, strict=True):
            found.append(self.instruments.distance(space, data))
            path = self.folder.data_features() / f"{space.name}.npz"
            if space.name not in self.instruments.references and not path.is_file():
                write_statistics(path, {space.name: Statistics(found[-1].data)}, self.images.name)
        return found

    def _reference(self) -> TensorShards:
        """The teacher's own images, which fidelity is measured against, a shard for each batch."""
        settings, path = self.recipe.evaluate, self.folder.reference()
        single = path.with_name(f"{path.name}.safetensors")  # as version 0.1.0 wrote them
        if single.is_file():
            return TensorShards(single, settings.samples, settings.samples)
        return TensorShards(path, settings.samples, settings.batch)

    def _reference_is_there(self) -> bool:
        reference = self._reference()
        return reference.path.is_file() or reference.agrees()

    def _write_record(
        self, name: str, model: Model, steps: int, method: str, samples: list[Summary], seconds: float
    ) -> None:
        """Compare samples with the data; write the record, the grid and the card."""
        every, reference = join(samples), self._reference()
        if not reference.path.is_file():
            reference.write_index()
        record = {
            "model": name,
            "steps": steps,
            "method": method,
            "network_evaluations": network_evaluations(steps, method),
            "seconds_per_image": seconds / len(every),
            "rmse": every.rmse,
            **self.shown.description(),
            "training": dict(model.training),
            "quality": [asdict(result) for result in self._compare(every)],
        }
        if scored := self.instruments.captions:
            captions = self.images.stratified_labels(len(every))
            record["clip_score"] = asdict(scored.score(every, captions, self.images.classes))
        write_grid(every.images, self.folder.grid(name, steps))
        self.folder.append("evaluations", record)
        model_path = self.folder.model(student_name(steps) if name == "student" else name)
        if model_path.is_dir():
            records = (each for each in self.folder.read("evaluations") if each["model"] == name)
            write_card(model, model_path, [each for each in records if name == "teacher" or each["steps"] == steps])
        self.callback.evaluated(record)

    def _compare(self, samples: Summary) -> list[Quality]:
        """Samples against the data in every feature space; of the first process alone."""
        resamples, metrics = self.recipe.evaluate.resamples, self.instruments.metrics
        triples = zip(self.instruments.spaces, self.data, self.distances, strict=True)
        return [
            summary_quality(space, data, samples, distance=distance, metrics=metrics, resamples=resamples)
            for space, data, distance in triples
        ]

    def qualities(self, model: Model, steps: int, method: str | Step = "ddim") -> list[Quality] | None:
        """A model's samples against the data in every feature space; None where samples are not finite."""
        _ = self.data
        samples = self.samples(model, steps, method)

        def compared() -> list[Quality] | None:
            every = join(samples)
            return self._compare(every) if every.finite else None

        return self.distributed.on_main_process(compared)

    def samples(
        self,
        model: Model,
        steps: int,
        method: str | Step = "ddim",
        denoiser: DenoiserProtocol | None = None,
        *,
        reference: TensorShards | None = None,
        known: bool = False,
    ) -> list[Summary]:
        """What is kept of the samples of the run's own noise, batch by batch; empty but in the first process.

        The noise is the same for every model and step count; classes are as in the data.

        Args:
            model: to sample.
            steps: to take.
            method: of sampling.
            denoiser: sampled in place of the model's own.
            reference: images from the same noise, which are read if `known`, and otherwise are these and written.
            known: as above.
        """
        settings, seed = self.recipe.evaluate, self.recipe.seed
        labels = self.images.stratified_labels(settings.samples).split(settings.batch)
        noise = noise_in_batches(settings.samples, model.shape, settings.batch, generator(seed, EVALUATION_NOISE))
        drawn, draw = enumerate(noise), generator(seed, EVALUATION_NOISE, 1)
        conditions, denoiser = self.conditions(model), denoiser or model.denoiser
        if isinstance(denoiser, Denoiser):
            network = accelerated(denoiser.network, compiled=False, graphs=settings.cuda_graphs)
            denoiser = denoiser.with_network(network)
        sampled = partial(
            sample_in_batches, precision=settings.precision, clip=settings.clip, method=method, generator=draw
        )

        def summary(index: int) -> Summary:
            z = next(z for number, z in drawn if number == index)
            images = sampled(model, z, labels[index], steps, settings.batch, denoiser=denoiser, conditions=conditions)
            start, truth = index * settings.batch, images if reference else None
            if reference and known:
                truth = reference.read(range(start, start + len(images)))
            elif reference:
                reference.write(index, [images])
            wanted = labels[index] if model.classes else None
            return summarize(self.instruments.every_space, images, wanted, reference=truth, keep=max(0, GRID - start))

        with model.at_work(self.distributed.device, settings.precision):
            return self.distributed.map_to_main_process(summary, len(labels))


def begin(shards: TensorShards) -> None:
    """Make a folder of shards, unless it is there.

    Raises:
        UserError: it is there with other numbers of rows.
    """
    if not (shards.path / INDEX).is_file():
        shards.write_index()
    if not shards.agrees():
        raise UserError(f"{shards.path} is not of {len(shards)} images: remove it to compute it anew")
