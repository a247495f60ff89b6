"""The commands that measure models, compare them, and write reference statistics."""

import json
import re
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer
from rich.table import Table

from progdist._utils.errors import UserError
from progdist._utils.files import local_path
from progdist._utils.names import Features, Method, Metric
from progdist._utils.words import counted, interval, significant, supported
from progdist.cli import options
from progdist.cli.terminal import begin, console, print_table, suggest, write_message

if TYPE_CHECKING:  # slow imports
    from progdist.evaluation.compare import Comparison
    from progdist.evaluation.faithful import Faithfulness
    from progdist.evaluation.metrics import MetricConfig
    from progdist.evaluation.record import EvaluationRecord, Quality


def named_files(option: str, words: Sequence[str] | None, only: str | None = None) -> dict[str, Path]:
    """Parse NAME=PATH, several times; a path without a name belongs to `only`, or raises a UserError."""
    files = {}
    for word in words or ():
        name, separator, path = word.partition("=")
        if not separator and only is None:
            raise UserError(f"{option} {word} names no features, expected NAME=FILE, e.g. {option} inception={word}")
        whole = only is not None and (not separator or local_path(word).exists())
        files[cast(str, only) if whole else name] = local_path(word if whole else path)
    return files


def metric_config(
    features: list[str], metrics: list[str] | None, weights: list[str] | None, references: list[str] | None
) -> "MetricConfig":
    """The metrics that the options select."""
    from progdist.evaluation.metrics import MetricConfig

    for option, words, names in (("--metric", metrics or [], Metric), ("--features", features, Features)):
        for word in words:
            if word not in get_args(names):
                raise UserError(f"{option} {word} is unknown: use one of {', '.join(get_args(names))}")
    only = features[0] if len(features) == 1 else None
    files = named_files("--weights", weights), named_files("--reference", references, only)
    return MetricConfig(tuple(features), cast(tuple[Metric, ...], tuple(metrics or ())), *files)


def statistics(
    data: Annotated[str, typer.Argument(help=options.DATA_SOURCES)],
    out: Annotated[Path, typer.Option(help="The file: .npz (NAME_kid.npz for clean-fid's features), or .pt.")],
    features: options.FeatureNames = ["pixels"],  # noqa: B006  (typer copies it)
    keep_images: Annotated[int, typer.Option("--images", help="Images to keep in it, too (arr_0).", min=0)] = 0,
    size: options.Size = None,
    weights: options.WeightFiles = None,
    image_column: options.ImageColumn = None,
    background: options.Background = None,
) -> None:
    """Write the reference statistics of data to a file.

    The layouts are those that other evaluators read.
    """
    begin(f"reading {data}", write_message, data=data)
    from progdist.data.sources import load_images
    from progdist.evaluation.measures.statistics import make_statistics

    images = load_images(data, size=size, image_column=image_column, background=background, notify=write_message)
    metrics = metric_config(features, None, weights, None).open(images.shape, captions=False)
    write_message(f"computing {', '.join(features)} of {counted(len(images), 'image')}")
    make_statistics(metrics.spaces, images, out, keep_images)
    console.print(f"{out}: {', '.join(features)} of {counted(len(images), 'image')}")
    suggest(f"progdist evaluate MODEL --features {features[0]} --reference {features[0]}={out}")


