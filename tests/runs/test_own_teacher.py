"""`progdist distill` with a user's own teacher."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from progdist import UserError
from progdist.distillation import chain_predictions
from progdist.methods.conversion import student_form
from progdist.methods.guidance import Input
from progdist.models.guidance_input import with_class_guidance
from progdist.models.model import Model
from progdist.models.networks import network_interface
from progdist.recipes.files import read_recipe, validated
from progdist.runs.run import open_run
from progdist.students.folder import save
from progdist.teachers.open import open_teacher
from progdist.teachers.own import load
from support.commands import SHORT_EVALUATION, UNTRAINED, SilentCallback, call, refused
from support.stock import SaveStock, stock_network

SHORT = ("--updates", 2, "--batch", 8, "--start", 40, *SHORT_EVALUATION)


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["eps", "flow", "guided", "range"])
def test_the_whole_command(stock: SaveStock, tmp_path: Path, teacher: str) -> None:
    flow = FlowMatchEulerDiscreteScheduler() if teacher == "flow" else None
    folder = stock(flow, classes=None if teacher == "eps" else 11)
    more = {"guided": ("--guidance", 2), "range": ("--guidance", "1:3", "--set", "evaluate.guidance=2")}.get(
        teacher, ()
    )
    arguments = ("distill", folder, "--data", "digits", "--out", tmp_path / "out", *SHORT, *UNTRAINED, *more)
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    assert "chain: 40 -> 8 -> 4" in result.output
    description = json.loads((tmp_path / "out" / "student-0004" / "progdist.json").read_text())
    assert (description["steps"], description["lineage"]) == ([4], [40, 8])
    assert description.get("class_guidance") == ([1, 3] if teacher == "range" else None)
    records = [json.loads(line) for line in (tmp_path / "out" / "evaluations.jsonl").read_text().splitlines()]
    stage_0 = teacher != "flow"
    assert [(r["model"], r["steps"]) for r in records[: 1 + stage_0]] == [("teacher", 40), ("converted", 40)][
        : 1 + stage_0
    ]
    assert {r["model"] for r in records[1 + stage_0 :]} == {"student", "teacher", "teacher_dpmpp"}
    assert records[0]["rmse"] == 0
    matched = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert any("conversion" in record for record in matched) == (teacher != "flow")
    end = "in pure noise" if teacher == "eps" else "at a signal-to-noise ratio of 4e-05"
    said = f"stage 0: a student with output v, on a schedule that ends {end}"
    assert (said in " ".join(result.output.split())) == (teacher != "flow")
    scheduler = json.loads((tmp_path / "out" / "student-0004" / "scheduler" / "scheduler_config.json").read_text())
    expected = "FlowMatchEulerDiscreteScheduler" if teacher == "flow" else "DDIMScheduler"
    assert scheduler["_class_name"] == expected
    best = records[0]["quality"][0]["frechet"]  # the ratio is to the teacher itself
    last = next(r for r in records if (r["model"], r["steps"]) == ("student", 4))
    (row,) = (line for line in result.output.splitlines() if line.startswith("│     4 "))
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert float(cells[4]) == pytest.approx(last["quality"][0]["frechet"] / best, abs=0.5)  # to the digits that hold
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"{cells[4]}×" in page
    assert ("is the teacher after stage 0" in page) == stage_0
    before = (tmp_path / "out" / "metrics.jsonl").read_text()
    assert call(*arguments).exit_code == 0
    assert (tmp_path / "out" / "metrics.jsonl").read_text() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--data", "digits", "--guidance", 2),
            "guidance requires a teacher with classes or prompts, and it has neither",
        ),
        (("--data", "digits", "--steps", 3), "does not divide"),
        (
            ("--data", "digits", "--set", "distill.chain=[6, 3]", "--set", "distill.stages={}"),
            "do not divide the teacher's 1000",
        ),
        (("--data", "digits", "--set", "network={width: 8, multipliers: [1]}"), "expected either network"),
        (("--data", "digits", "--set", "parameterization=x"), "those of teacher.model"),
        (("--data", "nothing"), "unknown"),
    ],
)
def test_mistakes_are_one_line(stock: SaveStock, tmp_path: Path, arguments: tuple[object, ...], message: str) -> None:
    result = call("distill", stock(), *arguments, "--out", tmp_path / "out", *SHORT, *UNTRAINED)
    assert result.exit_code == 2, result.output
    assert message in result.stderr


@pytest.mark.slow
def test_limits_are_learned_where_there_is_no_stage_0(stock: SaveStock, tmp_path: Path) -> None:
    """A zero-SNR teacher of x is halved as it is: its first student learns from clipped predictions."""
    scheduler = DDIMScheduler(prediction_type="sample", rescale_betas_zero_snr=True, clip_sample_range=0.25)
    folder = stock(scheduler)
    result = call("distill", folder, "--data", "digits", "--out", tmp_path / "out", *SHORT, *UNTRAINED)
    assert result.exit_code == 0, result.output
    run = open_run(read_recipe(str(tmp_path / "out" / "recipe.yaml")), tmp_path / "out", SilentCallback())
    teacher = run.train_teacher(run.trainer())
    assert teacher.training["updates"] == 0
    z, t = torch.randn(4, 1, 8, 8), torch.tensor(0.5, dtype=torch.float64)
    with torch.no_grad():
        found, unlimited = chain_predictions(run.context.teacher, teacher)(z, t), teacher.denoiser(z, t)
    assert float(found.abs().max()) <= 0.25 < float(unlimited.abs().max())
    records = [json.loads(line) for line in (tmp_path / "out" / "evaluations.jsonl").read_text().splitlines()]
    assert [r["model"] for r in records if r["steps"] == 40] == ["teacher"]  # nothing is measured twice


@pytest.mark.slow
@pytest.mark.parametrize("data", [False, True])
@pytest.mark.usefixtures("known_rates")
def test_a_zero_snr_teacher_is_taken(stock: SaveStock, data: bool) -> None:
    folder = stock(DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True))
    result = call("doctor", folder, *(("--data", "digits") if data else ()))
    assert "unknown" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "it can be distilled without stage 0" in result.output
    assert not data or "by prediction type" in result.output


@pytest.mark.slow
@pytest.mark.usefixtures("known_rates")
def test_a_distilled_teacher_starts_at_its_own_steps(tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    save(Model(tiny_model(), (8,), (16,)), tmp_path / "student")
    result = call("distill", tmp_path / "student", "--data", "digits", "--out", tmp_path / "out", *SHORT)
    assert result.exit_code == 0, result.output
    assert "chain: 8 -> 4" in result.output
    description = json.loads((tmp_path / "out" / "student-0004" / "progdist.json").read_text())
    assert description["lineage"] == [16, 8]
    for more, message in (
        (("--steps", 3), "distilled for 8 steps"),
        (("--set", "distill.chain=[16, 8, 4]"), "distilled for 8 steps, but the chain starts at 16"),
        (("--guidance", 2), "guidance requires a teacher for all times"),
    ):
        result = call("distill", tmp_path / "student", "--data", "digits", "--out", tmp_path / "no", *SHORT, *more)
        assert result.exit_code == 2, result.output
        assert message in result.stderr
    assert "8 -> 4" in call("doctor", tmp_path / "student").output


@pytest.mark.slow
def test_a_learned_variance_is_sliced_off(stock: SaveStock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The student's folder is a stock pipeline that samples, though the teacher's network had twice the channels."""
    folder = stock(DDPMScheduler(variance_type="learned_range"))
    wide = stock_network()
    wide.conv_out = torch.nn.Conv2d(wide.conv_out.in_channels, 2, 3, padding=1)
    wide.register_to_config(out_channels=2)
    wide.save_pretrained(folder / "unet")
    result = call("distill", folder, "--data", "digits", "--out", tmp_path / "out", *SHORT, *UNTRAINED)
    assert result.exit_code == 0, result.output
    pipeline = DDIMPipeline.from_pretrained(tmp_path / "out" / "student-0004")
    pipeline.set_progress_bar_config(disable=True)
    images: Any = pipeline(batch_size=2, num_inference_steps=4, output_type="np")
    assert images.images.shape == (2, 8, 8, 1)
    teacher, z = open_teacher(str(folder)), torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(teacher.model.denoiser.network(z, 5).sample, wide(z, 5).sample[:, :1])


