r"""The progress of a run, and its remaining time.

In the current stage an update takes s seconds, and U - u are left. An update of a stage with batch B and k teacher
steps costs c = B (1 + k/3) training passes, because a forward pass takes about a third of one. The remaining time is

    s ((U - u) + sum over the remaining stages of U_j c_j / c) + f (samples) (sum of the steps still to be measured)

with f the seconds of one network evaluation as last measured, or s / (3c) before the first measurement. A guided
teacher takes two evaluations per prediction. (A recipe does not record whether its teacher takes the guidance scale
as an input, in one evaluation: it is counted as guided.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

from progdist.evaluation.record import EvaluationRecord
from progdist.methods import METHODS
from progdist.recipes.recipe import Recipe
from progdist.runs.folder import RunFolder


@dataclass(frozen=True)
class UnderWay:
    """The current training."""

    model: str  # name of the model
    update: int  # number of updates made
    updates: int  # largest number of updates
    seconds_per_update: float | None = None  # in this session; None before the second update

    @property
    def stage_seconds(self) -> float | None:
        """Seconds until its end."""
        return None if self.seconds_per_update is None else self.seconds_per_update * (self.updates - self.update)


def measurements(recipe: Recipe, *, stage_0: bool) -> list[tuple[str, int]]:
    """(model, steps) of every record of a run, in order.

    `teacher` is the existing teacher if none is trained. Its stage-0 conversion, `converted`, is measured once, at the
    reference's step count.
    """
    reference, *others = recipe.measurements()
    return [reference, *([("converted", reference[1])] if stage_0 else []), *others]


def frozen_evaluations(recipe: Recipe, *, guided: bool, stage_0: bool) -> dict[str, int]:
    """Network evaluations of frozen models for one example of an update, by the model in training, in order.

    `guided` is whether the run's teacher is guided, and `stage_0` whether it is converted.
    """
    first, *students = recipe.model_names(stage_0=stage_0)
    asked = [METHODS[recipe.distill.method].evaluations(link) for link in recipe.distill.links()]
    return {first: _teacher_evaluations(recipe, guided), **dict(zip(students, asked, strict=True))}


def sampling_evaluations(recipe: Recipe, *, guided: bool, stage_0: bool) -> dict[tuple[str, int], int]:
    """Network evaluations of one sample, by (model, steps) of every measurement; arguments as above."""
    own = _teacher_evaluations(recipe, guided) if stage_0 else 1
    named = measurements(recipe, stage_0=stage_0)
    return {(name, steps): steps * (own if name.startswith("teacher") else 1) for name, steps in named}


def _teacher_evaluations(recipe: Recipe, guided: bool) -> int:
    """Network evaluations of one prediction of the recipe's existing teacher; 0 if one is trained."""
    return int(recipe.teacher.model is not None) * (2 if guided else 1)


def run_seconds(recipe: Recipe, folder: RunFolder, records: Sequence[EvaluationRecord], now: UnderWay) -> float | None:
    """Seconds until the run's end, an upper limit if stages may end early; None before the rate is known."""
    if now.stage_seconds is None or now.seconds_per_update is None:
        return None
    guided, stage_0 = recipe.conversion.guidance is not None, not recipe.trains_teacher and folder.has_stage_0()
    frozen, configs = frozen_evaluations(recipe, guided=guided, stage_0=stage_0), recipe.train_configs(stage_0=stage_0)
    passes = {name: config.batch * (1 + frozen[name] / 3) for name, config in configs.items()}  # per update
    own = passes[now.model]
    later = sum(
        config.updates * passes[name] / own
        for name, config in configs.items()
        if name != now.model and not folder.model(name).is_dir()
    )
    evaluation = now.seconds_per_update / (3 * own)
    counts = sampling_evaluations(recipe, guided=guided, stage_0=stage_0)
    if records:
        last = records[-1]
        evaluation = last.seconds_per_image / counts.get((last.model, last.steps), last.network_evaluations)
    measured = {(record.model, record.steps) for record in records}
    steps = sum(count for key, count in counts.items() if key not in measured)
    return now.stage_seconds + now.seconds_per_update * later + evaluation * recipe.evaluate.samples * steps


def duration(seconds: float) -> str:
    """A duration in words: 40 s, 7 min, 3.2 h, 2 days 5 h, 2,463 days."""
    hours = seconds / 3600
    if hours >= 48:
        return f"{hours // 24:.0f} days {hours % 24:.0f} h" if hours < 240 else f"{hours / 24:,.0f} days"
    if seconds >= 5400:
        return f"{hours:.1f} h"
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
