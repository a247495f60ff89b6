"""What stock diffusers makes of LoRA files in other programs' formats, in numbers that can be compared.

Three ways, each of which knows the names by itself:

    pipeline     the stock pipeline loads the file (`load_lora_weights`), and its network makes the student's outputs
    LoRA reader  `diffusers.loaders.lora_conversion_utils` gives A and B of diffusers' layers; some of its readers know
                 one width alone, that of the published network, which is then built without memory for its weights
    checkpoint   what the file adds to the weights of the original network, which `diffusers.loaders.single_file_utils`
                 takes apart into diffusers' layers: so merges a program that reads the file

A correction B A is compared by what it makes of one vector of every width, B (A x).
"""

# pyright: reportPrivateImportUsage=false

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import peft
import torch
from diffusers.loaders import single_file_utils as checkpoints
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from progdist.students.lora_formats import Format, converted

Weights = Mapping[str, Tensor]

COUNT = 21504
"""Rows of a tensor that can be halved, cut in three, and cut as Flux's `linear1` is."""


def targets(network: nn.Module) -> dict[str, Any]:
    """The layers that have adapters, by name: a convolution of groups takes none of a rank that they do not divide."""
    named = network.named_modules()
    kinds = nn.Linear | nn.Conv2d
    return {name: each for name, each in named if isinstance(each, kinds) and getattr(each, "groups", 1) == 1}


def adapters(network: nn.Module, rank: int = 2) -> dict[str, Tensor]:
    """Random LoRA weights of a network, which may be on the meta device."""
    generator, weights = torch.Generator().manual_seed(0), {}
    for name, module in targets(network).items():
        rows, columns, *size = module.weight.shape
        weights[f"{name}.lora_A.weight"] = torch.randn(rank, columns, *size, generator=generator) / columns**0.5
        weights[f"{name}.lora_B.weight"] = 0.1 * torch.randn(rows, rank, *[1] * len(size), generator=generator)
    return weights


def student_of(network: nn.Module, weights: Weights) -> nn.Module:
    """A copy of a network with LoRA weights, by peft."""
    student, rank = copy.deepcopy(network), len(next(iter(weights.values())))
    layers = sorted({re.sub(r"\.lora_[AB]\.weight$", "", name) for name in weights})
    student = peft.inject_adapter_in_model(peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), student)
    left = peft.set_peft_model_state_dict(student, dict(weights)).unexpected_keys
    assert not left, left
    return student


def probe(rows: int) -> Tensor:
    """A vector (rows, 1) that depends on its length alone."""
    return torch.randn(rows, 1, generator=torch.Generator().manual_seed(rows))


def corrections(weights: Weights, *, whole: bool = False) -> dict[str, Tensor]:
    """B (A x) of every layer, or whole its B A, from `LAYER.lora_A.weight` and `LAYER.lora_B.weight`.

    Or from down, up and alpha.
    """
    made = {}
    for name, each in weights.items():
        if not re.search(r"\.lora_(A|down)\.weight$", name):
            continue
        layer, down = re.sub(r"\.lora_(A|down)\.weight$", "", name), each.flatten(1)
        up = weights[name.replace("lora_A", "lora_B").replace("lora_down", "lora_up")].flatten(1)
        alpha = weights.get(f"{layer}.alpha")
        scale = 1.0 if alpha is None else float(alpha) / len(down)
        made[layer] = scale * (up @ (down if whole else down @ probe(down.shape[1])))
    return made


def furthest(student: Mapping[str, Tensor], read: Mapping[str, Tensor]) -> float:
    """The largest difference of the layers that were read, over the largest number of the student's."""
    size = max(float(each.abs().max()) for each in student.values())
    return (
        max(float((each.reshape(-1) - student[layer].reshape(-1)).abs().max()) for layer, each in read.items()) / size
    )


@dataclass(frozen=True)
class Calls:
    """A pipeline's network and the arguments of one of its calls."""

    pipeline: Any
    part: str
    positional: tuple[Any, ...]
    keywords: dict[str, Any]

    @property
    def network(self) -> Any:  # noqa: ANN401
        return getattr(self.pipeline, self.part)

    def outputs(self, network: nn.Module) -> Tensor:
        """What a network makes of them."""
        with torch.no_grad():
            made = network(*self.positional, **self.keywords)
        made = made[0] if isinstance(made, tuple) else made.sample
        return torch.stack(made) if isinstance(made, list) else made


def called(pipeline: Any, part: str, run: Callable[[], Any]) -> Calls:  # noqa: ANN401
    """The last call that a pipeline's network gets while `run` makes something with it."""
    seen: list[Any] = []
    network = getattr(pipeline, part)
    handle = network.register_forward_pre_hook(lambda _, given, named: seen.append((given, named)), with_kwargs=True)
    run()
    handle.remove()
    return Calls(pipeline, part, *seen[-1])


