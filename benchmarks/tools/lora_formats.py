"""LoRA students in every format, read back by stock diffusers, as a table: docs/lora-formats.md.

    python benchmarks/tools/lora_formats.py OUT                              # of all pipelines
    python benchmarks/tools/lora_formats.py OUT WanPipeline                  # or of some
    python benchmarks/tools/lora_formats.py OUT --page docs/lora-formats.md  # in the page's place for it, too
    python benchmarks/tools/lora_formats.py OUT --student runs/lora-4/student-0004

The pipelines are the tiny ones of `tiny_pipelines.py`, built in OUT where they are not there, and their LoRA weights
are random ones of rank 2. A row has how many tensors a file has, what read it (see `tests/support/lora_readers.py`),
how many of the student's layers that found, and the largest difference between what it makes and what the student
makes, over the student's largest number: the outputs of the network, or those of its layers.

With `--student` the rows are of a trained student of a pipeline of U-Nets, and of its latents: the stock pipeline of
its base with the file, and the stock pipeline of the student's own folder, from the same noise in the student's steps.
"""

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging
from peft.tuners.lora import LoraLayer
from torch import Tensor

from progdist._utils.errors import UserError
from progdist._utils.files import atomic_write
from progdist.students.lora_export import export_lora
from progdist.students.lora_formats import FAMILIES, FORMATS, naming
from progdist.teachers.own import load as load_student
from tiny_pipelines import PROMPTS, build, load, sampled

sys.path.append(str(Path(__file__).parents[2] / "tests"))

from support.lora_readers import Calls, called, readings

HEADINGS = ("pipeline", "format", "tensors", "read by", "layers read", "largest difference", "in the outputs of")
BEGIN, END = "<!-- the table begins -->", "<!-- the table ends -->"


def tiny(name: str, out: Path) -> Calls:
    """A tiny pipeline's network and what it is called with, from a folder that is built if it is not there."""
    place = out / name
    if not place.is_dir():
        build(name, place)
    pipeline = load(place)
    return called(pipeline, FAMILIES[name].part, lambda: sampled(pipeline, name, PROMPTS[:1], 2))


def rows(name: str, out: Path) -> Iterator[str]:
    """The rows of a pipeline."""
    calls, refused = tiny(name, out), list[str]()
    for form in FORMATS:
        try:
            naming(name, form)
        except UserError as error:
            refused.append(f"- {error}")
            continue
        for read in readings(name, form, calls, out):
            what = ("the network" if read.outputs else "its layers") + ", of published width" * read.wide
            size = f"{read.difference:.0e}" if read.difference else "0"
            cells = [f"`{name}`", form, read.keys, read.way, f"{read.layers} of {read.of}", size, what]
            yield "| " + " | ".join(map(str, cells)) + " |"
    yield from refused


def student_rows(folder: Path, out: Path, prompts: Sequence[str] = PROMPTS) -> Iterator[str]:
    """The rows of a trained student, whose base is where it was."""
    model = load_student(folder)
    if model.lora is None:
        raise UserError(f"{folder} is no LoRA student")
    scheduler, trained = load(folder).scheduler, {name.rpartition(".lora_")[0] for name in model.lora.weights}
    expected = latents(load(folder), prompts, min(model.steps))
    for form in FORMATS:
        file = out / f"student-{form}.safetensors"
        written = export_lora(model, form, file)
        pipeline = load(Path(model.lora.base))
        pipeline.load_lora_weights(str(out), weight_name=file.name)
        pipeline.scheduler = type(scheduler).from_config(scheduler.config)
        network = getattr(pipeline, FAMILIES[str(model.conditioning.pipeline)].part)
        read = {name for name, layer in network.named_modules() if isinstance(layer, LoraLayer)}
        apart = (latents(pipeline, prompts, min(model.steps)) - expected).abs().max() / expected.abs().max()
        cells = [folder, form, written.tensors, "pipeline", f"{len(read & trained)} of {len(trained)}", f"{apart:.0e}"]
        yield "| " + " | ".join(map(str, [*cells, f"{len(expected)} samples in {min(model.steps)} steps"])) + " |"


def latents(pipeline: Any, prompts: Sequence[str], steps: int) -> Tensor:  # noqa: ANN401
    """What a stock pipeline makes of prompts without guidance, from noise of seed 0."""
    how = {"num_inference_steps": steps, "guidance_scale": 1.0, "output_type": "latent"}
    return pipeline(list(prompts), **how, generator=torch.Generator().manual_seed(0)).images


def main() -> None:
    """Print the table, or put it in the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="Folder of the tiny pipelines.")
    parser.add_argument("names", nargs="*", help="Names of pipelines (default: all).")
    parser.add_argument("--page", type=Path, help="A page with a place for the table.")
    parser.add_argument("--student", type=Path, help="The folder of a trained student, in place of tiny pipelines.")
    parser.add_argument("--prompts", type=Path, help="Of the student, a line each.")
    arguments = parser.parse_args()
    names = arguments.names or list(FAMILIES)
    if unknown := sorted({*names} - {*FAMILIES}):
        parser.error(f"not among the pipelines: {', '.join(unknown)}; there are {', '.join(FAMILIES)}")
    warnings.filterwarnings("ignore")  # diffusers', of the files that its loaders do not know whole
    logging.set_verbosity_error()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.student:
        lines = arguments.prompts.read_text().splitlines() if arguments.prompts else PROMPTS
        print(*student_rows(arguments.student, arguments.out, lines), sep="\n")
        return
    table, refused = [f"| {' | '.join(HEADINGS)} |", f"|{'---|' * len(HEADINGS)}"], list[str]()
    for name in names:
        for line in rows(name, arguments.out):
            print(line, flush=True)
            (table if line.startswith("|") else refused).append(line)
    if arguments.page:
        text = arguments.page.read_text()
        first, _, rest = text.partition(BEGIN)
        last = rest.partition(END)[2]
        body = "\n".join([*table, "", "Refused:", "", *refused])
        atomic_write(arguments.page, f"{first}{BEGIN}\n\n{body}\n\n{END}{last}".encode())


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
