"""One network of a run trained, from where its last session left it.

A finished model is a folder, and one under way has checkpoints; both are found again and gone on with. A stage trains
for its number of updates, or, with a stopping rule, until its held-out distillation loss has converged.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Protocol

import torch
from torch import Tensor, nn

from progdist import model_folder
from progdist.adapters import low_rank_student, merged
from progdist.batches import Batches
from progdist.convergence import Convergence
from progdist.images import Images
from progdist.model import Model
from progdist.network import condition
from progdist.plan import Plan, Progress
from progdist.precision import autocast, resolve
from progdist.recipe import Recipe
from progdist.run_folder import Record, RunFolder
from progdist.team import Team
from progdist.train import Batch, Loss, NotFinite, train

HELD_OUT_NOISE = 3_000_000
"""The stage number under which the noise of held-out losses is drawn, apart from all training."""

Objective = Callable[..., Tensor]
"""(student, x=, eps=, u=, **condition) -> one loss per example, (B,)."""


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
class Lessons:
    """Trains the networks of one recipe in one folder with one team."""

    recipe: Recipe
    images: Images
    folder: RunFolder
    observer: Observer
    team: Team

    def learn(self, name: str, number: int, model: Model, objective: Objective, plan: Plan) -> Model:
        """The model from its folder, or trained and put there.

        Args:
            name: of the model, its folder and its records.
            number: its place in the run, 0 for the teacher; the randomness is a function of it.
            model: where it starts.
            objective: what it is trained on.
            plan: how.

        Raises:
            NotFinite: names the model, the update and the last good checkpoint.
        """
        place = self.folder.model(name)
        if self.team.decided(place.exists):
            return self.on_device(model_folder.load(place))

        def loss(network: nn.Module, batch: Batch) -> Tensor:
            given = condition(model.denoiser.network, batch["labels"])
            student = model.denoiser.with_network(network)
            return objective(student, x=batch["x"], eps=batch["eps"], u=batch["u"], **given)

        checkpoints = self.folder.checkpoints(name)
        latest = checkpoints.latest(self.observer.note)
        first = latest.update if latest else 0
        self.folder.keep("metrics", lambda record: record["model"] != name or record["update"] <= first)
        batches = self.batches(self.images if number == 0 else self.held_out[0], plan.batch, number)
        every = max(1, plan.updates // 1000)

        def observe(progress: Progress) -> None:
            self.observer.progress(progress)
            if not progress.finite:
                self.folder.append("metrics", {"model": name, "update": progress.update, "skipped": progress.skipped})
            elif progress.update % every == 0:
                line = {key: value for key, value in asdict(progress).items() if key not in ("seconds", "skipped")}
                self.folder.append("metrics", {"model": name, **line})

        seed, network = self.recipe.seed + 7919 * number, model.denoiser.network
        low_rank = low_rank_student(network, plan.lora_rank, seed) if plan.lora_rank else None
        self.observer.begin(name, plan.updates)
        try:
            network, updates, seconds = train(
                low_rank or network.requires_grad_(True),
                loss,
                batches,
                plan,
                accelerator=self.team.accelerator,
                seed=seed,
                checkpoints=checkpoints,
                observe=observe,
                stop=self._stopping(name, number, loss, plan),
                sharded=self.team.shards,
            )
        except NotFinite as error:
            raise NotFinite(f"{name}: {error}") from error
        finally:
            self.observer.end()
        network = merged(network) if low_rank else network
        precision = resolve(plan.precision, self.team.device)
        training = {"updates": updates, "batch": plan.batch, "seconds": round(seconds, 3), "precision": precision}
        done = replace(model, denoiser=model.denoiser.with_network(network), training=training)
        self.team.decided(lambda: model_folder.save(done, place))
        checkpoints.clear()
        return self.on_device(model_folder.load(place))

    def batches(self, images: Images, size: int, number: int) -> Batches:
        """The batches of one place in the run."""
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
        same = list(self.batches(held, size, HELD_OUT_NOISE + number)(0, len(held) // size, slice(size)))
        told = (record for record in self.folder.read("metrics") if record["model"] == name)
        losses = [record["held_out_loss"] for record in told if "held_out_loss" in record]

        def stop(network: nn.Module, update: int) -> bool:
            return update % rule.every == 0 and measured(network, update)

        def measured(network: nn.Module, update: int) -> bool:
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
            return self.team.decided(lambda: converged)

        return stop

    @torch.no_grad()
    def _mean_loss(self, network: nn.Module, loss: Loss, batches: Iterable[Batch], plan: Plan) -> float:
        """The mean loss over batches of equal size."""
        device = self.team.device
        means = []
        for batch in batches:
            placed = {key: value if key == "u" else value.to(device) for key, value in batch.items()}
            with autocast(device, plan.precision):
                means.append(float(loss(network, placed).float().mean()))
        return fmean(means)

    def on_device(self, model: Model) -> Model:
        """The model, moved to the accelerator."""
        return model.to(self.team.device)
