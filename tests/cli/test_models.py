"""`progdist sample` and `progdist evaluate`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
from typer.testing import Result

from progdist._utils.files import read_tensors
from progdist._utils.random import SAMPLING_NOISE, generator
from support.commands import call, refused, size_of, succeeds
from support.stock import load_ddim, load_unet, stock_samples

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("conditional", [True, False])
def test_sample_is_stock_diffusers(
    finished: tuple[Path, Result], tiny_recipe: Path, tmp_path: Path, conditional: bool
) -> None:
    """`progdist sample` and the stock pipeline of the folder, from the same noise, at the student's step count."""
    out = finished[0]
    if not conditional:
        out = tmp_path / "plain"
        assert call("run", tiny_recipe, "--out", out, "--set", "distill.end=4").exit_code == 0
    file = tmp_path / "images.safetensors"
    label = ("--label", 3) if conditional else ()
    assert call("sample", out / "student-0004", "-n", 12, "--seed", 5, "--out", file, *label).exit_code == 0
    ours = read_tensors(file)["images"]
    noise = torch.randn(12, 1, 8, 8, generator=generator(5, SAMPLING_NOISE))
    if conditional:
        unet = load_unet(out / "student-0004")
        scheduler = load_ddim(out / "student-0004")
        theirs = stock_samples(unet, scheduler, noise, 4, class_labels=torch.full((12,), 3))
    else:
        pipeline = DDIMPipeline.from_pretrained(out / "student-0004")
        theirs = stock_samples(pipeline.unet, pipeline.scheduler, noise, 4)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_sample_and_evaluate(finished: tuple[Path, Result], tmp_path: Path) -> None:
    out, _ = finished
    picture = tmp_path / "grid.png"
    result = call("sample", out / "student-0002", "-n", 6, "--columns", 3, "--label", 7, "--out", picture)
    assert result.exit_code == 0
    assert size_of(picture) == (3 * 65 - 1, 2 * 65 - 1)
    assert f"6 images in 2 steps: {picture}, each pixel enlarged to 8x8\n" in result.stderr
    assert "was distilled for 2 steps, not 3" in call(
        "sample", out / "student-0002", "--steps", 3, "--out", picture
    ).stderr  # fmt: skip
    result = call(
        "evaluate", out / "student-0002", out / "student-0001", "--data", "digits", "--features", "digits",
        "-n", 64, "--json",
    )  # fmt: skip
    results = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["steps"] for line in results] == [2, 1]
    assert all(line["frechet"] > 0 and line["samples"] == 64 for line in results)
    assert "use 640 or more" in result.stderr
    plain = call("evaluate", out / "student-0002", "--data", "digits", "-n", 64)
    assert "Fréchet" in plain.stdout
    samples = {}
    for options in ("ddim", "ancestral", "ancestral --variance 0", "overshoot", "heun", "ddim --clip"):
        file = tmp_path / "images.safetensors"
        method, *more = options.split()
        arguments = ("sample", out / "teacher", "--steps", 8, "-n", 4, "--out", file, "--method", method, *more)
        succeeds(*arguments)
        samples[options] = read_tensors(file)["images"].numpy()
        succeeds(*arguments)
        np.testing.assert_array_equal(samples[options], read_tensors(file)["images"])
    assert len({image.tobytes() for image in samples.values()}) == len(samples)
    assert np.abs(samples["ddim --clip"]).max() <= 1 < np.abs(samples["ddim"]).max()
    refused(call("sample", out / "teacher", "--steps", 8, "--method", "dimm"), "use one of ddim, ancestral")
    fidelity = call(
        "evaluate", out / "student-0002", out / "teacher", "--data", "digits", "-n", 64, "--steps", 8, "--json",
        "--teacher", out / "teacher", "--teacher-steps", 8,
    )  # fmt: skip
    results = [json.loads(line) for line in fidelity.stdout.splitlines()]
    assert results[0]["rmse"] > results[1]["rmse"] == 0
    assert results[0]["network_evaluations"] == 8


def test_evaluate_repeats_what_a_recipe_measures(finished: tuple[Path, Result], tmp_path: Path) -> None:
    """The same clipping, method, batch and precision can be asked for, and each of them reaches the samples."""
    out, _ = finished
    arguments = ("evaluate", out / "student-0004", "--data", "digits", "-n", 48, "--json", "--precision", "float32")

    def measured(*more: object) -> dict[str, Any]:
        result = call(*arguments, *more)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    plain = measured()
    assert measured("--batch", 7)["frechet"] == pytest.approx(plain["frechet"], rel=1e-3)
    assert measured("--clip")["frechet"] != plain["frechet"]
    ancestral = measured("--method", "ancestral")["frechet"]
    assert ancestral != plain["frechet"] != measured("--precision", "bf16")["frechet"]
    assert measured("--method", "ancestral", "--variance", 0.3)["frechet"] != ancestral
    assert measured("--method", "heun")["network_evaluations"] == 7
    for more, message in (
        (("--precision", "fp16"), "auto, float32, bf16"),
        (("--variance", 0.5), "applies only to method ancestral"),
        (("--teacher-steps", 8), "teacher"),
    ):
        refused(call(*arguments, *more), message)
