"""The commands that work on model folders."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from progdist._utils.errors import UserError
from progdist._utils.files import local_path
from progdist._utils.names import Method
from progdist._utils.words import any_of, counted, size_in_words
from progdist.cli import options
from progdist.cli.terminal import begin, console, suggest, write_message


def doctor(
    model: Annotated[str, typer.Argument(help=options.MODEL)],
    data: Annotated[str | None, typer.Option(help="Images to test it on, e.g. folder:PATH.")] = None,
    offset: Annotated[float | None, typer.Option(help="Timestep offset (default: the folder's).")] = None,
    call: options.Call = None,
    with_lora: options.WithLora = None,
    config: options.Config = None,
    image_column: options.ImageColumn = None,
    caption_column: options.CaptionColumn = None,
    background: options.Background = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the noise (default: 0).", min=0)] = None,
) -> None:
    """Check whether a model can be distilled.

    Prints what is inferred from its folder. Exits with code 2 if it cannot be distilled.
    """
    given = {"--seed": seed, "--image-column": image_column, "--caption-column": caption_column}
    given["--background"] = background
    if data is None and (idle := [option for option, value in given.items() if value is not None]):
        raise UserError(f"{idle[0]} requires --data")
    begin(f"opening {model}", models=[model], data=data)
    from progdist.cli.doctor import Opening, examine
    from progdist.data.tables import Columns
    from progdist.recipes.files import call_arguments

    amiss, steps = False, "4"
    how = Opening(offset, call_arguments(call or []), tuple(with_lora or ()), config)
    for line in examine(model, data, Columns(image_column, caption_column), how, seed or 0, background):
        amiss |= line.startswith("!")
        steps = line.split()[-1] if line.startswith("possible chain: ") else steps
        console.print(line, style="bold red" if line.startswith("!") else None)
    if amiss:
        raise typer.Exit(2)
    given_to_it = {"--with-lora": with_lora or [], "--config": [config] if config else [], "--call": call or []}
    given_to_it["--set"] = [] if offset is None else [f"teacher.offset={offset:g}"]
    words = [word for option, values in given_to_it.items() for value in values for word in (option, value)]
    words = [model, *words, "--data", data or "DATA", "--steps", steps, "--dry-run"]
    suggest(f"progdist distill {shlex.join(words)}")


def sample(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    steps: Annotated[int | None, typer.Option(help="Sampling steps (default: the model's own).")] = None,
    count: Annotated[int, typer.Option("--count", "-n", help="Number of images.", min=1, max=options.MOST)] = 64,
    out: Annotated[
        Path, typer.Option(help="A grid (.png); a folder or .tar of PNG files; .npz of bytes; .safetensors, unrounded.")
    ] = Path("samples.png"),
    label: Annotated[
        str | None, typer.Option(help="Number or name of the class (default: all, as often as in the data).")
    ] = None,
    method: Annotated[str, typer.Option(help=f"One of {', '.join(get_args(Method))}.")] = "ddim",
    variance: Annotated[float, typer.Option("--variance", help=options.VARIANCE, min=0, max=1)] = 1.0,
    clip: Annotated[bool, typer.Option("--clip", help="Keep every denoised image within [-1, 1].")] = False,
    batch: Annotated[int, typer.Option(help="Images made at a time.", min=1)] = 256,
    precision: Annotated[str, typer.Option(help="auto, float32 or bf16.")] = "float32",
    seed: options.Seed = 0,
    columns: Annotated[int | None, typer.Option(help="Columns (default: a grid near 4:3).", min=1, max=1024)] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Prompt; several times for several in turn.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale (models distilled for a range).")] = None,
) -> None:
    """Make images with a model. Under torchrun several processes share them."""
    begin(f"opening {model}", write_message, models=[model])
    from progdist.evaluation.generate import SamplingOptions
    from progdist.evaluation.sample_files import write_samples
    from progdist.training.distributed import Distributed

    computed, texts = options.precision_of(precision), tuple(prompt or ())
    sampling = SamplingOptions(steps, count, label, seed, method, clip, variance, batch, computed, texts, guidance)
    write_samples(model, sampling, out, columns, write_message, Distributed())
    suggest(f"progdist evaluate {model} --data DATA, or progdist play {model}")


def export(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    onnx: Annotated[Path | None, typer.Option("--onnx", help="Write the sampling loop to this file.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Sampling steps of --onnx (default: the model's own).", min=1)
    ] = None,
    single_file: Annotated[
        Path | None,
        typer.Option(help="Write a whole student of SD or SDXL to this .safetensors file, in the original layout."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the weights in --single-file: float32 (default), bf16 or fp16.")
    ] = None,
    shard_size: Annotated[
        str | None, typer.Option(help="Largest size of a shard of --single-file, e.g. 2GB (default: one file).")
    ] = None,
    lora_format: Annotated[
        str | None, typer.Option(help="Write a LoRA student's file in a format: diffusers, kohya or comfyui.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The .safetensors file of --lora-format.")] = None,
    workflow: Annotated[
        Path | None, typer.Option(help="A ComfyUI workflow (.json) that samples the file of --lora-format comfyui.")
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(help="Upload it to OWNER/NAME on the Hugging Face hub: the folder, or the file with a card."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push: make a new repository private.")] = False,
) -> None:
    """Export a model for other programs, or upload it.

    `--onnx` writes the whole sampling loop as one file, `--single-file` a whole student, `--lora-format` a LoRA
    student. `--push` uploads the written files, or the folder, if you are logged in; otherwise it lists them.
    """
    targets = {"--onnx": onnx, "--single-file": single_file, "--lora-format": lora_format}
    belongs = {
        "--steps": (steps, "--onnx"),
        "--dtype": (dtype, "--single-file"),
        "--shard-size": (shard_size, "--single-file"),
        "--out": (out, "--lora-format"),
        "--workflow": (workflow, "--lora-format"),
    }
    count = sum(each is not None for each in targets.values())
    if count > 1 or (count == 0 and push is None):
        raise UserError(
            "expected one of --onnx FILE, --single-file FILE, or --lora-format FORMAT --out FILE, or --push OWNER/NAME"
        )
    if push is None and private:
        raise UserError("--private requires --push OWNER/NAME")
    if push is not None:
        from progdist.students.hub import check_repository

        if onnx is not None:
            raise UserError("--push has no effect with --onnx: remove it")
        check_repository(push)
    for option, (value, target) in belongs.items():
        if value is not None and targets[target] is None:
            raise UserError(f"{option} applies only to {target}: remove it")
    begin(f"opening {model}", models=[model])
    files: list[Path] = []
    if onnx is not None:
        _export_onnx(model, steps, onnx)
    elif single_file is not None:
        files = _export_single_file(model, single_file, dtype or "float32", shard_size)
    elif lora_format is not None:
        files = _export_lora(model, lora_format, out, workflow)
    if push is not None:
        _push(model, files, push, private=private)


def _export_onnx(model: Path, steps: int | None, out: Path) -> None:
    from progdist.students.onnx import export_onnx
    from progdist.teachers.own import load

    opened = load(model)
    console.print("tracing its sampling steps")
    made = export_onnx(opened, steps, out)
    console.print(f"{out}: noise to images in {counted(made, 'step')}")
    suggest(f'in Python, onnxruntime.InferenceSession("{out}")')


def _export_single_file(model: Path, out: Path, dtype: str, shard_size: str | None) -> list[Path]:
    from progdist.students.single_file import DTYPES, DType, export_single_file
    from progdist.teachers.own import load

    if dtype not in DTYPES:
        raise UserError(f"--dtype is {dtype[:50]!r}, expected one of {', '.join(DTYPES)}")
    written = export_single_file(load(model), out, cast(DType, dtype), shard_size)
    count, named = counted(len(written.times.timesteps), "step"), ", ".join(map(str, written.files))
    console.print(
        f"{named}: {counted(written.tensors, 'tensor')} in {dtype}, {size_in_words(written.bytes)}; Euler in {count}, "
        "CFG 1"
    )
    return list(written.files)


def _export_lora(model: Path, form: str, out: Path | None, workflow: Path | None) -> list[Path]:
    from progdist.students.lora_export import export_lora
    from progdist.students.lora_formats import FORMATS
    from progdist.teachers.own import load

    if form not in FORMATS:
        raise UserError(f"--lora-format is {form[:50]!r}, expected one of {', '.join(FORMATS)}")
    if out is None:
        raise UserError("--lora-format requires --out FILE")
    if workflow is not None and form != "comfyui":
        raise UserError("--workflow requires --lora-format comfyui")
    written = export_lora(load(model), form, out, workflow)
    count = counted(len(written.times.timesteps), "step")
    console.print(
        f"{out}: {counted(written.layers, 'layer')}, {counted(written.tensors, 'tensor')}; Euler in {count}, CFG 1"
    )
    if workflow is not None:
        console.print(f"{workflow}: select the files of the base model in its loaders")
    suggest(LOADED[form].format(out))
    return [out, *([workflow] if workflow is not None else [])]


LOADED = {
    "diffusers": 'in Python, pipeline.load_lora_weights("{}")',
    "kohya": "load {} as a LoRA in Forge or InvokeAI",
    "comfyui": "load {} in ComfyUI's LoraLoaderModelOnly",
}
"""How to load a LoRA file of each format."""


def _push(folder: Path, files: Sequence[Path], repository: str, *, private: bool) -> None:
    """Upload a folder or the exported files; if that is not possible, list them and print why."""
    from progdist.students import hub
    from progdist.teachers.own import load

    model = load(folder)
    upload = hub.of_files(model, files) if files else hub.of_folder(folder)
    notes, sizes = hub.lacking(upload.card, model), upload.sizes()
    for name, size in sizes.items():
        console.print(f"  {name}  {size_in_words(size)}", highlight=False, markup=False, soft_wrap=True)
    for note in notes:
        write_message(f"warning: {note}")
    total = f"{counted(len(sizes), 'file')}, {size_in_words(sum(sizes.values()))}"
    if why := hub.why_dry():
        console.print(f"Nothing was uploaded to {repository} ({total}): {why}", markup=False)
        return
    console.print(f"{repository}: {total}, {hub.push(upload, repository, private=private)}", markup=False)


def import_official(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of the paper's release.")],
    out: Annotated[Path, typer.Option(help="The model folder to write.")],
    recipe: Annotated[str | None, typer.Option(help="Recipe it was trained with, e.g. cifar10.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Height and width of the images.", min=1)] = None,
    parameterization: Annotated[str | None, typer.Option(help="x, eps, v or x_eps.")] = None,
) -> None:
    """Convert a released JAX checkpoint to a model folder."""
    begin(f"reading {checkpoint}")
    from progdist.recipes.files import read_recipe
    from progdist.students.folder import save
    from progdist.teachers.jax import import_checkpoint

    trained = read_recipe(recipe) if recipe else None
    model = import_checkpoint(
        checkpoint,
        size=image_size or (trained.data.size if trained else None),
        parameterization=parameterization or (trained.parameterization if trained else None),
        chain_start=trained.distill.counts()[0] if trained else 0,
    )
    save(model, out)
    console.print(f"{out}: distilled for {any_of(model.steps, 'step') if model.steps else 'any number of steps'}")
    suggest(f"progdist sample {out}{'' if model.steps else ' --steps 256'}")


def play(
    models: Annotated[list[str], typer.Argument(help="Folders of runs or models.")],
    port: Annotated[
        int | None, typer.Option(help="Port of the page (default: 8700; 0: any free port).", min=0, max=65535)
    ] = None,
    browser: Annotated[
        bool | None, typer.Option("--browser/--no-browser", help="Open a browser (default: where there is a display).")
    ] = None,
    space: Annotated[
        Path | None, typer.Option(help="Write a Hugging Face Space of one model to this folder instead.")
    ] = None,
) -> None:
    """Sample models on a local page.

    Choose noise, steps, class and guidance; teacher and students side by side. `--space` writes a page for the
    Hugging Face hub.
    """
    import os
    import sys
    import webbrowser
    from urllib.parse import urlsplit

    if space is not None:
        if idle := [option for option, value in {"--port": port, "--browser": browser}.items() if value is not None]:
            raise UserError(f"{idle[0]} has no effect with --space: remove it")
        if len(models) > 1:
            raise UserError(f"--space requires one model, got {len(models)}: name one student")
        from progdist.students.space import write_space
        from progdist.teachers.open import resolve_folder

        write_space(models[0], resolve_folder(models[0]), space)
        console.print(f"{space}: a Space of {models[0]}; publish: hf upload OWNER/NAME {space} --repo-type space")
        return
    begin(f"opening {', '.join(map(str, models))}", models=models)
    from progdist.runs.pages.play import open_playables
    from progdist.runs.pages.server import has_browser
    from progdist.runs.pages.server import play as serve

    opens = has_browser(os.environ, sys.platform) if browser is None else browser

    def ready(url: str) -> None:
        console.print(f"{url} (this machine only; press Ctrl-C to stop)")
        if opens:
            webbrowser.open(url)
        elif browser is None:
            way = "{0}:127.0.0.1:{0}".format(urlsplit(url).port)
            hint = f"no display: run ssh -L {way} THIS-MACHINE on your own machine and open the address there"
            console.print(hint)

    serve(open_playables([local_path(model) for model in models]), 8700 if port is None else port, ready)
