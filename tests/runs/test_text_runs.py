"""A text-to-image pipeline distilled by the command, to a folder that the stock pipeline samples."""

import contextlib
import gc
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from progdist._utils.names import Precision
from progdist._utils.placement import at_work
from progdist.diffusion.denoiser import Denoiser
from progdist.models import model as model_module
from progdist.models.autoencoder import Autoencoder
from progdist.models.io.diffusers_pipeline import read_teacher
from progdist.models.io.folder import load
from progdist.models.text import embeddings
from progdist.models.text.lora_file import LORA_WEIGHTS
from progdist.models.text.pipeline import Guidance, guidance_input
from progdist.recipes.files import override, read_recipe
from progdist.recipes.from_teacher import recipe_for_teacher
from progdist.runs import run as run_module
from progdist.runs import stage_trainer
from progdist.runs.run import open_run
from progdist.training import loop
from progdist.training.lora import add_lora, load_adapter, merge_lora
from progdist.training.state import State
from support.commands import SilentCallback, call
from support.text import PROMPTS, TRANSFORMER_WRITERS, WRITERS, write_sd
from support.training import flat_weights

SLOW = pytest.mark.slow
SMALL: list[str] = ["--start", "8", "--updates", "2", "--conversion-updates", "3", "--batch", "8"]
for setting in ("evaluate.samples=16", "evaluate.resamples=2", "teacher.trust=true"):
    SMALL += ["--set", setting]
