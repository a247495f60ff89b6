"""Pipelines of text-conditional transformers: students, and the stock pipelines that sample them."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import sentencepiece
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image
from torch import Tensor

from progdist import UserError
from progdist._utils.files import read_tensors
from progdist.diffusion.sampler import ddim_update, sample, time_grid
from progdist.distillation.conversion import converted_form
from progdist.distillation.guidance import Guided
from progdist.evaluation.generate import sampling_noise
from progdist.models.flow import flow_scheduler
from progdist.models.io.diffusers_pipeline import read_teacher
from progdist.models.io.folder import load, save
from progdist.models.model import Model
from progdist.models.text.conditions import prompt_conditions
from progdist.models.text.pipeline import Guidance, takes_guidance
from progdist.models.text.transformers import packed, unpacked
from progdist.recipes.from_teacher import taught_guidance, unconverted
from progdist.recipes.recipe import Recipe
from progdist.runs.stages import needs_stage_0
from support.commands import call
from support.text import PROMPTS, TRANSFORMER_WRITERS, write_flux, write_pixart, write_sd3

KINDS = pytest.mark.parametrize("kind", TRANSFORMER_WRITERS)

SIZE = (8, 8)
"""Height and width of the images."""

CALL: dict[str, dict[str, Any]] = {
    "PixArtSigmaPipeline": {"use_resolution_binning": False, "guidance_scale": 1.0},
    "StableDiffusion3Pipeline": {"guidance_scale": 1.0},
    "FluxPipeline": {"guidance_scale": 2.0, "height": SIZE[0], "width": SIZE[1]},
}
"""What a stock pipeline is told beside prompts and steps."""

DIAL = {"FluxPipeline": 2.0}
"""The guidance scale that our sampler is told where the network takes one."""


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind, as stock code writes it."""
    root = tmp_path_factory.mktemp("pipelines")
    return {kind: write(root / kind) for kind, write in TRANSFORMER_WRITERS.items()}


def student(place: Path, steps: int) -> Model:
    """A student of the teacher in a folder, in the form that it would have."""
    teacher = read_teacher(str(place), None, SIZE).model
    assert teacher.text is not None
    text = teacher.text.guided((1.0, 5.0) if takes_guidance(teacher.denoiser.network) else None, None)
    return replace(teacher, denoiser=converted_form(teacher.denoiser), steps=(steps,), text=text)


def stock(place: Path, kind: str) -> Any:  # noqa: ANN401
    """By its class name alone."""
    pipeline = getattr(diffusers, kind).from_pretrained(place)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@KINDS
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_stock_pipeline_samples_what_we_sample(
    kind: str, steps: int, pipelines: dict[str, Path], tmp_path: Path
) -> None:
    save(student(pipelines[kind], steps), tmp_path / "student")
    model, pipeline = load(tmp_path / "student"), stock(tmp_path / "student", kind)
    calls: list[int] = []
    pipeline.transformer.register_forward_hook(lambda module, given, output: calls.append(len(output[0])))
    noise = sampling_noise(model, len(PROMPTS), 0)
    given = {**CALL[kind], "latents": packed(noise) if kind == "FluxPipeline" else noise}
    theirs = pipeline(PROMPTS, num_inference_steps=steps, output_type="latent", **given).images
    assert calls == [len(PROMPTS)] * steps
    condition: dict[str, Any] = {**prompt_conditions(model, PROMPTS, DIAL.get(kind))({"labels": torch.arange(4)})}
    ours = sample(model.denoiser, noise, steps, **condition)
    ours_as_theirs = packed(ours) if kind == "FluxPipeline" else ours
    torch.testing.assert_close(ours_as_theirs, theirs, rtol=0, atol=1e-4)
    assert torch.equal(unpacked(packed(ours), 2), ours)
    told = sample(model.denoiser, noise, steps, **{name: rows.roll(1, 0) for name, rows in condition.items()})
    assert float((ours - told).abs().max()) > 0.01  # the captions matter


@KINDS
def test_the_command_makes_the_stock_pipelines_images(kind: str, pipelines: dict[str, Path], tmp_path: Path) -> None:
    save(student(pipelines[kind], 4), tmp_path / "student")
    words = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    words += ["--guidance", str(DIAL[kind])] if kind in DIAL else []
    made = tmp_path / "made.safetensors"
    result = call("sample", tmp_path / "student", *words, "-n", 4, "--out", made)
    assert result.exit_code == 0, result.output
    noise = sampling_noise(load(tmp_path / "student"), 4, 0)
    pipeline = stock(tmp_path / "student", kind)
    given = {**CALL[kind], "latents": packed(noise) if kind == "FluxPipeline" else noise}
    theirs = pipeline(PROMPTS, num_inference_steps=4, output_type="np", **given).images
    ours = read_tensors(made)["images"].numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(ours.clip(-1, 1) / 2 + 0.5, theirs, rtol=0, atol=1e-4)


