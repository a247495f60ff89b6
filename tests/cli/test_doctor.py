"""`progdist doctor`, and teachers that the data contradict."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from PIL import Image

from progdist import Denoiser
from progdist.models.model import Model
from progdist.students.folder import save
from progdist.teachers.open import open_teacher
from support.commands import SHORT_EVALUATION, call
from support.guidance import student
from support.paths import REFERENCE
from support.stock import SaveStock


@pytest.mark.slow
def test_the_doctor_describes_a_folder(stock: SaveStock) -> None:
    result = call("doctor", stock())
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    for fragment in (
        "UNet2DModel with DDPMScheduler",
        "output eps",
        "signal-to-noise ratio of 4.0e-05",
        "stage 0",
        "GiB",
    ):
        assert fragment in text
    assert "200 -> 40 -> 8 -> 4" in text


@pytest.mark.slow
@pytest.mark.usefixtures("known_rates")
def test_the_doctor_and_distill_refuse_what_the_data_contradict(
    stock: SaveStock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = stock()
    problem = "prediction type is eps, but read as v it denoises the data better"
    monkeypatch.setattr("progdist.teachers.check._wrong_parameterization", lambda errors, own, remedy: problem)
    result = call("doctor", folder, "--data", "digits")
    assert result.exit_code == 2
    assert f"! {problem}" in " ".join(result.output.split())
    result = call("distill", folder, "--data", "digits", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert problem in result.stderr
    assert "teacher.trust=true" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("known_rates")
def test_the_doctor_shows_an_explicit_offset(tiny_model: Callable[..., Denoiser], tmp_path: Path) -> None:
    save(Model(tiny_model()), tmp_path / "model")
    assert "timestep = 1024 t - 0" in call("doctor", tmp_path / "model", "--offset", 0).output


@pytest.mark.usefixtures("known_rates")
def test_the_doctor_tells_what_guidance_a_student_takes(stock: SaveStock, tmp_path: Path) -> None:
    """Whose schedule ends where its teacher's does, and which is halved as it is."""
    save(student(open_teacher(str(stock(classes=11))).model), tmp_path / "student")
    text = " ".join(call("doctor", tmp_path / "student").output.split())
    assert "it takes a guidance scale from 1 to 8, and so do its students" in text
    assert "it can be distilled without stage 0" in text
    sampled = call("sample", tmp_path / "student", "-n", 1, "--out", tmp_path / "grid.png")
    assert "guidance: 4, the default of 1 to 8" in " ".join(sampled.output.split())


TRAINED = REFERENCE / "stock_teacher"
"""A teacher that stock code trained for long enough to tell its timesteps apart (see tests/reference/README.md)."""


@pytest.mark.slow
@pytest.mark.parametrize(("command", "offset"), [("distill", 0), ("distill", 1), ("doctor", 2)])
@pytest.mark.usefixtures("known_rates")
def test_a_trained_teacher_is_distinguished_from_one_with_another_offset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, offset: int
) -> None:
    monkeypatch.setattr("progdist.teachers.check.IMAGES", 1797)
    brief = ("--start", 8, "--updates", 1, "--batch", 8, *SHORT_EVALUATION, "--out", tmp_path / "out")
    how = {"distill": ("--set", f"teacher.offset={offset}", *brief), "doctor": ("--offset", offset)}[command]
    result = call(command, TRAINED, "--data", "digits", *how)
    assert result.exit_code == (0 if offset == 1 else 2), result.output
    assert ("teacher.offset=1" in " ".join(result.output.split())) == (offset != 1)
    assert (tmp_path / "out").exists() == (offset == 1)


@pytest.mark.slow
@pytest.mark.usefixtures("known_rates")
def test_a_trained_teacher_with_a_wrong_prediction_type_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "wrong"
    shutil.copytree(TRAINED, folder)
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace('"epsilon"', '"v_prediction"'))
    for arguments in (("doctor", folder), ("distill", folder, "--out", tmp_path / "out")):
        result = call(*arguments, "--data", "digits")
        assert result.exit_code == 2
        assert "read as eps it denoises the data better" in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("known_rates")
def test_the_doctor_tells_what_is_converted_and_passed_over(stock: SaveStock, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "notes.md").write_text("text")
    for number in range(4):
        Image.new("RGBA" if number else "L", (8, 8), 60 * number).save(data / f"{number}.png")
    lines = call("doctor", stock(), "--data", f"folder:{data}", "--background", "black").output.replace("\n", " ")
    assert f"folder:{data}: skipped 1 file that is not an image (1 .md)" in lines
    assert "3 of 4 images have transparency: they are composed on black (data.background)" in lines


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.usefixtures("known_rates")
def test_a_network_of_other_channels_out_than_in_is_refused(channels: int, tmp_path: Path) -> None:
    """Its output would be broadcast over the data's channels."""
    network = UNet2DModel(
        8, 3, channels, layers_per_block=1, norm_num_groups=4, block_out_channels=(8,),
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    DDPMPipeline(network, DDPMScheduler(prediction_type="v_prediction")).save_pretrained(tmp_path / "teacher")
    np.savez(tmp_path / "rgb.npz", images=np.random.default_rng(0).integers(0, 255, (70, 8, 8, 3), np.uint8))
    result = call("doctor", tmp_path / "teacher", "--data", f"npz:{tmp_path / 'rgb.npz'}")
    assert result.exit_code == 2
    assert f"is {channels}x8x8, expected 3x8x8" in " ".join(result.stderr.split())
