"""What a folder of networks holds: weights of every spelling, sizes that are counted first, finite numbers."""

# pyright: reportArgumentType=false

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from progdist import Denoiser, UserError, save
from progdist.models.safe_loading import read_autoencoder
from progdist.students.folder import save as save_model
from progdist.teachers.open import open_teacher
from progdist.teachers.own import load
from support.commands import call
from support.latent import save_dit, save_ldm
from support.stock import SaveStock, stock_network
from support.text import WRITERS

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def write(folder: Path, network: Any = None, **how: Any) -> Path:  # noqa: ANN401
    DDPMPipeline(network or stock_network(), DDPMScheduler()).save_pretrained(folder, **how)
    return folder


def change(file: Path, **fields: Any) -> None:  # noqa: ANN401
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **fields}))


@pytest.mark.parametrize("name", ["safetensors.index.fp16", "safetensors.fp16.index", "fp16.safetensors.index"])
def test_a_variant_in_shards_is_read_by_every_name_of_its_index(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "teacher", variant="fp16", max_shard_size="20KB")
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json"
    index.rename(index.with_name(f"diffusion_pytorch_model.{name}.json"))
    assert len(list((folder / "unet").glob("*-of-*.safetensors"))) > 1
    read = open_teacher(str(folder)).model.denoiser.network.state_dict()
    for key, tensor in stock_network().state_dict().items():
        torch.testing.assert_close(read[key], tensor)


def test_shards_and_variants_of_one_file(tmp_path: Path) -> None:
    wanted = stock_network().state_dict()["conv_in.weight"]
    for number, how in enumerate(({"max_shard_size": "20KB"}, {"variant": "fp16"}, {"variant": "non_ema"})):
        folder = write(tmp_path / str(number), **how)
        torch.testing.assert_close(
            open_teacher(str(folder)).model.denoiser.network.state_dict()["conv_in.weight"], wanted
        )


@pytest.mark.parametrize(
    "weight_map", [{}, [], None, "x", {"a": 3}, {"a": "../x.safetensors"}, {"a": "x.bin"}, {"a": ["x"]}, {"a": None}]
)
def test_an_index_that_names_no_weights(tmp_path: Path, weight_map: object) -> None:
    folder = write(tmp_path / "teacher", variant="fp16", max_shard_size="20KB")
    change(folder / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json", weight_map=weight_map)
    with pytest.raises(UserError, match=r"index\.fp16\.json (names|lacks)"):
        open_teacher(str(folder))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, number: float) -> None:
    folder = write(tmp_path / "teacher")
    weights = safetensors.torch.load_file(folder / WEIGHTS)
    weights["conv_in.weight"][0, 0, 0, 0] = number
    safetensors.torch.save_file(weights, folder / WEIGHTS, {"format": "pt"})
    for command in ("doctor", "distill"):
        result = call(command, folder, "--data", "digits")
        assert result.exit_code == 2
        assert "1 of the 72 values of conv_in.weight are not finite" in result.stderr


def test_an_autoencoder_and_an_own_folder_of_not_finite_weights(
    tiny_model: Callable[..., Denoiser], tmp_path: Path
) -> None:
    folder = save_ldm(tmp_path / "ldm")
    file = folder / "vqvae" / "diffusion_pytorch_model.safetensors"
    weights = safetensors.torch.load_file(file)
    weights["quantize.embedding.weight"][0] = float("nan")
    safetensors.torch.save_file(weights, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"3 of the .* values of quantize.embedding.weight"):
        open_teacher(str(folder))
    denoiser = tiny_model()
    next(denoiser.parameters()).data.view(-1)[0] = float("nan")
    save(denoiser, tmp_path / "own")
    with pytest.raises(UserError, match="not finite"):
        load(tmp_path / "own")


