"""A recipe carried out: teach, distil stage by stage, evaluate every model, report.

Each finished model and each finished evaluation stays in the run's folder, so the same command again goes on where it
stopped and repeats nothing.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from progdist import model_folder
from progdist._errors import UserError
from progdist.batches import Batches, generator
from progdist.checkpoint import read_tensors, write_whole
from progdist.data import Images, load_images
from progdist.denoiser import Denoiser
from progdist.distill import Stage, distillation_loss
from progdist.evaluate import quality, root_mean_square
from progdist.features import FeatureSpace, feature_space
from progdist.model_folder import Model
from progdist.network import condition, unet
from progdist.objective import WEIGHTINGS, denoising_loss
from progdist.parameterization import PARAMETERIZATIONS
from progdist.recipe import Recipe, plan_of, student_name
from progdist.recipe_file import read_recipe, write_recipe
from progdist.run_folder import GRID, Record, RunFolder, write_grid
from progdist.sampler import sample
from progdist.train import Batch, NotFinite, Plan, Progress, autocast, train

EVALUATION_NOISE = 1_000_000
"""The stage number under which the noise of evaluation is drawn, apart from all training."""


class Observer(Protocol):
    """Whoever watches a run."""

    def begin(self, title: str, updates: int) -> None:
        """A network's training starts or goes on."""

    def progress(self, progress: Progress) -> None:
        """One update was made."""

    def end(self) -> None:
        """That network is trained."""

    def evaluated(self, record: Record) -> None:
        """A model was measured at a step count."""

    def note(self, text: str) -> None:
        """Something worth a line."""


