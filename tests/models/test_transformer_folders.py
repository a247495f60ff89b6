"""Folders of text-conditional transformers: earlier versions, tokenizers, what is copied, guided and refused."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from PIL import Image

from progdist import UserError
from progdist.data.examples import ExampleData
from progdist.distillation import Hooks, Trainer, convert
from progdist.methods.guidance import Fixed, Guidance, Input
from progdist.models.prompts import Prompts
from progdist.recipes.recipe import Recipe
from progdist.students.folder import save
from progdist.teachers.open import Teacher, open_teacher
from progdist.training.distributed import Distributed
from support.commands import call
from support.text import PROMPTS, stock_pipeline
from support.text_transformers import (
    SIZE,
    TRANSFORMER_WRITERS,
    transformer_student,
    write_pixart,
)

KINDS = pytest.mark.parametrize("kind", TRANSFORMER_WRITERS)


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
        open_teacher(str(each)).model.denoiser.network for each in (place, transformer_pipelines["PixArtSigmaPipeline"])
    )
    assert type(older) is type(newer)
    for name, parameter in newer.named_parameters():
        assert torch.equal(older.get_parameter(name), parameter)


def test_a_tokenizer_as_sentencepiece_keeps_it(
    transformer_pipelines: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PixArt's folders have no tokenizer.json: what is read is what stock code reads."""
    place = tmp_path / "pixart"
    shutil.copytree(transformer_pipelines["PixArtSigmaPipeline"], place)
    (place / "tokenizer" / "tokenizer.json").unlink()
    prompts = open_teacher(str(place)).model.conditioning
    assert isinstance(prompts, Prompts)
    with pytest.raises(UserError, match=r"lacks tokenizer\.json or spiece\.model"):
        prompts.encoder()
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PROMPTS * 9), model_writer=written, vocab_size=22, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (place / "tokenizer" / "spiece.model").write_bytes(written.getvalue())
    ours = prompts.encoder()(PROMPTS)["encoder_hidden_states"]
    theirs = stock_pipeline(place, "PixArtSigmaPipeline").encode_prompt(PROMPTS, do_classifier_free_guidance=False)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(ours[0], ours[1])
    monkeypatch.setattr("progdist.models.prompts.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs sentencepiece and protobuf"):
        prompts.encoder()


def test_what_pixart_sigma_does_not_tell_its_network(transformer_pipelines: dict[str, Path], tmp_path: Path) -> None:
    place = tmp_path / "pixart"
    write_pixart(place, use_additional_conditions=True)
    with pytest.raises(UserError, match="takes the size of its images, which a PixArtSigmaPipeline does not give it"):
        open_teacher(str(place))


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
    ("kind", "asked", "taken"),
    [
        ("FluxPipeline", None, Input(3.5, 3.5)),
        ("FluxPipeline", 2.0, Input(2.0, 2.0)),
        ("FluxPipeline", [1.0, 5.0], Input(1.0, 5.0)),
        ("StableDiffusion3Pipeline", 3.0, Fixed(3.0)),
        ("StableDiffusion3Pipeline", None, None),
    ],
)
def test_what_guidance_students_are_taught(
    kind: str, asked: float | list[float] | None, taken: Guidance | None, transformer_pipelines: dict[str, Path]
) -> None:
    """A network that takes a scale needs no stage 0 to be given one."""
    model = open_teacher(str(transformer_pipelines[kind]), None, SIZE).model
    content: dict[str, Any] = {"name": "x", "data": {"source": "digits"}, "teacher": {"model": "there"}}
    recipe = Recipe.model_validate({**content, "conversion": {"guidance": asked}})
    plan = recipe.plan()
    assert plan.learned(model) == taken
    assert plan.converts(model) == (kind != "FluxPipeline" and asked is not None)
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
        ("StableDiffusion3Pipeline", ("--guidance", "1:8"), "takes no guidance scale in its stock pipeline"),
        (
            "FluxPipeline",
            ("--guidance", "2", "--negative", "a smudge"),
            "no effect on a teacher that takes the guidance scale itself",
        ),
        (
            "StableDiffusion3Pipeline",
            ("--lora", "2"),
            "lora requires a StableDiffusionPipeline or StableDiffusionXLPipeline, and the teacher is StableDiffusion3",
        ),
        ("FluxPipeline", ("--set", "data.size=10"), "the teacher makes images of (3, 8, 8)"),
    ],
)
def test_mistakes_are_one_line(
    kind: str, words: tuple[str, ...], said: str, transformer_pipelines: dict[str, Path], tmp_path: Path
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(PROMPTS[0])
    size = ("--set", "data.size=8") if kind == "FluxPipeline" else ()
    result = call(
        "distill",
        transformer_pipelines[kind],
        "--data",
        f"captions:{tmp_path}",
        *size,
        *words,
        "--out",
        tmp_path / "run",
    )
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
    result = call("doctor", transformer_pipelines[kind])
    assert result.exit_code == 0, result.output
    assert said in " ".join(result.output.split())
