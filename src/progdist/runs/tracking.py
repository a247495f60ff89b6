"""Experiment tracking: what a run's callback hears, handed to TensorBoard or Weights & Biases by accelerate's trackers.

    train/NAME/loss, gradient_norm, learning_rate       of the model NAME in training, over the updates of the chain
    evaluation/MODEL/frechet_SPACE, rmse, steps         of teacher or student, in TensorBoard over the sampling steps
    samples/MODEL                                       the grids of the evaluations, likewise

A run that goes on continues the record under the same identity, `tracking/` in its folder. Nothing is tracked, and
nothing leaves the machine, unless the recipe says `tracking: tensorboard` or `tracking: wandb`.
"""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker
from accelerate.utils import is_tensorboard_available, is_wandb_available
from PIL import Image

from progdist._utils.errors import UserError
from progdist.recipes.recipe import Recipe, student_name
from progdist.recipes.training import train_config
from progdist.runs.folder import Record, RunFolder
from progdist.training.callbacks import Callback, Progress


@dataclass
class TrackedCallback:
    """A callback that also hands what it hears to a tracker.

    Attributes:
        callback: the one that shows it.
        folder: of the run.
        open_tracker: opens accelerate's, once the folder is this run's own.
        updates: of every model, by its name, as a range of those of the whole chain.
        model: the one in training.
    """

    callback: Callback
    folder: RunFolder
    open_tracker: Callable[[], GeneralTracker]
    updates: Mapping[str, range]
    model: str = field(default="teacher", init=False)

    @cached_property
    def tracker(self) -> GeneralTracker:
        """The tracker, opened when there is something to track."""
        tracker = self.open_tracker()
        tracker.start()
        return tracker

    def begin(self, title: str, updates: int) -> None:
        """The training of a network starts or resumes."""
        self.model = title
        self.callback.begin(title, updates)

    def progress(self, progress: Progress) -> None:
        """Updates were made."""
        if progress.finite:
            names = ("loss", "gradient_norm", "learning_rate")
            values = {f"train/{self.model}/{name}": getattr(progress, name) for name in names}
            self.tracker.log(values, step=self.updates[self.model].start + progress.update)
        self.callback.progress(progress)

    def end(self) -> None:
        """The training of that network ended."""
        self.callback.end()

    def evaluated(self, record: Record) -> None:
        """A model was measured at a step count."""
        model, steps = record["model"], record["steps"]
        values = {f"evaluation/{model}/frechet_{each['features']}": each["frechet"] for each in record["quality"]}
        values |= {f"evaluation/{model}/rmse": record["rmse"], f"evaluation/{model}/steps": steps}
        with Image.open(self.folder.grid(model, steps)) as image:
            pixels = np.asarray(image.convert("RGB"))[None]
        if isinstance(self.tracker, TensorBoardTracker):
            step, options = steps, {"dataformats": "NHWC"}
        else:
            step, options = self.updates.get(student_name(steps), self.updates["teacher"]).stop, {}
        self.tracker.log(values, step=step)
        cast(Any, self.tracker).log_images({f"samples/{model}": pixels}, step=step, **options)
        self.callback.evaluated(record)

    def note(self, text: str) -> None:
        """A message for the user."""
        self.callback.note(text)


def tracked(recipe: Recipe, folder: RunFolder, callback: Callback) -> Callback:
    """The callback itself, or one that also tracks; only in the first process of a run.

    Raises:
        UserError: the tracker is not installed.
    """
    if recipe.tracking is None or not folder.writes:
        return callback
    available = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}[recipe.tracking]
    if not available():
        raise UserError(
            f"tracking: {recipe.tracking} needs the extra `{recipe.tracking}`: pip install "
            f"'progdist[{recipe.tracking}]', or leave tracking"
        )
    return TrackedCallback(callback, folder, partial(_tracker, recipe, folder.tracking()), updates_of(recipe))


def _tracker(recipe: Recipe, folder: Path) -> GeneralTracker:
    """A tracker that goes on with what is in the folder."""
    if recipe.tracking == "tensorboard":
        return TensorBoardTracker(recipe.name, logging_dir=folder)
    identity = folder / "run_id"
    settings: dict[str, Any] = {"name": recipe.name, "dir": str(folder), "config": recipe.model_dump(mode="json")}
    folder.mkdir(parents=True, exist_ok=True)
    if not identity.is_file():
        identity.write_text(secrets.token_hex(4))
    return WandBTracker("progdist", id=identity.read_text(), resume="allow", **settings)


def updates_of(recipe: Recipe) -> dict[str, range]:
    """The updates of every model, counted through the whole chain; at most, where stages may end early."""
    first = recipe.teacher if recipe.teacher.model is None else recipe.conversion
    updates = {"teacher": range(train_config(first).updates)}
    done = updates["teacher"].stop
    for stage in recipe.distill.links():
        updates[student_name(stage.steps)] = range(done, done + recipe.distill.train_config(stage).updates)
        done = updates[student_name(stage.steps)].stop
    return updates
