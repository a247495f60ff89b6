"""The runs in a folder, from their own records: the state of each, since when, and the quality of its students.

Does not import torch, and reads only the ends of records and the lines of evaluations.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from progdist._utils.errors import UserError
from progdist._utils.locks import LOCK_FILE, is_locked

ENDED = "ended.json"
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"
RUNNING = "running"
TAIL = 4096  # bytes at the end of metrics.jsonl that contain its last line


@dataclass(frozen=True)
class Listed:
    """A run in a list."""

    name: str  # name of its folder
    state: str  # RUNNING, STOPPED, FAILED or FINISHED
    place: str  # the model in training and its update, or "" if unknown
    reason: str  # why it failed
    changed: float  # when it last wrote a record, in seconds since 1970
    students: dict[int, float]  # steps -> the student's Frechet distance divided by the teacher's


def runs_in(folder: Path) -> list[Listed]:
    """The runs in a folder, or the run itself, the latest first; a UserError if there is no folder."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: name the folder of runs, e.g. runs")
    folders = [folder] if _is_run(folder) else [each for each in folder.iterdir() if _is_run(each)]
    return sorted(map(_listed, folders), key=lambda run: -run.changed)


def ended(folder: Path) -> tuple[str, str] | None:
    """How a run ended (FINISHED, STOPPED or FAILED) and why; None while it runs, or if it was killed.

    A damaged record counts as STOPPED.
    """
    path = folder / ENDED
    if not path.is_file():
        return None
    record = _json(path.read_bytes())
    return str(record.get("state", STOPPED)), str(record.get("reason", ""))


def _is_run(folder: Path) -> bool:
    """Whether a run was started in a folder."""
    started = (folder / LOCK_FILE).is_file() or (folder / "data.json").is_file()
    return (folder / "recipe.yaml").is_file() and started


def _listed(folder: Path) -> Listed:
    state, reason = ended(folder) or (STOPPED, "")
    state = RUNNING if is_locked(folder) else state
    place = {RUNNING: _last_update, FINISHED: lambda folder: ""}.get(state, _last_checkpoint)(folder)
    names = ("recipe.yaml", "metrics.jsonl", "evaluations.jsonl", ENDED)
    changed = max((folder / name).stat().st_mtime for name in names if (folder / name).exists())
    why = reason if state == FAILED else ""
    return Listed(folder.resolve().name, state, place, why, changed, _students(folder))


def _last_update(folder: Path) -> str:
    """The model and the update of the last line of metrics.jsonl."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        records = map(_json, reversed(file.read().splitlines()))
    whole = (f"{each['model']} at {each['update']}" for each in records if {"model", "update"} <= each.keys())
    return next(whole, "")


def _last_checkpoint(folder: Path) -> str:
    """The half-trained model and the update at which it resumes."""
    updates = [
        (int(path.stem), path.parent.name)
        for path in (folder / "checkpoints").glob("*/*.json")
        if re.fullmatch(r"\d{8,}", path.stem)
    ]
    return "{1} at {0}".format(*max(updates)) if updates else ""


def _students(folder: Path) -> dict[int, float]:
    """The distance of each student divided by that of the first measured model, in the first feature space."""
    distances = [found for record in _records(folder / "evaluations.jsonl") if (found := _distance(record))]
    if not distances or not distances[0][2] > 0:
        return {}
    return {steps: distance / distances[0][2] for model, steps, distance in distances if model == "student"}


def _distance(record: dict[str, Any]) -> tuple[str, int, float] | None:
    """(model, steps, Frechet distance) of a measurement; None if it is damaged."""
    try:
        return str(record["model"]), int(record["steps"]), float(record["quality"][0]["frechet"])
    except (LookupError, TypeError, ValueError):
        return None


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a file of records."""
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        yield _json(line)


def _json(text: str | bytes) -> dict[str, Any]:
    """A JSON object; an empty one if it is damaged, like the last line of a killed run."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
