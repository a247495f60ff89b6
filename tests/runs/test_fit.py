"""What fits a card, counted from configs: against the calls of stock pipelines, and passes of real tensors."""

import inspect
import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import tiny_pipelines
from progdist._utils.errors import UserError
from progdist._utils.names import Bits
from progdist.compute.placement import at_work, bytes_at_work
from progdist.models.components import PipelineFolder
from progdist.models.quantized_base import quantized_base
from progdist.runs.estimate.fit import BATCHES, Fit, Fits, Setting, fits
from progdist.runs.estimate.inputs import INPUTS, ExampleInputs, example_inputs
from progdist.runs.estimate.memory import Memory
from progdist.runs.estimate.passes import ATTENTION, training_pass
from progdist.training.lora import add_lora

pytestmark = [  # of diffusers' autoencoder of sound, and of a scheduler with numpy
    pytest.mark.filterwarnings("ignore:.*weight_norm"),
    pytest.mark.filterwarnings("ignore:__array__ implementation"),
]

PIPELINES = (
    "StableDiffusionPipeline", "StableDiffusionXLPipeline", "PixArtSigmaPipeline", "StableDiffusion3Pipeline",
    "FluxPipeline", "WanPipeline", "LTXPipeline", "QwenImagePipeline", "ZImagePipeline", "SanaPipeline",
    "HunyuanVideoPipeline", "CogVideoXPipeline", "StableAudioPipeline",
)  # fmt: skip


class Seen:
    """A tiny stock pipeline in a folder, and what it was seen to call its network with."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, tiny_pipelines.build(name, folder)
        pipeline = tiny_pipelines.load(self.folder)
        self.network: nn.Module = getattr(pipeline, "transformer", None) or pipeline.unet
        calls: list[dict[str, Any]] = []
        forward = self.network.forward
        names = inspect.signature(forward).parameters

        def seeing(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            calls.append({**dict(zip(names, args, strict=False)), **kwargs})
            return forward(*args, **kwargs)

        self.network.forward = seeing
        tiny_pipelines.sampled(pipeline, name, tiny_pipelines.PROMPTS[:2])
        self.network.forward = forward
        self.call = calls[0]

    @property
    def described(self) -> nn.Module:
        """Its network by the folder's config alone."""
        return PipelineFolder.read(self.folder).empty_network()

    @property
    def inputs(self) -> ExampleInputs:
        """Ours, of the same size and as many tokens."""
        call = tiny_pipelines.CALLS[self.name]
        size = {key: call[key] for key in ("height", "width") if key in call}
        words = self.call.get("cap_feats") or self.call["encoder_hidden_states"]
        tokens = words[0].shape[0] if isinstance(words, list) else words.shape[1]
        frames = {"frames": call["num_frames"]} if "num_frames" in call else {}
        config: Any = self.network.config
        return example_inputs(PipelineFolder.read(self.folder), config, **size, **frames, tokens=tokens)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Seen]:
    found: dict[str, Seen] = {}

    def of(name: str) -> Seen:
        return found.get(name) or found.setdefault(name, Seen(name, tmp_path_factory.mktemp(name) / "pipeline"))

    return of


TIME = ("timestep", "t")  # a number in some pipelines


def shapes(value: Any, name: str = "") -> Iterator[tuple[str, tuple[int, ...]]]:  # noqa: ANN401
    """The shapes of all tensors in a tree of arguments, by where they are."""
    if isinstance(value, Tensor) and name not in TIME:
        yield name, tuple(value.shape)
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from shapes(each, f"{name}.{key}" if name else key)
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from shapes(each, f"{name}.{number}")


@pytest.mark.parametrize("name", PIPELINES)
def test_the_inputs_are_those_of_the_stock_pipeline(seen: Callable[[str], Seen], name: str) -> None:
    one = seen(name)
    first = next(iter(one.call.values()))
    made = one.inputs.arguments(len(first))
    expected, found = dict(shapes(one.call)), dict(shapes(made))
    if name == "ZImagePipeline":  # whose prompts are as long as they are
        expected, found = ({key: shape for key, shape in each.items() if key[0] == "x"} for each in (expected, found))
    assert found == expected
    for key in {"height", "width", "num_frames", "img_shapes"} & made.keys():
        assert made[key] == one.call[key]


def test_every_known_class_has_a_pipeline_here(seen: Callable[[str], Seen]) -> None:
    assert {type(seen(name).network).__name__ for name in PIPELINES} == set(INPUTS)


