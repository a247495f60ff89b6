"""Pipelines of text-conditional transformers: students, their guidance and folders, and how stock code samples them."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image
from torch import Tensor

from progdist import UserError
from progdist._utils.files import read_tensors
from progdist.data.examples import ExampleData
from progdist.diffusion.sampler import ddim_update, sample, time_grid
from progdist.distillation import Hooks, Trainer, convert
from progdist.evaluation.generate import sampling_noise
from progdist.methods.guidance import Fixed, Guidance, Guided, Input
from progdist.models.pipeline_prompts import PipelinePrompts
from progdist.recipes.recipe import Recipe
from progdist.students.folder import save
from progdist.teachers.flow import flow_scheduler
from progdist.teachers.open import Teacher
from progdist.teachers.own import load
from progdist.training.distributed import Distributed
from support.commands import call
from support.text import PROMPTS, stock_pipeline
from support.text_transformers import (
    CALLS,
    TRANSFORMER_WRITERS,
    call_words,
    open_transformer,
    transformer_student,
    write_flux,
    write_pixart,
    write_sd3,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers tells of its deprecated classes and arguments
KINDS = pytest.mark.parametrize("kind", TRANSFORMER_WRITERS)
SCALES = {"FluxPipeline": 2.0}
"""The guidance scale that our sampler is told where the network takes one."""


def asked(kind: str) -> dict[str, Any]:
    """What a stock pipeline is told beside prompts and steps, unguided."""
    return {**CALLS[kind], "guidance_scale": SCALES.get(kind, 1.0)}


@KINDS
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_stock_pipeline_samples_what_we_sample(
    kind: str, steps: int, transformer_pipelines: dict[str, Path], tmp_path: Path
) -> None:
    save(transformer_student(transformer_pipelines[kind], steps), tmp_path / "student")
    model, pipeline = load(tmp_path / "student"), stock_pipeline(tmp_path / "student", kind)
    calls: list[int] = []
    pipeline.transformer.register_forward_hook(lambda module, given, output: calls.append(len(output[0])))
    noise = sampling_noise(model, len(PROMPTS), 0)
    given = {**asked(kind), "latents": noise}
    theirs = pipeline(PROMPTS, num_inference_steps=steps, output_type="latent", **given).images
    assert calls == [len(PROMPTS)] * steps
    condition: dict[str, Any] = {**model.conditions(SCALES.get(kind), PROMPTS)({"labels": torch.arange(4)})}
    ours = sample(model.denoiser, noise, steps, **condition)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    told = sample(model.denoiser, noise, steps, **{name: rows.roll(1, 0) for name, rows in condition.items()})
    assert float((ours - told).abs().max()) > 0.01  # the captions matter


@KINDS
def test_the_command_makes_the_stock_pipelines_images(
    kind: str, transformer_pipelines: dict[str, Path], tmp_path: Path
) -> None:
    save(transformer_student(transformer_pipelines[kind], 4), tmp_path / "student")
    words = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    words += ["--guidance", str(SCALES[kind])] if kind in SCALES else []
    made = tmp_path / "made.safetensors"
    result = call("sample", tmp_path / "student", *words, "-n", 4, "--out", made)
    assert result.exit_code == 0, result.output
    given = {**asked(kind), "latents": sampling_noise(load(tmp_path / "student"), 4, 0)}
    pipeline = stock_pipeline(tmp_path / "student", kind)
    theirs = pipeline(PROMPTS, num_inference_steps=4, output_type="np", **given).images
    ours = read_tensors(made)["images"].numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(ours.clip(-1, 1) / 2 + 0.5, theirs, rtol=0, atol=1e-4)


@KINDS
def test_images_are_encoded_to_what_the_pipeline_decodes(kind: str, transformer_pipelines: dict[str, Path]) -> None:
    """The pipeline makes of the latents of an image what its autoencoder makes of its own."""
    model, pipeline = open_transformer(transformer_pipelines[kind]), stock_pipeline(transformer_pipelines[kind], kind)
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    assert model.autoencoder is not None
    assert model.image == (3, 8, 8)
    z = model.autoencoder.encode(images)
    assert z.shape[1:] == model.shape
    with torch.no_grad():
        expected = pipeline.vae.decode(pipeline.vae.encode(images).latent_dist.mode()).sample
    torch.testing.assert_close(model.autoencoder.decode(z), expected, rtol=1e-4, atol=1e-4)

    class Encoded:
        """A scheduler's result that is always these latents."""

        prev_sample = z

        def __getitem__(self, index: int) -> Tensor:
            return z

    pipeline.scheduler.step = lambda output, timestep, latents, **named: Encoded()
    made = pipeline(PROMPTS[:2], num_inference_steps=2, output_type="pt", **asked(kind)).images
    torch.testing.assert_close(2 * made - 1, expected.clamp(-1, 1), rtol=1e-4, atol=1e-4)


