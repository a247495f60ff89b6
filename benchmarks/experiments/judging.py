r"""Students beside their teacher, measured so that collapse and memory of the training data would be seen.

    python benchmarks/experiments/judging.py split digits --seed 0 --out SPLIT    # training.npz and held_out.npz
    python benchmarks/experiments/judging.py judge --teacher RUN/teacher@256 --training npz:SPLIT/training.npz \
        --held-out npz:SPLIT/held_out.npz --seed 0 --out judged-0.jsonl RUN/student-0004 RUN/student-0001
    python benchmarks/experiments/judging.py table judged-0.jsonl judged-1.jsonl judged-2.jsonl

All models start from the teacher's noise and classes. A row has, in every feature space,

    frechet                 distance to all training images; frechet_ratio: over that of the teacher's samples
    frechet_held_out        the same to the held-out images, and its ratio
    precision, recall       and density, coverage: of the training images (`evaluation.measures.neighbors`)
    diversity               within classes, beside that of the training images (`evaluation.measures.diversity`)
    nearest                 median distance of samples from their nearest training image; of a model that repeats none
    nearest_of_held_out     it is about that of the held-out images from theirs, and
    nearest_of_training     that of training images from their nearest other, over the first 10,000
    training_share          share of samples whose nearest image of both sets is a training image; `expected` is
                            N / (N + H) of N training and H held-out images, which it is for a model that cannot tell
                            one from the other

and rmse, the root mean square difference from the teacher's images of the same noise, and seconds per image. Classes
are those that the first classifier among the features sees. Each line of the output is a model at a step count and a
seed, and is not measured again. Several files make one table: mean and deviation over their seeds.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from progdist._utils.errors import UserError
from progdist.data.images import Images, from_uint8, to_uint8
from progdist.data.sources import load_images
from progdist.diffusion.denoiser import Denoiser
from progdist.evaluation.evaluate import drawn_from, images_for_model
from progdist.evaluation.features import FeatureSpace, feature_space, features_of
from progdist.evaluation.generate import SamplingOptions, check_images_finite, generate_images
from progdist.evaluation.measures.diversity import class_diversity
from progdist.evaluation.measures.frechet import Frechet
from progdist.evaluation.measures.moments import moments
from progdist.evaluation.measures.neighbors import MOST, density_coverage, neighbors, precision_recall
from progdist.evaluation.networks.classifier import CLASSIFIERS
from progdist.models.model import Model, conditioning_of
from progdist.teachers.own import load

Source = str | Path | Model | Denoiser  # a model folder, or a model
Entry = tuple[str, Source, int]  # a model by its name, with its sampling steps
Row = dict[str, Any]

FEATURES = ("digits", "digits_residual", "pixels")
SAMPLES = 1797  # as many as there are digits
COLUMNS = ("precision", "recall", "density", "coverage", "diversity", "nearest")


@dataclass(frozen=True)
class Setting:
    """What samples are compared with, and how many are made.

    Args:
        training: what all models learned from: a source as of recipes, or images.
        held_out: what none of them saw; None for a part of it that was not held out.
        samples: of each model.
        features: names of feature spaces; those of a shipped classifier see images resized to its own size.
        seed: of the noise, and what tells the rows of several runs apart.
        batch: how many are sampled at a time.
    """

    training: str | Images
    held_out: str | Images | None = None
    samples: int = SAMPLES
    features: tuple[str, ...] = FEATURES
    seed: int = 0
    batch: int = 600


def judge(
    teacher: Entry,
    models: Iterable[Entry],
    setting: Setting,
    out: Path | None = None,
    *,
    notify: Callable[[str], None] = print,
) -> list[Row]:
    """The rows of a teacher and of models; those that are in `out` are read, others are measured and added there.

    Raises:
        UserError: models of another size of images than the teacher's, samples that are not finite, or as in
            `generate_images` and `load_images`.
    """
    kept = read_rows([out]) if out and out.is_file() else []
    alike = (row for row in kept if (row["samples"], tuple(row["spaces"])) == (setting.samples, setting.features))
    known = {key(row): row for row in alike}
    judged, rows = Judge(teacher, setting, notify), list[Row]()
    for entry in (teacher, *models):
        row = known.get((entry[0], entry[2], setting.seed))
        if row is None:
            row = judged(entry)
            if out:
                with out.open("a") as file:
                    print(json.dumps(row), file=file)
        rows.append(row)
    return rows


def key(row: Row) -> tuple[str, int, int]:
    """What tells a row from others: the model's name, its steps, the seed."""
    return row["name"], row["steps"], row["seed"]


