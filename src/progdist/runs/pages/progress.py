r"""How far a run has come, and how long it will still take.

In the stage under way an update takes s seconds, and U - u are left. An update of a stage with batch B and k teacher
steps costs c = B (1 + k/3) training passes, the forward pass being about a third of one, so what is left takes

    s ((U - u) + sum over the stages to come of U_j c_j / c) + f (samples) (sum of the steps still to be measured)

with f the seconds of one network evaluation as last measured, or s / (3c) before any is. Teacher steps and the steps to
be measured are counted as in `progdist.runs.estimate.evaluations`: a guided teacher's twice. (Whether a given teacher
takes the guidance scale itself, in one evaluation, its recipe does not say: it is counted as guided.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

from progdist.recipes.recipe import Recipe
from progdist.runs.estimate.evaluations import frozen_evaluations, sampling_evaluations
from progdist.runs.folder import RunFolder
from progdist.training.callbacks import Record


@dataclass(frozen=True)
class UnderWay:
    """The training under way.

    Attributes:
        model: its name.
        update: how many were made.
        updates: how many it makes at most.
        seconds_per_update: of this session; None before two are known.
    """

    model: str
    update: int
    updates: int
    seconds_per_update: float | None = None

    @property
    def stage_seconds(self) -> float | None:
        """Until its end."""
        return None if self.seconds_per_update is None else self.seconds_per_update * (self.updates - self.update)


@dataclass(frozen=True)
class Costs:
    """A stage: its updates, and how many training passes each costs."""

    updates: int
    passes: float


def stage_costs(recipe: Recipe) -> dict[str, Costs]:
    """Of every model of a run, by its name and in order."""
    frozen = frozen_evaluations(recipe, guided=_is_guided(recipe)).items()
    return {
        name: Costs(config.updates, config.batch * (1 + count / 3))
        for (name, count), config in zip(frozen, recipe.train_configs(), strict=True)
    }


def _is_guided(recipe: Recipe) -> bool:
    return recipe.conversion.guidance is not None


def run_seconds(recipe: Recipe, folder: RunFolder, records: Sequence[Record], now: UnderWay) -> float | None:
    """Until the run's end, at most where stages may end early; None where nothing is measured yet."""
    if now.stage_seconds is None or now.seconds_per_update is None:
        return None
    costs = stage_costs(recipe)
    own = costs[now.model]
    later = sum(
        cost.updates * cost.passes / own.passes
        for name, cost in costs.items()
        if name != now.model and not folder.model(name).is_dir()
    )
    evaluation = now.seconds_per_update / (3 * own.passes)
    counts = sampling_evaluations(recipe, guided=_is_guided(recipe))
    if records:
        last = records[-1]
        evaluation = last["seconds_per_image"] / counts.get((last["model"], last["steps"]), last["network_evaluations"])
    known = {(record["model"], record["steps"]) for record in records}
    steps = sum(count for key, count in counts.items() if key not in known)
    return now.stage_seconds + now.seconds_per_update * later + evaluation * recipe.evaluate.samples * steps


def duration(seconds: float) -> str:
    """For people: 40 s, 7 min, 3.2 h, 2 days 5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 48 else f"{hours // 24:.0f} days {hours % 24:.0f} h"
