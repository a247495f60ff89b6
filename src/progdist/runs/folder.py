"""A run on disk.

recipe.yaml             the resolved recipe
base/                   the prepared teacher: from a single-file checkpoint, or with LoRA files fused into it
data.json               digests of the images and labels that the run started with
teacher/                a model folder; converted/ in its place if stage 0 converts an existing teacher
student-0128/ ...       a model folder for every stage
checkpoints/NAME/       checkpoints of the model in training
metrics.jsonl           loss, gradient norm and learning rate during training
evaluations.jsonl       measurements of every model at its step counts
latents/                the encoded data of a latent model
teacher_samples/        the teacher's own samples, if they are the data
captions/               the encoded captions of a text-conditional model
data_features/          features of the data that samples are compared with
samples/                grids of samples from the same noise; a few above their nearest training images; a few at
                        some guidance scales; and some images of the data
tracking/               files of TensorBoard or MLflow, or the run's identity at Weights & Biases
report.html
ended.json              how the run ended: finished, stopped or failed, and why; absent while it runs
"""

import itertools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from progdist._utils.errors import UserError
from progdist._utils.files import FORMAT_VERSION, atomic_write, check_format, write_json
from progdist._utils.locks import LOCK_FILE, is_locked, locked
from progdist.evaluation.record import EvaluationRecord
from progdist.recipes.begun import other_recipe
from progdist.runs.listing import ENDED, FINISHED, ended
from progdist.training.checkpoint import Checkpoints

Record = dict[str, Any]
BASE = "base"