for section in ("match", "distill", "evaluate"):
    SMALL += ["--set", f"{section}.precision=float32"]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    place, draw = tmp_path / "pairs", np.random.default_rng(0)
    place.mkdir()
    for number in range(12):
        Image.fromarray(draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(place / f"{number:02d}.png")
        (place / f"{number:02d}.txt").write_text(PROMPTS[number % 3])
    return place


def distilled(place: Path, pairs: Path, *words: object) -> Path:
    out = pairs.parent / "run"
    result = call("distill", place, "--data", f"captions:{pairs}", "--steps", 4, *SMALL, *words, "--out", out)
    assert result.exit_code == 0, result.output
    return out


@pytest.mark.parametrize("kind", ["StableDiffusionPipeline", pytest.param("StableDiffusionXLPipeline", marks=SLOW)])
def test_the_whole_command(kind: str, pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "SHARD_BYTES", 1000)
    place = WRITERS[kind](pairs.parent / "teacher")
    out = distilled(place, pairs, "--guidance", "1:8", "--negative", "a smudge")
    model = load(out / "student-0004")
    assert model.text is not None
    assert (model.text.guidance, model.text.negative) == ((1.0, 8.0), "a smudge")
    assert model.lineage == (8,)
    assert "a smudge" in (out / "student-0004" / "README.md").read_text()
    assert guidance_input(model.denoiser.network) == 256
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
    assert (usual["steps"], usual["guidance"]) == (4, 7.5)
    measured = call(
        "evaluate", out / "student-0004", "--data", f"captions:{pairs}", "-n", 16, "--guidance", 2, "--json"
    )
    named = json.loads(measured.stdout)
    assert named["guidance"] == 2
    assert named["frechet"] != usual["frechet"]


@SLOW
@pytest.mark.parametrize(
    ("kind", "words", "taken"),
    [
        ("PixArtSigmaPipeline", ("--guidance", "3", "--negative", "a smudge"), 3.0),
        ("StableDiffusion3Pipeline", ("--guidance", "3"), 3.0),
        ("FluxPipeline", ("--guidance", "1:5"), (1.0, 5.0)),
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
    size = ("--set", "data.size=8") if kind == "FluxPipeline" else ()
    out = distilled(TRANSFORMER_WRITERS[kind](pairs.parent / "teacher"), pairs, *words, *size)
    model = load(out / "student-0004")
    assert model.text is not None
    assert (model.text.guidance, model.lineage, model.image) == (taken, (8,), (3, 8, 8))
    for place in [place for place, (trained, _) in enumerate(seen) if trained]:
        drawn = [guidance for _, guidance in seen[place - 2 : place + 1]]  # the teacher's two, and the student's
        if isinstance(taken, tuple):
            assert drawn[2] is not None
            assert len(set(drawn[2].tolist())) == 8
            assert all(taken[0] <= scale <= taken[1] for scale in drawn[2].tolist())
            assert all(each is not None and torch.equal(each, drawn[2]) for each in drawn)
        else:
            assert drawn == [None, None, None]
    updates = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert any(update["model"] == "teacher" for update in updates) == (kind != "FluxPipeline" and bool(words))
    card, scope = (out / "student-0004" / "README.md").read_text(), dict[str, Any]()
    exec(card.partition("```python\n")[2].partition("```")[0].replace('"."', repr(str(out / "student-0004"))), scope)
    assert scope["images"][0].size == (8, 8)
    scale = sum(taken) / 2 if isinstance(taken, tuple) else 1
    assert f"guidance_scale={scale:g}" in card
    measured = call("evaluate", out / "student-0004", "--data", f"captions:{pairs}", "-n", 16, "--json")
    assert measured.exit_code == 0, measured.output


@SLOW
@pytest.mark.parametrize(("words", "taken"), [(("--guidance", "3"), 3.0), ((), None)])
def test_a_fixed_guidance_and_none(words: tuple[str, ...], taken: float | None, pairs: Path) -> None:
    out = distilled(write_sd(pairs.parent / "teacher"), pairs, *words)
    model = load(out / "student-0004")
    assert model.text is not None
    assert model.text.guidance == taken
    assert guidance_input(model.denoiser.network) is None


@SLOW
def test_low_rank_students_have_a_dial(pairs: Path) -> None:
    ranks = ("--set", "conversion.lora_rank=2", "--set", "distill.lora_rank=2")
    out = distilled(write_sd(pairs.parent / "teacher"), pairs, "--guidance", "1:8", *ranks)
    assert load(out / "student-0004").denoiser.network.get_parameter("time_embedding.cond_proj.weight").any()


@SLOW
@pytest.mark.parametrize("kind", WRITERS)
def test_a_lora_file_for_the_stock_pipeline(kind: str, pairs: Path) -> None:
    """One set of adapters through all stages: a student that is taught nothing is its teacher's."""
    place = WRITERS[kind](pairs.parent / "teacher")
    still = ("--set", "distill.stages.4.learning_rate=1e-30", "--set", "distill.chain=[8, 4]")
    out = distilled(place, pairs, "--guidance", "3", "--lora", 2, *still)
    base, teacher, student = read_teacher(str(place)).model, load(out / "teacher"), load(out / "student-0004")
    for model in (teacher, student):
        assert model.denoiser.parameterization == base.denoiser.parameterization  # eps
        assert model.denoiser.schedule == base.denoiser.schedule
        assert model.lora is not None
        assert (model.lora.base, model.lora.rank) == (str(place), 2)
        network = add_lora(base.denoiser.network, 2, seed=0)
        load_adapter(network, model.lora.weights)
        for ours, saved in zip(merge_lora(network).parameters(), model.denoiser.network.parameters(), strict=True):
            torch.testing.assert_close(ours, saved, rtol=0, atol=1e-6)
    assert teacher.lora is not None
    assert student.lora is not None
    assert any(rows.any() for name, rows in teacher.lora.weights.items() if "lora_B" in name)  # it has been taught
    assert all(torch.equal(rows, student.lora.weights[name]) for name, rows in teacher.lora.weights.items())
    assert not torch.equal(flat_weights(base.denoiser.network), flat_weights(student.denoiser.network))
    pipeline = getattr(diffusers, kind).from_pretrained(place)
    pipeline.load_lora_weights(out / "student-0004")


@SLOW
def test_a_lora_run_goes_on_where_it_stopped(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit; without guidance there is no stage 0."""
    base = str(write_sd(pairs.parent / "teacher"))
    proposed = recipe_for_teacher(
        base, read_teacher(base), f"captions:{pairs}", name="a", steps=4, start=8, updates=2, batch=4, lora=2
    )
    changes = ["teacher.trust=true", "distill.checkpoint_every=1", "distill.precision=float32"]
    recipe, files, step = override(proposed, changes), [], State.step
    for name, broken in (("whole", ()), ("broken", (3,))):
        updates = itertools.count(1)

        def stops(*arguments: Any, at: tuple[int, ...] = broken, updates: Any = updates) -> None:  # noqa: ANN401
            if next(updates) in at:
                raise KeyboardInterrupt
            step(*arguments)

        monkeypatch.setattr(State, "step", stops)
        for _ in range(1 + len(broken)):
            run = open_run(recipe, pairs.parent / name, SilentCallback())
            with contextlib.suppress(KeyboardInterrupt):
                trainer = run.trainer()
                teacher = run.train_teacher(trainer)
                assert (teacher.training["updates"], teacher.lora) == (0, None)
                run.train_student(trainer, 1, recipe.distill.links()[0], teacher)
        files.append((pairs.parent / name / "student-0004" / LORA_WEIGHTS).read_bytes())
    assert files[0] == files[1]
    assert load(pairs.parent / "broken" / "student-0004").denoiser.parameterization.name == "eps"


def test_teacher_and_student_are_given_the_same_guidance(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In stage 0 by one draw, of the whole range; in the halving both again, and the captions are those of the data."""
    seen: list[tuple[int, dict[str, Any]]] = []
    forward = Denoiser.forward

    def spy(self: Denoiser, z: torch.Tensor, t: torch.Tensor, **condition: torch.Tensor) -> torch.Tensor:
        seen.append((guidance_input(self.network) or 0, condition))
        return forward(self, z, t, **condition)

    place = write_sd(pairs.parent / "teacher")
    out = distilled(place, pairs, "--guidance", "1:8")
    recipe = read_recipe(str(out / "recipe.yaml"))
    run = open_run(recipe, pairs.parent / "again", SilentCallback())
    run.prepare()
    trainer = run.trainer()
    monkeypatch.setattr(Denoiser, "forward", spy)
    teacher = run.train_teacher(trainer)
    updates = [condition for dim, condition in seen if dim][:3]
    assert all(len(condition["guidance"]) == 8 for condition in updates)
    assert all(
        1 <= float(condition["guidance"].min()) <= float(condition["guidance"].max()) <= 8 for condition in updates
    )
    assert len({float(each) for condition in updates for each in condition["guidance"]}) == 24
    assert all("guidance" not in condition for dim, condition in seen if not dim)  # the teacher's network takes none
    captions = teacher.text.encoder()(PROMPTS[:3])["encoder_hidden_states"].half().float() if teacher.text else None
    assert captions is not None
    assert all(any(torch.equal(row, each) for each in captions) for row in updates[0]["encoder_hidden_states"])
    seen.clear()
    run.train_student(trainer, 1, recipe.distill.links()[0], teacher)
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

    for module in (model_module, run_module, stage_trainer):
        monkeypatch.setattr(module, "at_work", watched)
    monkeypatch.setattr(stage_trainer, "train", train)
    monkeypatch.setattr(Autoencoder, "encode", encoding)
    distilled(write_sd(pairs.parent / "teacher"), pairs, "--guidance", "1:8")
    assert len(trainings) == 2
    for networks, encoders in trainings:
        assert [type(each).__name__ for each in networks] == ["UNet2DConditionModel"]
        assert encoders == []
    assert [type(each).__name__ for each in encoded[0]] == ["AutoencoderKL"]


def small_pairs(pairs: Path) -> None:
    for image in pairs.glob("*.png"):
        Image.new("RGB", (8, 8)).save(image)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--guidance", "8:1"), "is no range"),
        (("--guidance", "1:2:3"), "--guidance 1:2:3 is no scale"),
        (("--guidance", "much"), "--guidance much is no scale"),
        (("--negative", "a smudge"), "negative is what guidance leads away from"),
        (("--guidance", "1:8", "--set", "conversion.null_class=1"), "conversion.null_class is of classes"),
        (("--data", "digits"), "the teacher makes images of captions, and digits has none"),
        (("--guidance", "1:8", "--lora", "2"), "a range of guidance is an input that the teacher's own pipeline lacks"),
        (("--lora", "2", "--set", "distill.lora_rank=2"), "lora is the rank of every stage: leave distill.lora_rank"),
    ],
)
def test_mistakes_are_one_line(words: tuple[str, ...], said: str, pairs: Path) -> None:
    place = write_sd(pairs.parent / "teacher")
    result = call("distill", place, "--data", f"captions:{pairs}", *SMALL, *words, "--out", pairs.parent / "run")
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--guidance", "1:8"), "guidance needs a class that stands for none"),
        (("--guidance", "2", "--negative", "a smudge"), "conversion.negative is a prompt"),
        (("--lora", "2"), "lora makes a file for the pipeline of a text-to-image teacher"),
        ((), "is of captions, and the teacher takes none"),
    ],
)
def test_captions_are_refused_where_they_have_no_effect(
    words: tuple[str, ...], said: str, stock: Callable[..., Path], pairs: Path
) -> None:
    data = f"captions:{pairs}" if not words else "digits"
    result = call("distill", stock(), "--data", data, *SMALL, *words, "--out", pairs.parent / "run")
    assert result.exit_code == 2
    assert said in result.stderr


@SLOW
def test_the_doctor_counts_captions_and_caches(pairs: Path) -> None:
    place = write_sd(pairs.parent / "teacher")
    result = call("doctor", place, "--data", f"captions:{pairs}")
    assert "12 pairs of image and caption, 3 distinct captions" in result.output
    assert "1.2 kB of embeddings" in result.output  # 3 captions, 12 tokens, 16 channels, 2 bytes
    assert "3.1 kB of latents" in result.output  # 12 images, 4 x 4 x 4 numbers of 4 bytes
    (pairs / "03.txt").unlink()
    result = call("doctor", place, "--data", f"captions:{pairs}")
    assert result.exit_code == 2
    assert "1 of 12 images" in result.stderr
