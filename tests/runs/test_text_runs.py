"""A text-to-image pipeline distilled by the command, to a folder that the stock pipeline samples."""

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from progdist import distillation
from progdist._utils.names import Precision
from progdist.compute.placement import at_work
from progdist.data import embeddings
from progdist.diffusion.denoiser import Denoiser
from progdist.distillation import stage_training
from progdist.methods.guidance import Fixed, Guidance, Input
from progdist.models import model as model_module
from progdist.models.autoencoder import Autoencoder
from progdist.models.networks import takes_guidance
from progdist.models.prompts import Prompts
from progdist.recipes.files import read_recipe
from progdist.runs import run as run_module
from progdist.runs.run import open_run
from progdist.teachers.own import load
from progdist.training import loop
from support.commands import SilentCallback, call
from support.text import PROMPTS, WRITERS, write_sd
from support.text_runs import SMALL, distilled
from support.text_transformers import TRANSFORMER_WRITERS, call_words

SLOW = pytest.mark.slow


@pytest.mark.parametrize("kind", ["StableDiffusionPipeline", pytest.param("StableDiffusionXLPipeline", marks=SLOW)])
def test_the_whole_command(kind: str, pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "SHARD_BYTES", 1000)
    place = WRITERS[kind](pairs.parent / "teacher")
    out = distilled(place, pairs, "--guidance", "1:8", "--negative", "a smudge")
    model = load(out / "student-0004")
    assert isinstance(model.conditioning, Prompts)
    assert (model.guidance, model.conditioning.negative) == (Input(1.0, 8.0), "a smudge")
    assert model.lineage == (8,)
    assert "a smudge" in (out / "student-0004" / "README.md").read_text()
    assert model.denoiser.network.config["time_cond_proj_dim"] == 256  # pyright: ignore
    assert model.denoiser.network.get_parameter("time_embedding.cond_proj.weight").any()  # it has been taught
    assert json.loads((out / "captions" / "index.json").read_text())["shard"] < 3  # in several shards
    lines = (out / "metrics.jsonl").read_text().splitlines()
    told = next(record for record in map(json.loads, lines) if "conversion_by_guidance" in record)
    assert set(told["conversion_by_guidance"]) <= {"1 to 1.68", "1.68 to 2.83", "2.83 to 4.76", "4.76 to 8"}
    assert all(error > 0 for error in (told["conversion"] | told["conversion_by_guidance"]).values())
    pipeline = getattr(diffusers, kind).from_pretrained(out / "student-0004")
    assert pipeline(PROMPTS[0], num_inference_steps=4, guidance_scale=3.0).images[0].size == (8, 8)
    again = call("distill", place, "--data", f"captions:{pairs}", *SMALL, "--guidance", "1:8", "--negative", "a smudge",
                 "--out", out)  # fmt: skip
    assert again.exit_code == 0, again.output
    assert "trained in" not in again.output  # nothing is repeated
    words = ("--prompt", PROMPTS[0], "-n", 2, "--out", pairs.parent / "grid.png")
    assert call("sample", out / "student-0004", *words).exit_code == 0
    assert call("export", out / "student-0004", "--onnx", pairs.parent / "x.onnx").exit_code == 2
    measured = call("evaluate", out / "student-0004", "--data", f"captions:{pairs}", "-n", 16, "--json")
    assert measured.exit_code == 0, measured.output
    usual = json.loads(measured.stdout)
    assert (usual["steps"], usual["guidance"]) == (4, 5.0 if kind == "StableDiffusionXLPipeline" else 7.5)
    measured = call(
        "evaluate", out / "student-0004", "--data", f"captions:{pairs}", "-n", 16, "--guidance", 2, "--json"
    )
    named = json.loads(measured.stdout)
    assert named["guidance"] == 2
    assert named["frechet"] != usual["frechet"]


@SLOW
@pytest.mark.filterwarnings("ignore")  # diffusers tells of its deprecated arguments
@pytest.mark.parametrize(
    ("kind", "words", "taken"),
    [
        ("PixArtSigmaPipeline", ("--guidance", "3", "--negative", "a smudge"), Fixed(3.0)),
        ("StableDiffusion3Pipeline", ("--guidance", "3"), Fixed(3.0)),
        ("FluxPipeline", ("--guidance", "1:5"), Input(1.0, 5.0)),
    ],
)
def test_the_whole_command_for_transformers(
    kind: str, words: tuple[str, ...], taken: Guidance, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, torch.Tensor | None]] = []
    forward = Denoiser.forward

    def spy(self: Denoiser, z: torch.Tensor, t: torch.Tensor, **condition: torch.Tensor) -> torch.Tensor:
        seen.append((torch.is_grad_enabled(), condition.get("guidance")))
        return forward(self, z, t, **condition)

    monkeypatch.setattr(Denoiser, "forward", spy)
    out = distilled(TRANSFORMER_WRITERS[kind](pairs.parent / "teacher"), pairs, *words, *call_words(kind))
    model = load(out / "student-0004")
    assert (model.guidance, model.lineage, model.image) == (taken, (8,), (3, 8, 8))
    for place in [place for place, (trained, _) in enumerate(seen) if trained]:
        drawn = [guidance for _, guidance in seen[place - 2 : place + 1]]  # the teacher's two, and the student's
        if isinstance(taken, Input):
            assert drawn[2] is not None
            others = [scale for scale in drawn[2].tolist() if scale > 1]
            assert 2 <= len(set(others)) == len(others)  # the least scale is drawn by itself, too
            assert all(scale in taken for scale in drawn[2].tolist())
            assert all(each is not None and torch.equal(each, drawn[2]) for each in drawn)
        else:
            assert drawn == [None, None, None]
    updates = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert any(update["model"] == "converted" for update in updates) == (kind != "FluxPipeline" and bool(words))
    card, scope = (out / "student-0004" / "README.md").read_text(), dict[str, Any]()
    exec(card.partition("```python\n")[2].partition("```")[0].replace('"."', repr(str(out / "student-0004"))), scope)
    assert scope["result"].images[0].size == (8, 8)
    scale = (taken.low + taken.high) / 2 if isinstance(taken, Input) else 1
    assert f"guidance_scale={scale:g}" in card
    measured = call("evaluate", out / "student-0004", "--data", f"captions:{pairs}", "-n", 16, "--json")
    assert measured.exit_code == 0, measured.output


