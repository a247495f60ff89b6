"""What the distillation of a model of Stable Diffusion's size takes on a GPU: memory and seconds an update.

    python benchmarks/performance/large_models.py runs/large [--model sd-1.5] \
        [--variants adamw adamw8bit lora] [--batch 4]

A pipeline of the published configuration with random weights, and images of noise: so the figures are of memory and
time, and nothing is learned. For each variant `progdist distill` runs whole, stage 0 with a guidance scale as an input
and one halving, in bf16; its largest allocation is compared with what `--dry-run` counts. Sampling is left out.
`--model tiny` does all of it with a small pipeline on whatever device there is.
"""

# pyright: reportPrivateImportUsage=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportAttributeAccessIssue=false

import argparse
import json
import runpy
import statistics
import subprocess
import sys
import time
from contextlib import redirect_stdout, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

CAPTIONS = ["a lighthouse", "a small boat", "a mountain in the snow", "two apples on a table"]
UPDATES, STEPS = 15, 4
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

VARIANTS = {
    "adamw": [],
    "adamw, gradient checkpointing": ["conversion.gradient_checkpointing=true", "distill.gradient_checkpointing=true"],
    "adamw8bit": ["conversion.optimizer=adamw8bit", "distill.optimizer=adamw8bit"],
    "lora": ["conversion.lora_rank=64", "distill.lora_rank=64"],
}

SD = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": 8,
}
SDXL = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "block_out_channels": (320, 640, 1280),
    "attention_head_dim": (5, 10, 20),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
TINY = SD | {"sample_size": 8, "block_out_channels": (32, 64, 64, 64), "cross_attention_dim": 32}
NETWORKS: dict[str, dict[str, Any]] = {"sd-1.5": SD, "sdxl": SDXL, "tiny": TINY}
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def tokenizer() -> CLIPTokenizer:
    """CLIP's, with the words of the captions."""
    pairs = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    setattr(pairs, "pre_tokenizer", pre_tokenizers.Whitespace())  # noqa: B010  (its stub has no setter)
    pairs.train_from_iterator(CAPTIONS, trainers.BpeTrainer(end_of_word_suffix="</w>", show_progress=False))
    learned = json.loads(pairs.to_str())["model"]
    words = dict(learned["vocab"])
    for special in ("<|startoftext|>", "<|endoftext|>"):
        words[special] = len(words)
    return CLIPTokenizer(vocab=words, merges=[tuple(pair) for pair in learned["merges"]], model_max_length=77)


