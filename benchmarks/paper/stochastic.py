"""Figure 4 and appendix F: stochastic sampling of the undistilled teacher and of its distilled students.

    python benchmarks/paper/stochastic.py RUN [--levels 11] [--most 64]

The ancestral sampler's variance lies between two bounds; 11 levels, evenly spaced in its logarithm, are tried for every
model and step count, and the best is kept. Beside it stands the sampler that takes a deterministic step of twice the
length and adds noise back by one step.
"""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from matplotlib.axes import Axes

from progdist._utils.errors import UserError
from progdist.cli.progress import Terminal
from progdist.cli.terminal import console
from progdist.diffusion.integrators import Step
from progdist.diffusion.sampler import ancestral, overshoot
from progdist.models.model import Model
from progdist.recipes.files import read_recipe, write_recipe
from progdist.recipes.recipe import student_name
from progdist.runs.evaluator import Evaluator
from progdist.runs.folder import Record, RunFolder
from progdist.runs.run import open_run
from progdist.teachers.own import load
from progdist.training.callbacks import Callback
from results import COLOURS, distance, markdown, measured, panels, script, show, write_results

TEACHER, STUDENT = "undistilled", "distilled"


def stochastic(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    levels: Annotated[int, typer.Option(help="Levels of the ancestral sampler's variance.", min=2)] = 11,
    most: Annotated[int, typer.Option(help="The largest step count measured.", min=2)] = 64,
) -> None:
    """Figure 4, appendix F: stochastic sampling. Of distilled and undistilled models."""
    show(measure(run, levels, most, Terminal(console)), run / "stochastic")


def measure(finished: Path, levels: int, most: int, callback: Callback) -> str:
    """Measure the models of a finished run under stochastic sampling, into its folder `stochastic`.

    Args:
        finished: the folder of a run.
        levels: of the variance, from its lower to its upper bound.
        most: the largest step count that is measured.
        callback: called for every step count.

    Returns:
        The table, as Markdown.

    Raises:
        UserError: the folder holds no finished run, or none of its students is as short as `most`.
    """
    recipe = read_recipe(str(finished / "recipe.yaml")) if (finished / "recipe.yaml").is_file() else None
    run = None if recipe is None else open_run(recipe, finished, callback)
    if recipe is None or run is None or not run.folder.model(run.context.model_names[0]).exists():
        raise UserError(f"{finished} holds no finished run: give the --out folder of `progdist run`")
    counts = [count for count in recipe.distill.counts()[1:] if count <= most]
    if not counts:
        raise UserError(f"--most {most}: the run's students take {recipe.distill.counts()[1:]} steps")
    folder, evaluator = RunFolder(finished / "stochastic"), run.evaluator
    folder.claim(write_recipe(recipe), lambda old: "")
    records = []
    for steps in counts:
        for model_kind, name in ((TEACHER, run.context.model_names[0]), (STUDENT, student_name(steps))):
            model = load(run.folder.model(name))
            records += _all_methods(evaluator, folder, model_kind, model, steps, levels)
            best = _best(records, model_kind, steps)
            level = "" if best["level"] is None else f" (level {best['level']:.1f})"
            callback.note(f"{model_kind} at {steps}: best Fréchet {best['frechet']:.3f}{level}")
    table = _table(records, counts)
    figure, axes = panels(2, 4.2)
    _draw(axes[0], records, counts, "figure 4", ((STUDENT, "ddim"), (TEACHER, "ddim"), (TEACHER, "ancestral")))
    pairs = [(model_kind, method) for model_kind in (STUDENT, TEACHER) for method in ("ddim", "ancestral", "overshoot")]
    _draw(axes[1], records, counts, "appendix F", pairs)
    write_results(folder, table, figure)
    return table


def _all_methods(
    evaluator: Evaluator, folder: RunFolder, model_kind: str, model: Model, steps: int, levels: int
) -> list[Record]:
    """One model at one step count by every method."""
    methods: list[tuple[str, float | None, str | Step]] = [("ddim", None, "ddim"), ("overshoot", None, overshoot)]
    gammas = [number / (levels - 1) for number in range(levels)]
    methods += [("ancestral", gamma, partial(ancestral, gamma=gamma)) for gamma in gammas]
    records = []
    for method, level, step in methods if steps > 1 else methods[:1]:  # the last step adds no noise
        key = {"model": model_kind, "steps": steps, "method": method, "level": level}
        records.append(measured(folder, key, lambda step=step: distance(evaluator, model, steps, step)))
    return records


def _best(records: list[Record], model_kind: str, steps: int, method: str = "ancestral") -> Record:
    """The best record of a method; of one step all methods are DDIM."""
    chosen = [record for record in records if (record["model"], record["steps"]) == (model_kind, steps)]
    by_method = [record for record in chosen if record["method"] == method]
    return min(by_method or chosen, key=lambda record: record["frechet"])


def _table(records: list[Record], counts: list[int]) -> str:
    rows = []
    for steps in counts:
        for model_kind in (TEACHER, STUDENT):
            best = _best(records, model_kind, steps)
            plain, over = (_best(records, model_kind, steps, method)["frechet"] for method in ("ddim", "overshoot"))
            level = "" if best["level"] is None else f" (level {best['level']:.1f})"
            rows.append([str(steps), model_kind, f"{plain:.3f}", f"{best['frechet']:.3f}{level}", f"{over:.3f}"])
    return markdown(["steps", "model", "DDIM", "ancestral at its best", "overshoot"], rows)


def _draw(axes: Axes, records: list[Record], counts: list[int], title: str, lines: Any) -> None:  # noqa: ANN401
    styles = {"ddim": "o-", "ancestral": "^--", "overshoot": "s:"}
    for model_kind, method in lines:
        values = [_best(records, model_kind, steps, method)["frechet"] for steps in counts]
        colour = COLOURS[0] if model_kind == STUDENT else COLOURS[1]
        axes.plot(counts, values, styles[method], color=colour, markersize=4, label=f"{model_kind}, {method}")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xlabel("sampling steps")
    axes.set_ylabel(f"Fréchet distance ({records[0]['features']} features)")
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False, fontsize=8)


app = script(stochastic)

if __name__ == "__main__":
    app()
