"""What a recipe builds, observed without training."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pytest
import torch

from progdist import Denoiser, UserError
from progdist.distillation import Trainer, stage_training
from progdist.methods.guidance import Input
from progdist.models.guidance_input import with_class_guidance
from progdist.models.model import Model
from progdist.recipes.recipe import Recipe
from progdist.recipes.schema import Network
from progdist.runs.checks import open_images
from progdist.runs.context import RunContext
from progdist.runs.evaluator import Evaluator, open_metrics
from progdist.runs.folder import RunFolder
from progdist.runs.run import Run, untrained
from progdist.runs.tracking import tracked
from progdist.teachers.open import Teacher
from progdist.training.config import TrainConfig
from progdist.training.distributed import Distributed
from support.commands import SilentCallback

Observe = Callable[[Recipe], Any]


def make_run(recipe: Recipe, folder: Path = Path("/nowhere")) -> Run:
    images = open_images(recipe.data, recipe.seed)
    return Run(RunContext(recipe, images, None, RunFolder(folder), SilentCallback(), Distributed()))


def tracking_of(recipe: Recipe) -> Any:  # noqa: ANN401
    return type(tracked(recipe, RunFolder(Path("/nowhere")), SilentCallback()))


def untrained_of(recipe: Recipe) -> Model:
    images = open_images(recipe.data, recipe.seed)
    return untrained(recipe, images.shape, images.classes, images.name)


def network_of(recipe: Recipe) -> Any:  # noqa: ANN401
    network = untrained_of(recipe).denoiser.network
    config = {key: value for key, value in dict(network.config).items() if not key.startswith("_")}  # pyright: ignore
    return config, {key: tuple(value.shape) for key, value in network.state_dict().items()}


def weights_of(recipe: Recipe) -> Any:  # noqa: ANN401
    return [p.sum().item() for p in untrained_of(recipe).denoiser.network.parameters()]


def schedule_of(recipe: Recipe) -> Any:  # noqa: ANN401
    denoiser = untrained_of(recipe).denoiser
    return denoiser.schedule, denoiser.num_train_timesteps


def images_of(recipe: Recipe) -> Any:  # noqa: ANN401
    images = open_images(recipe.data, recipe.seed)
    return images.name, images.shape, images[3][0].flatten()[:40].tolist()


def batches_of(recipe: Recipe) -> Any:  # noqa: ANN401
    """What `train` is given, without training."""
    arguments: dict[str, Any] = {}

    def spy(network: object, loss: object, batches: Any, config: TrainConfig, *_: object, **__: object) -> None:  # noqa: ANN401
        arguments.update(flip=batches.flip, workers=batches.workers, size=batches.size, config=config)
        raise UserError("seen")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("progdist.distillation.train", spy)
        with TemporaryDirectory() as folder, pytest.raises(UserError, match="seen"):
            run = make_run(recipe, Path(folder))
            run.train_teacher(run.trainer())
    return arguments


def losses_of(recipe: Recipe) -> Any:  # noqa: ANN401
    """The losses of one batch of the teacher's training and of the first stage."""
    losses = []

    def spy(network: Any, loss: Any, batches: Any, config: TrainConfig, *_: object, **__: object) -> None:  # noqa: ANN401
        losses.append(loss(network, next(batches(0, 1, slice(0, 8)))).tolist())
        raise UserError("seen")

    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        patch.setattr("progdist.distillation.train", spy)
        run = make_run(recipe, Path(folder))
        with pytest.raises(UserError, match="seen"):
            run.train_teacher(run.trainer())
        model = untrained_of(recipe)
        torch.manual_seed(0)
        torch.nn.init.normal_(model.denoiser.network.conv_out.weight)  # pyright: ignore
        with pytest.raises(UserError, match="seen"):
            run.trainer().fit(stage_training(run.context.plan, 1, model, run.context.teacher))
    return losses


