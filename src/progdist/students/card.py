"""The README.md of a model folder, with the metadata header that the Hugging Face hub reads."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from progdist._utils.words import any_of, counted
from progdist.methods import METHODS
from progdist.methods.guidance import Fixed, Guidance, Input
from progdist.models.conditioning import Conditioning
from progdist.models.guidance_input import class_guidance
from progdist.models.model import LoraWeights, Model
from progdist.models.pipeline_prompts import PipelinePrompts
from progdist.models.pipelines import PIPELINES
from progdist.models.prompts import Prompts
from progdist.students.card_header import card_header, without_licence

if TYPE_CHECKING:
    from progdist.evaluation.record import EvaluationRecord

PLAIN = """from diffusers import {pipeline}

pipeline = {pipeline}.from_pretrained("{path}")
images = pipeline(batch_size=16, num_inference_steps={steps}).images
"""

LOOP = """import torch
from diffusers import {scheduler}, UNet2DModel

network = UNet2DModel.from_pretrained("{path}", subfolder="unet")
scheduler = {scheduler}.from_pretrained("{path}", subfolder="scheduler")
scheduler.set_timesteps({grid})
labels = {labels}
z = {begin}torch.randn(16, network.config.in_channels, {height}, {width})
for timestep in scheduler.timesteps:
    with torch.no_grad():
        output = network({input}, {timestep}, class_labels=labels).sample
    z = scheduler.step(output, timestep, z).prev_sample
"""

TRANSFORMER = """import torch
from diffusers import DiTPipeline

pipeline = DiTPipeline.from_pretrained("{path}")
labels = {listed_labels}
images = pipeline(labels, guidance_scale=1.0, num_inference_steps={steps}).images
"""

TEXT = """from diffusers import {pipeline}

pipeline = {pipeline}.from_pretrained("{path}")
images = pipeline("{caption}", num_inference_steps={steps}, guidance_scale={scale:g}).images
"""

WATCHED = """import torch
from diffusers import {pipeline}

pipeline = {pipeline}.from_pretrained("{path}", torch_dtype=torch.float32)
result = pipeline("{caption}", num_inference_steps={steps}{call})
"""

LORA = """from diffusers import DDIMScheduler, {pipeline}

