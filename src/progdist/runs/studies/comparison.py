"""Runs and models side by side: the same noise for all, paired resamples, a page (`progdist compare`).

A run's folder stands for its students. Each model is compared with the one of the first name that takes as many steps,
or else with the very first; the ratio of their Frechet distances has an interval over resamples of the same rows.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from string import ascii_lowercase
from tempfile import TemporaryDirectory

from torch import Tensor

from progdist._utils.errors import UserError
from progdist._utils.files import atomic_write
from progdist.data.grid import GRID, write_grid
from progdist.data.images import Images
from progdist.evaluation.compare import data_features, images_for_model, of_captions, summarized
from progdist.evaluation.generate import Notify, SamplingOptions
from progdist.evaluation.measures.frechet import Resampled
from progdist.evaluation.measures.paired import ratio, verdict
from progdist.evaluation.measures.plan import Instruments, Plan
from progdist.evaluation.metrics import resampled_quality
from progdist.models.model import Model
from progdist.runs.folder import Record
from progdist.runs.pages.report import template
from progdist.runs.pages.slides import embedded
from progdist.students.folder import load


@dataclass(frozen=True)
class Entry:
    """A model to compare.

    Attributes:
        word: by which it was named.
        folder: of the model.
        steps: to take; None for its own.
    """

    word: str
    folder: Path
    steps: int | None


def entries(words: Sequence[str]) -> list[Entry]:
    """Every model of some folders of runs and models, MODEL or MODEL@STEPS.

    Raises:
        UserError: a folder is missing, a run has no student yet, or steps are no number.
    """
    found = []
    for word in words:
        name, _, steps = word.rpartition("@") if "@" in word and not Path(word).exists() else (word, "", "")
        if steps and not (steps.isascii() and steps.isdigit() and int(steps) > 0):
            raise UserError(f"{word}: {steps!r} is no number of steps: give MODEL@STEPS, e.g. {name}@4")
        folder = Path(name)
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder: name runs or models")
        if not (folder / "recipe.yaml").is_file():
            found.append(Entry(word, folder, int(steps) if steps else None))
            continue
        students = sorted(path.parent for path in folder.glob("student-*/progdist.json"))[::-1]
        if not students:
            raise UserError(
                f"{folder} is a run without a student yet: wait for one, or name its teacher as MODEL@STEPS"
            )
        found += [Entry(word, student, int(steps) if steps else None) for student in students]
    return found


@dataclass(frozen=True)
class Sampled:
    """One model's record in one feature space, and its resampled distances."""

    entry: Entry
    record: Record
    draws: Resampled


def comparison(
    words: Sequence[str],
    images: Images,
    options: SamplingOptions,
    plan: Plan,
    resamples: int,
    out: Path,
    notify: Notify,
) -> list[Record]:
    """Sample every model from the same noise, compare their distances to the data, and write the page.

    Args:
        words: folders of runs and models.
        images: the data.
        options: what to make; the steps are the entries' own.
        plan: what to measure.
        resamples: paired ones of each distance.
        out: the page.
        notify: told of warnings.

    Returns:
        A record for every model and feature space, with `label`, `against`, `ratio` and `verdict`.

    Raises:
        UserError: fewer than two models, models of different noise, or as in `progdist.evaluation.compare`.
    """
    listed = entries(words)
    if len(listed) < 2:
        raise UserError("one model has nothing to be compared with: name another run or model")
    if len(listed) > len(ascii_lowercase):
        raise UserError(f"{len(listed)} models are too many for one comparison: name at most {len(ascii_lowercase)}")
    models = [load(entry.folder) for entry in listed]
    first, fitted = models[0], images_for_model(models[0], images, notify)
    for entry, model in zip(listed, models, strict=True):
        if entry.steps is None and not model.steps:
            raise UserError(f"{entry.folder} knows any number of steps: say how many, e.g. {entry.folder}@256")
        kind, expected = ((each.shape, each.image, each.classes, each.labels) for each in (model, first))
        if kind != expected:
            raise UserError(
                f"{entry.folder} and {listed[0].folder} do not sample from the same noise and classes: compare models "
                "of one kind"
            )
    instruments = plan.open(first.image, captions=first.text is not None)
    data = data_features(instruments, fitted, max(options.count, 10_000), options.seed)
    measured, grids = list[list[Sampled]](), list[Record]()
    for label, entry, model in zip(ascii_lowercase, listed, models, strict=False):
        notify(f"{label}: {entry.folder}")
        own = replace(of_captions(model, options, fitted), steps=entry.steps)
        found, grid = _measured(label, entry, model, own, instruments, data, resamples, notify)
        measured.append(found)
        grids.append(grid)
    records = [record for space in zip(*measured, strict=True) for record in _compared(space)]
    warnings = list(dict.fromkeys(record["warning"] for record in records if record["warning"]))
    for warning in warnings:
        notify(f"warning: {warning}")
    atomic_write(out, _page(records, grids, warnings, options).encode())
    return records