def text_config(words: CLIPTokenizer, width: int, layers: int) -> CLIPTextConfig:
    """Of an encoder of so many channels."""
    special: dict[str, Any] = {f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "projection_dim": width}
    return CLIPTextConfig(vocab_size=len(words), num_attention_heads=width // min(width, 64), **sizes, **special)


def write_pipeline(model: str, place: Path) -> None:
    """A pipeline with random weights, in half precision on the disk."""
    words, tiny = tokenizer(), model == "tiny"
    with DEVICE:
        network = UNet2DConditionModel(**NETWORKS[model])
        vae = AutoencoderKL(
            block_out_channels=(32, 32, 32, 32) if tiny else (128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1 if tiny else 2,
            sample_size=8 * network.config["sample_size"],
        )
        encoder = CLIPTextModel(text_config(words, 32 if tiny else 768, 2 if tiny else 12))
        second = CLIPTextModelWithProjection(text_config(words, 1280, 32)) if model == "sdxl" else None
    parts = {"vae": vae, "text_encoder": encoder, "tokenizer": words, "unet": network}
    parts["scheduler"] = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    if second:
        pipeline: Any = StableDiffusionXLPipeline(**parts, text_encoder_2=second, tokenizer_2=words)
    else:
        pipeline = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    (pipeline if tiny else pipeline.to(torch.float16)).save_pretrained(place)


def write_pairs(size: int, place: Path) -> None:
    """Sixteen images of noise, each with a caption."""
    place.mkdir(parents=True, exist_ok=True)
    draw = torch.Generator().manual_seed(0)
    for number in range(16):
        pixels = torch.randint(256, (size, size, 3), generator=draw, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(place / f"{number:02d}.png")
        (place / f"{number:02d}.txt").write_text(CAPTIONS[number % len(CAPTIONS)])


def command(place: Path, variant: str, batch: int) -> list[str]:
    """The words after `progdist` that distil the pipeline in a folder."""
    pairs, out = f"captions:{place / 'pairs'}", place / "run"
    settings = [*VARIANTS[variant], "teacher.trust=true", "evaluate.samples=4", "evaluate.resamples=2"]
    if DEVICE.type == "cuda":
        settings += [f"{section}.precision=bf16" for section in ("conversion", "distill", "evaluate")]
    words = ["distill", str(place / "pipeline"), "--data", pairs, "--guidance", "1:8", "--steps", str(STEPS)]
    words += ["--start", str(2 * STEPS), "--updates", str(UPDATES), "--set", f"conversion.updates={UPDATES}"]
    words += ["--batch", str(batch), "--out", str(out), "--fresh"]
    return [*words, *(word for setting in settings for word in ("--set", setting))]


def counted(words: list[str]) -> int:
    """Bytes that `--dry-run` counts for a command."""
    from progdist.cli import app
    from progdist.runs.estimate.cost import heaviest_stage
    from progdist.teachers.open import open_teacher

    recipes: list[Any] = []
    app._estimated = lambda recipe, *rest: recipes.append(recipe) or True
    with suppress(SystemExit), redirect_stdout(None):
        app.start(words)
    (recipe,) = recipes
    model = open_teacher(recipe.teacher.model, None).model
    return heaviest_stage(recipe, model, recipe.train_configs(), DEVICE)[1].total


def run_here(words: list[str]) -> None:
    """Run `progdist` in this process and print, as its last line, GiB and seconds between updates by stage."""
    from progdist.runs import evaluator
    from progdist.training import loop

    def unsampled(model: Any, noise: Any, labels: Any, *rest: Any, **options: Any) -> Any:  # noqa: ANN401
        return torch.rand(len(labels), *model.image)

    evaluator.sample_in_batches = unsampled
    gradient, times, cuda = loop._gradient, list[tuple[int, float]](), DEVICE.type == "cuda"

    def timed(network: Any, *rest: Any) -> Any:  # noqa: ANN401
        found = gradient(network, *rest)
        if cuda:
            torch.cuda.synchronize()
        times.append((id(network), time.perf_counter()))
        return found

    loop._gradient = timed
    sys.argv = ["progdist", *words]
    try:
        runpy.run_module("progdist", run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    stages = list(dict.fromkeys(network for network, _ in times))
    lasted = [[moment for network, moment in times if network == stage] for stage in stages]
    medians = [statistics.median(b - a for a, b in pairwise(one[2:])) for one in lasted]
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else None
    print(json.dumps({"gib": peak, "seconds": medians}))


def main() -> None:
    """Write the pipeline, run each variant, print a table."""
    if sys.argv[1:2] == ["--in-this-process"]:
        return run_here(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", choices=[*NETWORKS], default="sd-1.5")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--batch", type=int, default=4)
    arguments = parser.parse_args()
    place = arguments.out
    write_pipeline(arguments.model, place / "pipeline")
    write_pairs(8 * NETWORKS[arguments.model]["sample_size"], place / "pairs")
    print("| variant | counted, GiB | largest, GiB | stage 0, s | halving, s |\n|---|---:|---:|---:|---:|", flush=True)
    for variant in arguments.variants:
        words = command(place, variant, arguments.batch)
        run = [sys.executable, __file__, "--in-this-process", *words]
        with subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            bytes_counted = counted(words)
            printed, error = process.communicate()
        if process.returncode:
            print(f"| {variant} | failed: {error.strip()[-300:]} |", flush=True)
            continue
        figures = json.loads(printed.strip().splitlines()[-1])
        largest = f"{figures['gib']:.1f}" if figures["gib"] else ""
        seconds = " | ".join(f"{each:.3f}" for each in figures["seconds"])
        print(f"| {variant} | {bytes_counted / 2**30:.2f} | {largest} | {seconds} |", flush=True)


if __name__ == "__main__":
    main()
