"""Experiment tracking: log a run's events to a tracker of accelerate: TensorBoard, W&B or MLflow.

    train/NAME/loss, gradient_norm, learning_rate       of the model NAME in training, over the updates of the chain
    train/NAME/PART                                     the parts of its loss, if there are several
    evaluation/MODEL/frechet_SPACE, rmse, steps         of teacher or student, at the last update before it was measured
    samples/MODEL                                       the grids of the evaluations, likewise
    pairs/teacher_and_student                           both of one step count, from the same noise

A resumed run continues its record under the same identity, `tracking/` in its folder. Tracking requires
`tracking: tensorboard`, `wandb` or `mlflow` in the recipe. Only `wandb` in its online mode, or `mlflow` with a server
in `MLFLOW_TRACKING_URI`, sends anything from this machine.
"""

import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, WandBTracker
from accelerate.utils import is_mlflow_available, is_tensorboard_available, is_wandb_available
from numpy.typing import NDArray
from PIL import Image

from progdist._utils.errors import UserError
from progdist.evaluation.record import EvaluationRecord
from progdist.recipes.recipe import Recipe, student_name
from progdist.runs.folder import RunFolder
from progdist.training.callbacks import Callback, Progress

GAP = 3  # white pixels between the grids of a pair


@dataclass
class TrackedCallback:
    """A callback that also logs its events to a tracker."""

    callback: Callback  # the callback that shows the events
    folder: RunFolder
    open_tracker: Callable[[], GeneralTracker]  # opens accelerate's tracker, once the run has claimed the folder
    updates: Mapping[str, range]  # updates of each model by name, as a range of those of the whole chain
    reference: int  # step count of the first measurement, before any student is trained
    model: str = field(default="teacher", init=False)  # the model in training

    @cached_property
    def tracker(self) -> GeneralTracker:
        """The tracker, opened on first use."""
        return self.open_tracker()

    def begin(self, title: str, updates: int) -> None:
        """The training of a network starts or resumes."""
        self.model = title
        self.callback.begin(title, updates)

    def progress(self, progress: Progress) -> None:
        """Updates were made."""
        if progress.finite:
            names = ("loss", "gradient_norm", "learning_rate")
            values = {f"train/{self.model}/{name}": getattr(progress, name) for name in names}
            values |= {f"train/{self.model}/{name}": value for name, value in progress.losses.items()}
            self.tracker.log(values, step=self.updates[self.model].start + progress.update)
        self.callback.progress(progress)

    def end(self, stopped: int | None = None) -> None:
        """The training of that network ended or stopped."""
        self.callback.end(stopped)

    def evaluated(self, record: EvaluationRecord) -> None:
        """A model was measured at a step count."""
        model, steps = record.model, record.steps
        values = {f"evaluation/{model}/frechet_{each.features}": each.frechet for each in record.quality}
        values |= {f"evaluation/{model}/rmse": record.rmse, f"evaluation/{model}/steps": steps}
        images = {f"samples/{model}": _pixels(self.folder.grid(model, steps))}
        pair = [self.folder.grid(name, steps) for name in ("teacher", "student")]
        if model in ("teacher", "student") and all(path.is_file() for path in pair):
            left, right = (_pixels(path) for path in pair)
            between = np.full((len(left), GAP, 3), 255, np.uint8)
            images["pairs/teacher_and_student"] = np.concatenate([left, between, right], axis=1)
        step = self._last_update(record)
        self.tracker.log(values, step=step)
        log_images(self.tracker, images, step)
        self.callback.evaluated(record)

    def note(self, text: str) -> None:
        """A message for the user."""
        self.callback.note(text)

    def _last_update(self, record: EvaluationRecord) -> int:
        """The last update of the stage before a measurement, so that steps never decrease.

        W&B drops a step lower than an earlier one, and TensorBoard drops the earlier ones.
        """
        first = record.model in ("teacher", "converted") and record.steps == self.reference
        return next(iter(self.updates.values())).stop if first else self.updates[student_name(record.steps)].stop


def _pixels(path: Path) -> NDArray[np.uint8]:
    """An image file as (H, W, 3)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def log_images(tracker: GeneralTracker, images: Mapping[str, NDArray[np.uint8]], step: int) -> None:
    """Log images (H, W, 3) to a tracker; with MLflow's own function, because accelerate's tracker has none."""
    if isinstance(tracker, MLflowTracker):
        mlflow = import_module("mlflow")
        for name, pixels in images.items():
            mlflow.log_image(pixels, key=name, step=step)
        return
    options = {"dataformats": "NHWC"} if isinstance(tracker, TensorBoardTracker) else {}
    cast(Any, tracker).log_images({name: pixels[None] for name, pixels in images.items()}, step=step, **options)


def tracked(recipe: Recipe, folder: RunFolder, callback: Callback) -> Callback:
    """The callback, or in the first process one that also tracks; a UserError if the tracker is not installed."""
    if recipe.tracking is None or not folder.writes:
        return callback
    checks = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available, "mlflow": is_mlflow_available}
    available = checks[recipe.tracking]
    if not available():
        raise UserError(
            f"tracking: {recipe.tracking} requires the extra `{recipe.tracking}`: pip install "
            f"'progdist[{recipe.tracking}]', or remove tracking"
        )
    how, files = f"{recipe.tracking}, files in", folder.root / "tracking"
    callback.note(f"tracking: {'tensorboard --logdir' if recipe.tracking == 'tensorboard' else how} {files}")
    reference, open_tracker = recipe.measurements()[0][1], partial(_tracker, recipe, files)
    return TrackedCallback(callback, folder, open_tracker, updates_of(recipe), reference)


def _tracker(recipe: Recipe, folder: Path) -> GeneralTracker:
    """A tracker that continues the record in the folder."""
    if recipe.tracking == "tensorboard":
        tracker: GeneralTracker = TensorBoardTracker(recipe.name, logging_dir=folder)
        tracker.start()
        return tracker
    identity = folder / ("mlflow_run_id" if recipe.tracking == "mlflow" else "run_id")
    folder.mkdir(parents=True, exist_ok=True)
    if recipe.tracking == "mlflow":
        return _mlflow_tracker(recipe, folder, identity)
    settings: dict[str, Any] = {"name": recipe.name, "dir": str(folder), "config": recipe.model_dump(mode="json")}
    if not identity.is_file():
        identity.write_text(secrets.token_hex(4))
    tracker = WandBTracker("progdist", id=identity.read_text(), resume="allow", **settings)
    tracker.start()
    return tracker


def _mlflow_tracker(recipe: Recipe, folder: Path, identity: Path) -> MLflowTracker:
    """MLflow's tracker, with files in the folder unless the environment names a server; without usage reports."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = import_module("mlflow")
    if "MLFLOW_TRACKING_URI" not in os.environ:
        mlflow.set_tracking_uri((folder / "mlflow").resolve().as_uri())
    run_id = identity.read_text() if identity.is_file() else None
    tracker = MLflowTracker("progdist", run_id=run_id, run_name=recipe.name)
    tracker.start()
    if run_id is None:
        identity.write_text(tracker.tracker.info.run_id)
        settings = recipe.model_dump(mode="json")
        tracker.store_init_configuration({key: str(value) for key, value in settings.items() if value is not None})
    return tracker


def updates_of(recipe: Recipe) -> dict[str, range]:
    """The updates of every model, counted through the whole chain; upper limits if stages may end early."""
    updates, done = dict[str, range](), 0
    for name, config in recipe.train_configs().items():
        updates[name] = range(done, done + config.updates)
        done += config.updates
    return updates
