"""A text-to-image teacher and its students, each sampled by the stock pipeline of its own folder, by guidance scale.

    python benchmarks/experiments/text_teacher.py digits captions:runs/digits-captions \
        runs/stock-text@40 runs/text-4/student-0004@4

Nothing of progdist samples here. For each folder at its number of steps and each guidance scale: the share of images in
which the shipped classifier of the data set sees what the caption names, and the Frechet distance to the data of the
images' grey pixels, averaged down to 8x8, and of the classifier's features. The first row is of the data themselves.
With `--reference FOLDER@STEPS` both distances are to that model's images at the same scale and from the same noise, in
place of the data: how far a student, or its teacher in few steps, is from what the teacher makes in many.
With `--turned` every image, of models and data, is turned clockwise by 90 degrees before it is judged, for models of
images that lie on their backs (`examples/fine_tune_lora.py`).
"""

# pyright: reportPrivateImportUsage=false

import argparse
import time
from dataclasses import dataclass
from typing import Any, Self

import diffusers
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor
from torch.nn.functional import interpolate

from progdist.data.images import Images
from progdist.data.sources import load_images
from progdist.evaluation.features import feature_space
from progdist.evaluation.measures.frechet import Frechet, resampled_frechet
from progdist.evaluation.measures.moments import moments
from progdist.evaluation.networks.classifier import CLASSIFIERS

NAMES = {
    "digits": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "fashion-mnist": (
        *("t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"),
    ),
}
"""What captions call the classes of each classifier."""


def grey(images: Tensor, size: int) -> Tensor:
    """(N, 1, size, size) of (N, 3, H, W) in [-1, 1]."""
    return interpolate(images.mean(1, keepdim=True), (size, size), mode="bilinear", antialias=True).clamp(-1, 1)


def named(caption: str, names: tuple[str, ...]) -> int:
    """The class that a caption names."""
    words = caption.replace(",", "").split()
    return next(number for number, name in enumerate(names) if name in words)


def stock_samples(model: str, captions: list[str], guidance: float) -> tuple[Tensor, int]:
    """Images (N, 3, H, W) in [-1, 1] of FOLDER@STEPS, and the rows that the network was called with in all."""
    folder, _, steps = model.rpartition("@")
    diffusers.utils.logging.set_verbosity_error()
    pipeline: Any = StableDiffusionPipeline.from_pretrained(folder).to("cuda" if torch.cuda.is_available() else "cpu")
    pipeline.set_progress_bar_config(disable=True)
    if type(pipeline.scheduler) is not DDIMScheduler:  # a teacher's
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    rows: list[int] = []
    pipeline.unet.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    draw, made = torch.Generator().manual_seed(1), []
    for first in range(0, len(captions), 100):
        part = captions[first : first + 100]
        how = {"guidance_scale": guidance, "num_inference_steps": int(steps), "generator": draw, "output_type": "pt"}
        made.append(pipeline(part, **how).images.cpu())
    return 2 * torch.cat(made) - 1, sum(rows)


@dataclass(frozen=True)
class Measure:
    """What images are compared with.

    Attributes:
        data: the name of the classifier.
        distances: from the data, in each space.
        turned: whether images lie on their backs, and are turned before they are judged.
    """

    data: str
    distances: dict[str, Frechet]
    turned: bool = False

    @classmethod
    def of(cls, data: str, images: Tensor, *, turned: bool = False) -> Self:
        """The measure of a data set's images (N, 3, H, W)."""
        found = features(data, upright(images, turned=turned))
        return cls(data, {name: Frechet(moments(each)) for name, each in found.items()}, turned)

    def row(self, images: Tensor, labels: Tensor) -> str:
        """Accuracy and both distances of images (N, 3, H, W) that should be of some classes (N,)."""
        made = features(self.data, upright(images, turned=self.turned))
        seen = feature_space(self.data, CLASSIFIERS[self.data].image).labels(made[self.data])
        assert seen is not None
        found = [resampled_frechet(each, made[name], resamples=50, seed=0) for name, each in self.distances.items()]
        said = [f"{each.value:.3f} ({each.low:.3f} to {each.high:.3f})" for each in (one.estimate for one in found)]
        return " | ".join([f"{float((seen == labels).float().mean()):.3f}", *said])


def upright(images: Tensor, *, turned: bool) -> Tensor:
    """Images (N, C, H, W), turned clockwise by 90 degrees where they are turned."""
    return images.rot90(-1, (2, 3)) if turned else images


def features(data: str, images: Tensor) -> dict[str, Tensor]:
    """Of images (N, 3, H, W) the grey pixels at 8x8 and the classifier's features, each (N, D)."""
    shape = CLASSIFIERS[data].image
    return {"pixels": grey(images, 8).flatten(1), data: feature_space(data, shape)(grey(images, shape[-1]))}


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments that say what is measured: classifier, data, samples and guidance scales."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classifier", choices=NAMES)
    parser.add_argument("data")
    parser.add_argument("-n", type=int, default=500)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 3.0, 7.5])
    return parser


def open_data(data: str, classifier: str) -> tuple[Images, Tensor, Tensor, Tensor]:
    """Captioned images, all of them (N, 3, H, W), the numbers of their captions (N,), and the class of each caption."""
    images = load_images(data)
    named_by = torch.tensor([named(caption, NAMES[classifier]) for caption in images.classes])
    return images, *images.at(torch.arange(len(images))), named_by


def measured(model: str, captions: list[str], labels: Tensor, guidance: float, measure: Measure) -> str:
    """The row of FOLDER@STEPS at one scale."""
    started = time.perf_counter()
    made, rows = stock_samples(model, captions, guidance)
    seconds, (folder, _, steps) = (time.perf_counter() - started) / len(made), model.rpartition("@")
    return f"| {folder} | {steps} | {guidance:g} | {measure.row(made, labels)} | {rows / len(made):g} | {seconds:.3f} |"


def main() -> None:
    """Print a table."""
    parser = argument_parser(__doc__)
    parser.add_argument("models", nargs="+", help="FOLDER@STEPS")
    parser.add_argument("--turned", action="store_true", help="Turn images clockwise before they are judged.")
    parser.add_argument("--reference", help="FOLDER@STEPS, of models that take the scale")
    arguments = parser.parse_args()
    images, real, places, named_by = open_data(arguments.data, arguments.classifier)
    wanted, measure = (
        images.stratified_labels(arguments.n),
        Measure.of(arguments.classifier, real, turned=arguments.turned),
    )
    captions = [images.classes[place] for place in wanted.tolist()]
    print("| model | steps | guidance | accuracy | pixels (95 %) | features (95 %) | rows an image | s an image |")
    print("|---|---:|---:|---:|---|---|---:|---:|")
    if not arguments.reference:
        print(f"| data | | | {measure.row(real, named_by[places])} | | |", flush=True)
    for guidance in arguments.guidance:
        if arguments.reference:
            made = stock_samples(arguments.reference, captions, guidance)[0]
            measure = Measure.of(arguments.classifier, made, turned=arguments.turned)
        for model in arguments.models:
            print(measured(model, captions, named_by[wanted], guidance, measure), flush=True)


if __name__ == "__main__":
    main()
