"""LoRA files for other programs: every layer arrives, and makes of the base what the student makes."""

# pyright: reportPrivateImportUsage=false, reportArgumentType=false

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya, convert_unet_state_dict_to_peft
from safetensors.torch import save_file
from torch import Tensor, nn

from lora_formats import rows, tiny
from progdist import UserError
from progdist.students.lora_formats import FAMILIES, FORMATS, Format, converted
from progdist.training.lora import adapter_weights, add_lora
from support.comfyui import LAYERS
from support.lora_readers import (
    WAYS,
    Calls,
    adapters,
    corrections,
    furthest,
    readings,
    student_of,
    through_checkpoint,
    through_pipeline,
)

PARTLY = {
    ("FluxPipeline", "kohya"): "LoRA reader",  # it gives embedders and the final layer no prefix
    ("LTXPipeline", "comfyui"): "LoRA reader",  # it renames nothing
    ("Lumina2Pipeline", "comfyui"): "LoRA reader",  # see PASSED_OVER
    ("HunyuanVideoPipeline", "comfyui"): "LoRA reader",
}
"""The readers of diffusers that pass layers over; another way reads them all."""

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers', of what its loaders do not know


@pytest.fixture(scope="module")
def calls_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Calls]:
    @cache
    def of(name: str) -> Calls:
        return tiny(name, tmp_path_factory.mktemp("pipelines"))

    return of


@pytest.mark.parametrize("name", FAMILIES)
def test_what_stock_diffusers_reads(name: str, calls_of: Callable[[str], Calls], tmp_path: Path) -> None:
    """Every layer is read by one way or another, and the outputs are the student's to 1e-5 by every way."""
    calls = calls_of(name)
    forms: list[Format] = [form for form in FORMATS if form == "diffusers" or form in WAYS[name]]
    for form in forms:
        read = readings(name, form, calls, tmp_path)
        assert all(each.difference < 1e-5 for each in read), (form, read)
        assert all(0 < each.layers <= each.of for each in read)
        partly = [each.way for each in read if each.layers < each.of]
        assert partly == ([PARTLY[name, form]] if (name, form) in PARTLY else [])


def test_what_is_read_is_what_is_compared(calls_of: Callable[[str], Calls], tmp_path: Path) -> None:
    """A file with other weights makes other outputs: the comparison would see it."""
    calls = calls_of("QwenImagePipeline")
    weights = adapters(calls.network)
    other = {key: 1.1 * each for key, each in weights.items()}
    save_file(converted(other, "QwenImagePipeline", "kohya"), tmp_path / "other.safetensors")
    _, made = through_pipeline(calls, tmp_path / "other.safetensors")
    expected = calls.outputs(student_of(calls.network, weights))
    assert float((made - expected).abs().max() / expected.abs().max()) > 1e-4


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_comfyui_finds_every_layer(name: str, calls_of: Callable[[str], Calls]) -> None:
    for written in converted(adapters(calls_of(name).network), name, "comfyui"):
        layer = re.sub(r"\.(lora_(A|B|down|up)\.weight|alpha)$", "", written)
        assert layer != written
        assert re.fullmatch(LAYERS[name], layer), layer


def test_kohyas_names_are_those_of_the_stock_converter(calls_of: Callable[[str], Calls]) -> None:
    weights = adapters(calls_of("StableDiffusionPipeline").network)
    stock = convert_state_dict_to_kohya({f"unet.{name}": each for name, each in weights.items()})
    for form in ("kohya", "comfyui"):
        ours = converted(weights, "StableDiffusionPipeline", form)
        assert ours.keys() == stock.keys()
        assert all(torch.equal(each, stock[name].to(each)) for name, each in ours.items())


def sdxl() -> nn.Module:
    with torch.device("meta"):
        return diffusers.UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )


