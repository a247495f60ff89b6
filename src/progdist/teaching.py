"""Every network of a run trained: the teacher on the data, each student on its teacher.

A finished model is a folder, and one under way has checkpoints; both are found again and gone on with. A stage trains
for its number of updates, or, with a stopping rule, until its held-out distillation loss has converged.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from statistics import fmean
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from progdist import model_folder
from progdist._errors import UserError
from progdist.batches import Batches
from progdist.convergence import Convergence
from progdist.denoiser import Denoiser, Denoises
from progdist.distillation import Stage, distillation_loss
from progdist.images import Images
from progdist.matching import Clipped, Guided, match_by_band, matched_form, matching_loss, needs_matching
from progdist.model_folder import Model
from progdist.network import condition, unet
from progdist.objective import WEIGHTINGS, denoising_loss
from progdist.parameterization import PARAMETERIZATIONS
from progdist.recipe import Recipe, plan_of, student_name
from progdist.run_folder import Record, RunFolder
from progdist.teacher_folder import Teacher, read_teacher
from progdist.train import Batch, Loss, NotFinite, Plan, Progress, autocast, train

HELD_OUT_NOISE = 3_000_000
"""The stage number under which the noise of held-out losses is drawn, apart from all training."""


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


def untrained(recipe: Recipe, image: tuple[int, int, int], classes: tuple[str, ...], data: str) -> Model:
    """A recipe's teacher before its training, for images (C, H, W) of the named classes of the named data.

    Raises:
        UserError: classes are wanted and there are none, or the network does not fit the images.
    """
    assert recipe.network is not None  # a recipe without one takes its teacher
    parameterization = PARAMETERIZATIONS[recipe.parameterization]
    numbers = recipe.network.model_dump(exclude={"class_conditional"})
    classes = classes if recipe.network.class_conditional else ()
    if recipe.network.class_conditional and not classes:
        raise UserError(f"network.class_conditional is set, but {data} has no labels: set it to false")
    torch.manual_seed(recipe.seed)
    network = unet(image=image, classes=len(classes), heads=parameterization.heads, **numbers)
    denoiser = Denoiser(network, recipe.noise.build(), parameterization, timesteps=recipe.noise.timesteps)
    return Model(denoiser, classes=classes, data=data)


@dataclass(frozen=True)
class Teaching:
    """The trainings of one recipe in one folder on one accelerator."""

    recipe: Recipe
    images: Images
    folder: RunFolder
    observer: Observer
    accelerator: Accelerator

    @cached_property
    def given(self) -> Teacher | None:
        """The teacher to take, or None where one is trained."""
        told = self.recipe.teacher
        return read_teacher(told.model, told.offset) if told.model else None

    def untrained(self) -> Model:
        """The teacher before its training, or as it was given."""
        return (
            self.given.model
            if self.given
            else untrained(self.recipe, self.images.shape, self.images.classes, self.images.name)
        )

    def teacher(self) -> Model:
        """The trained teacher, or the given one in a form that can be halved."""
        if self.given:
            return self._taken(self.given)
        model = self.untrained()
        denoiser, weighting = model.denoiser, WEIGHTINGS[self.recipe.teacher.weighting]

        def loss(network: nn.Module, batch: Batch) -> Tensor:
            given = condition(denoiser.network, batch["labels"])
            student = denoiser.with_network(network)
            return denoising_loss(student, batch["x"], batch["eps"], batch["u"], weighting=weighting, **given)

        return self._trained("teacher", 0, model, loss, plan_of(self.recipe.teacher))

    def _taken(self, given: Teacher) -> Model:
        """The given teacher as it is, or its student of stage 0."""
        place, match = self.folder.model("teacher"), self.recipe.match
        model = replace(given.model, data=self.images.name)
        if not place.exists() and match.guidance is None and not needs_matching(model.denoiser):
            model_folder.save(replace(model, training={"updates": 0, "batch": 0, "seconds": 0.0}), place)
        if place.exists():
            return self._on_device(model_folder.load(place))
        frozen = self.reference(given)
        denoiser = matched_form(model.denoiser.with_network(copy.deepcopy(model.denoiser.network)))
        weighting = WEIGHTINGS[match.weighting]

        def loss(network: nn.Module, batch: Batch) -> Tensor:
            labels = condition(denoiser.network, batch["labels"])
            student = denoiser.with_network(network)
            return matching_loss(student, frozen, batch["x"], batch["eps"], batch["u"], weighting=weighting, **labels)

        matched = self._trained("teacher", 0, replace(model, denoiser=denoiser), loss, plan_of(match))
        self._report_match(matched, frozen)
        return matched

    def _report_match(self, matched: Model, frozen: Denoises) -> None:
        """How near stage 0 came to the given teacher, in each band of the log-SNR."""
        size, device = min(512, len(self.images)), self.accelerator.device
        batch = next(self._batches(self.images, size, HELD_OUT_NOISE)(0, 1, slice(size)))
        labels = condition(matched.denoiser.network, batch["labels"].to(device))
        x, eps = batch["x"].to(device), batch["eps"].to(device)
        bands = match_by_band(matched.denoiser, frozen, x, eps, batch["u"], **labels)
        self.folder.append("metrics", {"model": "teacher", "update": matched.training["updates"], "match": bands})
        told = ", ".join(f"{difference:.3f} at {band}" for band, difference in bands.items())
        self.observer.note(f"stage 0 differs from the given teacher by (RMS, log-SNR): {told}")

    def reference(self, given: Teacher) -> Denoises:
        """The given teacher's predictions as its student shall learn them: guided, and clipped if its sampler clips."""
        match, model = self.recipe.match, given.model
        frozen: Denoises = model.denoiser.to(self.accelerator.device).requires_grad_(False)
        if match.guidance is not None:
            null_class = match.null_class if match.null_class is not None else len(model.classes) - 1
            if not 0 <= null_class < len(model.classes):
                raise UserError(f"guidance needs a class that stands for none: {null_class} is not one of the model's")
            frozen = Guided(model.denoiser, match.guidance, null_class)
        return Clipped(frozen) if given.clip else frozen

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

    def _trained(self, name: str, number: int, model: Model, loss: Loss, plan: Plan) -> Model:
        """The model from its folder, or trained and put there."""
        place = self.folder.model(name)
        if place.exists():
            return self._on_device(model_folder.load(place))
        checkpoints = self.folder.checkpoints(name)
        latest = checkpoints.latest()
        first = latest.update if latest else 0
        self.folder.keep("metrics", lambda record: record["model"] != name or record["update"] <= first)
        batches = self._batches(self.images if number == 0 else self.held_out[0], plan.batch, number)
        every = max(1, plan.updates // 1000)

        def observe(progress: Progress) -> None:
            self.observer.progress(progress)
            if progress.update % every == 0:
                line = {key: value for key, value in asdict(progress).items() if key != "seconds"}
                self.folder.append("metrics", {"model": name, **line})

        self.observer.begin(name, plan.updates)
        try:
            network, updates, seconds = train(
                model.denoiser.network.requires_grad_(True),
                loss,
                batches,
                plan,
                accelerator=self.accelerator,
                seed=self.recipe.seed + 7919 * number,
                checkpoints=checkpoints,
                observe=observe,
                stop=self._stopping(name, number, loss, plan),
            )
        except NotFinite as error:
            raise NotFinite(f"{name}: {error}") from error
        finally:
            self.observer.end()
        training = {"updates": updates, "batch": plan.batch, "seconds": round(seconds, 3)}
        denoiser = model.denoiser.with_network(network)
        model_folder.save(Model(denoiser, model.steps, model.lineage, model.classes, model.data, training), place)
        checkpoints.clear()
        return self._on_device(model_folder.load(place))

    def _batches(self, images: Images, size: int, number: int) -> Batches:
        data = self.recipe.data
        return Batches(images, size, self.recipe.seed, number, data.flip, True, data.workers)

    @cached_property
    def held_out(self) -> tuple[Images, Images | None]:
        """The images that students train on, and those that the stopping rule measures on (None without a rule)."""
        rule = self.recipe.distill.stop
        return self.images.split(rule.held_out, self.recipe.seed) if rule else (self.images, None)

    def _stopping(self, name: str, number: int, loss: Loss, plan: Plan) -> Callable[[nn.Module, int], bool]:
        """Whether to stop after an update; every measurement and the decision go to the metrics."""
        rule, held = self.recipe.distill.stop, self.held_out[1]
        if number == 0 or rule is None or held is None:
            return lambda network, update: False
        convergence = Convergence(rule.every, rule.window, rule.fraction)
        size = min(plan.batch, len(held))
        same = list(self._batches(held, size, HELD_OUT_NOISE + number)(0, len(held) // size, slice(size)))
        told = (record for record in self.folder.read("metrics") if record["model"] == name)
        losses = [record["held_out_loss"] for record in told if "held_out_loss" in record]

        def stop(network: nn.Module, update: int) -> bool:
            if update % rule.every:
                return False
            losses.append(self._mean_loss(network, loss, same, plan))
            record: Record = {"model": name, "update": update, "held_out_loss": losses[-1]}
            converged = convergence.reached(losses)
            if averages := convergence.averages(losses):
                record |= {"average_before": averages[0], "average": averages[1]}
            if converged or update + rule.every > plan.updates:
                record["decision"] = "converged" if converged else "cap"
                said = (
                    f"converged after {update} updates" if converged else f"the cap of {plan.updates} updates ends it"
                )
                self.observer.note(f"{name}: {said}")
            self.folder.append("metrics", record)
            return converged

        return stop

    @torch.no_grad()
    def _mean_loss(self, network: nn.Module, loss: Loss, batches: Iterable[Batch], plan: Plan) -> float:
        """The mean loss over batches of equal size."""
        device = self.accelerator.device
        means = []
        for batch in batches:
            placed = {key: value if key == "u" else value.to(device) for key, value in batch.items()}
            with autocast(device, plan.precision):
                means.append(float(loss(network, placed).float().mean()))
        return fmean(means)

    def _on_device(self, model: Model) -> Model:
        model.denoiser.to(self.accelerator.device)
        return model