@pytest.mark.slow
def test_guidance_never_takes_a_real_class_for_none(stock: SaveStock, tmp_path: Path) -> None:
    folder, arguments = stock(classes=10), ("--data", "digits", "--out", tmp_path / "out", *SHORT, *UNTRAINED)
    result = call("distill", folder, *arguments, "--guidance", 2)
    assert result.exit_code == 2, result.output
    assert "set it with --set conversion.null_class=N" in result.stderr
    assert not (tmp_path / "out").exists()
    assert call("distill", folder, *arguments, "--guidance", 2, "--set", "conversion.null_class=9").exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--guidance", 0), "conversion.guidance: guidance is 0, expected a positive scale"),
        (("--guidance", "0:3"), "conversion.guidance: guidance is 0 to 3, expected a positive scale"),
        (("--set", "distill.start=8"), "start has no effect with chain"),
        (("--set", "distill.substeps=4"), "substeps has no effect with chain"),
        (("--set", "teacher.learning_rate=0.1"), "teacher.learning_rate applies only to a teacher that is trained"),
        (("--set", "evaluate.samples=1"), "evaluate.samples"),
    ],
)
def test_what_has_no_effect_is_refused(
    stock: SaveStock, tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    result = call("distill", stock(), "--data", "digits", "--out", tmp_path / "out", *SHORT, *UNTRAINED, *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_folder_of_any_name(stock: SaveStock, tmp_path: Path) -> None:
    result = call("distill", stock(), "--data", "digits", "--out", tmp_path / "my run", *SHORT, *UNTRAINED)
    assert result.exit_code == 0, result.output
    assert read_recipe(str(tmp_path / "my run" / "recipe.yaml")).name == "my-run"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("conversion.guidance=[1, 3]", "evaluate.guidance=4"), "expected 1 to 3, which the students learn"),
        (("conversion.guidance=2", "evaluate.guidance=2"), "no effect, because the students take no guidance scale"),
        (("evaluate.guidance=2",), "no effect, because the students take no guidance scale"),
    ],
)
def test_a_scale_to_measure_at_is_one_that_students_take(
    stock: SaveStock, tmp_path: Path, settings: tuple[str, ...], message: str
) -> None:
    content = {"name": "a", "data": {"source": "digits"}, "teacher": {"model": str(stock(classes=11))}}
    with pytest.raises(UserError, match=message):
        open_run(validated(content, settings, "test"), tmp_path / "out", SilentCallback()).prepare()