def teacher_config_of(recipe: Recipe) -> Any:  # noqa: ANN401
    return recipe.teacher.overridden()


def stages_of(recipe: Recipe) -> Any:  # noqa: ANN401
    return [(link, recipe.distill.train_config(link)) for link in recipe.distill.links()]


def sampling_of(recipe: Recipe) -> Any:  # noqa: ANN401
    """How the evaluation samples: how many, and the arguments of sample_in_batches and quality."""
    calls: list[Any] = []

    def spy(model: object, noise: torch.Tensor, *rest: object, **options: object) -> torch.Tensor:
        options.pop("generator")  # a generator equals itself alone
        options.pop("conditions")  # and so does the network that they are of
        network = type(cast(Denoiser, options.pop("denoiser")).network)
        calls.append((tuple(noise.shape), rest[1:], network, options))
        return noise

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("progdist.runs.evaluator.sample_in_batches", spy)
        make_run(recipe).evaluator.samples(untrained_of(recipe), 4)
    return calls


def evaluated_scale_of(recipe: Recipe) -> Any:  # noqa: ANN401
    """The guidance scale at which a run measures students that take one from 1 to 8."""
    model = untrained_of(
        recipe.model_copy(update={"network": Network(width=8, multipliers=(1,), groups=4, class_conditional=True)})
    )
    network = with_class_guidance(model.denoiser.network, Input(1.0, 8.0))
    given = Teacher(replace(model, denoiser=model.denoiser.with_network(network)), ())
    context = replace(make_run(recipe).context, opened=given)
    return context.conditions(given.model)({"labels": torch.zeros(2, dtype=torch.int64)})["guidance"].tolist()


def feature_spaces_of(recipe: Recipe) -> Any:  # noqa: ANN401
    return [space.name for space in open_metrics(recipe, open_images(recipe.data, recipe.seed)).spaces]


def qualities_of(recipe: Recipe) -> Any:  # noqa: ANN401
    """What is measured of an untrained model."""
    with TemporaryDirectory() as folder:
        return make_run(recipe, Path(folder)).evaluator.qualities(untrained_of(recipe), 2)


def mistake_of(recipe: Recipe) -> str:
    """What is said against what a recipe measures with."""
    try:
        open_metrics(recipe, open_images(recipe.data, recipe.seed))
    except UserError as error:
        return str(error)
    return ""


def evaluations_of(recipe: Recipe) -> Any:  # noqa: ANN401
    """Which models are measured, and with how many resamples, in a run whose training does nothing."""
    calls: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "train_teacher", lambda self, trainer: untrained_of(recipe))
        patch.setattr("progdist.distillation.stage_training", lambda plan, number, teacher, own: teacher)
        patch.setattr(Trainer, "fit", lambda self, teacher: teacher)
        patch.setattr(
            Evaluator, "evaluate",
            lambda self, name, model, steps, *rest: calls.append((name, steps, self.context.recipe.evaluate.resamples)),
        )  # fmt: skip
        patch.setattr(RunFolder, "claim", lambda *arguments: None)
        patch.setattr(Run, "_write_page", lambda self: None)
        with TemporaryDirectory() as folder:
            make_run(recipe, Path(folder)).run()
    return calls


def held_out_losses_of(recipe: Recipe) -> Any:  # noqa: ANN401
    """The held-out measurements of one stage."""
    with TemporaryDirectory() as folder:
        run = make_run(recipe, Path(folder))
        model = untrained_of(recipe)
        torch.nn.init.normal_(model.denoiser.network.conv_out.weight, generator=torch.Generator().manual_seed(0))  # pyright: ignore
        run.trainer().fit(stage_training(run.context.plan, 1, model, run.context.teacher))
        return [record for record in run.folder.read("metrics") if "held_out_loss" in record]


def message_of(recipe: Recipe) -> str:
    try:
        return make_run(recipe).context.images.name
    except UserError as error:
        return str(error)
