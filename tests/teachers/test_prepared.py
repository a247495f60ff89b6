"""Teachers with LoRA files fused into them: what stock diffusers makes of both, and no tensor passed over."""

# pyright: reportPrivateImportUsage=false

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from progdist import UserError
from progdist._utils.lora_files import LoraFile, lora_file
from progdist.models.safe_loading import PICKLES
from progdist.teachers.open import open_teacher
from progdist.teachers.prepared import Source, differs, prepare
from support.lora import kohya, weights, write
from support.text import PROMPTS, WRITERS, write_sd
from support.text_transformers import write_flux, write_sd3
from support.tiny_pipelines import build

SLOW = pytest.mark.slow


def stock(place: Path, files: Sequence[tuple[Path, float]]) -> Any:  # noqa: ANN401
    """The pipeline of a folder with LoRA files at their weights, by stock code alone, not fused."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(place)
    names = [f"a{number}" for number in range(len(files))]
    for name, (file, _) in zip(names, files, strict=True):
        pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)
    pipeline.set_adapters(names, [weight for _, weight in files])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latents(pipeline: Any) -> Tensor:  # noqa: ANN401
    """What a pipeline makes of two prompts in two steps: its text encoders' work and its network's."""
    size = {"height": 8, "width": 8}
    generator = torch.Generator().manual_seed(3)
    given = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "latent", "generator": generator}
    return pipeline(PROMPTS[:2], **given, **size).images


def network_of(pipeline: Any) -> Any:  # noqa: ANN401
    return pipeline.components.get("unet") or pipeline.components["transformer"]


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def check_like_stock(base: Path, files: Sequence[tuple[Path, float]], place: Path) -> None:
    """The prepared folder and stock diffusers with the files make the same, and other than without."""
    prepared = diffusers.DiffusionPipeline.from_pretrained(
        prepare(Source(str(base), [f"{file}:{weight}" for file, weight in files]), place)
    )
    prepared.set_progress_bar_config(disable=True)
    theirs = latents(stock(base, files))
    plain = diffusers.DiffusionPipeline.from_pretrained(base)
    plain.set_progress_bar_config(disable=True)
    assert apart(latents(plain), theirs) > 1e-3
    assert apart(latents(prepared), theirs) < 1e-5


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_sd(tmp_path / "base")


@torch.no_grad()
@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_the_network_with_a_file_is_stock_diffusers(base: Path, tmp_path: Path, form: str) -> None:
    """The network's output on any input, to 1e-5, with kohya's alphas; and what the text encoder gives."""
    tensors = weights(base)
    file = write(kohya(tensors, alpha=3.0) if form == "kohya" else tensors, tmp_path / "style.safetensors")
    theirs = stock(base, [(file, 0.7)])
    prepared = prepare(Source(str(base), [f"{file}:0.7"]), tmp_path / "out")
    ours, z, words = open_teacher(str(prepared)).model, torch.randn(2, 4, 4, 4), torch.randn(2, 12, 16)
    arguments: dict[str, Any] = {"encoder_hidden_states": words}
    found = ours.denoiser.network(z, 300, **arguments).sample
    torch.testing.assert_close(found, theirs.unet(z, 300, **arguments).sample, rtol=0, atol=1e-5)
    plain = open_teacher(str(base)).model.denoiser.network(z, 300, **arguments).sample
    assert float((found - plain).abs().max()) > 1e-2
    encoder = diffusers.DiffusionPipeline.from_pretrained(prepared).components["text_encoder"]
    tokens = torch.arange(24).reshape(2, 12)
    torch.testing.assert_close(encoder(tokens)[0], theirs.text_encoder(tokens)[0], rtol=0, atol=1e-5)
    theirs.unload_lora_weights()
    assert float((encoder(tokens)[0] - theirs.text_encoder(tokens)[0]).abs().max()) > 1e-3
    assert ours.fused == ("style.safetensors:0.7",)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")  # in stock code of the reference
def test_two_files_with_weights(base: Path, tmp_path: Path) -> None:
    """One in each form, one of them of the network alone, with a negative weight."""
    first = write(weights(base, 1), tmp_path / "first.safetensors")
    second = write(kohya(weights(base, 5, encoder=False)), tmp_path / "second.safetensors")
    check_like_stock(base, [(first, 0.8), (second, -0.4)], tmp_path / "out")


@torch.no_grad()
@pytest.mark.parametrize("writer", [write_sd3, write_flux])
def test_transformers(writer: Any, tmp_path: Path) -> None:  # noqa: ANN401
    base = writer(tmp_path / "base")
    file = write(weights(base), tmp_path / "style.safetensors")
    check_like_stock(base, [(file, 0.9)], tmp_path / "out")


@SLOW
@pytest.mark.parametrize("name", ["WanPipeline", "LTXPipeline", "QwenImagePipeline", "ZImagePipeline"])
def test_any_pipeline_whose_loader_reads_lora(name: str, tmp_path: Path) -> None:
    """Every weight of the network is what stock diffusers fuses, and those of the adapted layers have changed."""
    build(name, tmp_path / "base")
    file = write(weights(tmp_path / "base", encoder=False), tmp_path / "style.safetensors")
    prepare(Source(str(tmp_path / "base"), [f"{file}:0.9"]), tmp_path / "out")
    theirs = stock(tmp_path / "base", [(file, 0.9)])
    layers = sum(name.endswith(".base_layer.weight") for name in theirs.transformer.state_dict())
    theirs.fuse_lora(components=["transformer"])
    theirs.unload_lora_weights()
    plain, ours = (diffusers.DiffusionPipeline.from_pretrained(tmp_path / place) for place in ("base", "out"))
    found, before = ours.components["transformer"].state_dict(), plain.components["transformer"].state_dict()
    for key, expected in theirs.transformer.state_dict().items():
        torch.testing.assert_close(found[key], expected, rtol=0, atol=1e-6)
    assert sum(not torch.equal(found[key], before[key]) for key in before) == layers > 0


@SLOW
@torch.no_grad()
def test_a_file_of_kohya_for_flux(tmp_path: Path) -> None:
    """Its loader scales both halves of a layer by alpha, and cuts the layers that queries, keys and values share."""
    base = write_flux(tmp_path / "base")
    torch.manual_seed(0)
    name, other = "lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_single_blocks_0_linear2"
    tensors = {
        f"{name}.lora_down.weight": torch.randn(3, 16), f"{name}.lora_up.weight": torch.randn(48, 3),
        f"{name}.alpha": torch.tensor(1.5), f"{other}.lora_down.weight": torch.randn(2, 80),
        f"{other}.lora_up.weight": torch.randn(16, 2), f"{other}.alpha": torch.tensor(1.0),
    }  # fmt: skip
    check_like_stock(base, [(write(tensors, tmp_path / "style.safetensors"), 1.0)], tmp_path / "out")


@SLOW
@torch.no_grad()
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' Euler under NumPy 2
def test_sdxl(tmp_path: Path) -> None:
    base = WRITERS["StableDiffusionXLPipeline"](tmp_path / "base")
    check_like_stock(base, [(write(kohya(weights(base)), tmp_path / "a.safetensors"), 1.0)], tmp_path / "out")


def test_every_tensor_must_be_used(base: Path, tmp_path: Path) -> None:
    """A layer that the pipeline does not have, keys of no kind, and what the stock loader filters out, are named."""
    tensors, place = weights(base), tmp_path / "out"
    layer = "mid_block.attentions.7.proj"
    foreign = {f"unet.{layer}.lora_A.weight": torch.randn(2, 16), f"unet.{layer}.lora_B.weight": torch.randn(16, 2)}
    other = {f"transformer.{layer}.lora_A.weight": torch.randn(2, 16)}
    third = {f"text_encoder_3.{layer}.lora_A.weight": torch.randn(2, 16)}
    dora = {"unet.mid_block.attentions.0.proj_in.dora_scale": torch.randn(16)}
    for number, more in enumerate((foreign, other, third, dora, {"noise": torch.randn(3)})):
        file = write(tensors | more, tmp_path / f"{number}.safetensors")
        with pytest.raises(UserError) as raised:
            prepare(Source(str(base), [str(file)]), place)
        assert file.name in str(raised.value)
        if more is not dora and number < 4:
            assert next(iter(more)) in str(raised.value), number
        assert "\n" not in str(raised.value)
        assert not place.exists()
        assert [each.name for each in tmp_path.iterdir() if "partial" in each.name] == []


def test_alphas_must_be_used(base: Path, tmp_path: Path) -> None:
    """An alpha beside no layer; and one in a form whose loader does not read any."""
    tensors = kohya(weights(base, encoder=False)) | {"lora_unet_mid_block_other.alpha": torch.tensor(2.0)}
    file = write(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"a\.safetensors.*lora_unet_mid_block_other\.alpha"):
        prepare(Source(str(base), [str(file)]), tmp_path / "out")
    named = weights(base, encoder=False)
    some = next(iter(named)).removesuffix(".lora_A.weight").removesuffix(".lora_B.weight")
    file = write(named | {f"{some}.alpha": torch.tensor(2.0)}, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match=r"b\.safetensors"):
        prepare(Source(str(base), [str(file)]), tmp_path / "out")


def test_a_file_of_another_pipeline_is_refused(base: Path, tmp_path: Path) -> None:
    file = write(weights(write_sd3(tmp_path / "sd3")), tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"other\.safetensors"):
        prepare(Source(str(base), [str(file)]), tmp_path / "out")


def test_damaged_files_are_refused(base: Path, tmp_path: Path) -> None:
    """No pickle is read, whatever its name; numbers are finite; a half of a layer is none."""
    place, tensors = tmp_path / "out", weights(base, encoder=False)
    torch.save(tensors, tmp_path / "pickle.safetensors")
    name = next(iter(tensors))
    write(tensors | {name: tensors[name] * torch.nan}, tmp_path / "nan.safetensors")
    write({each: tensor for each, tensor in tensors.items() if each != name}, tmp_path / "half.safetensors")
    for file in ("pickle.safetensors", "nan.safetensors", "half.safetensors", "absent.safetensors"):
        with pytest.raises(UserError, match=file):
            prepare(Source(str(base), [str(tmp_path / file)]), place)
        assert not place.exists()


@pytest.mark.parametrize("pattern", PICKLES)
def test_pickles_are_refused_by_name(pattern: str, base: Path) -> None:
    file = f"style{pattern[1:]}"
    with pytest.raises(UserError, match="safetensors"):
        lora_file(file)
    with pytest.raises(UserError, match="pickle"):
        Source(str(base.parent / file), config=str(base)).check()


def test_files_and_weights() -> None:
    assert lora_file("a.safetensors") == LoraFile("a.safetensors", 1.0)
    assert lora_file("a:b/c.safetensors:-0.5") == LoraFile("a:b/c.safetensors", -0.5)
    for text in ("a.safetensors:0", "a.safetensors:nan", "a.safetensors:inf", "a.safetensors:x", "a"):
        with pytest.raises(UserError):
            lora_file(text)


def test_other_parts_are_copied_byte_for_byte(base: Path, tmp_path: Path) -> None:
    """But for pickles, which nothing reads; the index stays as it is."""
    (base / "unet" / "old.bin").write_bytes(b"x")
    (base / "vae" / "old.bin").write_bytes(b"x")
    file = write(weights(base, encoder=False), tmp_path / "a.safetensors")
    out = prepare(Source(str(base), [str(file)]), tmp_path / "out")
    for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
        names = sorted(each.name for each in (base / part).iterdir() if each.suffix != ".bin")
        assert names == sorted(each.name for each in (out / part).iterdir())
        for name in names:
            assert (base / part / name).read_bytes() == (out / part / name).read_bytes()
    assert not (out / "unet" / "old.bin").exists()


def test_made_again_only_if_the_files_differ(base: Path, tmp_path: Path) -> None:
    """A copy of the same contents does not differ; other contents, weights or files do."""
    file = write(weights(base), tmp_path / "a.safetensors")
    out = prepare(Source(str(base), [str(file)]), tmp_path / "out")
    assert differs(Source(str(base), [str(file)]), out) == ""
    moved = Path(shutil.copytree(base, tmp_path / "moved", copy_function=shutil.copyfile))
    assert differs(Source(str(moved), [str(file)]), out) == ""
    assert "1" in differs(Source(str(base), [f"{file}:0.5"]), out)
    config = base / "unet" / "config.json"
    config.write_text(config.read_text() + "\n")
    assert differs(Source(str(base), [str(file)]), out) == "model/unet/config.json"
    write(weights(base, 9), file)
    assert differs(Source(str(moved), [str(file)]), out) == "lora 0"


def test_what_takes_no_lora_is_refused(tmp_path: Path, base: Path) -> None:
    place = tmp_path / "digits"
    diffusers.DDPMPipeline(
        unet=diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8),
                                   down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
                                   norm_num_groups=4, layers_per_block=1),
        scheduler=diffusers.DDPMScheduler(),
    ).save_pretrained(place)  # fmt: skip
    file = write(weights(base), tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="does not support LoRA"):
        prepare(Source(str(place), [str(file)]), tmp_path / "out")
    with pytest.raises(UserError, match="--config applies only"):
        prepare(Source(str(base), [str(file)], config=str(base)), tmp_path / "out")