@pytest.mark.parametrize(
    ("settings", "ends_in_noise"),
    [
        ((), True),
        (("conversion.guidance=2",), False),
        (("conversion.guidance=[1, 3]",), False),
        (("conversion.guidance=2", "conversion.zero_terminal_snr=true"), True),
        (("conversion.zero_terminal_snr=false",), False),
    ],
)
def test_guided_students_keep_the_end_of_the_schedule(
    stock: SaveStock, settings: tuple[str, ...], *, ends_in_noise: bool
) -> None:
    folder = str(stock(classes=11))
    recipe = validated({"name": "a", "data": {"source": "digits"}, "teacher": {"model": folder}}, settings, "test")
    teacher = open_teacher(folder).model
    end = torch.ones((), dtype=torch.float64)
    expected = 0.0 if ends_in_noise else float(teacher.denoiser.schedule.alpha(end))
    form = recipe.plan().form(teacher)
    assert float(form.schedule.alpha(end)) == expected
    assert recipe.plan().converts(teacher)
    plain = validated(recipe.model_dump() | {"conversion": {}}, (), "test")
    taught = replace(teacher, denoiser=form)  # the student of stage 0, or a later one
    assert not plain.plan().converts(taught)
    assert plain.plan().form(taught).schedule == form.schedule


@pytest.mark.parametrize(
    ("steps", "zero", "message"),
    [
        ((8,), False, "no effect on a distilled teacher"),
        ((), True, "applies only to a schedule that ends above zero SNR"),
    ],
)
def test_an_end_of_the_schedule_that_cannot_be_chosen_is_refused(
    stock: SaveStock, tmp_path: Path, steps: tuple[int, ...], message: str, *, zero: bool
) -> None:
    teacher = open_teacher(str(stock())).model
    form = student_form(teacher.denoiser, guided=False, zero_terminal_snr=zero)
    save(replace(teacher, denoiser=form, steps=steps), tmp_path / "model")
    content = {"name": "a", "data": {"source": "digits"}, "teacher": {"model": str(tmp_path / "model")}}
    settings = ("conversion.zero_terminal_snr=true", "distill.chain=[8,4]")
    recipe = validated(content, settings, "test")
    with pytest.raises(UserError, match=message):
        open_run(recipe, tmp_path / "out", SilentCallback()).prepare()
    with pytest.raises(UserError, match=message):
        open_run(recipe, tmp_path / "out", SilentCallback(), dry=True).prepare()


@pytest.mark.slow
def test_a_student_with_a_guidance_scale_is_a_teacher(tmp_path: Path, stock: SaveStock) -> None:
    """Its students are given the scales that it knows; another guidance is refused."""
    teacher = open_teacher(str(stock(classes=11))).model
    form = student_form(teacher.denoiser, guided=False, zero_terminal_snr=True)
    network = with_class_guidance(form.network, Input(1.0, 3.0))
    denoiser = form.with_parts(network=network, **network_interface(network))
    save(replace(teacher, denoiser=denoiser, steps=(8,)), tmp_path / "eight")
    words = ("distill", tmp_path / "eight", "--data", "digits", "--out", tmp_path / "out", *SHORT)
    assert call(*words).exit_code == 0
    assert load(tmp_path / "out" / "student-0004").guidance == Input(1.0, 3.0)
    refused(
        call(*words[:-1], *SHORT[-1:], "--guidance", "1:3"),
        "the teacher takes a guidance scale, and so will its students: remove guidance",
    )