def through_pipeline(calls: Calls, file: Path) -> tuple[set[str], Tensor]:
    """The layers that a pipeline finds in a file, and its network's outputs with it, which it then loses again."""
    calls.pipeline.load_lora_weights(file.parent, weight_name=file.name)
    found = {name for name, module in calls.network.named_modules() if isinstance(module, LoraLayer)}
    made = calls.outputs(calls.network)
    calls.pipeline.unload_lora_weights()
    return found, made


def through_reader(pipeline: str, weights: Weights) -> dict[str, Tensor]:
    """B (A x) by diffusers' layers, as the pipeline's class reads LoRA weights of another format.

    Names without the prefix of the transformer it passes over when it loads them.
    """
    read = getattr(diffusers, pipeline).lora_state_dict(dict(weights))
    kept = {name: each for name, each in corrections(read).items() if name.startswith("transformer.")}
    return {name.removeprefix("transformer."): each for name, each in kept.items()}


class Original(dict[str, Tensor]):
    """A network's weights by their original names; those that are not there are zeros, and their names are noted."""

    def __init__(self, *given: Mapping[str, Tensor]) -> None:
        super().__init__(*given)
        self.absent: list[str] = []

    def pop(self, key: str, *default: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        if key not in self:
            self.absent.append(key)
        return super().pop(key, *(default or (torch.zeros(COUNT, 1),)))


CHECKPOINTS: dict[str, Callable[..., dict[str, Tensor]]] = {
    "StableDiffusion3Pipeline": checkpoints.convert_sd3_transformer_checkpoint_to_diffusers,
    "FluxPipeline": checkpoints.convert_flux_transformer_checkpoint_to_diffusers,
    "WanPipeline": checkpoints.convert_wan_transformer_to_diffusers,
    "LTXPipeline": checkpoints.convert_ltx_transformer_checkpoint_to_diffusers,
    "Lumina2Pipeline": checkpoints.convert_lumina2_to_diffusers,
    "HunyuanVideoPipeline": checkpoints.convert_hunyuan_video_transformer_to_diffusers,
}
"""What takes apart an original network's weights, by the class of the pipeline."""


def through_checkpoint(pipeline: str, added: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By diffusers' layers, what is added to the weights of an original network: `added`, by its own layers' names.

    Dots in these may be underscores.
    """
    convert = CHECKPOINTS[pipeline]
    if not any("." in name for name in added):
        listed = {re.sub("^(joint_blocks|double_blocks|single_blocks)_(\\d+)_.+", r"\1.\2.", name): 0 for name in added}
        known = Original({f"{name}seed": torch.zeros(COUNT, 1) for name in listed if "." in name})
        known["context_embedder.weight"] = torch.zeros(COUNT, 1)
        known["guidance_in.seed"] = torch.zeros(COUNT, 1)
        convert(known)
        layers = [name.removesuffix(".weight") for name in [*known.absent, "context_embedder.weight"]]
        dotted = {layer.replace(".", "_"): layer for layer in layers}
        added = {dotted[name]: each for name, each in added.items()}
    original = Original({f"{name}.weight": each for name, each in added.items()})
    made = convert(original)
    left = {f"{name}.weight" for name in added} & original.keys()
    assert not left, left
    kept = {name.removesuffix(".weight"): each for name, each in made.items() if name.endswith(".weight")}
    return {name: each for name, each in kept.items() if each.any()}


def merged(network: nn.Module, added: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a network to whose weights something is added, by layers."""
    network = copy.deepcopy(network)
    for name, each in added.items():
        weight = network.get_parameter(f"{name}.weight")
        weight.data += each.reshape(weight.shape)
    return network


COMFYUI_HUNYUAN_VIDEO = {
    "time_in.in_layer": "time_in.mlp.0",
    "time_in.out_layer": "time_in.mlp.2",
    "guidance_in.in_layer": "guidance_in.mlp.0",
    "guidance_in.out_layer": "guidance_in.mlp.2",
    "t_embedder.in_layer": "t_embedder.mlp.0",
    "t_embedder.out_layer": "t_embedder.mlp.2",
    "c_embedder.in_layer": "c_embedder.linear_1",
    "c_embedder.out_layer": "c_embedder.linear_2",
}
"""ComfyUI's names of HunyuanVideo's embedders, and Tencent's (ComfyUI: `supported_models.py`, class HunyuanVideo)."""


def tencents(weights: Weights) -> dict[str, Tensor]:
    """HunyuanVideo's weights with the names of its embedders as Tencent has them."""

    def renamed(name: str) -> str:
        for ours, theirs in COMFYUI_HUNYUAN_VIDEO.items():
            name = name.replace(ours, theirs)
        return name

    return {renamed(name): each for name, each in weights.items()}


PASSED_OVER = {
    # its reader treats A as B: it cuts that of the text's q, k and v, and exchanges the halves of a modulation's
    "HunyuanVideoPipeline": r"(txt_in|final_layer\.adaLN_modulation)\.",
    "Lumina2Pipeline": r"(final_layer|cap_embedder|t_embedder|x_embedder)",  # its reader takes blocks alone
}
"""What the LoRA reader of a pipeline does not take, by their names after the prefix."""

WAYS: dict[str, dict[str, tuple[str, ...]]] = {
    "StableDiffusionPipeline": {"kohya": ("pipeline",), "comfyui": ("pipeline",)},
    "StableDiffusionXLPipeline": {"kohya": ("pipeline",), "comfyui": ("pipeline",)},
    "StableDiffusion3Pipeline": {"kohya": ("checkpoint",), "comfyui": ("checkpoint",)},
    "FluxPipeline": {"kohya": ("LoRA reader", "checkpoint"), "comfyui": ("pipeline",)},
    "WanPipeline": {"kohya": ("pipeline",), "comfyui": ("pipeline", "checkpoint")},
    "LTXPipeline": {"comfyui": ("LoRA reader", "checkpoint")},
    "QwenImagePipeline": {"kohya": ("pipeline",), "comfyui": ("pipeline",)},
    "ZImagePipeline": {"comfyui": ("pipeline",)},
    "Lumina2Pipeline": {"comfyui": ("LoRA reader", "checkpoint")},
    "HunyuanVideoPipeline": {"comfyui": ("LoRA reader", "checkpoint")},
    "SanaPipeline": {},
    "CogVideoXPipeline": {},
}
"""The ways to read each format of each pipeline."""

OF_ONE_WIDTH = ("FluxPipeline", "Lumina2Pipeline", "HunyuanVideoPipeline")
"""Pipelines whose readers know the width of the published network alone."""


@dataclass(frozen=True)
class Reading:
    """What one way made of one file."""

    keys: int  # that were written
    way: str
    layers: int  # that were read as the student has them
    of: int  # that the student has
    difference: float  # of outputs, over the student's largest
    outputs: bool  # whether those of the network, and not of every layer for one vector
    wide: bool  # whether of the published width


def readings(pipeline: str, form: Format, calls: Calls, folder: Path) -> list[Reading]:
    """What all ways make of the file of a random student of a tiny pipeline, or of a published width."""
    ways = ("pipeline",) if form == "diffusers" else WAYS[pipeline][form]
    return [_reading(pipeline, form, calls, folder, way) for way in ways]


def _reading(pipeline: str, form: Format, calls: Calls, folder: Path, way: str) -> Reading:
    wide = way != "pipeline" and pipeline in OF_ONE_WIDTH
    weights = adapters(published(pipeline) if wide else calls.network)
    if (pipeline, form) == ("WanPipeline", "kohya"):
        weights = {name: each for name, each in weights.items() if name.startswith("blocks.")}
    written = converted(weights, pipeline, form)
    student = corrections(weights)
    if way == "pipeline":
        file = folder / f"{pipeline}-{form}.safetensors"
        save_file(written, file)
        layers, made = through_pipeline(calls, file)
        expected = calls.outputs(student_of(calls.network, weights))
        found, outputs = len(layers & student.keys()), True
        difference = float((made - expected).abs().max() / expected.abs().max())
    elif way == "LoRA reader":
        read, outputs = _read(pipeline, written), False
        read = {name: each for name, each in read.items() if name in student}
        found, difference = len(read), furthest(student, read)
    else:
        prefix = "lora_unet_" if form == "kohya" else "diffusion_model."
        named = tencents(written) if pipeline == "HunyuanVideoPipeline" else written
        named = {name.removeprefix(prefix): each for name, each in named.items()}
        read = through_checkpoint(pipeline, corrections(named, whole=not wide))
        assert read.keys() <= student.keys()
        found, outputs = len(read), not wide
        if wide:
            difference = furthest(student, read)
        else:
            expected = calls.outputs(student_of(calls.network, weights))
            made = calls.outputs(merged(calls.network, read))
            difference = float((made - expected).abs().max() / expected.abs().max())
    return Reading(len(written), way, found, len(student), difference, outputs, wide)


def _read(pipeline: str, written: Weights) -> dict[str, Tensor]:
    """Through the LoRA reader, without what it does not take."""
    named = tencents(written) if pipeline == "HunyuanVideoPipeline" else written
    passed = re.compile(rf"diffusion_model\.{PASSED_OVER.get(pipeline, '$')}")
    return through_reader(pipeline, {name: each for name, each in named.items() if not passed.match(name)})


def published(pipeline: str) -> nn.Module:
    """A network of the published width and of one block of each kind, without memory for its weights."""
    with torch.device("meta"):
        match pipeline:
            case "FluxPipeline":
                return diffusers.FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
            case "Lumina2Pipeline":
                return diffusers.Lumina2Transformer2DModel(num_layers=1, num_refiner_layers=1)
            case "HunyuanVideoPipeline":
                return diffusers.HunyuanVideoTransformer3DModel(num_layers=1, num_single_layers=1, num_refiner_layers=1)
    raise KeyError(pipeline)
