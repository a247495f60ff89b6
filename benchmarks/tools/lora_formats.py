"""LoRA students in every format, read back by stock diffusers, as a table: docs/lora-formats.md.

    python benchmarks/tools/lora_formats.py OUT                              # of all pipelines
    python benchmarks/tools/lora_formats.py OUT WanPipeline                  # or of some
    python benchmarks/tools/lora_formats.py OUT --page docs/lora-formats.md  # in the page's place for it, too

The pipelines are the tiny ones of `tiny_pipelines.py`, built in OUT where they are not there, and their LoRA weights
are random ones of rank 2. A row has how many tensors a file has, what read it (see `tests/support/lora_readers.py`),
how many of the student's layers that found, and the largest difference between what it makes and what the student
makes, over the student's largest number: the outputs of the network, or those of its layers.
"""

import argparse
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers.utils import logging

from progdist._utils.errors import UserError
from progdist._utils.files import atomic_write
from progdist.students.lora_formats import FAMILIES, FORMATS, naming
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


def main() -> None:
    """Print the table, or put it in the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="Folder of the tiny pipelines.")
    parser.add_argument("names", nargs="*", help="Names of pipelines (default: all).")
    parser.add_argument("--page", type=Path, help="A page with a place for the table.")
    arguments = parser.parse_args()
    names = arguments.names or list(FAMILIES)
    if unknown := sorted({*names} - {*FAMILIES}):
        parser.error(f"not among the pipelines: {', '.join(unknown)}; there are {', '.join(FAMILIES)}")
    warnings.filterwarnings("ignore")  # diffusers', of the files that its loaders do not know whole
    logging.set_verbosity_error()
    arguments.out.mkdir(parents=True, exist_ok=True)
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