def test_the_guided_teacher_of_pixart_is_the_stock_pipeline(transformer_pipelines: dict[str, Path]) -> None:
    scheduler = DDIMScheduler(beta_schedule="linear", beta_end=0.02, timestep_spacing="trailing", clip_sample=False)
    check_guided_step(transformer_pipelines["PixArtSigmaPipeline"], scheduler)


def test_the_guided_teacher_of_sd3_is_the_stock_pipeline(transformer_pipelines: dict[str, Path]) -> None:
    check_guided_step(transformer_pipelines["StableDiffusion3Pipeline"], flow_scheduler(3.0, 1000, 2))


def check_guided_step(place: Path, scheduler: Any) -> None:  # noqa: ANN401
    """One of two steps from the same latents, away from a negative prompt."""
    teacher, kind = open_transformer(place), json.loads((place / "model_index.json").read_text())["_class_name"]
    assert isinstance(teacher.conditioning, PipelinePrompts)
    pipeline = stock_pipeline(place, kind)
    pipeline.scheduler, z, seen = scheduler, torch.randn(4, 4, 4, 4), list[Tensor]()

    def keep(module: object, given: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        seen.append(given[0] if given else named["hidden_states"])

    hook = pipeline.transformer.register_forward_pre_hook(keep, with_kwargs=True)
    more = {"negative_prompt": ["a smudge"] * 4, "guidance_scale": 4.0, "latents": z, "output_type": "latent"}
    pipeline(PROMPTS, num_inference_steps=2, **CALLS[kind], **more)
    hook.remove()
    condition = teacher.conditions(None, PROMPTS)({"labels": torch.arange(4)})
    guided = Guided(teacher.denoiser, teacher.conditioning.encoder().unconditional("a smudge"), 4.0)
    t, s = torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    with torch.no_grad():
        ours = ddim_update(guided.schedule, z, guided(z, t, **condition), t, s)
    torch.testing.assert_close(ours, seen[1][:4], rtol=1e-4, atol=1e-4)


def test_a_teacher_of_flux_is_sampled_as_stock_samples_it(transformer_pipelines: dict[str, Path]) -> None:
    """Its times shifted by the number of tokens, and its own guidance."""
    place = transformer_pipelines["FluxPipeline"]
    teacher, pipeline = open_transformer(place), stock_pipeline(place, "FluxPipeline")
    noise = sampling_noise(teacher, 4, 0)
    given = {**asked("FluxPipeline"), "latents": noise, "num_inference_steps": 5}
    theirs = pipeline(PROMPTS, output_type="latent", **given).images
    condition: dict[str, Any] = {**teacher.conditions(2.0, PROMPTS)({"labels": torch.arange(4)})}
    torch.testing.assert_close(sample(teacher.denoiser, noise, 5, **condition), theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shift_type", ["exponential", "linear"])
def test_dynamic_shifting_is_that_of_the_pipeline(shift_type: str, tmp_path: Path) -> None:
    dynamic: dict[str, Any] = {"use_dynamic_shifting": True, "base_shift": 0.4, "max_shift": 2.0}
    dynamic |= {"base_image_seq_len": 2, "max_image_seq_len": 16, "time_shift_type": shift_type}
    teacher = open_transformer(write_sd3(tmp_path / "sd3", **dynamic))
    pipeline = stock_pipeline(tmp_path / "sd3", "StableDiffusion3Pipeline")
    pipeline(PROMPTS[:1], num_inference_steps=4, guidance_scale=1.0, sigmas=[1.0, 0.75, 0.5, 0.25])
    ours = teacher.denoiser.schedule.sigma(time_grid(4))
    torch.testing.assert_close(ours, pipeline.scheduler.sigmas.double(), rtol=0, atol=1e-6)


def test_a_flux_without_a_guidance_input(tmp_path: Path) -> None:
    """As FLUX.1-schnell is: nothing tells it a scale."""
    place = write_flux(tmp_path / "flux", guidance_embeds=False)
    save(transformer_student(place, 2), tmp_path / "student")
    model, pipeline = load(tmp_path / "student"), stock_pipeline(tmp_path / "student", "FluxPipeline")
    noise = sampling_noise(model, 4, 0)
    given = {**asked("FluxPipeline"), "latents": noise, "num_inference_steps": 2}
    theirs = pipeline(PROMPTS, output_type="latent", **given).images
    condition: dict[str, Any] = {**model.conditions(None, PROMPTS)({"labels": torch.arange(4)})}
    torch.testing.assert_close(sample(model.denoiser, noise, 2, **condition), theirs, rtol=0, atol=1e-4)


def test_a_pixart_of_an_earlier_version(transformer_pipelines: dict[str, Path], tmp_path: Path) -> None:
    """Their networks are called Transformer2DModel, and their configs have more keys."""
    place = tmp_path / "older"
    shutil.copytree(transformer_pipelines["PixArtSigmaPipeline"], place)
    for file in (place / "model_index.json", place / "transformer" / "config.json"):
        file.write_text(file.read_text().replace("PixArtTransformer2DModel", "Transformer2DModel"))
    config = place / "transformer" / "config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"num_vector_embeds": None, "only_cross_attention": False})
    )
    older, newer = (
        open_transformer(each).denoiser.network for each in (place, transformer_pipelines["PixArtSigmaPipeline"])
    )
    assert type(older) is type(newer)
    for name, parameter in newer.named_parameters():
        assert torch.equal(older.get_parameter(name), parameter)


def test_a_tokenizer_as_sentencepiece_keeps_it(transformer_pipelines: dict[str, Path], tmp_path: Path) -> None:
    """PixArt's folders have no tokenizer.json: what is read is what stock code reads."""
    place = tmp_path / "pixart"
    shutil.copytree(transformer_pipelines["PixArtSigmaPipeline"], place)
    (place / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"lacks tokenizer\.json or spiece\.model"):
        open_transformer(place)
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PROMPTS * 9), model_writer=written, vocab_size=22, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (place / "tokenizer" / "spiece.model").write_bytes(written.getvalue())
    prompts = open_transformer(place).conditioning
    assert isinstance(prompts, PipelinePrompts)
    ours = prompts.encoder()(PROMPTS)["encoder_hidden_states"]
    theirs = stock_pipeline(place, "PixArtSigmaPipeline").encode_prompt(PROMPTS, do_classifier_free_guidance=False)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(ours[0], ours[1])