def test_the_published_sdxl_in_kohyas_names() -> None:
    """Of all 794 layers, by the names of generative-models, which files in the wild have, and back."""
    network = sdxl()
    weights = adapters(network, rank=1)
    written = converted(weights, "StableDiffusionXLPipeline", "kohya")
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight" in written
    assert "lora_unet_output_blocks_2_2_conv.lora_up.weight" in written
    assert "lora_unet_label_emb_0_0.alpha" in written
    load = diffusers.StableDiffusionXLPipeline.lora_state_dict
    state, alphas, *_ = load(dict(written), unet_config=network.config)
    assert alphas is not None
    peft = convert_unet_state_dict_to_peft(state)
    read = {key.removeprefix("unet.").replace(".processor.", "."): each for key, each in peft.items()}
    assert len(alphas) == len(read) // 2
    assert {*alphas.values()} == {1.0}
    assert len(weights) == 2 * 794
    assert read.keys() == weights.keys()
    assert all(torch.equal(each, weights[key]) for key, each in read.items())


def test_both_attentions_of_sd_3_5() -> None:
    """Those of the medium model, whose blocks have two."""
    network = diffusers.SD3Transformer2DModel(
        sample_size=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    weights = adapters(network)
    written = corrections(converted(weights, "StableDiffusion3Pipeline", "comfyui"))
    native = {key.removeprefix("diffusion_model."): each for key, each in written.items()}
    read, student = through_checkpoint("StableDiffusion3Pipeline", native), corrections(weights)
    assert "transformer_blocks.0.attn2.to_k" in read
    assert read.keys() == student.keys()
    assert furthest(student, read) < 1e-5


def test_the_weights_of_our_own_adapters(calls_of: Callable[[str], Calls]) -> None:
    """Those that `progdist distill --lora` writes have the names that are expected here."""
    network = add_lora(calls_of("FluxPipeline").network, 2, seed=0)
    ours, expected = adapter_weights(network), adapters(calls_of("FluxPipeline").network)
    assert {key: each.shape for key, each in ours.items()} == {key: each.shape for key, each in expected.items()}


def pair(layer: str, rows: int = 4) -> dict[str, Tensor]:
    return {f"{layer}.lora_A.weight": torch.ones(2, 3), f"{layer}.lora_B.weight": torch.ones(rows, 2)}


@pytest.mark.parametrize(
    ("pipeline", "form", "weights", "message"),
    [
        (
            "SanaPipeline",
            "comfyui",
            pair("a"),
            "comfyui does not support SanaPipeline, .* in ComfyUI's own nodes .*: use diffusers$",
        ),
        ("LTXPipeline", "kohya", pair("a"), "kohya does not support LTXPipeline, .*: use diffusers or comfyui$"),
        ("KolorsPipeline", "kohya", pair("a"), "kohya does not support KolorsPipeline, .*: use diffusers$"),
        ("WanPipeline", "kohya", pair("proj_out"), "the layer proj_out has no name in this format"),
        ("WanPipeline", "comfyui", pair("blocks.0.attn3.to_q"), r"the layer blocks\.0\.attn3\.to_q has no name"),
        ("StableDiffusionXLPipeline", "kohya", pair("down_blocks.0.resnets.0.conv1") | pair("a"), "the layer a has no"),
        (
            "FluxPipeline",
            "kohya",
            pair("transformer_blocks.0.attn.to_q"),
            "qkv joins 3 layers of diffusers: expected LoRA weights of all, got 1",
        ),
        ("FluxPipeline", "diffusers", {"a.lora_A.weight": torch.ones(2, 3)}, r"of every layer, got a\.lora_B\.weight"),
        ("FluxPipeline", "diffusers", {"a.weight": torch.ones(2, 3)}, "lora_B.weight of every layer"),
    ],
)
def test_what_is_refused(pipeline: str, form: Format, weights: dict[str, Tensor], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        converted(weights, pipeline, form)
    assert "\n" not in str(caught.value)


def test_any_other_pipeline_has_diffusers_names() -> None:
    assert converted(pair("a"), "MochiPipeline", "diffusers").keys() == {
        "transformer.a.lora_A.weight",
        "transformer.a.lora_B.weight",
    }


def test_the_rows_of_the_table(tmp_path: Path) -> None:
    *lines, refused = rows("LTXPipeline", tmp_path)
    assert [line.split(" | ")[1] for line in lines] == ["diffusers", "comfyui", "comfyui"]
    assert "27 of 27" in lines[-1]
    assert refused.startswith("- --lora-format kohya does not support LTXPipeline")
