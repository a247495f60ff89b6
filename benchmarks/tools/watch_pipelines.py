"""What is learned of every stock pipeline of prompts that diffusers has, as a table: docs/results/pipelines.md.

    python benchmarks/tools/watch_pipelines.py OUT                      # every one
    python benchmarks/tools/watch_pipelines.py OUT WanPipeline          # or some
    python benchmarks/tools/watch_pipelines.py OUT --distil             # and a student of two steps of each

The pipelines are the tiny ones of `tiny_pipelines.py`, built in OUT where they are not there. A row has how the network
is called, how the pipeline is guided, and how far `progdist.sample` is from the pipeline in 2 and in 5 steps with a
student's scheduler; or why it is refused. "images" is whether images can be encoded for it. With --distil a student of
two steps is distilled on four samples of each teacher, guided by 3 where it is guided, and its folder, loaded by
diffusers alone, is compared with `progdist sample`.
"""

import argparse
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from progdist._utils.errors import UserError
from progdist.models.calls import Latents, Time
from progdist.models.pipeline_autoencoder import PipelineAutoencoder
from progdist.models.pipeline_prompts import Pipeline, PipelinePrompts
from progdist.recipes.files import override
from progdist.recipes.from_teacher import Request, recipe_for_teacher
from progdist.runs.run import open_run
from progdist.teachers.open import open_teacher
from progdist.teachers.own import load
from progdist.teachers.pipeline import COMPARED, Findings, student_differs, study
from progdist.training.callbacks import Progress
from tiny_pipelines import BUILDERS, CALLS, NOT_BUILT, PROMPTS, build, usable

OTHERWISE = ("guidance_scale", "true_cfg_scale", "output_type")  # what a small call has, and a teacher chooses itself
HEADINGS = ("pipeline", "latents", "time", "output", "guidance", "images", "2 and 5 steps")


class Silent:
    """A callback that shows nothing."""

    def begin(self, title: str, updates: int) -> None:
        """Nothing."""

    def progress(self, progress: Progress) -> None:
        """Nothing."""

    def end(self, stopped: int | None = None) -> None:
        """Nothing."""

    def evaluated(self, record: object) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


def arguments_of(name: str) -> dict[str, Any]:
    """The arguments of a small call of a pipeline, as --call would name them."""
    return {key: value for key, value in CALLS[name].items() if key not in OTHERWISE}


def row(found: Findings) -> list[str]:
    """What was learned of a pipeline."""
    pipeline, leaves = found.pipeline, list(found.pipeline.call.leaves())
    time = next(leaf for _, leaf in leaves if isinstance(leaf, Time))
    path, latents = next((path, leaf) for path, leaf in leaves if isinstance(leaf, Latents))
    place = f"the first channels of `{path}`" if latents.value is not None else f"`{path}`"
    place += "" if latents.layout == "z" else f", {latents.layout}"
    return [
        f"{place}, {'x'.join(map(str, pipeline.latents))}",
        f"{time.slope:.4g} t{f' + {time.offset:.4g}' if time.offset else ''}",
        pipeline.call.output,
        guidance(found),
        encoding(found.pipeline),
        f"{max(found.verified[f'{steps} steps'] for steps in COMPARED):.0e}",
    ]


def encoding(pipeline: Pipeline) -> str:
    """Whether images are encoded for a pipeline, or how it decodes."""
    if PipelineAutoencoder(pipeline).encodes:
        return "yes"
    return "videos" if pipeline.decoding else "no"


def guidance(found: Findings) -> str:
    """How a pipeline is guided, in a word."""
    pipeline = found.pipeline
    if pipeline.scale:
        return f"`{pipeline.scale[0]}`, an input of the network"
    if pipeline.guiding is None:
        return found.notes[-1] if found.notes else "none"
    more = " + 1" * bool(pipeline.guiding.added) + ", of one norm" * pipeline.guiding.normalized
    return f"`{pipeline.guiding.parameter}`{more}" + ("" if pipeline.guiding.exact else ", and more, which is left out")


def distilled(place: Path, call: Mapping[str, Any], out: Path) -> float:
    """How far the stock pipeline of a student of two steps is from `progdist sample`."""
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    prompts = out.with_suffix(".txt")
    prompts.write_text("\n".join(PROMPTS))
    teacher = open_teacher(str(place), call=call)
    conditioning = teacher.model.conditioning
    assert isinstance(conditioning, PipelinePrompts)
    guided = not teacher.model.takes_guidance and conditioning.watched.guiding is not None
    request = Request(
        str(place), "teacher:4", out.name, 2, call=call, prompts=str(prompts), start=4, updates=2, batch=2,
        guidance=3.0 if guided else None,
    )  # fmt: skip
    settings = ["evaluate.samples=2", "evaluate.resamples=2", "data.steps=2", *(["conversion.updates=2"] * guided)]
    open_run(override(recipe_for_teacher(teacher, request), settings), out, Silent(), teacher=teacher).run()
    return student_differs(out / "student-0002", load(out / "student-0002"))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="Folder of the tiny pipelines.")
    parser.add_argument("names", nargs="*", help="Names of pipelines (default: all).")
    parser.add_argument("--distil", action="store_true", help="Distil a student of each, too.")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")  # diffusers', of its deprecated classes and arguments
    headings = [*HEADINGS, *(["student of two steps"] if arguments.distil else [])]
    print(f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}", sep="\n", flush=True)
    refused: dict[str, str] = {}
    names: Sequence[str] = arguments.names or sorted(name for name in BUILDERS if usable(name))
    for name in names:
        place = arguments.out / name.replace("/", "-")
        if not place.is_dir():
            build(name, place)
        try:
            cells = row(study(place, arguments_of(name)))
            if arguments.distil:
                run = arguments.out / "students" / place.name
                cells.append(f"{distilled(place, arguments_of(name), run):.0e}")
            print(f"| {' | '.join([name, *cells])} |", flush=True)
        except (UserError, RuntimeError) as error:  # the second of a network that does not take what was learned
            refused[name] = " ".join(str(error).removeprefix(f"{place}: ").split())
    print(f"\n{len(names) - len(refused)} of {len(names)} pass. Refused:\n")
    print(*(f"- {name}: {reason}" for name, reason in sorted({**refused, **NOT_BUILT}.items())), sep="\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
