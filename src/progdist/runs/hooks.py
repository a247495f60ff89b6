"""A run's folder and callback as hooks of the engine: read finished models, keep new ones, record numbers."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from progdist._utils.errors import UserError
from progdist._utils.words import counted
from progdist.distillation import Hooks
from progdist.models.model import Model
from progdist.models.pipeline_prompts import PipelinePrompts
from progdist.runs.context import RunContext
from progdist.students.folder import save
from progdist.teachers.own import load
from progdist.teachers.pipeline import AGREES, student_differs
from progdist.training.callbacks import Progress
from progdist.training.checkpoint import Checkpoints
from progdist.training.config import TrainConfig


@dataclass
class RunHooks(Hooks):
    """Hooks of one run."""

    context: RunContext
    _every: int = field(default=1, init=False)

    def find(self, name: str) -> Model | None:
        """Load a finished model from its folder, at rest."""
        path = self.context.folder.model(name)
        return load(path) if self.context.distributed.on_main_process(path.exists) else None

    def keep(self, name: str, model: Model) -> Model:
        """Save the model, and return it as its folder holds it."""
        path = self.context.folder.model(name)
        self.context.distributed.on_main_process(lambda: save(model, path))
        kept = load(path)
        if kept.steps and isinstance(kept.conditioning, PipelinePrompts):
            self.context.distributed.on_main_process(lambda: self._verify(path, kept))
        return kept

    def _verify(self, path: Path, student: Model) -> None:
        """Report the distance of the stock pipeline's samples from progdist's."""
        steps = counted(min(student.steps), "step")
        try:
            apart = student_differs(path, student)
        except UserError as error:  # the student itself is complete
            self.note(f"warning: {path.name}: its stock pipeline could not be compared with progdist sample: {error}")
            return
        warning = "" if apart <= AGREES else "warning: "
        self.note(f"{warning}{path.name}: in {steps} the stock pipeline is within {apart:.1g} of progdist sample")

    def checkpoints(self, name: str) -> Checkpoints:
        """The checkpoints of a model's training."""
        return self.context.folder.checkpoints(name)

    def begin(self, name: str, config: TrainConfig) -> None:
        """Drop the records of updates that will be made again."""
        latest = self.checkpoints(name).latest(self.note)
        first = latest.update if latest else 0
        made = range(first + 1)
        self.context.folder.keep("metrics", lambda record: record.get("model") != name or record.get("update") in made)
        self._every = max(1, config.updates // 1000)
        self.context.callback.begin(name, config.updates)

    def progress(self, name: str, progress: Progress) -> None:
        """Call the callback, and record the numbers."""
        self.context.callback.progress(progress)
        skipped = {"skipped": progress.skipped} if progress.skipped else {}
        if not progress.finite:
            self.record(name, progress.update, skipped=progress.skipped)
        elif progress.update % self._every == 0:
            numbers = {key: getattr(progress, key) for key in ("loss", "gradient_norm", "learning_rate")}
            parts = {"losses": dict(progress.losses)} if progress.losses else {}
            self.record(name, progress.update, **numbers, **parts, **skipped)

    def end(self, name: str, *, finished: bool) -> None:
        """The training of a model ended, or stopped at its latest checkpoint."""
        self.context.callback.end(None if finished else self.checkpoints(name).latest_update())

    def record(self, name: str, update: int, **numbers: Any) -> None:  # noqa: ANN401
        """Add a line to metrics.jsonl."""
        self.context.folder.append("metrics", {"model": name, "update": update, **numbers})

    def held_out_losses(self, name: str) -> list[float]:
        """Held-out losses, from metrics.jsonl."""
        records = (record for record in self.context.folder.read("metrics") if record.get("model") == name)
        losses = (record.get("held_out_loss") for record in records)
        return [loss for loss in losses if isinstance(loss, float)]

    def note(self, text: str) -> None:
        """A message for the user."""
        self.context.callback.note(text)

    def remedy(self, name: str) -> str:
        """The recipe's keys to change for the model's training."""
        section = self.context.recipe.section_of(name)
        return f" (--set {section}.learning_rate=... or {section}.precision=float32), and run again to continue"
