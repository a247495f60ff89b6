"""`progdist export --single-file`: a whole student in the original layout, read back by stock diffusers."""

# pyright: reportPrivateImportUsage=false

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import safetensors
import torch
from torch import Tensor

from progdist import UserError
from progdist._utils.files import read_json, read_tensors
from progdist.methods.guidance import Fixed
from progdist.models.model import Base, Model
from progdist.students.folder import save
from progdist.students.single_file import export_single_file, marks, shard_bytes
from progdist.students.visited_times import visited_times
from progdist.teachers.prepared import Source, prepare
from support.commands import call, refused, succeeds
from support.original_layout import write_original
from support.text import PROMPTS, text_student, write_sd, write_sdxl

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers', of its schedulers' fields

WRITERS: Mapping[str, Callable[[Path], Path]] = {
    "StableDiffusionPipeline": write_sd,
    "StableDiffusion2": lambda place: write_sd(place, width=1024),  # OpenCLIP's names of the text encoder
    "StableDiffusionXLPipeline": lambda place: write_sdxl(place, widths=(16, 24)),
}
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


@pytest.fixture(scope="module")
def student_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Model]]:
    """The folder of a student of four steps, whose output is v, and the student."""

    @cache
    def of(name: str) -> tuple[Path, Model]:
        place = tmp_path_factory.mktemp("student")
        model = text_student(WRITERS[name](place / "teacher"), Fixed(3.0))
        model = replace(model, base=Base("hub:owner/name", {"license": "openrail++"}))
        save(model, place / "student")
        return place / "student", replace(
            model,
            conditioning=replace(model.conditioning, folder=place / "student"),
        )

    return of


def read_back(file: Path, folder: Path, **more: Any) -> Any:  # noqa: ANN401
    """The stock pipeline of the folder's class, of the file and the folder's configs alone."""
    kind = getattr(diffusers, read_json(folder / "model_index.json")["_class_name"])
    pipeline = kind.from_single_file(str(file), config=str(folder), local_files_only=True, **more)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latents(pipeline: Any) -> Tensor:  # noqa: ANN401
    drawn = torch.Generator().manual_seed(0)
    how = {"num_inference_steps": 4, "guidance_scale": 1.0, "generator": drawn, "output_type": "latent"}
    return pipeline(PROMPTS[:2], **how).images


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("StableDiffusionPipeline", "float32"),
        ("StableDiffusionPipeline", "fp16"),
        ("StableDiffusionXLPipeline", "float32"),
        ("StableDiffusionXLPipeline", "bf16"),
        ("StableDiffusion2", "float32"),
    ],
)
def test_every_weight_and_the_latents_come_back(
    name: str, dtype: str, student_of: Callable[[str], tuple[Path, Model]], tmp_path: Path
) -> None:
    """Of every part, in the file's type, by `from_single_file`; in float32 the latents of a sampling, too."""
    folder, _ = student_of(name)
    file = tmp_path / "x" / "student.safetensors"
    succeeds("export", folder, "--single-file", file, *(() if dtype == "float32" else ("--dtype", dtype)))
    kind = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    ours, theirs = read_back(file, folder, torch_dtype=kind), diffusers.DiffusionPipeline.from_pretrained(folder)
    compared = [part for part in PARTS if part in theirs.components]
    assert len(compared) == (4 if "XL" in name else 3)
    for part in compared:
        found, expected = (pipeline.components[part].state_dict() for pipeline in (ours, theirs))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key].to(kind)) for key in expected)
    assert {tensor.dtype for tensor in read_tensors(file).values() if tensor.numel()} == {kind}
    if dtype == "float32":
        theirs.set_progress_bar_config(disable=True)
        assert torch.equal(latents(ours), latents(theirs))
    assert not list(tmp_path.rglob("*.partial"))