@dataclass(frozen=True)
class Judge:
    """Measures models beside one teacher. The teacher is sampled when the first is measured."""

    teacher: Entry
    setting: Setting
    notify: Callable[[str], None] = print

    @cached_property
    def model(self) -> Model:
        """The teacher itself."""
        return opened(self.teacher[1])

    def data(self, source: str | Images) -> Images:
        """Data as the models make images."""
        images = load_images(source, notify=self.notify) if isinstance(source, str) else source
        return images_for_model(self.model, images, self.notify)

    @cached_property
    def training(self) -> Images:
        """The training images."""
        return self.data(self.setting.training)

    @cached_property
    def spaces(self) -> list["Space"]:
        """The feature spaces, with the data in each."""
        held_out = None if self.setting.held_out is None else self.data(self.setting.held_out)
        spaces = (resizing_space(name, self.model.image) for name in self.setting.features)
        return [Space.of(each, self.training, held_out) for each in spaces]

    @cached_property
    def options(self) -> SamplingOptions:
        """How every model is sampled, but for its steps: in the training images' shares of the classes."""
        setting = self.setting
        options = SamplingOptions(None, setting.samples, seed=setting.seed, batch=setting.batch)
        return drawn_from(self.model, options, self.training)

    @cached_property
    def reference(self) -> tuple[Tensor, float, list[dict[str, float]]]:
        """The teacher's images (N, C, H, W), seconds for each, and what is measured of them in every space."""
        images, seconds = self.sampled(self.model, self.teacher[2])
        return images, seconds, self.measured(images)

    def sampled(self, model: Model, steps: int) -> tuple[Tensor, float]:
        """Images (N, C, H, W) of the noise of all, and the seconds that each took."""
        started = time.perf_counter()
        images, _, _ = generate_images(model, replace(self.options, steps=steps), self.notify)
        check_images_finite(images)
        return images, (time.perf_counter() - started) / len(images)

    def measured(self, images: Tensor) -> list[dict[str, float]]:
        """What is measured of samples (N, C, H, W) in every space."""
        features = [each.space(images) for each in self.spaces]
        found = [each.measures(f, self.setting.seed) for each, f in zip(self.spaces, features, strict=True)]
        seen = ((each, f) for each, f in zip(self.spaces, features, strict=True) if each.classes is not None)
        if (classifier := next(seen, None)) is None:
            return found
        known, classes = classifier[0].classes, classifier[0].classes_of(classifier[1])
        assert known is not None
        assert classes is not None
        for row, each, f in zip(found, self.spaces, features, strict=True):
            diversity = class_diversity(each.training, f, known, classes, seed=self.setting.seed)
            row["diversity"] = diversity["class_diversity"].value
        return found

    def __call__(self, entry: Entry) -> Row:
        """The row of a model."""
        name, source, steps = entry
        reference, seconds, of_teacher = self.reference
        images, found = reference, of_teacher
        if entry != self.teacher:
            model = opened(source)
            if model.image != self.model.image:
                raise UserError(f"{name} makes images of {model.image}, the teacher {self.model.image}: judge it apart")
            images, seconds = self.sampled(model, steps)
            found = self.measured(images)
        difference = images.clamp(-1, 1) - reference.clamp(-1, 1)
        spaces = {}
        for each, own, its in zip(self.setting.features, found, of_teacher, strict=True):
            ratios = {f"{name}_ratio": own[name] / its[name] for name in own if name.startswith("frechet")}
            spaces[each] = own | ratios
        row = {"name": name, "steps": steps, "seed": self.setting.seed, "samples": len(images)}
        rmse = float(difference.double().square().mean().sqrt())
        return row | {"rmse": rmse, "seconds_per_image": seconds, "spaces": spaces}


def opened(source: Source) -> Model:
    """The model of a folder, or a model as it is."""
    if isinstance(source, Model):
        return source
    if isinstance(source, Denoiser):
        return Model(source, conditioning=conditioning_of(source), autoencoder=getattr(source, "autoencoder", None))
    return load(Path(source))


