"""Tiny stock pipelines of diffusers with random weights: folders for tests, and for trying what is to be distilled.

    python benchmarks/tools/tiny_pipelines.py OUT                    # every one, in OUT/NAME
    python benchmarks/tools/tiny_pipelines.py OUT WanPipeline        # or some

Each is a complete folder that `DiffusionPipeline.from_pretrained` loads: networks of some 10,000 to 400,000 parameters
(those of HunyuanImage 2.1 and HunyuanVideo 1.5 have a layer of fixed width, and 4 million), latents of about 8x8 and,
of videos, two or three frames; tokenizers learned from a few prompts, text encoders of the classes that the pipeline
names, nothing fetched. What the network says depends on noise, time and prompt: layers that begin at zero are drawn
anew.

Printed are, for two prompts and three steps, the seconds of building, loading and sampling, the shape of the latents,
and how far the second prompt's sample moves with the prompt, in its own standard deviations.
"""

# pyright: reportPrivateImportUsage=false

import argparse
import inspect
import re
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils.import_utils import is_ftfy_available
from torch import Tensor

sys.path.append(str(Path(__file__).parents[2] / "tests"))

import tiny.audio
import tiny.images
import tiny.kandinsky
import tiny.known
import tiny.ltx
import tiny.packed
import tiny.unets
import tiny.videos
import tiny.wan  # noqa: F401  -- each enters its pipelines
from support.text import PROMPTS
from tiny.not_built import NOT_BUILT
from tiny.registry import BUILDERS, CALLS, build

__all__ = ["BUILDERS", "CALLS", "NOT_BUILT", "PROMPTS", "build", "load", "prompted", "sampled", "usable"]

OTHER_TASKS = re.compile(
    "Img2Img|ControlNet|Controlnet|Inpaint|Edit|Image2Video|ImageToVideo|(?<!T)I2V|I2I|VideoToVideo|AudioToAudio|Upscal|"
    "SuperRes|Refiner|Adapter|Pix2Pix|ImageVariation|Emb2Emb|Onnx"
)
"""In the names of pipelines that change what they are given."""


def prompted() -> list[str]:
    """The classes of diffusers' pipelines that are called with prompts and are for no other task by their name."""
    kinds = {name: getattr(diffusers, name) for name in dir(diffusers) if name.endswith("Pipeline")}
    return [
        name
        for name, kind in kinds.items()
        if inspect.isclass(kind)
        and issubclass(kind, diffusers.DiffusionPipeline)
        and "prompt" in inspect.signature(kind.__call__).parameters
        and not OTHER_TASKS.search(name)
    ]


def usable(name: str) -> bool:
    """Whether what a pipeline calls is installed: SkyReels V2 cleans its prompts by ftfy."""
    return is_ftfy_available() or not name.startswith("SkyReels")


def load(folder: Path) -> Any:  # noqa: ANN401
    """The pipeline in a folder, which shows no progress."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sampled(pipeline: Any, name: str, prompts: Sequence[str], steps: int = 3) -> Tensor:  # noqa: ANN401
    """What a pipeline makes of prompts in a small call: (prompts, ...), latents where it gives them, from seed 0."""
    taken = inspect.signature(pipeline.__call__).parameters
    wished = {"num_inference_steps": steps, "output_type": "latent"}
    call = {key: value for key, value in wished.items() if key in taken} | CALLS[name]
    made = pipeline(prompt=list(prompts), generator=torch.Generator().manual_seed(0), **call)
    while not hasattr(made, "shape"):
        made = next(iter(made.values())) if hasattr(made, "values") else made[0]
    return torch.as_tensor(made).float()


def report(name: str, folder: Path) -> str:
    """A line about a pipeline, which is built in a folder."""
    marks = [time.perf_counter()]
    build(name, folder)
    marks.append(time.perf_counter())
    pipeline = load(folder)
    marks.append(time.perf_counter())
    one = sampled(pipeline, name, PROMPTS[:2])
    marks.append(time.perf_counter())
    other = sampled(pipeline, name, [PROMPTS[0], PROMPTS[2]])
    moved = float((one[1] - other[1]).std() / one[1].std())
    built, loaded, drawn = (later - sooner for sooner, later in pairwise(marks))
    return f"{name:44} {built:6.1f} {loaded:6.1f} {drawn:6.1f} s   {tuple(one.shape)!s:24} {moved:.3f}"


def main() -> None:
    """Build what is asked for, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="Folder of the folders.")
    parser.add_argument("names", nargs="*", help="Names of pipelines (default: all).")
    arguments = parser.parse_args()
    names = arguments.names or [name for name in BUILDERS if usable(name)]
    if unknown := sorted({*names} - {*BUILDERS}):
        parser.error(f"not among the pipelines: {', '.join(unknown)}; there are {', '.join(sorted(BUILDERS))}")
    for name in names:
        print(report(name, arguments.out / name.replace("/", "-")), flush=True)


if __name__ == "__main__":
    main()
