"""Transformers and latent models: what stock pipelines make, we make; the data are encoded once."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from diffusers import DiTPipeline, LDMPipeline  # pyright: ignore[reportPrivateImportUsage]
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

import progdist
from conftest import call
from progdist import UserError
from progdist.data.latents import encoded
from progdist.data.sources import load_images
from progdist.evaluation.generate import SamplingOptions, make
from progdist.models.io.diffusers_pipeline import read_teacher
from progdist.models.io.folder import load

pytestmark = pytest.mark.slow

HALF: dict[str, Any] = {
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
}


def transformer() -> DiTTransformer2DModel:
    """Two blocks of a class-conditional transformer that also gives a variance, its last layers not zero."""
    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=4,
        num_embeds_ada_norm=10,
    )
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return network.eval()


@pytest.fixture(params=["DiT", "LDM"])
def latent(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A stock pipeline folder of a latent model of 8x8 images."""
    torch.manual_seed(0)
    place, scheduler = tmp_path / request.param, DDPMScheduler(clip_sample=False)
    if request.param == "DiT":
        DiTPipeline(transformer(), AutoencoderKL(**HALF), scheduler).save_pretrained(place)  # pyright: ignore
    else:
        unet = UNet2DModel(
            sample_size=4,
            in_channels=3,
            out_channels=3,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
            norm_num_groups=4,
        )
        ddim = DDIMScheduler(clip_sample=False)
        LDMPipeline(VQModel(latent_channels=3, **HALF), unet, ddim).save_pretrained(place)
    return place


QUICK = ("--updates", 2, "--batch", 8, "--start", 8, "--set", "evaluate.samples=16", "--set", "evaluate.resamples=2")
UNTRAINED = ("--set", "teacher.trust=true")


def distilled(latent: Path, out: Path, *more: object) -> Path:
    result = call("distill", latent, "--data", "digits", "--out", out, *QUICK, *UNTRAINED, *more)
    assert result.exit_code == 0, result.output
    return out / "student-0004"


@torch.no_grad()
def stock_images(folder: Path, noise: Tensor, steps: int, labels: list[int]) -> Tensor:
    """What the folder's own stock parts make of the noise, (N, C, H, W)."""
    index = json.loads((folder / "model_index.json").read_text())
    kind = DiTPipeline if index["_class_name"] == "DiTPipeline" else LDMPipeline
    pipeline: Any = kind.from_pretrained(folder)
    given = {"class_labels": torch.tensor(labels)} if kind is DiTPipeline else {}
    network = pipeline.transformer if given else pipeline.unet
    autoencoder = pipeline.vae if given else pipeline.vqvae
    pipeline.scheduler.set_timesteps(steps)
    z = noise
    for t in pipeline.scheduler.timesteps:
        output = network(z, t.expand(len(z)), **given).sample[:, : z.shape[1]]
        z = pipeline.scheduler.step(output, t, z).prev_sample
    return autoencoder.decode(z / autoencoder.config.scaling_factor).sample


def test_a_latent_model_is_distilled_and_stock_parts_make_its_images(latent: Path, tmp_path: Path) -> None:
    student = distilled(latent, tmp_path / "out")
    model = load(student)
    assert (model.image, model.shape[1:]) == ((1, 8, 8), (4, 4))
    images, labels, steps = make(model, SamplingOptions(None, 5, None, 0), print)
    from progdist.evaluation.generate import sampling_noise

    theirs = stock_images(student, sampling_noise(model, 5, 0), steps, labels.tolist())
    torch.testing.assert_close(images, theirs, rtol=0, atol=1e-4)
    assert images.shape == (5, 1, 8, 8)
    assert len(model.classes) == (11 if latent.name == "DiT" else 0)