def evaluate(
    models: Annotated[list[Path], typer.Argument(help="Model folders.")],
    data: Annotated[str | None, typer.Option(help=options.DATA_SOURCES)] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps (default: each model's own).")] = None,
    count: Annotated[int, typer.Option("--count", "-n", help="Samples of each model.", min=2, max=options.MOST)] = 2048,
    features: options.FeatureNames = ["pixels"],  # noqa: B006  (typer copies it)
    metric: options.MetricNames = None,
    reference: options.References = None,
    weights: options.WeightFiles = None,
    method: Annotated[str, typer.Option(help=f"One of {', '.join(get_args(Method))}.")] = "ddim",
    variance: Annotated[float, typer.Option("--variance", help=options.VARIANCE, min=0, max=1)] = 1.0,
    clip: Annotated[bool, typer.Option("--clip", help="Keep every denoised image within [-1, 1].")] = False,
    batch: Annotated[int, typer.Option(help="Images made at a time.", min=1)] = 256,
    precision: Annotated[str, typer.Option(help="auto, float32 or bf16.")] = "auto",
    teacher: Annotated[Path | None, typer.Option(help="Also measure the RMSE to this model's images.")] = None,
    teacher_steps: Annotated[int | None, typer.Option(help="Sampling steps of --teacher (default: 256).")] = None,
    image_column: options.ImageColumn = None,
    caption_column: options.CaptionColumn = None,
    background: options.Background = None,
    seed: options.Seed = 0,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object per model and features.")] = False,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale (models distilled for a range).")] = None,
) -> None:
    """Measure models against data."""
    if teacher_steps is not None and teacher is None:
        raise UserError("--teacher-steps requires --teacher")
    if data is None and not reference:
        raise UserError("expected data to measure against: pass --data, or their statistics, --reference FILE")
    if data is None and (image_column or caption_column or background):
        raise UserError("--image-column, --caption-column and --background require --data")
    begin(f"reading {data}" if data else f"opening {models[0]}", write_message, models=models, data=data)
    from progdist.data.sources import load_images
    from progdist.evaluation.evaluate import evaluations
    from progdist.evaluation.generate import SamplingOptions

    sampling = SamplingOptions(
        steps, count, None, seed, method, clip, variance, batch, options.precision_of(precision), guidance=guidance
    )
    images, notify = None, _each_once()
    if data:
        images = load_images(
            data, image_column=image_column, caption_column=caption_column, background=background, notify=notify
        )
    metrics = metric_config(features, metric, weights, reference)
    reference_model, records = (teacher, teacher_steps or 256) if teacher else None, []
    measured = evaluations(models, images, sampling, metrics, teacher=reference_model, notify=notify)
    if reference_model:
        write_message(f"sampling {teacher}, {counted(count, 'image')} in {counted(reference_model[1], 'step')}")
    with closing(measured):
        for model in models:
            write_message(f"measuring {model}, {counted(count, 'image')}")
            records.append(next(measured))
            for quality in records[-1].quality if json_ else ():
                typer.echo(json.dumps(records[-1].row(quality)))
    for number in range(0 if json_ else len(features)):
        for table in evaluation_tables(records, number):
            print_table(table)
    if data and not json_:
        others = "" if models[1:] else " OTHER"
        named = "".join(f" --features {name}" for name in features)
        suggest(f"progdist compare {' '.join(map(str, models))}{others} --data {data}{named}")


def evaluation_tables(records: "Sequence[EvaluationRecord]", number: int) -> list[Table]:
    """The measurements in one feature space, in 80 columns: the distances, and further metrics if any."""
    qualities = [record.quality[number] for record in records]
    title = f"Fréchet distance of {qualities[0].samples} samples to the data, {qualities[0].features} features"
    distances = _table(title)
    columns = {"model": [record.model for record in records], "steps": [str(record.steps) for record in records]}
    columns["guidance"] = ["" if record.guidance is None else f"{record.guidance:g}" for record in records]
    columns["evalu-\nations"] = [
        "" if record.network_evaluations == record.steps else str(record.network_evaluations) for record in records
    ]
    columns["Fréchet\ndistance"] = [supported(q.frechet, q.frechet_low, q.frechet_high) for q in qualities]
    columns["95 %\ninterval"] = [interval(q.frechet_low, q.frechet_high) for q in qualities]
    columns["of which\nbias"] = ["" if q.frechet_bias is None else significant(q.frechet_bias) for q in qualities]
    columns["kernel\n×1000"] = [_kernel(q) for q in qualities]
    columns["class\nright"] = ["" if q.agreement is None else f"{100 * q.agreement:.0f} %" for q in qualities]
    columns["RMSE"] = ["" if record.rmse is None else significant(record.rmse) for record in records]
    columns["ms per\nimage"] = [significant(1000 * record.seconds_per_image) for record in records]
    shown = {heading: cells for heading, cells in columns.items() if any(cells)}
    for heading in shown:
        first = heading == "model"
        distances.add_column(heading, justify="left" if first else "right", no_wrap=not first, overflow="fold")
    for row in zip(*shown.values(), strict=True):
        distances.add_row(*row)
    further = _table()
    for heading in ("model", "steps", "metric", "value", "95 % interval"):
        text = heading in ("model", "metric")
        further.add_column(heading, justify="left" if text else "right", no_wrap=heading != "model", overflow="fold")
    for record, quality in zip(records, qualities, strict=True):
        score = {"clip_score": record.clip_score} if record.clip_score and not number else {}
        for name, each in (quality.metrics | score).items():
            named, ends = name.replace("_", " "), (each.low, each.high)
            further.add_row(record.model, str(record.steps), named, supported(each.value, *ends), interval(*ends))
    return [distances, further] if further.rows else [distances]


