"""A text-to-image teacher and its students, each sampled by the stock pipeline of its own folder, by guidance scale.

    python benchmarks/text_teacher.py captions:runs/digits-captions runs/stock-text@40 runs/text-4/student-0004@4

Nothing of progdist samples here. For each folder at its number of steps and each guidance scale: the share of images in
which the shipped classifier of digits (at 8x8, in grey) sees the digit of the caption, and the Frechet distance of
those grey images' pixels to the data.
"""

# pyright: reportPrivateImportUsage=false

import argparse
import time
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor
from torch.nn.functional import interpolate

from progdist.data.sources import load_images
from progdist.evaluation.features import feature_space
from progdist.evaluation.metrics import quality

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def grey(images: Tensor) -> Tensor:
    """(N, 1, 8, 8) of (N, 3, H, W) in [-1, 1]."""
    return interpolate(images.mean(1, keepdim=True), (8, 8), mode="area")


def digit(caption: str) -> int:
    """What a caption names."""
    return next(number for number, name in enumerate(DIGITS) if name in caption.replace(",", "").split())


def stock_samples(folder: str, steps: int, captions: list[str], guidance: float) -> tuple[Tensor, int]:
    """Images (N, 3, H, W) in [-1, 1], and the rows that the network was called with in all."""
    diffusers.utils.logging.set_verbosity_error()
    pipeline: Any = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    if type(pipeline.scheduler) is not DDIMScheduler:  # a teacher's
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    rows: list[int] = []
    pipeline.unet.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    draw, made = torch.Generator().manual_seed(1), []
    for first in range(0, len(captions), 100):
        part = captions[first : first + 100]
        how = {"guidance_scale": guidance, "num_inference_steps": steps, "generator": draw, "output_type": "pt"}
        made.append(pipeline(part, **how).images)
    return 2 * torch.cat(made) - 1, sum(rows)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("models", nargs="+", help="FOLDER@STEPS")
    parser.add_argument("-n", type=int, default=500)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 3.0, 7.5])
    arguments = parser.parse_args()
    images = load_images(arguments.data)
    captions = [images.classes[label] for label in images.stratified_labels(arguments.n).tolist()]
    labels = torch.tensor([digit(caption) for caption in captions])
    real = grey(torch.stack([image for image, _ in (images[index] for index in range(len(images)))]))
    pixels, classifier = feature_space("pixels", (1, 8, 8)), feature_space("digits", (1, 8, 8))
    print("| model | steps | guidance | accuracy | Frechet distance (95 %) | rows an image | s an image |")
    print("|---|---:|---:|---:|---|---:|---:|")
    for model in arguments.models:
        folder, _, steps = model.rpartition("@")
        for guidance in arguments.guidance:
            started = time.perf_counter()
            made, rows = stock_samples(folder, int(steps), captions, guidance)
            seconds = (time.perf_counter() - started) / len(made)
            seen = classifier.labels(classifier(grey(made)))
            assert seen is not None
            right = float((seen == labels).float().mean())
            found = quality(pixels, pixels(real), grey(made), None, resamples=50)
            print(
                f"| {folder} | {steps} | {guidance:g} | {right:.3f} | {found.frechet:.2f} ({found.frechet_low:.2f} to "
                f"{found.frechet_high:.2f}) | {rows / len(made):g} | {seconds:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
