"""Training of one stage, resumed from its checkpoint.

A finished stage is a model folder, an unfinished one has checkpoints; both are picked up again. A stage trains
for its number of updates, or, with a stopping rule, until its held-out distillation loss has converged.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn

from progdist._utils.random import HELD_OUT_NOISE, position_seed
from progdist.compute.placement import at_work
from progdist.compute.precision import autocast, resolve
from progdist.data.images import Images
from progdist.models.model import Model
from progdist.models.unet import Conditions
from progdist.recipes.recipe import Recipe
from progdist.runs.folder import Record, RunFolder
from progdist.runs.stages import RunConditions, TrainingStage
from progdist.students import folder as model_folder
from progdist.training.batches import Batches
from progdist.training.callbacks import Callback, Progress
from progdist.training.config import TrainConfig
from progdist.training.distributed import Distributed
from progdist.training.early_stopping import EarlyStopping
from progdist.training.loop import Batch, Loss, on_device, train
from progdist.training.lora import adapter_weights, add_lora, load_adapter, merge_lora
from progdist.training.records import NotFinite
from progdist.training.state import copy_for_average


@dataclass(frozen=True)
class StageTrainer:
    """Trains the networks of one recipe in one folder.

    Attributes:
        recipe: of the run.
        images: what the networks see: the data, or their latents.
        folder: where models, checkpoints and records go.
        callback: told of everything that happens.
        distributed: the processes.
        conditions: what the networks are told of each example.
    """

    recipe: Recipe
    images: Images
    folder: RunFolder
    callback: Callback
    distributed: Distributed
    conditions: RunConditions

    def fit(self, stage: TrainingStage) -> Model:
        """The stage's model from its folder, or trained and put there.

        Raises:
            NotFinite: names the model, the update and the last good checkpoint.
        """
        path, config, model = self.folder.model(stage.name), stage.config, stage.model
        if self.distributed.on_main_process(path.exists):
            return self._load(path)
        checkpoints = self.folder.checkpoints(stage.name)
        latest = checkpoints.latest(self.callback.note)
        first = latest.update if latest else 0
        self.folder.keep("metrics", lambda record: record["model"] != stage.name or record["update"] <= first)
        images = self.images if stage.number == 0 else self.held_out[0]
        seed, network = position_seed(self.recipe.seed, stage.number), model.denoiser.network
        low_rank = add_lora(network, config.lora_rank, seed) if config.lora_rank else None
        if low_rank is not None and model.lora and model.lora.weights:
            load_adapter(low_rank, model.lora.weights)
        average = copy_for_average(low_rank or network).eval() if stage.self_taught and config.ema else None
        loss = _loss_of_batch(stage, self.conditions(model), average)
        self.callback.begin(stage.name, config.updates)
        try:
            with self._teacher_at_work(stage):
                network, updates, seconds = train(
                    low_rank or network,
                    loss,
                    self.batches(images, config.batch, stage.number),
                    config,
                    accelerator=self.distributed.accelerator,
                    seed=seed,
                    checkpoints=checkpoints,
                    observe=self._observer(stage),
                    stop=self._stopping(stage, loss),
                    sharded=self.distributed.shards,
                    average=average,
                )
        except NotFinite as error:
            section = self.recipe.section_of(stage.name)
            raise NotFinite(
                f"{stage.name}: {error} (--set {section}.learning_rate=... or {section}.precision=float32), and run "
                "again to continue"
            ) from error
        finally:
            self.callback.end()
        lora = replace(model.lora, weights=adapter_weights(network)) if model.lora else None
        network = merge_lora(network.cpu()) if low_rank else network.cpu()
        precision = resolve(config.precision, self.distributed.device)
        training = {"updates": updates, "batch": config.batch, "seconds": round(seconds, 3), "precision": precision}
        trained = replace(model, denoiser=model.denoiser.with_network(network), training=training, lora=lora)
        self.distributed.on_main_process(lambda: model_folder.save(trained, path))
        checkpoints.clear()
        return self._load(path)

    @contextmanager
    def _teacher_at_work(self, stage: TrainingStage) -> Iterator[None]:
        """What is frozen on the device meanwhile, in the precision in which the stage computes.

        It is the network that the loss asks, and the one that a low-rank student shares its weights with.
        """
        shared = stage.model.denoiser.network if stage.config.lora_rank else None
        with ExitStack() as stack:
            for network in (stage.frozen, shared):
                if network is not None:
                    stack.enter_context(at_work(network, self.distributed.device, stage.config.precision))
            yield

    def keep(self, name: str, model: Model) -> Model:
        """The model from its folder, or put there as it is: it needs no training."""
        path = self.folder.model(name)
        if not self.distributed.on_main_process(path.exists):
            untouched = replace(model, training={"updates": 0, "batch": 0, "seconds": 0.0})
            self.distributed.on_main_process(lambda: model_folder.save(untouched, path))
        return self._load(path)

    def _observer(self, stage: TrainingStage) -> Callable[[Progress], None]:
        """What is called about a thousand times in a stage: tells the callback, and keeps the records."""
        every = max(1, stage.config.updates // 1000)

        def observe(progress: Progress) -> None:
            self.callback.progress(progress)
            record: Record = {"model": stage.name, "update": progress.update}
            if not progress.finite:
                self.folder.append("metrics", record | {"skipped": progress.skipped})
            elif progress.update % every == 0:
                numbers = {key: value for key, value in asdict(progress).items() if key not in ("seconds", "skipped")}
                skipped = {"skipped": progress.skipped} if progress.skipped else {}
                self.folder.append("metrics", record | numbers | skipped)

        return observe

    def batches(self, images: Images, size: int, number: int) -> Batches:
        """The batches of one place in the run."""
        data = self.recipe.data
        return Batches(images, size, self.recipe.seed, number, data.flip, True, data.workers, self.conditions.guidance)

    @cached_property
    def held_out(self) -> tuple[Images, Images | None]:
        """The images that students train on, and those that the stopping rule measures on (None without a rule)."""
        rule = self.recipe.distill.stop
        return self.images.split(rule.held_out, self.recipe.seed) if rule else (self.images, None)

    def _stopping(self, stage: TrainingStage, loss: Loss) -> Callable[[nn.Module, int], bool]:
        """Whether to stop after an update; every measurement and the decision go to the metrics."""
        name, number, config = stage.name, stage.number, stage.config
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
            with autocast(device, config.precision):
                means.append(float(loss(network, on_device(batch, device)).float().mean()))
        return fmean(means)

    def _load(self, path: Path) -> Model:
        """A finished model, at rest."""
        return model_folder.load(path)


def _loss_of_batch(stage: TrainingStage, conditions: Conditions, average: nn.Module | None) -> Loss:
    """The stage's loss as a function of the network in training and a batch; the average teaches, if there is one."""
    denoiser = stage.model.denoiser

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        student = denoiser.with_network(network)
        itself = {"self_teacher": denoiser.with_network(average or network)} if stage.self_taught else {}
        return stage.loss(student, x=batch["x"], eps=batch["eps"], u=batch["u"], **itself, **conditions(batch))

    return loss