def test_what_pixart_sigma_does_not_tell_its_network(tmp_path: Path) -> None:
    place = write_pixart(tmp_path / "pixart", use_additional_conditions=True)
    with pytest.raises(UserError, match="cannot be run with"):
        open_transformer(place)


@KINDS
def test_all_other_files_are_copied_byte_for_byte(
    kind: str, transformer_pipelines: dict[str, Path], tmp_path: Path
) -> None:
    save(transformer_student(transformer_pipelines[kind], 4), tmp_path / "student")
    files = [
        path.relative_to(transformer_pipelines[kind])
        for path in transformer_pipelines[kind].rglob("*")
        if path.is_file()
    ]
    changed = {
        str(path)
        for path in files
        if (transformer_pipelines[kind] / path).read_bytes() != (tmp_path / "student" / path).read_bytes()
    }
    assert changed <= {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
    }


@pytest.mark.parametrize(
    ("kind", "asked_for", "taken"),
    [
        ("FluxPipeline", None, Input(3.5, 3.5)),
        ("FluxPipeline", 2.0, Input(2.0, 2.0)),
        ("FluxPipeline", [1.0, 5.0], Input(1.0, 5.0)),
        ("StableDiffusion3Pipeline", 3.0, Fixed(3.0)),
        ("StableDiffusion3Pipeline", None, None),
    ],
)
def test_what_guidance_students_are_taught(
    kind: str, asked_for: float | list[float] | None, taken: Guidance | None, transformer_pipelines: dict[str, Path]
) -> None:
    """A network that takes a scale needs no stage 0 to be given one."""
    model = open_transformer(transformer_pipelines[kind])
    content: dict[str, Any] = {"name": "x", "data": {"source": "digits"}, "teacher": {"model": "there"}}
    recipe = Recipe.model_validate({**content, "conversion": {"guidance": asked_for}})
    plan = recipe.plan()
    assert plan.learned(model) == taken
    assert plan.converts(model) == (kind != "FluxPipeline" and asked_for is not None)
    if not plan.converts(model):
        examples, distributed = ExampleData(torch.zeros(1, *model.shape)), Distributed()
        trainer = Trainer(examples, lambda each: each.conditions(), Hooks(), distributed)
        student = convert(plan, Teacher(model), trainer, model.denoiser)
        assert student.denoiser is model.denoiser
        assert student.guidance == taken
    assert model.conditioning.after(taken).guidance(model.denoiser.network) == taken