def _measured(
    label: str,
    entry: Entry,
    model: Model,
    options: SamplingOptions,
    instruments: Instruments,
    data: Sequence[Tensor | None],
    resamples: int,
    notify: Notify,
) -> tuple[list[Sampled], Record]:
    """One model's record and resampled distances in every feature space, and a grid of its samples for the page."""
    samples, steps, seconds = summarized(model, options, instruments, None, notify, keep=GRID)
    numbers = options.labels_of(model)
    score = instruments.captions and instruments.captions.score(samples, numbers, options.prompts)
    found = []
    for space, known in zip(instruments.spaces, data, strict=True):
        result, draws = resampled_quality(
            space,
            known,
            samples,
            distance=instruments.distance(space, known),
            metrics=instruments.metrics,
            resamples=resamples,
        )
        record = {
            "label": label,
            "model": str(entry.folder),
            "steps": steps,
            "seconds_per_image": seconds / len(samples),
            "clip_score": asdict(score) if score else None,
            **asdict(result),
        }
        found.append(Sampled(entry, record, draws))
    return found, _grid(samples.images)


def _grid(images: Tensor) -> Record:
    """Samples (B, C, H, W) as one image of no more pixels than a page needs: a data URI, its width and its height."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "grid.png"
        write_grid(images, path)
        image, width, height = embedded(path, path.stat().st_mtime_ns)
    return {"grid": image, "width": width, "height": height}


def _compared(space: Sequence[Sampled]) -> list[Record]:
    """The records of one feature space, each with the model it is compared with."""
    firsts = [one for one in space if one.entry.word == space[0].entry.word]
    records = []
    for one in space:
        alike = (other for other in firsts if other.record["steps"] == one.record["steps"])
        against = firsts[0] if one in firsts else next(alike, firsts[0])
        own: Record = {"against": None, "ratio": None, "verdict": None}
        if against is not one:
            found = ratio(one.draws, against.draws, linear=one.record["interval"] != "bootstrap")
            own = {"against": against.record["label"], "ratio": asdict(found), "verdict": verdict(found)}
        records.append({**one.record, **own})
    return records


def _page(records: Sequence[Record], grids: Sequence[Record], warnings: Sequence[str], options: SamplingOptions) -> str:
    """The page: bars and a table of every feature space, and the samples beside each other."""
    spaces = dict[str, list[Record]]()
    for record in records:
        spaces.setdefault(record["features"], []).append(record)
    first = next(iter(spaces.values()))
    return template("comparison.html").render(
        spaces=spaces,
        models=[{**grid, **record} for grid, record in zip(grids, first, strict=True)],
        warnings=warnings,
        options=options,
        sampler={"ddim": "DDIM", "dpmpp": "DPM-Solver++"}.get(options.method, options.method),
    )
