"""Options that several commands take."""

from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from progdist._utils.errors import UserError
from progdist._utils.names import Distillation, Features, Metric, Precision

DATA_SOURCES = "digits, or folder:, captions:, npz:, idx:, cifar:, wds: or parquet:PATH, or hub:NAME."
DATA = f"{DATA_SOURCES} Or teacher:COUNT, samples of the teacher."
MOST, LARGEST_SIDE = 10**8, 2**16  # images and pixels, far above practical values
VARIANCE = "With --method ancestral: 0 for the lower bound of the variance, 1 for the upper."
Size = Annotated[
    int | None, typer.Option(help="Crop and resize images to a square of so many pixels.", min=1, max=LARGEST_SIDE)
]
Seed = Annotated[int, typer.Option(help="Seed of the noise.", min=0)]
RunSeed = Annotated[
    int | None, typer.Option("--seed", help="Seed of all randomness (default: the recipe's).", min=0, max=2**32 - 1)
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over; the existing run is renamed, not deleted.")]
Shard = Annotated[bool, typer.Option("--shard", help="Shard the trained network over the processes (FSDP2).")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the estimated hours and memory, and exit.")]
DeviceMemory = Annotated[
    float | None, typer.Option(help="With --dry-run: GiB of the target device (default: this device).", min=0)
]
DistillationMethod = Annotated[str, typer.Option(help=f"One of {', '.join(get_args(Distillation))}.")]
Initial = Annotated[
    Path | None,
    typer.Option("--from", help="Finished student to distil one stage further; its run holds its teacher."),
]
Guidance = Annotated[
    str | None, typer.Option(help="Guidance scale to distil into the student, or LO:HI for a guidance input.")
]
Lora = Annotated[
    int | None, typer.Option(help="Rank of a LoRA file for the pipeline of a text-to-image teacher, e.g. 64.", min=1)
]
BaseBits = Annotated[
    int | None, typer.Option(help="With --lora: bits of the frozen base that the adapters train on, 8 or 4.")
]
WithLora = Annotated[
    list[str] | None,
    typer.Option("--with-lora", help="LoRA file to fuse into the teacher, FILE.safetensors[:weight]; several times."),
]
Config = Annotated[
    str | None,
    typer.Option(help="Diffusers folder with the configs and tokenizers of a teacher that is one .safetensors file."),
]
MODEL = "A diffusers pipeline folder, a progdist folder, hub:OWNER/NAME, or a .safetensors checkpoint (--config)."
Updates = Annotated[int, typer.Option(help="Training steps of each stage; twice in the last two.", min=1)]
ConversionUpdates = Annotated[
    int | None, typer.Option(help="Training steps of stage 0 (default: four times --updates).", min=1)
]
ImageColumn = Annotated[str | None, typer.Option(help="Column of the images in hub:, parquet: or wds: data.")]
CaptionColumn = Annotated[str | None, typer.Option(help="Column of the captions in such data, e.g. text or json.text.")]
PromptsFile = Annotated[
    str | None, typer.Option(help="Text file with one prompt per line: train on the teacher's samples of them.")
]
PromptsToCompare = Annotated[str | None, typer.Option("--prompts", help="Text file with one prompt per line.")]
Call = Annotated[
    list[str] | None,
    typer.Option("--call", help="Argument of a watched stock pipeline, name=value, e.g. num_frames=25."),
]
Background = Annotated[
    str | None, typer.Option(help="Colour behind transparent pixels, e.g. black or '#ff8800' (default: white).")
]
FeatureNames = Annotated[
    list[str], typer.Option("--features", help=f"One of {', '.join(get_args(Features))}; several times for more.")
]
MetricNames = Annotated[
    list[str] | None, typer.Option("--metric", help=f"Also {', '.join(get_args(Metric))}; several times for more.")
]
References = Annotated[
    list[str] | None, typer.Option("--reference", help="[FEATURES=]FILE of statistics in place of the data (Fréchet).")
]
WeightFiles = Annotated[
    list[str] | None, typer.Option("--weights", help="Weights: inception=FILE, dinov2=FOLDER or clip=FOLDER.")
]


def precision_of(name: str) -> Precision:
    """A precision by its name."""
    if name not in get_args(Precision):
        raise UserError(f"--precision {name} is unknown: use one of {', '.join(get_args(Precision))}")
    return cast(Precision, name)


def settings(set_: list[str] | None, seed: int | None) -> list[str]:
    """The settings of `--set` and `--seed`; a UserError if both set the seed."""
    given = list(set_ or [])
    if seed is not None and any(setting.startswith("seed=") for setting in given):
        raise UserError("--seed and --set seed=... both set the seed: remove one of them")
    return given if seed is None else [*given, f"seed={seed}"]
