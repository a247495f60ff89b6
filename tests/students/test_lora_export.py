"""`progdist export --lora-format`: the file's header, the times that it names, and ComfyUI's workflow."""

# pyright: reportPrivateImportUsage=false

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import pytest
import safetensors
import torch
from torch import Tensor

from lora_formats import student_rows
from progdist import UserError
from progdist._utils.files import read_json, read_tensors
from progdist.diffusion.sampler import time_grid
from progdist.diffusion.schedule import RectifiedFlow
from progdist.methods.guidance import Fixed
from progdist.models.model import LoraWeights, Model
from progdist.models.pipelines import PIPELINES
from progdist.students.comfyui import GRAPHS, workflow
from progdist.students.file_header import architecture
from progdist.students.folder import save
from progdist.students.lora_export import export_lora, header
from progdist.students.lora_formats import FORMATS, converted
from progdist.students.visited_times import flow_times, plain, visited_times
from progdist.teachers.flow import flow_scheduler
from progdist.teachers.open import open_teacher
from support.comfyui import manual_sigmas, mistakes
from support.commands import call, refused
from support.lora_readers import adapters, corrections, merged
from support.text import network
from tiny_pipelines import CALLS, PROMPTS, build, load, sampled

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers', of its schedulers' fields

CARD = """---
license: "creativeml-openrail-m"
tags: [a]
---
# A base
license: mit
"""


@pytest.fixture(scope="module")
def student_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    """A student of four steps with random LoRA weights of rank 2, of the tiny pipeline of a name."""

    @cache
    def of(name: str) -> Model:
        folder = build(name, tmp_path_factory.mktemp("base") / name)
        (folder / "README.md").write_text(CARD)
        given = {key: value for key, value in CALLS[name].items() if key not in ("guidance_scale", "output_type")}
        base = open_teacher(str(folder), call={} if name in PIPELINES else given).model
        weights = adapters(base.denoiser.network)
        network = merged(base.denoiser.network, corrections(weights, whole=True))
        prompts: Any = base.conditioning
        learned = prompts if base.takes_guidance else prompts.after(Fixed(3.0))
        lora = LoraWeights(str(folder), weights)
        return replace(base, denoiser=base.denoiser.with_network(network), steps=(4,), conditioning=learned, lora=lora)

    return of


SHOWN = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "FluxPipeline", "WanPipeline", "ZImagePipeline")
ALL = [name if name in SHOWN else pytest.param(name, marks=pytest.mark.slow) for name in GRAPHS]


@pytest.mark.parametrize("name", ALL)
def test_the_workflow_is_one_that_comfyui_takes(name: str, student_of: Callable[[str], Model]) -> None:
    model = student_of(name)
    times = visited_times(model)
    nodes = json.loads(json.dumps(workflow(model, times, "four.safetensors")))
    assert mistakes(nodes) == []
    assert nodes["lora"]["inputs"]["lora_name"] == "four.safetensors"
    assert nodes["sampled"]["inputs"]["cfg"] == 1.0
    sigmas = manual_sigmas(nodes["sigmas"]["inputs"]["sigmas"])
    assert sigmas == list(times.sigmas)
    assert (len(sigmas), sigmas[-1]) == (5, 0.0)
    scale = nodes.get("guidance", {}).get("inputs", {}).get("guidance")
    assert (scale is not None) == model.takes_guidance


@pytest.mark.parametrize("name", ALL)
def test_the_times_are_those_that_the_stock_pipeline_visits(
    name: str, student_of: Callable[[str], Model], tmp_path: Path
) -> None:
    """The pipeline of the student's folder in four steps, and our grid: sigma(t) / alpha(t), or sigma(t), of i / 4."""
    model = student_of(name)
    times = visited_times(model)
    save(replace(model, lora=None), tmp_path / "student")
    pipeline: Any = load(tmp_path / "student")
    seen: list[float] = []
    step = pipeline.scheduler.step

    def noted(output: Tensor, timestep: Any, *given: Any, **named: Any) -> Any:  # noqa: ANN401
        seen.append(float(timestep))
        return step(output, timestep, *given, **named)

    pipeline.scheduler.step = noted
    sampled(pipeline, name, PROMPTS[:1], 4)
    assert seen == pytest.approx(times.timesteps, abs=1e-3)
    t, schedule = time_grid(4).double()[:-1], model.denoiser.schedule
    expected = schedule.sigma(t) / (1 if times.flow else schedule.alpha(t))
    assert times.sigmas[:-1] == pytest.approx(expected.tolist(), rel=2e-5)