def test_the_data_are_encoded_once(latent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distilled(latent, tmp_path / "out")
    cache = tmp_path / "out" / "latents.safetensors"
    before = cache.stat().st_mtime_ns
    told = read_teacher(str(latent)).model.autoencoder
    assert told is not None
    monkeypatch.setattr(type(told), "encode", lambda self, images: pytest.fail("encoded again"))
    distilled(latent, tmp_path / "out")
    images = load_images("digits")
    latents = encoded(images, told, cache, print)
    assert cache.stat().st_mtime_ns == before
    assert latents.shape == read_teacher(str(latent)).model.shape
    assert torch.equal(latents.stratified_labels(9), images.stratified_labels(9))


def test_latents_are_those_of_the_stock_autoencoder(latent: Path) -> None:
    autoencoder = read_teacher(str(latent)).model.autoencoder
    assert autoencoder is not None
    x = load_images("digits").sample(3, 0)[0]
    network: Any = autoencoder.network
    found = network.encode(x)
    means = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latents
    torch.testing.assert_close(autoencoder.encode(x), 0.18215 * means)
    torch.testing.assert_close(autoencoder.decode(0.18215 * means), network.decode(means).sample, rtol=1e-4, atol=1e-4)


def test_the_card_of_a_latent_model_runs(latent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = distilled(latent, tmp_path / "out")
    text = (student / "README.md").read_text()
    assert "Images of 8x8 with 1 channel" in text
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code
    monkeypatch.chdir(student)
    found: dict[str, Any] = {}
    exec(code[1], found)
    assert len(found["images"]) == 16
    assert np.asarray(found["images"][0]).shape == (8, 8)


def test_onnx_holds_the_decoder(latent: Path, tmp_path: Path) -> None:
    model = load(distilled(latent, tmp_path / "out"))
    assert call("export", tmp_path / "out" / "student-0004", "--steps", 1, "--onnx", tmp_path / "s.onnx").exit_code == 0
    session = onnxruntime.InferenceSession(tmp_path / "s.onnx", providers=["CPUExecutionProvider"])
    from progdist.evaluation.generate import sampling_noise

    inputs = {"noise": sampling_noise(model, 3, 0).numpy()}
    if model.classes:
        inputs["labels"] = np.arange(3)
    theirs = torch.from_numpy(session.run(None, inputs)[0])
    torch.testing.assert_close(theirs, make(model, SamplingOptions(1, 3, None, 0), print)[0], rtol=0, atol=1e-4)


def test_guidance_of_a_transformer_uses_the_class_for_none(tmp_path: Path) -> None:
    place = tmp_path / "DiT"
    DiTPipeline(transformer(), AutoencoderKL(**HALF), DDPMScheduler(clip_sample=False)).save_pretrained(  # pyright: ignore
        place
    )
    distilled(place, tmp_path / "out", "--guidance", 2)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda place, part: (place / part / "config.json").unlink(), "config.json"),
        (lambda place, part: next((place / part).glob("*.safetensors")).unlink(), "lacks"),
        (lambda place, part: next((place / part).glob("*.safetensors")).rename(place / part / "a.bin"), "is a pickle"),
    ],
)
def test_a_damaged_autoencoder_is_one_line(
    latent: Path, tmp_path: Path, damage: Callable[[Path, str], None], says: str
) -> None:
    damage(latent, "vae" if latent.name == "DiT" else "vqvae")
    result = call("distill", latent, "--data", "digits", "--out", tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


def test_flipping_is_of_images(latent: Path, tmp_path: Path) -> None:
    result = call(
        "distill", latent, "--data", "digits", "--out", tmp_path / "out", *UNTRAINED, "--set", "data.flip=true"
    )
    assert result.exit_code == 2
    assert "data.flip" in result.stderr


def test_a_cache_of_other_data_is_refused(latent: Path, tmp_path: Path) -> None:
    autoencoder = read_teacher(str(latent)).model.autoencoder
    assert autoencoder is not None
    images = load_images("digits")
    few, _ = images.split(1700, 0)
    encoded(few, autoencoder, tmp_path / "c.safetensors", print)
    with pytest.raises(UserError, match="remove it to encode"):
        encoded(images, autoencoder, tmp_path / "c.safetensors", print)


def test_loading_keeps_the_autoencoder(latent: Path, tmp_path: Path) -> None:
    """`progdist.sample` gives images of a latent model, and saving it again keeps its autoencoder."""
    student = distilled(latent, tmp_path / "out")
    denoiser, model = progdist.load(student), load(student)
    noise, count = torch.randn(3, *model.shape), len(model.classes)
    given: dict[str, Any] = {"class_labels": torch.arange(3)} if count else {}
    images = progdist.sample(denoiser, noise, 4, **given)
    torch.testing.assert_close(images, stock_images(student, noise, 4, list(range(3))), rtol=0, atol=1e-4)
    progdist.save(denoiser, tmp_path / "again", steps=[4])
    torch.testing.assert_close(progdist.sample(progdist.load(tmp_path / "again"), noise, 4, **given), images)
    assert load(tmp_path / "again").autoencoder is not None
    with pytest.raises(progdist.UserError, match="clip is of images"):
        progdist.sample(denoiser, noise, 4, clip=True, **given)


def test_latents_are_not_clipped(latent: Path, tmp_path: Path) -> None:
    words = ("--data", "digits", "--out", tmp_path / "out", *QUICK, *UNTRAINED)
    result = call("distill", latent, *words, "--set", "evaluate.clip=true")
    assert result.exit_code == 2, result.output
    assert "a latent model's samples are latents" in result.stderr
    student = distilled(latent, tmp_path / "out")
    result = call("sample", student, "--clip", "--out", tmp_path / "a.png")
    assert result.exit_code == 2
    assert "--clip is of images" in result.stderr


def test_an_autoencoder_with_a_word_for_its_scale_is_refused(latent: Path) -> None:
    config = next(latent.glob("v*/config.json"))
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scaling_factor": "x"}))
    with pytest.raises(progdist.UserError, match="scaling_factor is 'x'"):
        read_teacher(str(latent))


def test_the_code_of_old_cards_still_runs(latent: Path, tmp_path: Path) -> None:
    student = distilled(latent, tmp_path / "out")
    names: dict[str, Any] = {}
    code = (
        "from pathlib import Path\n"
        "from progdist.making import Wish, make\n"
        "from progdist.model_folder import load\n"
        f"images, labels, steps = make(load(Path({str(student)!r})), Wish(4, 3, None, seed=0), print)\n"
    )
    exec(code, names)
    assert names["images"].shape == (3, 1, 8, 8)