@SLOW
@pytest.mark.parametrize(("words", "taken"), [(("--guidance", "3"), Fixed(3.0)), ((), None)])
def test_a_fixed_guidance_and_none(words: tuple[str, ...], taken: Guidance | None, pairs: Path) -> None:
    out = distilled(write_sd(pairs.parent / "teacher"), pairs, *words)
    model = load(out / "student-0004")
    assert model.guidance == taken
    assert not takes_guidance(model.denoiser.network)


def test_teacher_and_student_are_given_the_same_guidance(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In stage 0 by one draw, of the whole range; in the halving both again, and the captions are those of the data."""
    seen: list[tuple[bool, dict[str, Any]]] = []
    forward = Denoiser.forward

    def spy(self: Denoiser, z: torch.Tensor, t: torch.Tensor, **condition: torch.Tensor) -> torch.Tensor:
        seen.append((takes_guidance(self.network), condition))
        return forward(self, z, t, **condition)

    place = write_sd(pairs.parent / "teacher")
    out = distilled(place, pairs, "--guidance", "1:8")
    recipe = read_recipe(str(out / "recipe.yaml"))
    run = open_run(recipe, pairs.parent / "again", SilentCallback())
    run.prepare()
    trainer = run.trainer()
    monkeypatch.setattr(Denoiser, "forward", spy)
    teacher = run.train_teacher(trainer)
    updates = [condition for taught, condition in seen if taught][:3]
    assert all(len(condition["guidance"]) == 8 for condition in updates)
    assert all(
        1 <= float(condition["guidance"].min()) <= float(condition["guidance"].max()) <= 8 for condition in updates
    )
    drawn = [float(each) for condition in updates for each in condition["guidance"]]
    assert len(set(drawn)) == 1 + sum(each > 1 for each in drawn)  # the least scale is drawn by itself, too
    assert all(
        "guidance" not in condition for taught, condition in seen if not taught
    )  # the teacher's network takes none
    assert isinstance(teacher.conditioning, Prompts)
    captions = teacher.conditioning.encoder()(PROMPTS[:3])["encoder_hidden_states"].half().float()
    assert all(any(torch.equal(row, each) for each in captions) for row in updates[0]["encoder_hidden_states"])
    seen.clear()
    trainer.fit(stage_training(run.context.plan, 1, teacher, run.context.teacher))
    first, second, third = (condition["guidance"] for _, condition in seen[:3])  # the student's is one of them
    assert torch.equal(first, second)
    assert torch.equal(first, third)


def test_a_stage_trains_beside_its_teacher_alone(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a network trains no autoencoder is at work, as it is to encode, and no text encoder is in memory."""
    working: list[nn.Module] = []
    trainings: list[tuple[list[nn.Module], list[str]]] = []
    encoded: list[list[nn.Module]] = []
    encode, fit = Autoencoder.encode, loop.train

    @contextmanager
    def watched(network: nn.Module, device: torch.device, precision: Precision = "float32") -> Iterator[None]:
        working.append(network)
        with at_work(network, device, precision):
            yield
        working.pop()

    def train(*given: Any, **how: Any) -> Any:  # noqa: ANN401
        gc.collect()
        encoders = [type(each).__name__ for each in gc.get_objects() if type(each).__name__.startswith("CLIPText")]
        trainings.append((list(working), [name for name in encoders if "Config" not in name]))
        return fit(*given, **how)

    def encoding(self: Autoencoder, images: torch.Tensor) -> torch.Tensor:
        encoded.append(list(working))
        return encode(self, images)

    for module in (model_module, run_module, distillation):
        monkeypatch.setattr(module, "at_work", watched)
    monkeypatch.setattr(distillation, "train", train)
    monkeypatch.setattr(Autoencoder, "encode", encoding)
    distilled(write_sd(pairs.parent / "teacher"), pairs, "--guidance", "1:8")
    assert len(trainings) == 2
    for networks, encoders in trainings:
        assert [type(each).__name__ for each in networks] == ["UNet2DConditionModel"]
        assert encoders == []
    assert [type(each).__name__ for each in encoded[0]] == ["AutoencoderKL"]
