"""Training of one stage, resumed from its checkpoint.

A finished stage is a model folder, an unfinished one has checkpoints; both are picked up again. A stage trains
for its number of updates, or, with a stopping rule, until its held-out distillation loss has converged.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from statistics import fmean

import torch
from torch import Tensor, nn

from progdist._utils.precision import autocast, resolve
from progdist._utils.random import HELD_OUT_NOISE, stage_seed
from progdist.data.images import Images
from progdist.models.io import folder as model_folder
from progdist.models.model import Model
from progdist.models.unet import condition
from progdist.recipes.recipe import Recipe
from progdist.runs.folder import Record, RunFolder
from progdist.training.batches import Batches
from progdist.training.callbacks import Callback, Progress
from progdist.training.config import TrainConfig
from progdist.training.distributed import Distributed
from progdist.training.early_stopping import EarlyStopping
from progdist.training.loop import Batch, Loss, NotFinite, train
from progdist.training.lora import add_lora, merge_lora

Objective = Callable[..., Tensor]
"""(student, x=, eps=, u=, **condition) -> one loss per example, (B,)."""


@dataclass(frozen=True)
class StageTrainer:
    """Trains the networks of one recipe in one folder."""

    recipe: Recipe
    images: Images
    folder: RunFolder
    callback: Callback
    distributed: Distributed

    def fit(self, name: str, number: int, model: Model, objective: Objective, config: TrainConfig) -> Model:
        """The model from its folder, or trained and put there.

        Args:
            name: of the model, its folder and its records.
            number: its place in the run, 0 for the teacher; the randomness is a function of it.
            model: where it starts.
            objective: what it is trained on.
            config: how.

        Raises:
            NotFinite: names the model, the update and the last good checkpoint.
        """
        model_folder_path = self.folder.model(name)
        if self.distributed.on_main_process(model_folder_path.exists):
            return self.on_device(model_folder.load(model_folder_path))

        def loss(network: nn.Module, batch: Batch) -> Tensor:
            condition_kwargs = condition(model.denoiser.network, batch["labels"])
            student = model.denoiser.with_network(network)
            return objective(student, x=batch["x"], eps=batch["eps"], u=batch["u"], **condition_kwargs)

        checkpoints = self.folder.checkpoints(name)
        latest = checkpoints.latest(self.callback.note)
        first = latest.update if latest else 0
        self.folder.keep("metrics", lambda record: record["model"] != name or record["update"] <= first)
        batches = self.batches(self.images if number == 0 else self.held_out[0], config.batch, number)
        every = max(1, config.updates // 1000)

        def observe(progress: Progress) -> None:
            self.callback.progress(progress)
            if not progress.finite:
                self.folder.append("metrics", {"model": name, "update": progress.update, "skipped": progress.skipped})
            elif progress.update % every == 0:
                line = {key: value for key, value in asdict(progress).items() if key not in ("seconds", "skipped")}
                self.folder.append("metrics", {"model": name, **line})

        seed, network = stage_seed(self.recipe.seed, number), model.denoiser.network
        low_rank = add_lora(network, config.lora_rank, seed) if config.lora_rank else None
        self.callback.begin(name, config.updates)
        try:
            network, updates, seconds = train(
                low_rank or network.requires_grad_(True),
                loss,
                batches,
                config,
                accelerator=self.distributed.accelerator,
                seed=seed,
                checkpoints=checkpoints,
                observe=observe,
                stop=self._stopping(name, number, loss, config),
                sharded=self.distributed.shards,
            )
        except NotFinite as error:
            raise NotFinite(f"{name}: {error}") from error
        finally:
            self.callback.end()
        network = merge_lora(network) if low_rank else network
        precision = resolve(config.precision, self.distributed.device)
        training = {"updates": updates, "batch": config.batch, "seconds": round(seconds, 3), "precision": precision}
        done = replace(model, denoiser=model.denoiser.with_network(network), training=training)
        self.distributed.on_main_process(lambda: model_folder.save(done, model_folder_path))
        checkpoints.clear()
        return self.on_device(model_folder.load(model_folder_path))

    def batches(self, images: Images, size: int, number: int) -> Batches:
        """The batches of one place in the run."""
        data = self.recipe.data
        return Batches(images, size, self.recipe.seed, number, data.flip, True, data.workers)

    @cached_property
    def held_out(self) -> tuple[Images, Images | None]:
        """The images that students train on, and those that the stopping rule measures on (None without a rule)."""
        rule = self.recipe.distill.stop
        return self.images.split(rule.held_out, self.recipe.seed) if rule else (self.images, None)

    def _stopping(self, name: str, number: int, loss: Loss, config: TrainConfig) -> Callable[[nn.Module, int], bool]:
        """Whether to stop after an update; every measurement and the decision go to the metrics."""
        rule, held = self.recipe.distill.stop, self.held_out[1]
        if number == 0 or rule is None or held is None:
            return lambda network, update: False
        convergence = EarlyStopping(rule.every, rule.window, rule.fraction)
        size = min(config.batch, len(held))
        same = list(self.batches(held, size, HELD_OUT_NOISE + number)(0, len(held) // size, slice(size)))
        records = (record for record in self.folder.read("metrics") if record["model"] == name)
        losses = [record["held_out_loss"] for record in records if "held_out_loss" in record]

        def stop(network: nn.Module, update: int) -> bool:
            return update % rule.every == 0 and measured(network, update)

        def measured(network: nn.Module, update: int) -> bool:
            losses.append(self._mean_loss(network, loss, same, config))
            record: Record = {"model": name, "update": update, "held_out_loss": losses[-1]}
            converged = convergence.reached(losses)
            if averages := convergence.averages(losses):
                record |= {"average_before": averages[0], "average": averages[1]}
            if converged or update + rule.every > config.updates:
                record["decision"] = "converged" if converged else "cap"
                said = (
                    f"converged after {update} updates" if converged else f"the cap of {config.updates} updates ends it"
                )
                self.callback.note(f"{name}: {said}")
            self.folder.append("metrics", record)
            return self.distributed.on_main_process(lambda: converged)

        return stop

    @torch.no_grad()
    def _mean_loss(self, network: nn.Module, loss: Loss, batches: Iterable[Batch], config: TrainConfig) -> float:
        """The mean loss over batches of equal size."""
        device = self.distributed.device
        means = []
        for batch in batches:
            placed = {key: value if key == "u" else value.to(device) for key, value in batch.items()}
            with autocast(device, config.precision):
                means.append(float(loss(network, placed).float().mean()))
        return fmean(means)

    def on_device(self, model: Model) -> Model:
        """The model, moved to the accelerator."""
        return model.to(self.distributed.device)
