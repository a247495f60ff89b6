"""Teachers from stock diffusers folders: what is inferred, and that they are sampled as stock code samples them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTPipeline  # pyright: ignore[reportPrivateImportUsage]
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from progdist import RectifiedFlow, UserError, sample
from progdist.methods.conversion import (
    needs_conversion,
    student_form,
)
from progdist.models.model import Base
from progdist.students.folder import save
from progdist.teachers.open import open_teacher
from progdist.teachers.own import load
from support.commands import call
from support.latent import save_dit
from support.stock import SaveStock, stock_network

SCHEDULERS = {
    "linear": DDPMScheduler(),
    "scaled": DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    "cosine v": DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"),
    "sample": DDPMScheduler(prediction_type="sample", num_train_timesteps=500),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_stock_teacher_is_sampled_as_stock_samples_it(stock: SaveStock, name: str) -> None:
    """Our DDIM with what was inferred equals stock DDIM on the trailing grid, clipped or not as the folder says."""
    scheduler = SCHEDULERS[name]
    teacher = open_teacher(str(stock(scheduler)))
    noise = torch.randn(4, 1, 8, 8)
    ours = sample(teacher.limited(teacher.model.denoiser), noise, 20)
    theirs = DDIMScheduler.from_config(scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True)
    theirs.set_timesteps(20)  # pyright: ignore
    z, network = noise, stock_network()
    with torch.no_grad():
        for timestep in theirs.timesteps:  # pyright: ignore
            output = network(z, timestep).sample
            z = theirs.step(output, timestep, z, use_clipped_model_output=True).prev_sample  # pyright: ignore
    assert teacher.limits == "clips denoised images to [-1, 1]"
    torch.testing.assert_close(ours, z, rtol=0, atol=2e-4)


def test_a_flow_is_a_rectified_flow(stock: SaveStock) -> None:
    teacher = open_teacher(str(stock(FlowMatchEulerDiscreteScheduler(), classes=10)))
    assert teacher.model.denoiser.schedule == RectifiedFlow()
    assert teacher.model.denoiser.offset == 0
    assert len(teacher.model.classes) == 10
    assert teacher.limits == ""
    assert teacher.limited(teacher.model.denoiser) is teacher.model.denoiser
    form = student_form(teacher.model.denoiser, guided=False)
    assert not needs_conversion(teacher.model.denoiser, form)


def test_a_name_on_the_hub(stock: SaveStock, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, requested = stock(), {}

    def download(name: str, **how: object) -> str:
        requested.update(name=name, **how)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    model = open_teacher("hub:somebody/their-model@v2").model
    assert model.denoiser.num_train_timesteps == 1000
    assert model.base == Base("hub:somebody/their-model")
    assert (requested["name"], requested["revision"]) == ("somebody/their-model", "v2")
    assert all(
        pattern.endswith((".json", ".safetensors", ".txt", ".model", "README.md"))
        for pattern in requested["allow_patterns"]
    )  # no pickles
    assert "text_encoder/*.safetensors" not in requested["allow_patterns"]  # its index names none
    assert {"unet/*.safetensors", "scheduler/*.json", "unet/*.txt"} <= set(requested["allow_patterns"])

    def refuse(name: str, **how: object) -> str:
        raise OSError("404 Client Error: not found")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    result = call("doctor", "hub:somebody/nothing")
    assert result.exit_code == 2
    assert "cannot be fetched (404 Client Error" in result.stderr
    requested.clear()
    result = call("doctor", "my-models/mistyped")  # a folder's name is never asked for on the hub
    assert result.exit_code == 2
    assert "(hub:my-models/mistyped for a model on the Hugging Face hub)" in result.stderr
    assert requested == {}


@pytest.mark.parametrize(
    "settings",
    [
        {"clip_sample_range": 0.5},
        {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9},
    ],
    ids=["range", "thresholding"],
)
def test_a_stock_samplers_limits_are_kept(stock: SaveStock, settings: dict[str, Any]) -> None:
    """Clipping to another range and dynamic thresholding, against stock DDIM."""
    scheduler = DDIMScheduler(prediction_type="sample", timestep_spacing="trailing", **settings)
    teacher = open_teacher(str(stock(scheduler)))
    noise, network = torch.randn(4, 1, 8, 8), stock_network()
    ours = sample(teacher.limited(teacher.model.denoiser), noise, 10)
    theirs: Any = DDIMScheduler.from_config(scheduler.config, set_alpha_to_one=True)
    theirs.set_timesteps(10)
    z = noise
    with torch.no_grad():
        for timestep in theirs.timesteps:
            z = theirs.step(network(z, timestep).sample, timestep, z, use_clipped_model_output=True).prev_sample
    torch.testing.assert_close(ours, z, rtol=0, atol=2e-4)
    assert not torch.allclose(ours, sample(teacher.model.denoiser, noise, 10), atol=1e-2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dynamic_shifting": True}, "shifts its times by the size"),
        ({"shift": 0.0}, "damaged"),
        ({"invert_sigmas": True}, "expected a flow with noise there"),
    ],
)
def test_a_flow_that_cannot_be_taken(stock: SaveStock, settings: dict[str, Any], message: str) -> None:
    folder = stock(FlowMatchEulerDiscreteScheduler())
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    with pytest.raises(UserError, match=message):
        open_teacher(str(folder))


def test_a_shifted_flow_is_sampled_as_stock_samples_it(stock: SaveStock) -> None:
    folder = stock(FlowMatchEulerDiscreteScheduler(shift=3.0))
    teacher = open_teacher(str(folder))
    assert teacher.model.denoiser.schedule == RectifiedFlow(3.0)
    theirs: Any = FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")
    theirs.set_timesteps(sigmas=[1 - i / 8 for i in range(8)])
    noise, network = torch.randn(3, 1, 8, 8), stock_network()
    z = noise
    with torch.no_grad():
        for timestep in theirs.timesteps:
            z = theirs.step(network(z, timestep).sample, timestep, z).prev_sample
    torch.testing.assert_close(sample(teacher.model.denoiser, noise, 8), z, rtol=0, atol=2e-4)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    result = call("distill", tmp_path / "nothing", "--data", "digits")
    assert result.exit_code == 2
    assert "is not a folder" in result.stderr


def save_as_pickle(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (save_as_pickle, "is a pickle"),
        (lambda folder: (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink(), "lacks unet/diffusion"),
        (lambda folder: (folder / "unet" / "config.json").unlink(), "lacks unet/config.json"),
        (lambda folder: (folder / "scheduler" / "scheduler_config.json").unlink(), "lacks scheduler/scheduler_config"),
        (lambda folder: (folder / "model_index.json").unlink(), "no model_index.json"),
        (lambda folder: (folder / "model_index.json").write_text('{"transformer": ["diffusers", "X"]}'), "UNet2DModel"),
        (lambda folder: (folder / "model_index.json").write_text("{"), "cannot be read as JSON"),
        (
            lambda folder: (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "Nobody"}'),
            "has scheduler Nobody",
        ),
        (
            lambda folder: (folder / "scheduler" / "scheduler_config.json").write_text(
                '{"_class_name": "DDPMScheduler", "prediction_type": "score"}'
            ),
            "prediction_type is 'score', expected one of",
        ),
        (
            lambda folder: (folder / "scheduler" / "scheduler_config.json").write_text(
                '{"_class_name": "DDPMScheduler", "beta_schedule": "quadratic"}'
            ),
            "scheduler is damaged",
        ),
        (
            lambda folder: (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"no"),
            "its weights are 2 bytes",
        ),
    ],
)
def test_damaged_folders_are_one_line(stock: SaveStock, damage: Callable[[Path], None], message: str) -> None:
    folder = stock()
    damage(folder)
    result = call("distill", folder, "--data", "digits", "--out", folder.parent / "out")
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (folder.parent / "out").exists()


def test_an_explicit_offset_is_used(stock: SaveStock) -> None:
    from progdist.teachers.open import open_teacher

    assert open_teacher(str(stock())).model.denoiser.offset == 1
    assert open_teacher(str(stock()), 0).model.denoiser.offset == 0


NAMES = {"0": "tench, Tinca tinca", "1": "goldfish", "9": "ostrich"}
EXPECTED = (NAMES["0"], NAMES["1"], *map(str, range(2, 9)), NAMES["9"])


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json"])
def test_id2label_is_the_names_of_the_classes(stock: SaveStock, tmp_path: Path, file: str) -> None:
    folder = stock(classes=10)
    config = folder / file
    config.write_text(json.dumps({**json.loads(config.read_text()), "id2label": NAMES}))
    model = open_teacher(str(folder)).model
    assert model.classes == EXPECTED
    save(model, tmp_path / "student")
    assert load(tmp_path / "student").classes == EXPECTED


def test_id2label_of_a_dit_is_kept_for_its_stock_pipeline(tmp_path: Path) -> None:
    folder = save_dit(tmp_path / "dit")
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "id2label": NAMES}))
    save(open_teacher(str(folder)).model, tmp_path / "student")
    stock, ours = (DiTPipeline.from_pretrained(place) for place in (folder, tmp_path / "student"))
    assert ours.get_label_ids(["Tinca tinca", "ostrich"]) == stock.get_label_ids(["Tinca tinca", "ostrich"]) == [0, 9]


@pytest.mark.parametrize("names", [[], "x", 3, {"0": None, "1": [2]}])
def test_id2label_that_is_none(stock: SaveStock, names: object) -> None:
    folder = stock(classes=10)
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "id2label": names}))
    assert len(open_teacher(str(folder)).model.classes) == 10