def test_the_guided_teacher_of_pixart_is_the_stock_pipeline(pipelines: dict[str, Path]) -> None:
    scheduler = DDIMScheduler(beta_schedule="linear", beta_end=0.02, timestep_spacing="trailing", clip_sample=False)
    check_guided_step(pipelines, "PixArtSigmaPipeline", scheduler, {"use_resolution_binning": False})


def test_the_guided_teacher_of_sd3_is_the_stock_pipeline(pipelines: dict[str, Path]) -> None:
    check_guided_step(pipelines, "StableDiffusion3Pipeline", flow_scheduler(3.0, 1000, 2), {})


def check_guided_step(pipelines: dict[str, Path], kind: str, scheduler: Any, more: dict[str, Any]) -> None:  # noqa: ANN401
    """One of two steps from the same latents, away from a negative prompt."""
    teacher, pipeline = read_teacher(str(pipelines[kind])).model, stock(pipelines[kind], kind)
    assert teacher.text is not None
    pipeline.scheduler, z, seen = scheduler, torch.randn(4, 4, 4, 4), list[Tensor]()

    def keep(module: object, given: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        seen.append(given[0] if given else named["hidden_states"])

    hook = pipeline.transformer.register_forward_pre_hook(keep, with_kwargs=True)
    pipeline(
        PROMPTS,
        negative_prompt=["a smudge"] * 4,
        guidance_scale=4.0,
        num_inference_steps=2,
        latents=z,
        output_type="latent",
        **more,
    )
    hook.remove()
    condition = prompt_conditions(teacher, PROMPTS, None)({"labels": torch.arange(4)})
    guided = Guided(teacher.denoiser, teacher.text.encoder().unconditional("a smudge"), 4.0)
    t, s = torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    with torch.no_grad():
        ours = ddim_update(guided.schedule, z, guided(z, t, **condition), t, s)
    torch.testing.assert_close(ours, seen[1][:4], rtol=1e-4, atol=1e-4)


def test_a_teacher_of_flux_is_sampled_as_stock_samples_it(pipelines: dict[str, Path]) -> None:
    """Its times shifted by the number of tokens, and its own guidance."""
    kind = "FluxPipeline"
    teacher, pipeline = read_teacher(str(pipelines[kind]), None, SIZE).model, stock(pipelines[kind], kind)
    noise = sampling_noise(teacher, 4, 0)
    given = {**CALL[kind], "latents": packed(noise), "num_inference_steps": 5}
    theirs = pipeline(PROMPTS, output_type="latent", **given).images
    condition: dict[str, Any] = {**prompt_conditions(teacher, PROMPTS, 2.0)({"labels": torch.arange(4)})}
    torch.testing.assert_close(packed(sample(teacher.denoiser, noise, 5, **condition)), theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shift_type", ["exponential", "linear"])
def test_dynamic_shifting_is_that_of_the_pipeline(shift_type: str, tmp_path: Path) -> None:
    dynamic: dict[str, Any] = {"use_dynamic_shifting": True, "base_shift": 0.4, "max_shift": 2.0}
    dynamic |= {"base_image_seq_len": 2, "max_image_seq_len": 16, "time_shift_type": shift_type}
    teacher = read_teacher(str(write_sd3(tmp_path / "sd3", **dynamic))).model
    pipeline = stock(tmp_path / "sd3", "StableDiffusion3Pipeline")
    pipeline(PROMPTS[:1], num_inference_steps=4, guidance_scale=1.0, sigmas=[1.0, 0.75, 0.5, 0.25])
    ours = teacher.denoiser.schedule.sigma(time_grid(4))
    torch.testing.assert_close(ours, pipeline.scheduler.sigmas.double(), rtol=0, atol=1e-6)


def test_a_flux_without_a_guidance_input(tmp_path: Path) -> None:
    """As FLUX.1-schnell is: nothing tells it a scale."""
    place = write_flux(tmp_path / "flux", guidance_embeds=False)
    save(student(place, 2), tmp_path / "student")
    model, pipeline = load(tmp_path / "student"), stock(tmp_path / "student", "FluxPipeline")
    noise = sampling_noise(model, 4, 0)
    given = {**CALL["FluxPipeline"], "latents": packed(noise), "num_inference_steps": 2}
    theirs = pipeline(PROMPTS, output_type="latent", **given).images
    condition: dict[str, Any] = {**prompt_conditions(model, PROMPTS, None)({"labels": torch.arange(4)})}
    torch.testing.assert_close(packed(sample(model.denoiser, noise, 2, **condition)), theirs, rtol=0, atol=1e-4)


def test_a_pixart_of_an_earlier_version(pipelines: dict[str, Path], tmp_path: Path) -> None:
    """Their networks are called Transformer2DModel, and their configs have more keys."""
    place = tmp_path / "older"
    shutil.copytree(pipelines["PixArtSigmaPipeline"], place)
    for file in (place / "model_index.json", place / "transformer" / "config.json"):
        file.write_text(file.read_text().replace("PixArtTransformer2DModel", "Transformer2DModel"))
    config = place / "transformer" / "config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"num_vector_embeds": None, "only_cross_attention": False})
    )
    older, newer = (
        read_teacher(str(each)).model.denoiser.network for each in (place, pipelines["PixArtSigmaPipeline"])
    )
    assert type(older) is type(newer)
    for name, parameter in newer.named_parameters():
        assert torch.equal(older.get_parameter(name), parameter)


def test_a_tokenizer_as_sentencepiece_keeps_it(
    pipelines: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PixArt's folders have no tokenizer.json: what is read is what stock code reads."""
    place = tmp_path / "pixart"
    shutil.copytree(pipelines["PixArtSigmaPipeline"], place)
    (place / "tokenizer" / "tokenizer.json").unlink()
    text = read_teacher(str(place)).model.text
    assert text is not None
    with pytest.raises(UserError, match=r"lacks tokenizer\.json or spiece\.model"):
        text.encoder()
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PROMPTS * 9), model_writer=written, vocab_size=22, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (place / "tokenizer" / "spiece.model").write_bytes(written.getvalue())
    ours = text.encoder()(PROMPTS)["encoder_hidden_states"]
    theirs = stock(place, "PixArtSigmaPipeline").encode_prompt(PROMPTS, do_classifier_free_guidance=False)[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert not torch.allclose(ours[0], ours[1])
    monkeypatch.setattr("progdist.models.text.stock.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs sentencepiece and protobuf"):
        text.encoder()


def test_what_pixart_sigma_does_not_tell_its_network(pipelines: dict[str, Path], tmp_path: Path) -> None:
    place = tmp_path / "pixart"
    write_pixart(place, use_additional_conditions=True)
    with pytest.raises(UserError, match="takes the size of its images, which a PixArtSigmaPipeline does not give it"):
        read_teacher(str(place))


@KINDS
def test_all_other_files_are_copied_byte_for_byte(kind: str, pipelines: dict[str, Path], tmp_path: Path) -> None:
    save(student(pipelines[kind], 4), tmp_path / "student")
    files = [path.relative_to(pipelines[kind]) for path in pipelines[kind].rglob("*") if path.is_file()]
    changed = {
        str(path)
        for path in files
        if (pipelines[kind] / path).read_bytes() != (tmp_path / "student" / path).read_bytes()
    }
    assert changed <= {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
    }


@pytest.mark.parametrize(
    ("kind", "asked", "taken"),
    [
        ("FluxPipeline", None, (3.5, 3.5)),
        ("FluxPipeline", 2.0, (2.0, 2.0)),
        ("FluxPipeline", (1.0, 5.0), (1.0, 5.0)),
        ("StableDiffusion3Pipeline", 3.0, 3.0),
        ("StableDiffusion3Pipeline", None, None),
    ],
)
def test_what_guidance_students_are_taught(
    kind: str, asked: Guidance | None, taken: Guidance | None, pipelines: dict[str, Path]
) -> None:
    """A network that takes a scale needs no stage 0 to be given one."""
    given = read_teacher(str(pipelines[kind]), None, SIZE).model
    content: dict[str, Any] = {"name": "x", "data": {"source": "digits"}, "teacher": {"model": "there"}}
    recipe = Recipe.model_validate({**content, "conversion": {"guidance": asked}})
    assert taught_guidance(recipe, given) == taken
    assert needs_stage_0(recipe, given) == (kind != "FluxPipeline" and asked is not None)
    student = unconverted(recipe, given).text
    assert student is not None
    assert student.guidance == taken


@pytest.mark.parametrize(
    ("kind", "words", "said"),
    [
        ("StableDiffusion3Pipeline", ("--guidance", "1:8"), "gives its network no guidance scale"),
        ("FluxPipeline", ("--guidance", "2", "--negative", "a smudge"), "this teacher takes one"),
        ("StableDiffusion3Pipeline", ("--lora", "2"), "loads no LoRA file"),
        ("FluxPipeline", ("--set", "data.size=10"), "the teacher makes images of (3, 8, 8)"),
    ],
)
def test_mistakes_are_one_line(
    kind: str, words: tuple[str, ...], said: str, pipelines: dict[str, Path], tmp_path: Path
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(PROMPTS[0])
    size = ("--set", "data.size=8") if kind == "FluxPipeline" else ()
    result = call(
        "distill", pipelines[kind], "--data", f"captions:{tmp_path}", *size, *words, "--out", tmp_path / "run"
    )
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.usefixtures("known_rates")
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("PixArtSigmaPipeline", "a PixArtSigmaPipeline gives its network no guidance scale: --guidance 4.5 guides"),
        ("StableDiffusion3Pipeline", "RectifiedFlow schedule of 1000 timesteps, shifted by 3, output velocity"),
        ("FluxPipeline", "its network takes a guidance scale, and so do its students: 3.5, or what --guidance says"),
    ],
)
def test_the_doctor_says_what_guidance_does(kind: str, said: str, pipelines: dict[str, Path]) -> None:
    result = call("doctor", pipelines[kind])
    assert result.exit_code == 0, result.output
    assert said in " ".join(result.output.split())