DEFAULTS = {
    "FluxPipeline": ((128, 128, 1, 512), "1024x1024 pixels"),
    "WanPipeline": ((60, 104, 21, 512), "480x832 pixels, 81 frames"),
    "LTXPipeline": ((16, 22, 21, 128), "512x704 pixels, 161 frames"),
    "HunyuanVideoPipeline": ((90, 160, 33, 256), "720x1280 pixels, 129 frames"),
    "SanaPipeline": ((32, 32, 1, 300), "1024x1024 pixels"),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_sizes_are_those_of_the_pipelines_call(seen: Callable[[str], Seen], tmp_path: Path, name: str) -> None:
    """Where nothing is said, of released autoencoders: of folders that lack one."""
    one = seen(name)
    folder = tmp_path / "configs"
    folder.mkdir()
    shutil.copy(one.folder / "model_index.json", folder)
    config: Any = one.network.config
    inputs, (expected, size) = example_inputs(PipelineFolder.read(folder), config), DEFAULTS[name]
    shape = inputs.shape
    assert ((shape.height, shape.width, shape.frames, shape.tokens), inputs.size) == (expected, size)


def really_kept(network: nn.Module, arguments: dict[str, Any]) -> int:
    """Bytes of the storages that autograd keeps of a training pass of real tensors, those of weights left out."""
    storages: dict[int, Tensor] = {}
    weights = {each.data_ptr() for each in network.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in weights:
            storages[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(**arguments, return_dict=False)[0]
        losses = [each.square().mean() for each in (output if isinstance(output, list) else [output])]
        torch.stack(losses).sum().backward()
    return sum(each.untyped_storage().nbytes() for each in storages.values())


@pytest.mark.parametrize("name", PIPELINES)
def test_activations_are_those_that_training_keeps(seen: Callable[[str], Seen], name: str) -> None:
    """In float32, whatever the pipeline."""
    one = seen(name)
    counted = training_pass(one.described, one.inputs.arguments, 3, operations=False, precision="float32")
    assert counted.kept == pytest.approx(really_kept(one.network.train(), one.inputs.arguments(3)), rel=0.1)


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "FluxPipeline"])
def test_activations_under_gradient_checkpointing(seen: Callable[[str], Seen], name: str) -> None:
    """Those of diffusers' own: what is kept, and the operations, with those of the blocks once more."""
    one = seen(name)
    counted = training_pass(one.described, one.inputs.arguments, 3, precision="float32")
    network: Any = one.network.train()
    network.enable_gradient_checkpointing()
    counter = FlopCounterMode(display=False, custom_mapping=ATTENTION)
    with counter:
        real = really_kept(network, one.inputs.arguments(3))
    network.disable_gradient_checkpointing()
    assert counted.between == pytest.approx(real, rel=0.1)
    assert counted.between + counted.block < counted.kept
    real_operations = counter.get_total_flops()  # without what comes last in a block, whose output is not needed
    assert real_operations <= counted.operations + counted.again < 1.05 * real_operations


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "FluxPipeline"])
def test_activations_in_bf16_are_those_of_norms_in_float32(seen: Callable[[str], Seen], name: str) -> None:
    """Of autocast here, where every norm is given float32, as autocast of CUDA does."""
    one = seen(name)
    norms = [each for each in one.network.modules() if isinstance(each, nn.LayerNorm | nn.GroupNorm)]
    hooks = [each.register_forward_pre_hook(lambda module, args: (args[0].float(), *args[1:])) for each in norms]
    with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about RMSNorm of two precisions
        real = really_kept(one.network.train(), one.inputs.arguments(3))
    for hook in hooks:
        hook.remove()
    counted = training_pass(one.described, one.inputs.arguments, 3, operations=False)
    assert counted.kept == pytest.approx(real, rel=0.1)


@pytest.mark.parametrize("name", [pytest.param("StableDiffusionPipeline", marks=pytest.mark.slow), "FluxPipeline"])
def test_operations_are_those_of_real_tensors(seen: Callable[[str], Seen], name: str) -> None:
    """By torch's counter as it is, of attention as matrix products; a fused one computes its scores twice."""
    one = seen(name)
    counted = training_pass(one.described, one.inputs.arguments, 2)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        output = one.network.train()(**one.inputs.arguments(2), return_dict=False)[0]
        forward, attention = counter.get_total_flops(), counter.flop_counts["Global"][torch.ops.aten.bmm]
        output.square().mean().backward()
    assert counted.forward == forward
    assert attention > 0
    assert counted.operations == counter.get_total_flops() + attention // 2
    half = training_pass(one.described, one.inputs.arguments, 1)
    assert (counted.forward, counted.operations) == (2 * half.forward, 2 * half.operations)


def test_adapters_keep_the_same_on_a_base_of_fewer_bits(seen: Callable[[str], Seen]) -> None:
    """As on one in bf16: by the count, and by training of real tensors."""
    one = seen("FluxPipeline")
    found = []
    for bits in (None, *get_args(Bits)):
        base = quantized_base(one.network, bits) if bits else one.network
        student = add_lora(base, 4, 0).train()
        with at_work(base, torch.device("cpu"), "bf16"):
            counted = training_pass(student, one.inputs.arguments, 3)
            with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's, about RMSNorm of two precisions
                found.append((counted, really_kept(student, one.inputs.arguments(3))))
    one.network.requires_grad_(True)
    assert found[0] == found[1] == found[2]


def configs_alone(folder: Path, place: Path) -> Path:
    """A folder of a pipeline's configs, without its weights."""
    shutil.copytree(folder, place, ignore=shutil.ignore_patterns("*.safetensors"))
    return place


