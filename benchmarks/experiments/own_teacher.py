"""A distilled student beside its teacher, each sampled by the stock scheduler of its own folder.

    python benchmarks/experiments/own_teacher.py TEACHER STUDENT [--steps 4] [--teacher-steps 250] \
        [--data digits] [-n 1797]

Nothing of progdist samples here: stock diffusers loads both folders and steps through its own grid. The Frechet
distance is that of raw pixels, to the data at the teacher's size.
"""

# pyright: reportPrivateImportUsage=false

import argparse
import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import UNet2DModel
from torch import Tensor

from progdist.compute.precision import autocast
from progdist.data.images import Images
from progdist.data.sources import open_source
from progdist.data.tables import Columns
from progdist.evaluation.features import feature_space
from progdist.evaluation.metrics import quality
from progdist.evaluation.record import Quality
from progdist.evaluation.summary import summarize
from progdist.recipes.from_teacher import frame
from progdist.teachers.open import open_teacher


def stock_samples(folder: Path, steps: int, images: Images, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) and labels (N,), by the folder's own network and scheduler."""
    told = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    scheduler = getattr(diffusers, told["_class_name"]).from_pretrained(folder, subfolder="scheduler")
    network: Any = UNet2DModel.from_pretrained(folder, subfolder="unet")
    flow = told["_class_name"].startswith("FlowMatch")
    labels = images.stratified_labels(count)
    draw, made = torch.Generator().manual_seed(seed), []
    for part in labels.split(512):
        own = flow and not told.get("shift_terminal")  # a teacher's scheduler, which is of no step count
        grid = {"sigmas": [1 - i / steps for i in range(steps)]} if own else {"num_inference_steps": steps}
        scheduler.set_timesteps(**grid)
        z = torch.randn(len(part), *images.shape, generator=draw)
        given = {"class_labels": part} if network.config.num_class_embeds else {}
        for timestep in scheduler.timesteps:
            with torch.no_grad(), autocast(torch.device("cpu"), "auto"):
                output = network(z, timestep.expand(len(part)), **given).sample.float()
            random = {} if flow else {"generator": draw}
            z = scheduler.step(output, timestep, z, **random).prev_sample
        made.append(z)
    return torch.cat(made), labels


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("student", type=Path)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--teacher-steps", type=int, default=250)
    parser.add_argument("--data", default="digits")
    parser.add_argument("-n", type=int, default=1797)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    framed = frame(open_teacher(str(arguments.teacher)), arguments.data, Columns())
    images = open_source(arguments.data, framed.transform())
    space = feature_space("pixels", images.shape)
    data = space(images.sample(10_000, 0)[0])
    found: list[Quality] = []
    for folder, steps in ((arguments.teacher, arguments.teacher_steps), (arguments.student, arguments.steps)):
        made, _ = stock_samples(folder, steps, images, arguments.n, arguments.seed)
        found.append(quality(space, data, summarize([space], made)))
        told = found[-1]
        interval = f"({told.frechet_low:.3f} to {told.frechet_high:.3f})"
        print(f"{folder} at {steps} steps: Frechet {told.frechet:.3f} {interval} of {told.samples}", flush=True)
    print(f"ratio {found[1].frechet / found[0].frechet:.2f}")


if __name__ == "__main__":
    main()