def test_comfyuis_euler_makes_the_latents_of_the_stock_pipeline(student_of: Callable[[str], Model]) -> None:
    """From the same noise: x = x_0 + sigma eps at ManualSigmas, the timestep nearest to sigma, as ComfyUI samples."""
    model = student_of("StableDiffusionPipeline")
    network, sigmas = model.denoiser.network, manual_sigmas(plain(visited_times(model).sigmas))
    noise, text = torch.randn(2, 4, 4, 4), torch.randn(2, 12, 16)
    scheduler: Any = diffusers.DDIMScheduler.from_config(visited_times(model).scheduler.config)  # pyright: ignore
    assert model.lora is not None
    base: Any = diffusers.DDIMScheduler.from_pretrained(Path(model.lora.base) / "scheduler")
    table = (1 / base.alphas_cumprod - 1).sqrt()  # ComfyUI's, of the base
    assert math.isclose(float(table.max()), sigmas[0], rel_tol=1e-5)  # else it would not scale the noise as it does
    x = noise * (1 + sigmas[0] ** 2) ** 0.5
    scheduler.set_timesteps(4)
    z = noise
    with torch.no_grad():
        for sigma, after in pairwise(sigmas):
            timestep = (table.log() - torch.tensor(sigma).log()).abs().argmin()
            eps = network(x / (1 + sigma**2) ** 0.5, timestep, text).sample
            x = x + (after - sigma) * eps
        for timestep in scheduler.timesteps:
            z = scheduler.step(network(z, timestep, text).sample, timestep, z).prev_sample
    torch.testing.assert_close(x, z, rtol=0, atol=1e-4 * float(z.abs().max()))


@pytest.mark.parametrize("spacing", ["stock", "given", 0.0, 0.001])
@pytest.mark.parametrize("shift", [1.0, 3.0, 7.5])
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_times_of_a_flow(spacing: Any, shift: float, steps: int) -> None:  # noqa: ANN401
    """Those of a shifted flow at i / N, however its pipeline spaces them."""
    times = flow_times(flow_scheduler(shift, 1000, steps, spacing), steps, spacing)
    u = torch.tensor([1 - i / steps for i in range(steps)] + [0.0], dtype=torch.float64)
    assert times.sigmas == pytest.approx(RectifiedFlow(shift).sigma(u).tolist(), abs=1e-5)
    assert times.timesteps == pytest.approx([1000 * sigma for sigma in times.sigmas[:-1]], abs=1e-2)
    assert times.prediction == "flow"


def test_numbers_have_no_exponents() -> None:
    """ManualSigmas would read 1e-05 as two numbers."""
    numbers = [14.614641189575195, 1.0, 1e-5, 0.0]
    assert plain(numbers) == "14.614641189575195, 1, 0.00001, 0"
    assert manual_sigmas(plain(numbers)) == numbers
    assert plain([float("inf"), 0.5]) == "inf, 0.5"


