"""The commands that compare models, and that make the statistics they are compared with."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer
from rich.table import Table

from progdist._utils.errors import UserError
from progdist._utils.names import Features, Method, Metric
from progdist.cli.options import (
    DATA_SOURCES,
    CaptionColumn,
    FeatureNames,
    ImageColumn,
    MetricNames,
    References,
    Seed,
    WeightFiles,
    precision_of,
)
from progdist.cli.terminal import console, write_message


def named_files(option: str, words: Sequence[str] | None, only: str | None = None) -> dict[str, Path]:
    """NAME=PATH, several times; without a name it is of `only`.

    Raises:
        UserError: no name where one is needed.
    """
    found = {}
    for word in words or ():
        name, given, path = word.partition("=")
        if not given and only is None:
            raise UserError(f"{option} {word} names no features: give NAME=FILE, e.g. {option} inception={word}")
        found[name if given else cast(str, only)] = Path(path if given else word)
    return found


def plan_of(
    features: list[str], metrics: list[str] | None, weights: list[str] | None, references: list[str] | None
) -> Any:  # noqa: ANN401  (a Plan, which takes seconds to import)
    """What the options say is to be measured.

    Raises:
        UserError: a metric or features are unknown.
    """
    from progdist.evaluation.measures.plan import Plan

    for option, words, known in (("--metric", metrics or [], Metric), ("--features", features, Features)):
        for word in words:
            if word not in get_args(known):
                raise UserError(f"{option} {word} is unknown: use one of {', '.join(get_args(known))}")
    only = features[0] if len(features) == 1 else None
    files = named_files("--weights", weights), named_files("--reference", references, only)
    return Plan(tuple(features), cast(tuple[Metric, ...], tuple(metrics or ())), *files)


def statistics(
    data: Annotated[str, typer.Argument(help=DATA_SOURCES)],
    out: Annotated[Path, typer.Option(help="The file: .npz (NAME_kid.npz for clean-fid's features), or .pt.")],
    features: FeatureNames = ["pixels"],  # noqa: B006  (typer copies it)
    keep_images: Annotated[int, typer.Option("--images", help="Keep as many images in it, too (arr_0).", min=0)] = 0,
    size: Annotated[int | None, typer.Option(help="Frame the images to a square of so many pixels.", min=1)] = None,
    weights: WeightFiles = None,
    image_column: ImageColumn = None,
) -> None:
    """Write the reference statistics of data to a file.

    In the layouts that other evaluators read.
    """
    from progdist.data.images import ImageTransform
    from progdist.data.sources import load_images
    from progdist.data.tables import Columns
    from progdist.evaluation.measures.reference import make_statistics

    images = load_images(data, ImageTransform(size, None), Columns(image_column, None))
    instruments = plan_of(features, None, weights, None).open(images.shape, captions=False)
    make_statistics(instruments.spaces, images, out, keep_images)
    console.print(f"{out}: {', '.join(features)} of {len(images)} images", highlight=False, soft_wrap=True)


def compare(
    models: Annotated[list[str], typer.Argument(help="Folders of runs or of models; MODEL@STEPS to say the steps.")],
    data: Annotated[str, typer.Option(help=DATA_SOURCES)],
    count: Annotated[int, typer.Option("--count", "-n", help="Samples of each model.", min=4)] = 2048,
    features: FeatureNames = ["pixels"],  # noqa: B006
    metric: MetricNames = None,
    method: Annotated[str, typer.Option(help=f"One of {', '.join(get_args(Method))}.")] = "ddim",
    clip: Annotated[bool, typer.Option("--clip", help="Keep every denoised image within [-1, 1].")] = False,
    batch: Annotated[int, typer.Option(help="Images made at a time.", min=1)] = 256,
    precision: Annotated[str, typer.Option(help="auto, float32 or bf16.")] = "auto",
    resamples: Annotated[int, typer.Option(help="Paired resamples of each distance.", min=20)] = 200,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("comparison.html"),
    reference: References = None,
    weights: WeightFiles = None,
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
    seed: Seed = 0,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object per model and features.")] = False,
) -> None:
    """Put runs and models side by side.

    Which is better is told by paired resamples of the same noise.
    """
    from progdist.data.sources import load_images
    from progdist.data.tables import Columns
    from progdist.evaluation.generate import SamplingOptions
    from progdist.runs.studies.comparison import comparison

    options = SamplingOptions(
        None, count, None, seed, method=method, clip=clip, batch=batch, precision=precision_of(precision)
    )
    images, plan = load_images(data, columns=Columns(image_column, caption_column)), plan_of(
        features, metric, weights, reference
    )  # fmt: skip
    records = comparison(models, images, options, plan, resamples, out, write_message)
    if json_:
        for record in records:
            typer.echo(json.dumps(record))
        return
    for name in features:
        console.print(comparison_table([record for record in records if record["features"] == name], name, count))
    console.print(f"Page: {out}", highlight=False, soft_wrap=True)


def comparison_table(records: list[dict[str, Any]], features: str, samples: int) -> Table:
    """Models side by side in one feature space, in 80 columns."""
    table = Table(
        title=f"Fréchet distance of {samples} samples to the data, {features} features",
        caption="ratio: of the distance to that of the model compared with, over paired resamples. "
        "better, worse: the whole 95 % interval of the ratio is below, above 1",
        title_justify="left", caption_justify="left", box=None, padding=(0, 1, 0, 0),
    )  # fmt: skip
    table.add_column("", no_wrap=True)
    table.add_column("model", overflow="fold", max_width=24)
    for heading in ("steps", "Fréchet\ndistance", "95 %\ninterval", "compared\nwith", "ratio", "95 %\ninterval"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for record in records:
        ratio, against = record["ratio"], record["against"]
        table.add_row(
            record["label"],
            record["model"],
            str(record["steps"]),
            f"{record['frechet']:.3f}",
            f"{record['frechet_low']:.2f}–{record['frechet_high']:.2f}",
            against or "",
            f"{ratio['value']:.2f}" if ratio else "",
            f"{ratio['low']:.2f}–{ratio['high']:.2f}" if ratio else "",
            record["verdict"] or "",
        )
    return table


COMMANDS: tuple[Callable[..., None], ...] = (statistics, compare)