@dataclass(frozen=True)
class Run:
    """One recipe in one folder on one accelerator."""

    recipe: Recipe
    folder: RunFolder
    observer: Observer
    accelerator: Accelerator

    @cached_property
    def images(self) -> Images:
        """The data set."""
        return load_images(self.recipe.data.source, self.recipe.data.framing())

    @cached_property
    def spaces(self) -> list[tuple[FeatureSpace, Tensor]]:
        """Every feature space with the features of the data: as many images as are sampled, at least 10,000, or all."""
        pixels, _ = self.images.sample(max(self.recipe.evaluate.samples, 10_000), self.recipe.seed)
        spaces = [feature_space(name, self.images.shape) for name in self.recipe.evaluate.features]
        return [(space, space(pixels)) for space in spaces]

    def everything(self) -> list[Record]:
        """Teacher, students and their evaluations, in order; what exists is not made again."""
        self._prepare()
        self.observer.note(f"{self.images.name}: {len(self.images)} images of {'x'.join(map(str, self.images.shape))}")
        counts = self.recipe.distill.counts()
        model = self.teacher()
        teacher = model
        self.evaluate("teacher", teacher, counts[0])
        for number, stage in enumerate(self.recipe.distill.links(), 1):
            model = self.student(model, number, stage)
            self.evaluate("student", model, stage.steps)
            if number % self.recipe.evaluate.teacher_every == 0:
                self.evaluate("teacher", teacher, stage.steps)
        return list(self.folder.read("evaluations"))

    def _prepare(self) -> None:
        """Find every mistake that can be found before hours are spent, then make the folder this run's own."""
        if self.accelerator.num_processes > 1:
            raise UserError(f"{self.accelerator.num_processes} processes were started: a run takes one for now")
        _ = self.spaces, self.untrained()
        names = ["teacher", *(student_name(stage.steps) for stage in self.recipe.distill.links())]
        finished = {name for name in names if self.folder.model(name).exists()}
        self.folder.claim(write_recipe(self.recipe), lambda old: self.recipe.continues(read_recipe(str(old)), finished))

    def untrained(self) -> Model:
        """The teacher before its training."""
        recipe, images = self.recipe, self.images
        parameterization = PARAMETERIZATIONS[recipe.parameterization]
        numbers = recipe.network.model_dump(exclude={"class_conditional"})
        classes = images.classes if recipe.network.class_conditional else ()
        if recipe.network.class_conditional and not classes:
            raise UserError(f"network.class_conditional is set, but {images.name} has no labels: set it to false")
        torch.manual_seed(recipe.seed)
        network = unet(image=images.shape, classes=len(classes), heads=parameterization.heads, **numbers)
        denoiser = Denoiser(network, recipe.noise.build(), parameterization, timesteps=recipe.noise.timesteps)
        return Model(denoiser, classes=classes, data=images.name)

    def teacher(self) -> Model:
        """The trained teacher."""
        model = self.untrained()
        denoiser, weighting = model.denoiser, WEIGHTINGS[self.recipe.teacher.weighting]

        def loss(network: nn.Module, batch: Batch) -> Tensor:
            given = condition(denoiser.network, batch["labels"])
            student = denoiser.with_network(network)
            return denoising_loss(student, batch["x"], batch["eps"], batch["u"], weighting=weighting, **given)

        return self._trained("teacher", 0, model, loss, plan_of(self.recipe.teacher))

    def student(self, teacher: Model, number: int, stage: Stage) -> Model:
        """The student of one stage, begun from its teacher's weights."""
        denoiser = teacher.denoiser.with_network(copy.deepcopy(teacher.denoiser.network))
        frozen = teacher.denoiser.to(self.accelerator.device).requires_grad_(False)
        matched = partial(
            distillation_loss,
            steps=stage.steps,
            substeps=stage.substeps,
            weighting=WEIGHTINGS[self.recipe.distill.weighting],
        )

        def loss(network: nn.Module, batch: Batch) -> Tensor:
            given = condition(denoiser.network, batch["labels"])
            student = denoiser.with_network(network)
            return matched(student, frozen, batch["x"], batch["eps"], batch["u"], **given)

        lineage = (*teacher.lineage, stage.steps * stage.substeps)
        model = Model(denoiser, (stage.steps,), lineage, teacher.classes, self.images.name)
        return self._trained(student_name(stage.steps), number, model, loss, self.recipe.distill.plan(stage))

    def _trained(
        self, name: str, number: int, model: Model, loss: Callable[[nn.Module, Batch], Tensor], plan: Plan
    ) -> Model:
        """The model from its folder, or trained and put there."""
        place = self.folder.model(name)
        if place.exists():
            return self._on_device(model_folder.load(place))
        checkpoints = self.folder.checkpoints(name)
        latest = checkpoints.latest()
        first = latest.update if latest else 0
        self.folder.keep("metrics", lambda record: record["model"] != name or record["update"] <= first)
        batches = Batches(
            self.images, plan.batch, self.recipe.seed, number, self.recipe.data.flip, True, self.recipe.data.workers
        )
        every = max(1, plan.updates // 1000)

        def observe(progress: Progress) -> None:
            self.observer.progress(progress)
            if progress.update % every == 0:
                line = {key: value for key, value in asdict(progress).items() if key != "seconds"}
                self.folder.append("metrics", {"model": name, **line})

        self.observer.begin(name, plan.updates)
        try:
            network, seconds = train(
                model.denoiser.network.requires_grad_(True),
                loss,
                batches,
                plan,
                accelerator=self.accelerator,
                seed=self.recipe.seed + 7919 * number,
                checkpoints=checkpoints,
                observe=observe,
            )
        except NotFinite as error:
            raise NotFinite(f"{name}: {error}") from error
        finally:
            self.observer.end()
        training = {"updates": plan.updates, "batch": plan.batch, "seconds": round(seconds, 3)}
        denoiser = model.denoiser.with_network(network)
        model_folder.save(Model(denoiser, model.steps, model.lineage, model.classes, model.data, training), place)
        checkpoints.clear()
        return self._on_device(model_folder.load(place))

    def _on_device(self, model: Model) -> Model:
        model.denoiser.to(self.accelerator.device)
        return model

    def evaluate(self, name: str, model: Model, steps: int) -> None:
        """Measure a model at a step count, keep the record and a grid of its samples."""
        if any(record["model"] == name and record["steps"] == steps for record in self.folder.read("evaluations")):
            return
        wanted = self.recipe.evaluate
        started = time.perf_counter()
        images, labels = self.samples(model, steps)
        seconds = time.perf_counter() - started
        path = self.folder.reference()
        if not path.is_file():
            write_whole(path, to_bytes({"images": images}))
        reference = read_tensors(path)["images"]
        spaces = [
            quality(space, data, images, labels if model.classes else None, resamples=wanted.resamples)
            for space, data in self.spaces
        ]
        record = {
            "model": name,
            "steps": steps,
            "network_evaluations": steps,
            "seconds_per_image": seconds / len(images),
            "rmse": root_mean_square(images, reference),
            "training": dict(model.training),
            "quality": [asdict(result) for result in spaces],
        }
        write_grid(images[:GRID], self.folder.grid(name, steps))
        self.folder.append("evaluations", record)
        self.observer.evaluated(record)

    def samples(self, model: Model, steps: int) -> tuple[Tensor, Tensor]:
        """Images and labels of the run's own noise, the same for every model and step count; classes as in the data."""
        wanted = self.recipe.evaluate
        draw = generator(self.recipe.seed, EVALUATION_NOISE)
        noise = torch.randn(wanted.samples, *self.images.shape, generator=draw)
        labels = self.images.spread_labels(wanted.samples)
        images = sample_in_batches(
            model, noise, labels, steps, wanted.batch, precision=wanted.precision, clip=wanted.clip
        )
        return images, labels


def sample_in_batches(
    model: Model,
    noise: Tensor,
    labels: Tensor,
    steps: int,
    batch: int,
    *,
    precision: str = "float32",
    clip: bool = False,
    method: str = "ddim",
    draw: torch.Generator | None = None,
) -> Tensor:
    """Images (N, C, H, W) on the CPU from noise (N, C, H, W), labels (N,), and the noise of stochastic methods."""
    device = next(model.denoiser.parameters()).device
    images = []
    with autocast(device, precision):
        for part, classes in zip(noise.split(batch), labels.split(batch), strict=True):
            given = condition(model.denoiser.network, classes.to(device))
            made = sample(model.denoiser, part.to(device), steps, method=method, clip=clip, generator=draw, **given)
            images.append(made.float().cpu())
    return torch.cat(images)


def run(recipe: Recipe, out: Path, observer: Observer) -> list[Record]:
    """Carry out a recipe in a folder, or go on with it.

    Args:
        recipe: what to do.
        out: the run's folder; made if missing.
        observer: told of what happens.

    Returns:
        The evaluation records.

    Raises:
        UserError: anything the user can mend; what is written stays.
    """
    return Run(recipe, RunFolder(out), observer, Accelerator()).everything()