def test_the_layout_is_that_of_another_writer(student_of: Callable[[str], tuple[Path, Model]], tmp_path: Path) -> None:
    """The names and tensors that the tests' own table of CompVis' names gives, but for buffers of its training."""
    folder, model = student_of("StableDiffusionPipeline")
    export_single_file(model, tmp_path / "ours.safetensors")
    write_original(diffusers.DiffusionPipeline.from_pretrained(folder), tmp_path / "theirs.safetensors")
    ours, theirs = (read_tensors(tmp_path / f"{who}.safetensors") for who in ("ours", "theirs"))
    buffers = ("position_ids", "alphas_cumprod", "model_ema")
    assert ours.keys() == {name for name in theirs if not any(each in name for each in buffers)}
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_the_header(student_of: Callable[[str], tuple[Path, Model]], tmp_path: Path) -> None:
    _, model = student_of("StableDiffusionXLPipeline")
    file = tmp_path / "student.safetensors"
    export_single_file(model, file, "bf16")
    with safetensors.safe_open(file, "pt") as opened:
        said, names = opened.metadata(), set(opened.keys())
    expected = {
        "progdist.base_model": "hub:owner/name", "progdist.steps": "4", "progdist.guidance": "3, distilled in",
        "progdist.cfg": "1", "progdist.sampler": "euler", "progdist.scheduler": "DDIMScheduler",
        "progdist.pipeline": "StableDiffusionXLPipeline", "progdist.dtype": "bf16",
        "progdist.timesteps": "999, 749, 499, 249", "modelspec.prediction_type": "v",
        "modelspec.architecture": "stable-diffusion-xl-v1-base", "modelspec.license": "openrail++",
        "modelspec.title": "name in 4 steps",
    }  # fmt: skip
    assert {key: said[key] for key in expected} == expected
    sigmas = [float(number) for number in said["progdist.sigmas"].split(", ")]
    assert sigmas == pytest.approx(list(visited_times(model).sigmas))
    assert "v_pred" in names
    assert "ztsnr" not in names


def test_what_sdxl_is_marked_with() -> None:
    """ComfyUI's `comfy/supported_models.py` and Forge's copy of it look for these two names in files of SDXL."""
    scheduler = diffusers.DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    times: Any = visited_times_of(scheduler)
    assert marks("StableDiffusionXLPipeline", times).keys() == {"v_pred", "ztsnr"}
    assert marks("StableDiffusionPipeline", times) == {}
    assert marks("StableDiffusionXLPipeline", visited_times_of(diffusers.DDIMScheduler())) == {}


def visited_times_of(scheduler: Any) -> Any:  # noqa: ANN401
    from progdist.students.visited_times import table_times

    return table_times(scheduler, 4)


