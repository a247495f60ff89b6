"""The command that lists which training settings fit a GPU."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from progdist._utils.errors import UserError
from progdist._utils.words import significant
from progdist.cli.terminal import begin, console, print_table
from progdist.training.config import DEFAULTS

if TYPE_CHECKING:  # slow imports
    from progdist.runs.estimate.fit import Fit, Fits

WIDTH = 80
CARDS = (12.0, 24.0, 80.0)
MARKS = {"yes": "yes", "tight": "~", "no": "no"}
SHORT = {"AdamW": "AdamW", "adamw8bit": "8bit", "LoRA": "LoRA"}  # LoRA8, LoRA4 on a base of 8 or 4 bits
MOST_CARDS, LARGEST_CARD, LARGEST_RATE = 4, 2**20, 1e6  # columns of a table that fits; GiB; TFLOP/s


def fit(
    folder: Annotated[Path, typer.Argument(help="A pipeline's model_index.json and config.json files; no weights.")],
    memory: Annotated[
        list[str] | None, typer.Option(help="GiB of a card, or a list (default: 12,24,80); several times for more.")
    ] = None,
    height: Annotated[int | None, typer.Option(help="Pixels (default: those of the pipeline's call).")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels (default: those of the pipeline's call).")] = None,
    frames: Annotated[int | None, typer.Option(help="Video frames (default: those of the pipeline's call).")] = None,
    tflops: Annotated[
        float | None, typer.Option(help="Measured dense bf16 rate of the card, 10^12 operations a second.")
    ] = None,
) -> None:
    """Print which training settings fit a card. Needs no weights."""
    cards = card_sizes(memory or [])
    if tflops is not None and not 0 < tflops <= LARGEST_RATE:
        raise UserError(f"--tflops is {tflops:g}, expected a positive number of at most {LARGEST_RATE:g}")
    begin(f"reading {folder}")
    from progdist.models.components import PipelineFolder
    from progdist.runs.estimate.fit import fits

    found = fits(PipelineFolder.read(folder), height=height, width=width, frames=frames)
    console.print("\n".join(head(found, tflops)))
    print_table(fit_table(found, cards, tflops))
    console.print("\n".join(sentences(found, cards)))


def card_sizes(given: list[str]) -> list[float]:
    """Parse GiB of the cards, numbers or lists; the default if none is given."""
    sizes = list[float]()
    for text in (part.strip() for each in given for part in each.replace(" ", ",").split(",") if part.strip()):
        try:
            size = float(text)
        except ValueError:
            size = 0.0
        if not 0 < size <= LARGEST_CARD:
            raise UserError(f"--memory {text}: expected GiB, e.g. 24, or a list of them, e.g. 12,24,80")
        sizes.append(size)
    if len(set(sizes)) > MOST_CARDS:
        raise UserError(f"--memory has {len(set(sizes))} sizes, expected at most {MOST_CARDS}")
    return sorted(set(sizes)) or list(CARDS)


def head(found: "Fits", tflops: float | None) -> list[str]:
    """The counts, in lines of 80 columns."""
    lines = [
        f"{found.network}: {found.parameters:,} parameters; {found.size}; an evaluation of one example takes "
        f"{significant(found.evaluation / 1e12, 3)} TFLOP.",
        "Counted from configs, in GiB, nothing was run. Teacher and student compute in bf16; LoRA of rank 64 shares "
        "the teacher's weights. 8bit: adamw8bit; LoRA8, LoRA4: on a base of 8 or 4 bits; ckpt: gradient "
        "checkpointing; B: batch; ~: fits with less than a "
        "tenth left; TFLOP: of an update of the batch.",
    ]
    if tflops is not None:
        lines.append(
            f"Seconds at {tflops:g} TFLOP/s are a lower bound: only matrix products and convolutions are counted."
        )
    return [line for text in lines for line in textwrap.wrap(text, WIDTH, break_on_hyphens=False)]


def fit_table(found: "Fits", cards: list[float], tflops: float | None = None) -> Table:
    """The settings, in 80 columns."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    sizes = ("stud.", "grad.", "mom.", "teach.", "act.", "sum")
    rates = ("TFLOP", *(("s",) if tflops is not None else ()))
    for heading in ("training", "ckpt", "B", *sizes, *(f"{card:g}" for card in cards), *rates):
        left = heading in ("training", "ckpt")
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    for row in found.rows:
        setting, memory = row.setting, row.memory
        held = (memory.weights, memory.gradients, memory.moments, memory.teacher, memory.activations, memory.total)
        marks = [MARKS[row.fits(card * 2**30)] for card in cards]
        operations = row.operations / 1e12
        seconds = [] if tflops is None else [significant(operations / tflops, 3)]
        checkpointing = "yes" if setting.checkpointing else "no"
        start = (f"{SHORT[setting.training]}{setting.bits or ''}", checkpointing, str(setting.batch))
        table.add_row(*start, *map(gib, held), *marks, significant(operations, 3), *seconds)
    return table


def sentences(found: "Fits", cards: list[float]) -> list[str]:
    """The best setting for each card, with its options, in lines of 80 columns where no option is longer."""
    lines = list[str]()
    for card in cards:
        best = found.best(card * 2**30)
        text = f"{card:g} GiB: {_described(best)}" if best else _nothing(found, card)
        lines += textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return [*lines, "For a stage 0, set the same options: --set conversion.KEY=VALUE."]


def _described(row: "Fit") -> str:
    """A setting in words, and its options."""
    setting = row.setting
    what = {"AdamW": "the whole network with AdamW", "adamw8bit": "the whole network with adamw8bit"}
    how = " and gradient checkpointing" if setting.checkpointing else ""
    words = " ".join(f"--set {option}" for option in setting.options())
    base = f" on a base of {setting.bits} bits" if setting.bits else ""
    named, total = what.get(setting.training, f"LoRA of rank 64{base}"), gib(row.memory.total)
    command = f"progdist distill ... --batch {DEFAULTS['distill']['batch']} {words}"
    return f"{named}{how}, {setting.batch} at a time ({total} GiB): {command}"


def gib(size: float) -> str:
    """Bytes in GiB, in at most five characters below 100,000."""
    number = size / 2**30
    return f"{number:.0f}" if number >= 99.95 else f"{number:.1f}" if number >= 0.995 else f"{number:.2f}"


def _nothing(found: "Fits", card: float) -> str:
    """The line for a card that no setting fits, with the nearest one."""
    least = min(found.rows, key=lambda row: row.memory.total)
    return (
        f"{card:g} GiB: none of these with a tenth left; the least is {gib(least.memory.total)} GiB. Choose a smaller "
        "--height and --width, or spread the student over several cards with --shard."
    )