@pytest.mark.parametrize(
    ("part", "fields", "message"),
    [
        ("transformer", {"sample_size": 1024, "patch_size": 1, "attention_head_dim": 4096}, "numbers or more"),
        ("transformer", {"num_embeds_ada_norm": 60_000, "attention_head_dim": 60_000}, "numbers or more"),
        ("transformer", {"num_layers": 200}, "numbers or more|tensors of weights"),
        ("transformer", {"num_layers": 10**6}, "num_layers is 1000000"),
        ("transformer", {"sample_size": 10**6}, "sample_size is 1000000"),
        ("transformer", {"num_layers": 10**400}, "num_layers is 1000"),
        ("transformer", {"norm_eps": float("inf")}, "norm_eps is inf"),
        ("vae", {"layers_per_block": 256, "block_out_channels": [4] * 60}, "more than its|numbers or more|damaged"),
        ("vae", {"latents_mean": [[[[[0.0]]]]]}, "latents_mean holds"),
    ],
)
def test_what_a_config_asks_for_is_counted_before_it_is_built(
    tmp_path: Path, part: str, fields: dict[str, Any], message: str
) -> None:
    folder = save_dit(tmp_path / "dit")
    change(folder / part / "config.json", **fields)
    started = time.monotonic()
    with pytest.raises(UserError, match=message) as caught:
        open_teacher(str(folder))
    assert time.monotonic() - started < 30
    assert len(str(caught.value)) < 600


def test_many_layers_of_no_numbers_to_speak_of(stock: SaveStock) -> None:
    """64 blocks of 256 layers would take minutes to describe: the description ends where the weights do."""
    folder = stock()
    change(
        folder / "unet" / "config.json",
        layers_per_block=256,
        block_out_channels=[8] * 64,
        down_block_types=["DownBlock2D"] * 64,
        up_block_types=["UpBlock2D"] * 64,
    )
    started = time.monotonic()
    with pytest.raises(UserError, match="describes"):
        open_teacher(str(folder))
    assert time.monotonic() - started < 30


def unet(**fields: Any) -> UNet2DModel:  # noqa: ANN401
    return UNet2DModel(**{**stock_network().config, **fields}).eval()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"class_embed_type": "timestep"}, r"class_embed_type 'timestep' \(expected None\)"),
        ({"class_embed_type": "identity"}, "class_embed_type 'identity'"),
        ({"time_embedding_type": "learned", "num_train_timesteps": 1000}, "time_embedding_type 'learned'"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type that is fourier"),
        ({"in_channels": 3}, "output for data of 3x8x8 .* is 1x8x8, expected 3x8x8"),
        ({"out_channels": 3}, "output for data of 1x8x8 .* is 3x8x8, expected 1x8x8"),
        ({"sample_size": 9}, "cannot be called"),
    ],
)
def test_a_network_that_is_called_otherwise_is_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    folder = write(tmp_path / "teacher", unet(**fields))
    for command in ("doctor", "distill"):
        result = call(command, folder, "--data", "digits")
        assert result.exit_code == 2
        assert result.stderr.count("\n") == 1
    with pytest.raises(UserError, match=message):
        open_teacher(str(folder))


def test_a_learned_variance_is_passed_over(tmp_path: Path) -> None:
    assert open_teacher(str(write(tmp_path / "teacher", unet(out_channels=2)))).model.shape == (1, 8, 8)


SIZES = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 64,
}
"""The fields by which SDXL's network is told the sizes of its images."""


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("StableDiffusionPipeline", {"class_embed_type": "timestep"}, "class_embed_type 'timestep'"),
        ("StableDiffusionPipeline", {"num_class_embeds": 5}, "num_class_embeds '5'"),
        (
            "StableDiffusionPipeline",
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 64,
            },
            "takes encoder_hidden_states, text_embeds, time_ids, but a StableDiffusionPipeline passes encoder_hidden",
        ),
        (
            "StableDiffusionPipeline",
            {"encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 16},
            "encoder_hid_dim_type",
        ),
        (
            "StableDiffusionXLPipeline",
            {"addition_embed_type": None},
            "takes encoder_hidden_states, but a StableDiffusionXL",
        ),
    ],
)
def test_a_network_of_prompts_that_takes_more(tmp_path: Path, kind: str, fields: dict[str, Any], message: str) -> None:
    folder = WRITERS[kind](tmp_path / "teacher")
    config = json.loads((folder / "unet" / "config.json").read_text())
    network: Any = UNet2DConditionModel.from_config({**config, **fields})
    network.save_pretrained(folder / "unet")
    with pytest.raises(UserError, match=message) as caught:
        open_teacher(str(folder))
    assert "\n" not in str(caught.value)