@pytest.mark.parametrize("form", FORMATS)
def test_the_command(form: str, student_of: Callable[[str], Model], tmp_path: Path) -> None:
    """The tensors of the file and what its header says."""
    model = student_of("StableDiffusionPipeline")
    assert model.lora is not None
    if not (folder := tmp_path / "student").exists():
        save(model, folder)
    out, graph = tmp_path / "x" / "four.safetensors", tmp_path / "four.json"
    more = ("--workflow", graph) if form == "comfyui" else ()
    result = call("export", folder, "--lora-format", form, "--out", out, *more)
    assert result.exit_code == 0, result.output
    assert "83 layers" in " ".join(result.output.split())
    written, expected = read_tensors(out), converted(model.lora.weights, "StableDiffusionPipeline", form)  # pyright: ignore
    assert written.keys() == expected.keys()
    assert all(torch.equal(each, expected[key]) for key, each in written.items())
    if form == "diffusers":
        stock = read_tensors(folder / "pytorch_lora_weights.safetensors")
        assert all(torch.equal(each, stock[key]) for key, each in written.items())
        assert written.keys() == stock.keys()
    if form == "comfyui":
        assert mistakes(read_json(graph)) == []
    with safetensors.safe_open(out, "pt") as file:
        said = file.metadata()
    sigmas = [float(number) for number in said["progdist.sigmas"].split(", ")]
    assert sigmas == pytest.approx(list(visited_times(model).sigmas))
    assert said["progdist.timesteps"] == "999, 749, 499, 249"
    assert said["progdist.base_model"] == model.lora.base
    expected_strings = {
        "steps": "4", "rank": "2", "guidance": "3, distilled in", "cfg": "1", "sampler": "euler",
        "scheduler": "DDIMScheduler", "pipeline": "StableDiffusionPipeline", "lora_format": form,
    }  # fmt: skip
    assert {key: said[f"progdist.{key}"] for key in expected_strings} == expected_strings
    assert said["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert said["modelspec.prediction_type"] == "epsilon"
    assert said["modelspec.license"] == "creativeml-openrail-m"
    assert ("ss_network_dim" in said) == (form == "kohya")
    pipeline = load(Path(model.lora.base))
    pipeline.load_lora_weights(out.parent, weight_name=out.name)  # the header does not disturb it
    assert len(pipeline.get_list_adapters()["unet"]) == 1
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
def test_every_format_makes_the_students_latents(name: str, student_of: Callable[[str], Model], tmp_path: Path) -> None:
    """The stock pipeline of the base with each file, and that of the student's folder, in four steps."""
    model = student_of(name)
    assert model.lora is not None
    save(model, tmp_path / "student")
    found = [row.split(" | ") for row in student_rows(tmp_path / "student", tmp_path, PROMPTS[:2])]
    layers = len(model.lora.weights) // 2
    assert [(row[1], row[4]) for row in found] == [(form, f"{layers} of {layers}") for form in FORMATS]
    assert all(float(row[5]) <= 1e-4 for row in found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            (),
            "expected one of --onnx FILE, --single-file FILE, or --lora-format FORMAT --out FILE, or --push OWNER/NAME",
        ),
        (
            ("--onnx", "a.onnx", "--lora-format", "kohya"),
            "expected one of --onnx FILE, --single-file FILE, or --lora-format",
        ),
        (("--onnx", "a.onnx", "--out", "a.safetensors"), "--out applies only to --lora-format"),
        (("--onnx", "a.onnx", "--workflow", "a.json"), "--workflow applies only to --lora-format"),
        (("--lora-format", "kohya", "--steps", "4", "--out", "a.safetensors"), "--steps applies only to --onnx"),
        (("--lora-format", "a1111", "--out", "a.safetensors"), "expected one of diffusers, kohya, comfyui"),
        (("--lora-format", "kohya"), "--lora-format requires --out FILE"),
        (("--lora-format", "kohya", "--out", "a.safetensors", "--workflow", "a.json"), "--lora-format comfyui"),
    ],
)
def test_options_that_do_not_go_together(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    refused(call("export", tmp_path, *options), message)
    assert not list(tmp_path.iterdir())


def test_what_is_refused(student_of: Callable[[str], Model], tmp_path: Path) -> None:
    model, out = student_of("StableDiffusionPipeline"), tmp_path / "a.safetensors"
    for changed, given, message in (
        (model, (tmp_path / "a.ckpt", None), r"--out is .*a\.ckpt, expected a file that ends in \.safetensors"),
        (model, (out, tmp_path / "a.txt"), r"--workflow is .*a\.txt, expected a file that ends in \.json"),
        (replace(model, lora=None), (out, None), "requires a LoRA student"),
        (replace(model, steps=()), (out, None), "for any number of steps"),
    ):
        with pytest.raises(UserError, match=message):
            export_lora(changed, "comfyui", *given)
    times = replace(visited_times(model), sigmas=[float("inf"), 1.0, 0.0])
    with pytest.raises(UserError, match="requires a student that starts above zero SNR"):
        workflow(model, times, "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_workflow_of_no_node_is_refused(student_of: Callable[[str], Model]) -> None:
    model = student_of("StableDiffusionPipeline")
    index = {**model.conditioning.index, "_class_name": "SanaPipeline"}  # pyright: ignore
    other = replace(model, conditioning=replace(model.conditioning, index=index))
    with pytest.raises(UserError, match="--workflow does not support SanaPipeline"):
        workflow(other, visited_times(model), "a.safetensors")


@pytest.mark.parametrize("name", ["FluxPipeline", "StableDiffusionXLPipeline", "WanPipeline"])
def test_the_header_of_other_pipelines(name: str, student_of: Callable[[str], Model]) -> None:
    model = student_of(name)
    assert model.lora is not None
    said = header(model, model.lora, "comfyui", visited_times(model))
    assert all(isinstance(each, str) for each in said.values())
    expected = {
        "FluxPipeline": "flux-1-dev/lora",
        "StableDiffusionXLPipeline": "stable-diffusion-xl-v1-base/lora",
        "WanPipeline": "wan/lora",
    }
    assert said["modelspec.architecture"] == expected[name]
    assert ("modelspec.prediction_type" in said) == (name == "StableDiffusionXLPipeline")


def test_architectures_of_sd_2(student_of: Callable[[str], Model]) -> None:
    """By the width of its text, and by what it predicts."""
    model = student_of("StableDiffusionPipeline")
    denoiser = model.denoiser.with_network(network(1024))
    assert architecture(model) == "stable-diffusion-v1"
    assert architecture(replace(model, denoiser=denoiser)) == "stable-diffusion-v2-512"
    denoiser = denoiser.with_parts(prediction_type="v")
    assert architecture(replace(model, denoiser=denoiser)) == "stable-diffusion-v2-768-v"


def test_the_students_own_file_is_kept(student_of: Callable[[str], Model], tmp_path: Path) -> None:
    save(student_of("StableDiffusionPipeline"), tmp_path / "student")
    own = tmp_path / "student" / "pytorch_lora_weights.safetensors"
    before = own.read_bytes()
    refused(call("export", tmp_path / "student", "--lora-format", "kohya", "--out", own), "the student's own file")
    assert own.read_bytes() == before