@dataclass(frozen=True)
class RunFolder:
    """Paths and records of one run; read-only except in its first process."""

    root: Path
    writes: bool = True

    def holds_run(self) -> bool:
        """Whether a run was started here: beside its recipe there is its lock file, or data.json."""
        return self.recipe().is_file() and ((self.root / LOCK_FILE).is_file() or self.data().is_file())

    def base(self) -> Path:
        """Path of the teacher prepared for the run, if any."""
        return self.root / BASE

    def check_movable(self) -> None:
        """Refuse to start over in a folder that is not a run, e.g. a home folder or data; nothing is moved."""
        if not self.holds_run():
            self._check_empty()

    def move_aside(self, *, but_base: bool = False) -> Path | None:
        """Rename the folder, if it holds a run, so that a new one starts in its place; returns its new name, or None.

        With `but_base` the prepared teacher stays for the new run.
        """
        self.check_movable()
        if not self.holds_run():
            return None
        names = (self.root.with_name(f"{self.root.name}.old-{number}") for number in itertools.count(1))
        free = next(name for name in names if not name.exists())
        with self.locked():
            self.root.rename(free)
            if but_base and (free / BASE).is_dir():
                self.root.mkdir()
                (free / BASE).rename(self.base())
            return free

    @contextmanager
    def locked(self, note: Callable[[str], None] = lambda text: None) -> Iterator[None]:
        """Lock the folder until this process ends, however it ends; a UserError if another run holds it.

        `note` is called if the file system has no locks, so that a second run would not be noticed.
        """
        if not self.writes:
            yield
            return
        with locked(self.root, note):
            yield

    def in_use(self) -> bool:
        """Whether a process, this one or another, is using the folder."""
        return is_locked(self.root)

    def claim(self, recipe: str, difference: Callable[[Path], str]) -> None:
        """Write the resolved recipe; arguments and errors as in `check_free`."""
        self.check_free(recipe, difference)
        with self.locked():
            self.write_recipe(recipe)

    def begin(self) -> None:
        """Delete the record of how an earlier, unfinished session of the run ended."""
        how = self.ended()
        if self.writes and how is not None and how[0] != FINISHED:
            (self.root / ENDED).unlink()

    def ended(self) -> tuple[str, str] | None:
        """How the run ended and why, as in `listing.ended`."""
        return ended(self.root)

    def end(self, state: str, reason: str = "") -> None:
        """Record how the run ended: FINISHED, STOPPED or FAILED, and why."""
        if self.writes and self.ended() != (state, reason):
            write_json(self.root / ENDED, {"format_version": FORMAT_VERSION, "state": state, "reason": reason})

    def write_recipe(self, recipe: str) -> None:
        """Write the resolved recipe, unless it is unchanged."""
        path = self.recipe()
        if not path.is_file() or path.read_text() != recipe:
            atomic_write(path, recipe.encode())

    def check_free(self, recipe: str, difference: Callable[[Path], str]) -> None:
        """Refuse the folder of another recipe's run, or one that is not a run; nothing is written.

        `difference` describes how the recipe, as YAML, differs from the one in a file; "" if it may replace it.
        """
        path = self.recipe()
        if self.holds_run():
            if path.read_text() != recipe and (differs := difference(path)):
                raise other_recipe(self.root, differs)
        else:
            self._check_empty()

    def _check_empty(self) -> None:
        if self.root.exists() and (not self.root.is_dir() or any(map(_is_foreign, self.root.iterdir()))):
            raise UserError(f"{self.root} exists and is not a run: choose another --out")

    def recipe(self) -> Path:
        """Path of the resolved recipe."""
        return self.root / "recipe.yaml"

    def data(self) -> Path:
        """Path of the digests of the data that the run started with."""
        return self.root / "data.json"

    def report(self) -> Path:
        """Path of the page."""
        return self.root / "report.html"

    def model(self, name: str) -> Path:
        """A model's folder: `teacher` or `student-0004`."""
        return self.root / name

    def has_stage_0(self) -> bool:
        """Whether the run has a converted teacher so far; else the teacher is its first model."""
        return not self.model("teacher").is_dir()

    def checkpoints(self, name: str) -> Checkpoints:
        """The checkpoints of one model's training."""
        return Checkpoints(self.root / "checkpoints" / name, writes=self.writes)

    def append(self, name: str, record: Record) -> None:
        """Add a line to metrics or evaluations."""
        if not self.writes:
            return
        with self._records(name).open("ab+") as file:
            torn = file.tell() > 0
            if torn:
                file.seek(-1, os.SEEK_END)
                torn = file.read(1) != b"\n"  # the last line of a run that was killed: start a new one
            file.write(("\n" * torn + _line(record)).encode())

    def read(self, name: str) -> Iterator[Record]:
        """All complete lines of metrics or evaluations; a UserError if they have a later format."""
        path = self._records(name)
        for line in path.read_bytes().split(b"\n") if path.is_file() else ():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):  # the last line of a run that was killed
                continue
            if not isinstance(record, dict):
                raise UserError(f"{self.root} holds damaged records (a line of {path.name} is bad): restore the file")
            check_format(record, path)
            record.pop("format_version", None)
            yield record

    def evaluations(self) -> list[EvaluationRecord]:
        """The records of evaluations.jsonl in order; a UserError if a line is damaged or has a later format."""
        try:
            return [EvaluationRecord.from_json(record) for record in self.read("evaluations")]
        except UserError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
            raise UserError(f"{self.root} holds damaged records ({reason}): restore its .jsonl files") from error

    def keep(self, name: str, wanted: Callable[[Record], bool]) -> None:
        """Keep only the wanted records."""
        if not self.writes:
            return
        lines = (_line(record) for record in self.read(name) if wanted(record))
        atomic_write(self._records(name), "".join(lines).encode())

    def grid(self, name: str, steps: int, guidance: float | None = None) -> Path:
        """Path of a model's sample grid: of a measurement, or of a few images at a guidance scale."""
        scale = "" if guidance is None else f"-guidance-{guidance:g}"
        return self.root / "samples" / f"{name}-{steps:04d}{scale}.png"

    def nearest(self, name: str, steps: int) -> Path:
        """Path of some of a model's samples, each above its nearest training image."""
        return self.root / "samples" / f"{name}-{steps:04d}-nearest.png"

    def training_images(self) -> Path:
        """Path of some images of the data, as the page shows them; a JSON file beside it has their names."""
        return self.root / "samples" / "data.png"

    def reference(self) -> Path:
        """The teacher's own images at the largest step count measured, the reference of fidelity."""
        return self.root / "samples" / "reference"

    def data_features(self) -> Path:
        """The features of the data, a folder of shards for each feature space."""
        return self.root / "data_features"

    def _records(self, name: str) -> Path:
        return self.root / f"{name}.jsonl"


def _is_foreign(path: Path) -> bool:
    """Whether a path is not part of a run before its start: neither its lock nor its prepared teacher."""
    ours = path.name == BASE and (path / "prepared.json").is_file()
    return not (ours or path.name == LOCK_FILE or path.name.startswith(f".{BASE}."))


def _line(record: Record) -> str:
    """A record as a line of text."""
    return json.dumps({"format_version": FORMAT_VERSION, **record}) + "\n"