@pytest.mark.parametrize(
    ("kind", "words", "said"),
    [
        (
            "StableDiffusion3Pipeline",
            ("--guidance", "1:8"),
            "a range of guidance requires a pipeline with a guidance input",
        ),
        (
            "FluxPipeline",
            ("--guidance", "2", "--negative", "a smudge"),
            "no effect on a teacher with a guidance input",
        ),
        (
            "PixArtSigmaPipeline",
            ("--lora", "2"),
            "lora requires a pipeline with load_lora_weights, got PixArtSigmaPipeline",
        ),
        ("FluxPipeline", ("--set", "data.size=10"), "the teacher makes images of (3, 8, 8)"),
    ],
)
def test_mistakes_are_one_line(
    kind: str, words: tuple[str, ...], said: str, transformer_pipelines: dict[str, Path], tmp_path: Path
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(PROMPTS[0])
    data = ("--data", f"captions:{tmp_path}")
    result = call(
        "distill", transformer_pipelines[kind], *call_words(kind), *data, *words, "--out", tmp_path / "run"
    )  # fmt: skip
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.usefixtures("known_rates")
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("PixArtSigmaPipeline", "a PixArtSigmaPipeline gives its network no guidance scale: --guidance 4.5 distils"),
        ("StableDiffusion3Pipeline", "RectifiedFlow schedule of 1000 timesteps, shifted by 3, output velocity"),
        ("FluxPipeline", "its network takes a guidance scale, and so do its students: 3.5 or --guidance, without"),
    ],
)
def test_the_doctor_says_what_guidance_does(kind: str, said: str, transformer_pipelines: dict[str, Path]) -> None:
    result = call("doctor", transformer_pipelines[kind], *call_words(kind))
    assert result.exit_code == 0, result.output
    assert said in " ".join(result.output.split())