def test_a_pipelines_settings(seen: Callable[[str], Seen], tmp_path: Path) -> None:
    """Of configs alone: what is frozen, trained and computed."""
    one = seen("FluxPipeline")
    found = fits(PipelineFolder.read(configs_alone(one.folder, tmp_path / "configs")), height=16, width=16)
    count = sum(each.numel() for each in one.network.parameters())
    assert found.parameters == count
    in_full = [row for row in found.rows if not row.setting.bits]
    rows = {(row.setting.training, row.setting.checkpointing, row.setting.batch): row for row in in_full}
    assert len(rows) == 12
    quantized = {row.setting: row for row in found.rows if row.setting.bits}
    assert len(quantized) == 8
    for batch in BATCHES:
        plain, eight, low = (rows[training, False, batch] for training in ("AdamW", "adamw8bit", "LoRA"))
        again = rows["AdamW", True, batch]
        assert (plain.memory.weights, plain.memory.gradients, plain.memory.moments) == (4 * count, 4 * count, 8 * count)
        assert plain.memory.teacher == eight.memory.teacher == low.memory.teacher < 4 * count
        assert eight.memory.moments < plain.memory.moments
        rank, adapted = 64, [each for each in one.network.modules() if isinstance(each, nn.Linear | nn.Conv2d)]
        sides = sum(each.weight[0].numel() + each.weight.shape[0] for each in adapted)  # A and B of a layer
        assert low.memory.weights == low.memory.gradients == low.memory.moments // 2 == 4 * rank * sides
        assert plain.operations < again.operations
        for bits in get_args(Bits):
            fewer = quantized[Setting("LoRA", False, batch, bits)]
            assert replace(fewer.memory, teacher=low.memory.teacher) == low.memory
            assert fewer.memory.teacher == bytes_at_work(quantized_base(one.network, bits), bf16=True)
        assert plain.operations == batch * rows["AdamW", False, 1].operations
        assert again.memory.activations < plain.memory.activations


def fit(training: Any, checkpointing: bool, batch: int, total: int, bits: Bits | None = None) -> Fit:  # noqa: ANN401
    return Fit(Setting(training, checkpointing, batch, bits), Memory(total, 0, 0, 0, 0, 0, 0), 1)


def test_the_best_setting_leaves_a_tenth() -> None:
    rows = (
        fit("AdamW", True, 4, 950), fit("AdamW", True, 1, 901), fit("adamw8bit", False, 1, 700),
        fit("adamw8bit", True, 4, 600), fit("LoRA", False, 4, 300), fit("LoRA", False, 4, 200, 4),
        fit("LoRA", True, 1, 210, 8),
    )  # fmt: skip
    found = Fits("network", 1, "", 1, rows)
    assert [row.fits(1000) for row in rows[:5]] == ["tight", "tight", "yes", "yes", "yes"]
    assert rows[0].fits(940) == "no"
    for capacity, expected in ((1100, rows[0]), (1002, rows[1]), (1000, rows[2]), (690, rows[3]), (400, rows[4])):
        assert found.best(capacity) == expected
    assert [found.best(capacity) for capacity in (300, 234, 233, 222)] == [rows[6], rows[6], rows[5], None]


def test_options_are_those_of_the_setting() -> None:
    options = Setting("adamw8bit", True, 4).options(64)
    assert options == [
        "distill.optimizer=adamw8bit",
        "distill.gradient_checkpointing=true",
        "distill.gradient_accumulation_steps=16",
    ]
    assert Setting("LoRA", True, 4, 8).options(8) == [
        "lora=64",
        "base_bits=8",
        "distill.gradient_checkpointing=true",
        "distill.gradient_accumulation_steps=2",
    ]
    assert Setting("LoRA", False, 1).options(8) == ["distill.lora_rank=64", "distill.gradient_accumulation_steps=8"]


def test_a_network_that_is_not_known_is_refused(tmp_path: Path) -> None:
    folder = tiny_pipelines.build("Lumina2Pipeline", tmp_path / "pipeline")
    with pytest.raises(UserError, match="Lumina2Transformer2DModel of unknown inputs"):
        fits(PipelineFolder.read(folder))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"layers_per_block": 10**9}, "expected at most 256"),
        ({"block_out_channels": "many"}, "is damaged"),
        ({"class_embed_type": "timestep"}, "takes only a prompt, got further inputs"),
    ],
)
def test_a_damaged_config_is_refused(
    seen: Callable[[str], Seen], tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    folder = configs_alone(seen("StableDiffusionPipeline").folder, tmp_path / "configs")
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    with pytest.raises(UserError, match=message):
        fits(PipelineFolder.read(folder))


@pytest.mark.parametrize("size", [{"height": 15}, {"height": 0}, {"width": 2**17}, {"frames": 5}])
def test_a_size_that_is_none_is_refused(seen: Callable[[str], Seen], size: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"expected a multiple of 4|expected 1 to|--frames has no effect"):
        fits(PipelineFolder.read(seen("StableDiffusionPipeline").folder), **size)