def _table(title: str | None = None) -> Table:
    return Table(title=title, title_justify="left", caption_justify="left", box=None, padding=(0, 1, 0, 0))


def _kernel(quality: "Quality") -> str:
    if quality.kernel is None or quality.kernel_spread is None:
        return ""
    return supported(quality.kernel, quality.kernel - quality.kernel_spread, quality.kernel + quality.kernel_spread)


def _each_once() -> Callable[[str], None]:
    """A function that prints each message to standard error once; biases are in the table."""
    printed = set[str]()

    def notify(text: str) -> None:
        key = re.sub(r"\d[\d.]*", "", text) if " is the bias of " in text else text
        if key not in printed:
            printed.add(key)
            write_message(text)

    return notify


def compare(
    models: Annotated[list[str], typer.Argument(help="Folders of runs or models; MODEL@STEPS sets the steps.")],
    data: Annotated[str | None, typer.Option(help=options.DATA_SOURCES)] = None,
    prompts: options.PromptsToCompare = None,
    repeat: Annotated[
        int | None, typer.Option(help="Images per prompt or class, without --data (default: 4).", min=2)
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale of both, without --data.")] = None,
    student_lora: Annotated[
        list[str] | None,
        typer.Option(help="LoRA file fused into the student, FILE.safetensors[:weight]; several times."),
    ] = None,
    student_guidance: Annotated[
        float | None, typer.Option(help="Guidance scale of the student, e.g. 1 (default: --guidance).")
    ] = None,
    count: Annotated[
        int | None,
        typer.Option("--count", "-n", help="Samples of each model (default: 2048).", min=4, max=options.MOST),
    ] = None,
    features: options.FeatureNames = ["pixels"],  # noqa: B006
    metric: options.MetricNames = None,
    method: Annotated[str, typer.Option(help=f"One of {', '.join(get_args(Method))}.")] = "ddim",
    clip: Annotated[bool, typer.Option("--clip", help="Keep every denoised image within [-1, 1].")] = False,
    batch: Annotated[int, typer.Option(help="Images made at a time.", min=1)] = 256,
    precision: Annotated[str, typer.Option(help="auto, float32 or bf16.")] = "auto",
    resamples: Annotated[
        int | None, typer.Option(help="Paired resamples of each distance to --data (default: 200).", min=20)
    ] = None,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("comparison.html"),
    reference: options.References = None,
    weights: options.WeightFiles = None,
    image_column: options.ImageColumn = None,
    caption_column: options.CaptionColumn = None,
    background: options.Background = None,
    seed: options.Seed = 0,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object per model and features.")] = False,
) -> None:
    """Compare models, or runs with --data.

    With --data, paired resamples of the same noise show which model is closer to the data. Without it, TEACHER@STEPS
    STUDENT measures how faithful a student is to its teacher: differences, diversity, and the pairs that differ most.
    TEACHER@40 TEACHER@4 --student-lora FILE compares a pipeline with a few-step LoRA file for it.
    """
    begin(f"reading {data}" if data else f"opening {', '.join(models)}", write_message, models=models, data=data)
    from progdist.data.samples import read_prompts
    from progdist.data.sources import load_images
    from progdist.evaluation.compare import compare as compare_models
    from progdist.evaluation.faithful import compare_with_teacher
    from progdist.evaluation.generate import SamplingOptions
    from progdist.runs.pages.pairs import write_pairs
    from progdist.runs.pages.report import write_comparison

    if data is None:
        if image_column or caption_column or background or reference or resamples:
            raise UserError(
                "--image-column, --caption-column, --background, --reference and --resamples require --data"
            )
        if other := [name for name in metric or [] if name != "clip_score"]:
            raise UserError(f"--metric {other[0]} requires --data")
        sampling = SamplingOptions(
            seed=seed, method=method, clip=clip, batch=batch, precision=options.precision_of(precision),
            prompts=read_prompts(prompts)[0] if prompts else (), guidance=guidance,
        )  # fmt: skip
        found = compare_with_teacher(
            models, sampling, metric_config(features, metric, weights, None),
            repeat=repeat, count=count, loras=student_lora or (), student_guidance=student_guidance,
            notify=write_message,
        )  # fmt: skip
        write_pairs(out, found, seed)
        _print_pairs(found, out, json_)
        return
    if prompts or guidance or repeat:
        raise UserError("--prompts, --guidance and --repeat have no effect with --data: remove them or --data")
    if student_lora or student_guidance is not None:
        raise UserError("--student-lora and --student-guidance have no effect with --data: remove them or --data")
    sampling = SamplingOptions(
        count=count or 2048, seed=seed, method=method, clip=clip, batch=batch, precision=options.precision_of(precision)
    )
    notify = _each_once()
    images = load_images(
        data, image_column=image_column, caption_column=caption_column, background=background, notify=notify
    )
    metrics = metric_config(features, metric, weights, reference)
    comparisons = compare_models(models, images, sampling, metrics, resamples=resamples or 200, notify=notify)
    write_comparison(out, comparisons, sampling, images)
    if json_:
        for each in comparisons:
            typer.echo(json.dumps(each.to_json()))
        return
    for label, model in dict.fromkeys((each.label, each.record.model) for each in comparisons):
        console.print(f"{label}: {model}", highlight=False, markup=False, soft_wrap=True)
    for name in features:
        print_table(comparison_table([each for each in comparisons if each.quality.features == name]))
    console.print(f"Page: {out}")


def _print_pairs(found: "Faithfulness", page: Path, json_: bool) -> None:
    """Print how faithful a student is."""
    from progdist.evaluation.faithful import as_rows

    if json_:
        typer.echo(json.dumps(found.to_json()))
        return
    console.print(pairs_title(found), highlight=False, markup=False, soft_wrap=True)
    table = _table()
    for heading in ("", "student", "95 % interval"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for space, rows in as_rows(found).items():
        table.add_row(space)
        for name, estimate in rows:
            ends = (estimate.low, estimate.high)
            table.add_row(f"  {name}", supported(estimate.value, *ends), interval(*ends, " to "))
    print_table(table)
    for space in found.spaces:
        if space.too_few:
            console.print(
                f"Warning: about {space.bias:.2g} of the Fréchet distance in {space.features} features is bias from "
                f"only {len(found.labels):,} images: use more"
            )
    console.print(f"Page: {page}")


def pairs_title(found: "Faithfulness") -> str:
    """The models, images and guidance of a comparison."""
    (student, teacher), (few, many) = found.models, found.steps
    guided = "" if found.guidance is None else f", guidance {found.guidance:g}"
    if found.student_guidance not in (None, found.guidance):
        guided += f" and {found.student_guidance:g}"
    return (
        f"{student} in {counted(few, 'step')} beside {teacher} in {counted(many, 'step')}, {len(found.labels):,} "
        f"images from the same noise{guided}"
    )


def comparison_table(comparisons: "Sequence[Comparison]") -> Table:
    """Models side by side in one feature space, by their labels, in 80 columns."""
    features, samples = comparisons[0].quality.features, comparisons[0].quality.samples
    table = _table(f"Fréchet distance of {samples} samples to the data, {features} features")
    table.caption = (
        "ratio: the distance divided by that of the model compared with, over paired resamples. "
        "better, worse: the whole 95 % interval of the ratio is below, above 1"
    )
    table.add_column("model", no_wrap=True)
    for heading in ("steps", "Fréchet\ndistance", "95 %\ninterval", "compared\nwith", "ratio", "95 %\ninterval"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for each in comparisons:
        quality, ratio = each.quality, each.ratio
        table.add_row(
            each.label,
            str(each.record.steps),
            supported(quality.frechet, quality.frechet_low, quality.frechet_high),
            interval(quality.frechet_low, quality.frechet_high),
            each.against or "",
            supported(ratio.value, ratio.low, ratio.high) if ratio else "",
            interval(ratio.low, ratio.high) if ratio else "",
            each.verdict or "",
        )
    return table