def resizing_space(name: str, image: tuple[int, ...]) -> FeatureSpace:
    """A feature space; that of a shipped classifier sees images of another size resized to its own."""
    if name not in CLASSIFIERS or CLASSIFIERS[name].image == image:
        return feature_space(name, image)
    takes = CLASSIFIERS[name].image
    space, resized = feature_space(name, (image[0], *takes[1:])), partial(interpolate, size=takes[1:], mode="bilinear")
    return replace(space, extract=lambda images: space.extract(resized(images)))


@dataclass(frozen=True)
class Space:
    """A feature space with the data in it."""

    space: FeatureSpace
    training: Tensor  # features (N, D)
    held_out: Tensor | None  # features (H, D); None where nothing was held out

    @classmethod
    def of(cls, space: FeatureSpace, training: Images, held_out: Images | None) -> "Space":
        """From all images."""
        every = [features_of(space, data, torch.arange(len(data))) for data in (training, held_out) if data is not None]
        return cls(space, every[0], None if held_out is None else every[1])

    def classes_of(self, features: Tensor) -> Tensor | None:
        """The classes (M,) that the space's classifier sees in features (M, D); None without one."""
        logits = self.space.logits(features)
        return None if logits is None else logits.argmax(1)

    @cached_property
    def classes(self) -> Tensor | None:
        """Those of the training images."""
        return self.classes_of(self.training)

    @cached_property
    def distances(self) -> dict[str, Frechet]:
        """The Frechet distances to the training and the held-out images."""
        sets = {"frechet": self.training, "frechet_held_out": self.held_out}
        return {name: Frechet(moments(each)) for name, each in sets.items() if each is not None}

    @cached_property
    def of_data(self) -> dict[str, float]:
        """How near the data come to the training images, and the share of these in both sets."""
        nearest, _ = neighbors(self.training[:MOST].double(), self.training.double(), 2)  # itself is the first
        known = {"nearest_of_training": median(nearest)}
        if self.held_out is None:
            return known
        apart, _ = neighbors(self.held_out.double(), self.training.double(), 1)
        expected = len(self.training) / (len(self.training) + len(self.held_out))
        return known | {"nearest_of_held_out": median(apart), "expected": expected}

    def measures(self, features: Tensor, seed: int) -> dict[str, float]:
        """What is measured of the features (M, D) of samples, but for their diversity."""
        found = {name: distance(moments(features)) for name, distance in self.distances.items()}
        for measure in (precision_recall, density_coverage):
            found |= {name: each.value for name, each in measure(self.training, features, seed=seed).items()}
        nearest, _ = neighbors(features.double(), self.training.double(), 1)
        found |= {"nearest": median(nearest), **self.of_data}
        if self.held_out is not None:
            apart, _ = neighbors(features.double(), self.held_out.double(), 1)
            found["training_share"] = float((nearest < apart).double().mean())
        return found


def median(x: Tensor) -> float:
    """The median of numbers (N,)."""
    return float(x.quantile(0.5))


def split(source: str, folder: Path, seed: int, share: float = 0.2) -> tuple[Path, Path]:
    """Write training.npz and held_out.npz, the sources `npz:PATH` of two parts of a data source; their paths.

    Of each class, in the order of the images, a share is held out that the seed chooses.

    Raises:
        UserError: the share leaves either part empty, or as in `load_images`.
    """
    images = load_images(source)
    labels = torch.zeros(len(images), dtype=torch.int64) if images.labels is None else images.labels
    draw, is_held_out = torch.Generator().manual_seed(seed), torch.zeros(len(images), dtype=torch.bool)
    for label in labels.unique().tolist():
        own = (labels == label).nonzero().flatten()
        is_held_out[own[torch.randperm(len(own), generator=draw)][: round(share * len(own))]] = True
    if not 0 < int(is_held_out.sum()) < len(images):
        raise UserError(f"a share of {share} of {source} leaves one part empty: give another share")
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "training.npz", folder / "held_out.npz"
    for path, chosen in zip(paths, (~is_held_out, is_held_out), strict=True):
        part = images.subset(chosen.nonzero().flatten())
        np.savez_compressed(path, allow_pickle=False, **as_arrays(part))
    return paths


