"""Checkpoints of one file: the network of the pipeline that they were written from, and no part passed over."""

# pyright: reportPrivateImportUsage=false

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from progdist import UserError
from progdist._utils.files import read_json, read_tensors
from progdist.teachers.open import open_teacher
from progdist.teachers.prepared import Source, prepare
from progdist.teachers.single_file import NETWORK
from support.lora import kohya, weights, write
from support.original_layout import write_original
from support.text import write_sd
from support.text_transformers import write_flux


def without_weights(place: Path, target: Path) -> Path:
    """A folder's configs, tokenizers and scheduler alone, which is what the stock loader would fetch."""
    return Path(shutil.copytree(place, target, ignore=shutil.ignore_patterns("*.safetensors")))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A pipeline's folder, its configs in `configs`, and it as one file, `model.safetensors`."""
    place = write_sd(tmp_path / "base")
    write_original(diffusers.DiffusionPipeline.from_pretrained(place), tmp_path / "model.safetensors")
    without_weights(place, tmp_path / "configs")
    return tmp_path


def source(place: Path, name: str = "model.safetensors", config: str = "configs", **more: Any) -> Source:  # noqa: ANN401
    return Source(str(place / name), config=str(place / config), **more)


def test_a_file_of_stable_diffusion(written: Path) -> None:
    """Every weight of every part is that of the pipeline it was written from; and so are the tokens."""
    out = prepare(source(written), written / "out")
    ours, theirs = (diffusers.DiffusionPipeline.from_pretrained(written / place) for place in ("out", "base"))
    for part in ("unet", "vae", "text_encoder"):
        found, expected = ours.components[part].state_dict(), theirs.components[part].state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert ours.tokenizer("a cat").input_ids == theirs.tokenizer("a cat").input_ids
    assert ours.scheduler.config == theirs.scheduler.config
    teacher, own = open_teacher(str(out)).model, open_teacher(str(written / "base")).model
    assert teacher.denoiser.schedule == own.denoiser.schedule
    assert teacher.fused == ()


def test_the_stock_loader_reads_the_same(written: Path) -> None:
    """What `from_single_file` makes, to the last bit."""
    out = prepare(source(written), written / "out")
    theirs = diffusers.StableDiffusionPipeline.from_single_file(
        str(written / "model.safetensors"), config=str(written / "configs"), local_files_only=True
    )
    ours = diffusers.DiffusionPipeline.from_pretrained(out)
    for name, expected in theirs.unet.state_dict().items():
        assert torch.equal(ours.unet.state_dict()[name], expected)


@torch.no_grad()
def test_with_a_lora_file(written: Path) -> None:
    file = write(kohya(weights(written / "base")), written / "style.safetensors")
    prepare(source(written, loras=[f"{file}:0.5"]), written / "out")
    prepare(Source(str(written / "base"), [f"{file}:0.5"]), written / "other")
    one, other = (open_teacher(str(written / place)).model for place in ("out", "other"))
    z, words = torch.randn(2, 4, 4, 4), torch.randn(2, 12, 16)
    arguments: dict[str, Any] = {"encoder_hidden_states": words}
    found = [model.denoiser.network(z, 300, **arguments).sample for model in (one, other)]
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_parts_that_the_file_lacks_are_those_of_the_folder(tmp_path: Path) -> None:
    """A file of Flux's transformer alone, in its original layout as diffusers' own names; the rest from the folder."""
    base = write_flux(tmp_path / "base")
    stock = diffusers.DiffusionPipeline.from_pretrained(base)
    file = write(stock.transformer.state_dict(), tmp_path / "model.safetensors")
    out = prepare(Source(str(file), config=str(base)), tmp_path / "out")
    ours = diffusers.DiffusionPipeline.from_pretrained(out)
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        found, expected = ours.components[part].state_dict(), stock.components[part].state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    configs = without_weights(base, tmp_path / "configs")
    with pytest.raises(UserError, match=r"holds no text_encoder|holds no vae"):
        prepare(Source(str(file), config=str(configs)), tmp_path / "again")


def test_what_does_not_fit_is_refused(written: Path) -> None:
    """Weights missing, too many, or of other sizes; nothing is written."""
    stock = diffusers.DiffusionPipeline.from_pretrained(written / "base")
    extra = {f"{NETWORK}input_blocks.9.0.in_layers.2.weight": torch.randn(8, 8, 3, 3)}
    write_original(stock, written / "more.safetensors", extra)
    tensors = read_tensors(written / "model.safetensors")
    fewer = {name: each for name, each in tensors.items() if "middle_block.0.in_layers.2" not in name}
    write(fewer, written / "fewer.safetensors")
    config = shutil.copytree(written / "configs", written / "wider")
    changed = read_json(config / "unet" / "config.json") | {"cross_attention_dim": 24}
    (config / "unet" / "config.json").write_text(json.dumps(changed))
    for name, folder in (("more", "configs"), ("fewer", "configs"), ("model", "wider")):
        with pytest.raises(UserError, match=rf"{name}\.safetensors.*--config") as raised:
            prepare(source(written, f"{name}.safetensors", folder), written / "out")
        assert "\n" not in str(raised.value)
        assert not (written / "out").exists()


def test_a_large_config_is_refused_before_it_is_built(written: Path) -> None:
    file = written / "configs" / "unet" / "config.json"
    file.write_text(json.dumps(read_json(file) | {"block_out_channels": [32768, 65536]}))
    with pytest.raises(UserError, match="describes"):
        prepare(source(written), written / "out")


def test_pickles_are_refused(written: Path) -> None:
    """By name, and by content under the name of a safetensors file."""
    torch.save({"state_dict": {}}, written / "model.ckpt")
    shutil.copyfile(written / "model.ckpt", written / "renamed.safetensors")
    with pytest.raises(UserError, match="pickle"):
        prepare(source(written, "model.ckpt"), written / "out")
    with pytest.raises(UserError, match="renamed"):
        prepare(source(written, "renamed.safetensors"), written / "out")


@pytest.mark.parametrize("value", [["os", None], ["antigravity", "x"], ["diffusers"], ["subprocess", "Popen"]])
def test_nothing_of_the_folder_is_run(value: list[Any], written: Path) -> None:
    """Its index may name networks, schedulers and tokenizers of diffusers and transformers alone."""
    file = written / "configs" / "model_index.json"
    file.write_text(json.dumps(read_json(file) | {"feature_extractor": value}))
    with pytest.raises(UserError, match="feature_extractor"):
        prepare(source(written), written / "out")


def test_what_to_give_is_said(written: Path) -> None:
    """A file without a folder, a folder that is none, a folder as the teacher."""
    with pytest.raises(UserError, match="add --config FOLDER"):
        prepare(Source(str(written / "model.safetensors")), written / "out")
    with pytest.raises(UserError, match="no model_index"):
        prepare(source(written, config="out"), written / "out")
    with pytest.raises(UserError, match="--config applies only"):
        prepare(source(written, "base"), written / "out")
    with pytest.raises(UserError, match="is not a file"):
        prepare(source(written, "absent.safetensors"), written / "out")