def test_shards(student_of: Callable[[str], tuple[Path, Model]], tmp_path: Path) -> None:
    """Together they hold what the one file holds; the index says where, as diffusers' own."""
    folder, model = student_of("StableDiffusionPipeline")
    export_single_file(model, tmp_path / "whole.safetensors")
    succeeds("export", folder, "--single-file", tmp_path / "parts.safetensors", "--shard-size", "40KB")
    index = read_json(tmp_path / "parts.safetensors.index.json")
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 1
    assert files[0] == f"parts-00001-of-{len(files):05d}.safetensors"
    assert sorted(path.name for path in tmp_path.glob("parts*")) == [*files, "parts.safetensors.index.json"]
    held = {file: read_tensors(tmp_path / file) for file in files}
    whole = read_tensors(tmp_path / "whole.safetensors")
    assert index["weight_map"].keys() == whole.keys()
    assert all(torch.equal(held[index["weight_map"][name]][name], tensor) for name, tensor in whole.items())
    assert index["metadata"]["total_size"] == sum(each.nbytes for each in whole.values())
    assert all(sum(each.nbytes for each in shard.values()) <= 40_000 or len(shard) == 1 for shard in held.values())


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
def test_the_file_is_a_teacher(name: str, student_of: Callable[[str], tuple[Path, Model]], tmp_path: Path) -> None:
    """`--config`: every weight of every part is that of the folder that the file was written from."""
    folder, model = student_of(name)
    export_single_file(model, tmp_path / "student.safetensors")
    out = prepare(Source(str(tmp_path / "student.safetensors"), config=str(folder)), tmp_path / "out")
    ours, theirs = (diffusers.DiffusionPipeline.from_pretrained(place) for place in (out, folder))
    for part in [part for part in PARTS if part in theirs.components]:
        found, expected = (pipeline.components[part].state_dict() for pipeline in (ours, theirs))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_what_is_refused(
    student_of: Callable[[str], tuple[Path, Model]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model = student_of("StableDiffusionPipeline")
    out = tmp_path / "a.safetensors"
    for given, message in (
        (("--single-file", tmp_path / "a.ckpt"), "expected a file that ends in .safetensors"),
        (("--single-file", folder / "a.safetensors"), "in the student's own folder: choose another folder"),
        (("--single-file", out, "--dtype", "fp8"), "expected one of float32, bf16, fp16"),
        (("--single-file", out, "--shard-size", "2"), "expected a size, e.g. 2GB"),
        (("--single-file", out, "--steps", "4"), "--steps applies only to --onnx"),
        (("--single-file", out, "--onnx", tmp_path / "a.onnx"), "expected one of --onnx FILE, --single-file FILE"),
        (("--onnx", tmp_path / "a.onnx", "--dtype", "bf16"), "--dtype applies only to --single-file"),
    ):
        refused(call("export", folder, *given), message)
    for text in ("0GB", "-1GB", "GB", "1.5GB", "٣GB"):
        with pytest.raises(UserError, match="--shard-size is"):
            shard_bytes(text)
    with pytest.raises(UserError, match="for any number of steps"):
        export_single_file(replace(model, steps=()), out)
    large = replace(model, denoiser=model.denoiser.with_network(scaled(model.denoiser.network)))
    with pytest.raises(UserError, match=r"unet\.conv_in\.weight has numbers beyond float16: use --dtype bf16"):
        export_single_file(large, out, "fp16")
    prompts: Any = model.conditioning
    index = {**prompts.index, "_class_name": "StableDiffusion3Pipeline"}
    other = replace(model, conditioning=replace(prompts, index=index))
    with pytest.raises(UserError, match="does not support StableDiffusion3Pipeline: expected"):
        export_single_file(other, out)
    monkeypatch.setattr("progdist.students.original_layout.TEXT", {})
    with pytest.raises(UserError, match=r"text_encoder\..* has no place in the original layout, as diffusers"):
        export_single_file(student_of("StableDiffusion2")[1], out)
    assert not list(tmp_path.iterdir())


def scaled(network: Any) -> Any:  # noqa: ANN401
    """A copy of a network with a weight of 1e6."""
    import copy

    network = copy.deepcopy(network)
    with torch.no_grad():
        network.conv_in.weight[0, 0, 0, 0] = 1e6
    return network


def test_students_without_an_original_layout(tmp_path: Path) -> None:
    """One whose guidance scale is an input; and SDXL with encoders of one width, which readers could not tell apart."""
    model = text_student(write_sd(tmp_path / "sd"))
    with pytest.raises(UserError, match="does not support a guidance input"):
        export_single_file(model, tmp_path / "a.safetensors")
    model = text_student(write_sdxl(tmp_path / "xl"), Fixed(3.0))
    with pytest.raises(UserError, match=r"requires text encoders of different widths, .* got 16 twice"):
        export_single_file(model, tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


def test_the_index_is_json(student_of: Callable[[str], tuple[Path, Model]], tmp_path: Path) -> None:
    """Of a name with braces, which are none of a pattern's."""
    _, model = student_of("StableDiffusionPipeline")
    written = export_single_file(model, tmp_path / "a{0}.safetensors", shard_size="100KB")
    assert written.files[-1].name == "a{0}.safetensors.index.json"
    assert json.loads(written.files[-1].read_text())["metadata"]["progdist.steps"] == "4"