def as_arrays(images: Images) -> dict[str, NDArray[Any]]:
    """Images (N, H, W, C) as bytes, or as float32 where bytes would round them; and their labels, if they have any."""
    pixels, labels = images.at(torch.arange(len(images)))
    as_bytes = to_uint8(pixels)
    same = all(torch.equal(from_uint8(each), image) for each, image in zip(as_bytes, pixels, strict=True))
    arrays: dict[str, NDArray[Any]] = {"images": as_bytes if same else pixels.movedim(1, -1).numpy()}
    return arrays if images.labels is None else arrays | {"labels": labels.numpy()}


def read_rows(paths: Iterable[Path]) -> list[Row]:
    """The rows of several files."""
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def table(rows: Sequence[Row]) -> str:
    """A Markdown table for every feature space: mean and deviation over the seeds of each model at its steps."""
    keys = list(dict.fromkeys((row["name"], row["steps"]) for row in rows))
    groups = {each: [row for row in rows if (row["name"], row["steps"]) == each] for each in keys}
    return "\n".join(_table(groups, space) for space in rows[0]["spaces"])


def _table(groups: Mapping[tuple[str, int], Sequence[Row]], space: str) -> str:
    own = next(iter(groups.values()))[0]["spaces"][space]
    ratios = [name for name in own if name.endswith("_ratio")]
    columns = [*ratios, "frechet", *(name for name in COLUMNS if name in own)]
    data = [
        name for name in ("nearest_of_held_out", "nearest_of_training", "training_share", "expected") if name in own
    ]
    headings = [space, "steps", "seeds", *columns, *data, "rmse", "ms per image"]
    lines = [f"| {' | '.join(name.replace('_', ' ') for name in headings)} |", "|---|" + "---:|" * (len(headings) - 1)]
    for (name, steps), rows in groups.items():
        cells = [spread([row["spaces"][space][column] for row in rows]) for column in (*columns, *data)]
        other = [spread([row["rmse"] for row in rows]), spread([1000 * row["seconds_per_image"] for row in rows])]
        lines.append(f"| {' | '.join([name, str(steps), str(len(rows)), *cells, *other])} |")
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float]) -> str:
    """The mean, and the deviation where there are several."""
    return f"{mean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def entry(word: str) -> Entry:
    """FOLDER, FOLDER@STEPS or NAME=FOLDER@STEPS; without a name that of the folder, without steps the model's own."""
    name, _, place = word.rpartition("=")
    folder, _, steps = place.rpartition("@") if "@" in place else (place, "", "")
    if steps and not (steps.isdigit() and int(steps) > 0):
        raise UserError(f"{word}: {steps!r} is no number of steps: give FOLDER@STEPS, e.g. {folder}@4")
    own = load(Path(folder)).steps
    if not (steps or own):
        raise UserError(f"{word}: this model takes any number of steps: say how many, e.g. {word}@256")
    return name or Path(folder).name, folder, int(steps or min(own))


def main() -> None:
    """One of the three commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    holding = commands.add_parser("split", help="write two parts of a data source")
    holding.add_argument("source")
    holding.add_argument("--out", type=Path, required=True)
    holding.add_argument("--seed", type=int, default=0)
    holding.add_argument("--share", type=float, default=0.2, help="of the data, held out")
    judging = commands.add_parser("judge", help="measure models beside their teacher")
    judging.add_argument("models", nargs="+", metavar="[NAME=]FOLDER[@STEPS]")
    judging.add_argument("--teacher", required=True, metavar="FOLDER@STEPS")
    judging.add_argument("--training", required=True, help="what the models learned from, a data source")
    judging.add_argument("--held-out", help="what they did not see, a data source")
    judging.add_argument("-n", type=int, default=SAMPLES, help="samples of each model")
    judging.add_argument("--features", nargs="+", default=list(FEATURES))
    judging.add_argument("--seed", type=int, default=0)
    judging.add_argument("--out", type=Path, required=True)
    showing = commands.add_parser("table", help="mean and deviation of several seeds")
    showing.add_argument("files", type=Path, nargs="+")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    if arguments.command == "split":
        print(*split(arguments.source, arguments.out, arguments.seed, arguments.share))
    elif arguments.command == "judge":
        chosen = tuple(arguments.features)
        setting = Setting(arguments.training, arguments.held_out, arguments.n, chosen, arguments.seed)
        models = [entry(word) for word in arguments.models]
        print(table(judge(entry(arguments.teacher), models, setting, arguments.out)))
    else:
        print(table(read_rows(arguments.files)))


if __name__ == "__main__":
    main()