pipeline = {pipeline}.from_pretrained({base})
pipeline.load_lora_weights("{path}", weight_name="pytorch_lora_weights.safetensors")
grid = {{"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}}
pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, **grid)
images = pipeline("{caption}", num_inference_steps={steps}, guidance_scale={scale:g}).images
"""

LORA_WATCHED = """import torch
from diffusers import {scheduler}, {pipeline}

pipeline = {pipeline}.from_pretrained({base}, torch_dtype=torch.float32)
pipeline.load_lora_weights("{path}", weight_name="pytorch_lora_weights.safetensors")
pipeline.scheduler = {scheduler}.from_pretrained("{path}", subfolder="scheduler")
result = pipeline("{caption}", num_inference_steps={steps}{call})
"""

OURS = """import torch
import progdist

denoiser = progdist.load("{path}")
noise = torch.randn(16, {channels}, {height}, {width})
images = progdist.sample(denoiser, noise, {steps}{condition})
"""


CAPTION = "a photograph of a lighthouse"


def _template(stock: str | None, classes: int) -> str:
    match stock:
        case str() if stock in PIPELINES:
            return TEXT
        case "DiTPipeline":
            return TRANSFORMER
        case "DDIMScheduler" | "LDMPipeline" if not classes:
            return PLAIN
        case "DDIMScheduler" | "FlowMatchEulerDiscreteScheduler" | "EDMEulerScheduler":
            return LOOP
    return OURS


def card(model: Model, stock: str | None, records: "Sequence[EvaluationRecord]", scheduler: str = "") -> str:
    """The text, for the class of the folder's stock pipeline or scheduler, if it has one, with its evaluations.

    `scheduler` is the class of the folder's scheduler, which the base of a LoRA file uses, too.
    """
    counts, guidance = list(model.steps), model.guidance
    steps, guided = min(counts, default=256), class_guidance(model.denoiser.network) is not None
    prompts, numbers = model.conditioning, dict[str, Any]()
    if isinstance(prompts, PipelinePrompts):
        numbers = {"pipeline": prompts.pipeline, "caption": CAPTION, "call": _given(prompts), "scheduler": scheduler}
        code = WATCHED.format(path=".", steps=steps, **numbers)
    else:
        numbers = numbers_of(model, stock, steps)
        code = (OURS if guided else _template(stock, len(model.labels))).format(path=".", steps=steps, **numbers)
    lines = [
        card_header(model),
        f"# A diffusion model that samples in {_listed(counts)}\n" if counts else "# A diffusion model\n",
        f"{_what_it_makes(model)}; trained on {model.data}.",
        _lineage(model),
        _fused(model),
        _prompt_guidance(prompts) if isinstance(prompts, Prompts) else "",
        _class_guidance(model, guidance, stock) if guided else "",
        f"\n```python\n{code}```\n",
        _lora(prompts, model.lora, steps, numbers) if model.lora else "",
        _measured(records),
        without_licence(model.base),
    ]
    return "\n".join(line for line in lines if line)


def _what_it_makes(model: Model) -> str:
    """The size of its images, or of a pipeline's latents."""
    if isinstance(model.conditioning, PipelinePrompts):
        return f"Latents of {'x'.join(map(str, model.shape))}, {model.conditioning.describe()}"
    channels, height, width = model.image
    classes = len(model.labels)
    kind = counted(classes, "class") if classes else model.conditioning.describe()
    return f"Images of {height}x{width} with {counted(channels, 'channel')}, {kind}"


def _given(prompts: PipelinePrompts) -> str:
    """The arguments of a watched pipeline, as code that follows other arguments."""
    pipeline = prompts.watched
    arguments: dict[str, Any] = {**pipeline.off, **pipeline.arguments}
    if pipeline.scale:
        arguments[pipeline.scale[0]] = _scale(prompts.learned)
    return "".join(f", {name}={value!r}" for name, value in arguments.items())


def numbers_of(model: Model, stock: str | None, steps: int) -> dict[str, Any]:
    """The values of a template's fields."""
    guidance = model.guidance
    ddim, edm, flow = (stock == f"{name}Scheduler" for name in ("DDIM", "EDMEuler", "FlowMatchEulerDiscrete"))
    classes = len(model.labels)
    turn = _sixteen_labels(model)
    condition = f", class_labels={turn}" if classes else ""
    condition += f", guidance={_scale(guidance):g}" if class_guidance(model.denoiser.network) else ""
    channels, height, width = model.shape
    return {
        "channels": channels,
        "height": height,
        "width": width,
        "labels": turn,
        "listed_labels": f"({turn}).tolist()",
        "condition": condition,
        "scheduler": stock,
        "timestep": "timestep" if ddim else "timestep.expand(16)",
        "begin": "scheduler.init_noise_sigma * " if edm else "",
        "input": "scheduler.scale_model_input(z, timestep)" if edm else "z",
        "grid": f"{steps}" if model.steps or not flow else f"sigmas=[1 - i / {steps} for i in range({steps})]",
        "pipeline": "DDIMPipeline" if ddim else stock,
        "caption": CAPTION,
        "scale": _scale(guidance),
    }


def _sixteen_labels(model: Model) -> str:
    """Code of sixteen labels: with the data's frequencies, or all in turn if these are unknown."""
    labels = model.labels
    if not labels:
        return "None"
    if model.conditioning.shares:
        return f"torch.tensor({model.conditioning.drawn(16).tolist()})"
    turn = f"torch.arange(16) % {len(labels)}"
    return turn if list(labels) == list(range(len(labels))) else f"torch.tensor({list(labels)})[{turn}]"


def _listed(counts: Sequence[int]) -> str:
    return any_of(counts, "step")


def _lineage(model: Model) -> str:
    if not model.lineage:
        return ""
    chain = " -> ".join(map(str, (*model.lineage, *model.steps)))
    method, counts = METHODS.get(model.method), list(model.steps)
    samplers = {count: method.samplers(count) if method else {} for count in counts}
    others = {
        sampler: [samplers[count][sampler] for count in counts if sampler in samplers[count]]
        for count in counts
        for sampler in samplers[count]
        if sampler != "ddim"
    }
    also = "".join(
        f", in {'several steps' if None in steps else _listed([step for step in steps if step is not None])} of "
        f"`progdist sample --method {sampler}`,"
        for sampler, steps in others.items()
    )
    made = f"[{method.title}](https://arxiv.org/abs/{method.arxiv})" if method else "distillation"
    return f"Made by {made}, {chain} steps. It samples well in {_listed(counts)} of DDIM{also} and poorly in others."


def _fused(model: Model) -> str:
    """A sentence on the LoRA files fused into the teacher, with their weights."""
    files = [each.rpartition(":") for each in model.fused]
    named = ", ".join(f"`{name.replace('`', '')}` with weight {weight}" for name, _, weight in files)
    return f"LoRA files were fused into its teacher first: {' '.join(named.split())}." if files else ""


def _scale(guidance: Guidance | None) -> float:
    """The guidance scale for the stock pipeline: the middle of the range of a guidance input, and 1 otherwise."""
    return (guidance.low + guidance.high) / 2 if isinstance(guidance, Input) else 1.0


def _prompt_guidance(prompts: Prompts) -> str:
    """A sentence on the guidance of a text-to-image model, with the arguments for the stock pipeline."""
    guidance, away = prompts.learned, f' with negative prompt "{prompts.negative}"' if prompts.negative else ""
    unguided = prompts.watched.off if isinstance(prompts, PipelinePrompts) else {"guidance_scale": 1.0}
    without = " and ".join(f"`{name}={value:g}`" for name, value in unguided.items()) or "its defaults"
    scale = (prompts.watched.scale if isinstance(prompts, PipelinePrompts) else None) or ("guidance_scale", 1.0)
    match guidance:
        case Input(low, high) if low == high:
            return f"Sample it with `{scale[0]}={low:g}`, which is an input; `negative_prompt` has no effect."
        case Input():
            return (
                f"`{scale[0]}` is an input, from {guidance}, distilled in{away}: each step calls the network once, and "
                "`negative_prompt` has no effect."
            )
        case Fixed(scale):
            distilled = f"a guidance scale of {scale:g} is distilled in{away}"
        case None:
            distilled = "no guidance is distilled in"
    return f"Sample it with {without}: {distilled}, and `negative_prompt` has no effect."


def _lora(prompts: Conditioning, lora: LoraWeights, steps: int, numbers: Mapping[str, Any]) -> str:
    """How to sample the base's pipeline with the file."""
    name, revision = lora.base, ""
    if name.startswith("hub:"):
        name, _, revision = name.removeprefix("hub:").partition("@")
    base = f'"{name}"' + (f', revision="{revision}"' if revision else "")
    watched = isinstance(prompts, PipelinePrompts)
    code = (LORA_WATCHED if watched else LORA).format(path=".", base=base, steps=steps, **numbers)
    euler = "" if watched else "; Euler's method with trailing timesteps takes the same steps"
    return (
        f"The same model as LoRA weights of rank {lora.rank} for {name}, whose weights are unchanged{euler}:\n\n"
        f"```python\n{code}```\n{_base_bits(lora)}"
    )


def _base_bits(lora: LoraWeights) -> str:
    """A paragraph on the quantized base on which the weights were trained, and its effect on samples."""
    if lora.base_bits is None:
        return ""
    loaded = {8: "load_in_8bit=True", 4: 'load_in_4bit=True, bnb_4bit_quant_type="nf4"'}[lora.base_bits]
    return (
        f"\nThey were trained on a copy of that pipeline's network in {lora.base_bits} bits. This folder and the code "
        "above use that network in full precision: their outputs differ from the trained ones by the rounding of its "
        f"weights, as in diffusers' `BitsAndBytesConfig({loaded})` in its blocks.\n"
    )


def _class_guidance(model: Model, guidance: Guidance | None, stock: str | None) -> str:
    """A paragraph on the guidance scales of a class-conditional model, and its use in stock diffusers."""
    part = {None: "its network", "DiTPipeline": "`transformer/`"}.get(stock, "`unet/`")
    how = ", with `guidance_scale=1` in DiTPipeline" if stock == "DiTPipeline" else ""
    return (
        f"`guidance` is an input, from {guidance}, by a part `guidance/` beside the network: each step calls the "
        f"network once. Stock diffusers loads {part} without that part and samples at a guidance of "
        f"{model.scale(None):g}{how}; any other scale requires progdist, as below."
    )


def _measured(records: "Sequence[EvaluationRecord]") -> str:
    if not records:
        return ""
    rows = ["| steps | features | samples | Fréchet distance | 95 % |", "|---:|---|---:|---:|---|"]
    rows += [
        f"| {record.steps} | {quality.features} | {quality.samples} | {quality.frechet:.3f} | "
        f"{quality.frechet_low:.3f} to {quality.frechet_high:.3f} |"
        for record in records
        for quality in record.quality
    ]
    scale = "" if records[0].guidance is None else f", at a guidance scale of {records[0].guidance:g}"
    return f"Measured against its training data{scale}:\n\n" + "\n".join(rows) + "\n"