def autoencoder(**fields: Any) -> Any:  # noqa: ANN401
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        **fields,
    ).eval()


def test_latents_mean_and_std_are_those_of_the_stock_sdxl_pipeline(tmp_path: Path) -> None:
    """The lines of StableDiffusionXLPipeline and of its image-to-image variant, in float32."""
    numbers = {"latents_mean": [1.0, -2.0, 0.5, 0.0], "latents_std": [2.0, 3.0, 0.5, 1.0], "scaling_factor": 0.5}
    vae = autoencoder(**numbers)
    vae.save_pretrained(tmp_path / "vae")
    ours, z, x = read_autoencoder(tmp_path), torch.randn(2, 4, 8, 8), torch.randn(2, 3, 16, 16).clamp(-1, 1)
    assert ours is not None
    mean, std = (torch.tensor(numbers[name]).view(1, 4, 1, 1) for name in ("latents_mean", "latents_std"))
    with torch.no_grad():
        stock = vae.decode(z * std / 0.5 + mean).sample
        latents = (vae.encode(x).latent_dist.mode() - mean) * 0.5 / std
    torch.testing.assert_close(ours.decode(z), stock, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.encode(x), latents, rtol=1e-4, atol=1e-5)


def test_a_shift_factor_is_that_of_the_stock_sd3_pipeline(tmp_path: Path) -> None:
    vae = autoencoder(scaling_factor=1.5305, shift_factor=0.0609)
    vae.save_pretrained(tmp_path / "vae")
    ours, z = read_autoencoder(tmp_path), torch.randn(2, 4, 8, 8)
    assert ours is not None
    with torch.no_grad():
        torch.testing.assert_close(ours.decode(z), vae.decode(z / 1.5305 + 0.0609).sample, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"latents_mean": [0.0] * 4}, "one of latents_mean and latents_std"),
        ({"latents_mean": [0.0] * 3, "latents_std": [1.0] * 3}, "expected 4 numbers"),
        ({"latents_mean": [0.0] * 4, "latents_std": [1.0, 0.0, 1.0, 1.0]}, "expected positive numbers"),
        ({"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4, "shift_factor": 0.1}, "expected one of them"),
        ({"scaling_factor": 0}, "scaling_factor is '0', expected a number"),
        ({"scaling_factor": True}, "scaling_factor is 'True', expected a number"),
    ],
)
def test_latent_numbers_that_mean_nothing(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    autoencoder().save_pretrained(tmp_path / "vae")
    change(tmp_path / "vae" / "config.json", **fields)
    with pytest.raises(UserError, match=message):
        read_autoencoder(tmp_path)


def test_a_pipeline_that_passes_latents_mean_over(tmp_path: Path) -> None:
    """StableDiffusionPipeline decodes latents without; a student of a DiT is written without a stock pipeline."""
    numbers = {"latents_mean": [0.0] * 4, "latents_std": [2.0] * 4}
    folder = WRITERS["StableDiffusionPipeline"](tmp_path / "sd")
    change(folder / "vae" / "config.json", **numbers)
    with pytest.raises(UserError, match="latents_mean and latents_std, which a StableDiffusionPipeline ignores"):
        open_teacher(str(folder))
    dit = save_dit(tmp_path / "dit")
    change(dit / "vae" / "config.json", **numbers)
    teacher = open_teacher(str(dit)).model
    save_model(teacher, tmp_path / "student")
    assert not (tmp_path / "student" / "model_index.json").exists()
    read, z = load(tmp_path / "student").autoencoder, torch.randn(1, 4, 4, 4)
    assert read is not None
    assert teacher.autoencoder is not None
    torch.testing.assert_close(read.decode(z), teacher.autoencoder.decode(z))


def test_an_autoencoder_of_other_latents(tmp_path: Path) -> None:
    folder = save_dit(tmp_path / "dit")
    autoencoder(in_channels=1, out_channels=1).save_pretrained(folder / "vae")
    assert open_teacher(str(folder)).model.image == (1, 8, 8)
    AutoencoderKL(
        latent_channels=3,
        in_channels=1,
        out_channels=1,
        norm_num_groups=4,
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).save_pretrained(folder / "vae")
    with pytest.raises(UserError, match="takes 4 channels, but the latents of its vae/ have 3"):
        open_teacher(str(folder))
