"""Which settings of a distillation of released models fit cards of 12, 24 and 80 GiB, counted from their configs.

    python benchmarks/performance/fit_table.py runs/fit [--models sdxl flux-dev]

Writes the configs of SDXL, Flux dev and Wan 2.1 (1.3B and 14B), without weights, as folders that `progdist fit` takes,
and prints, in Markdown, what it counts of each: nothing is run. The sizes are those of the pipelines' calls. The
configs are those of the model cards:

    sdxl        https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0   (unet/config.json)
    flux-dev    https://huggingface.co/black-forest-labs/FLUX.1-dev               (transformer/config.json)
    wan-1.3b    https://huggingface.co/Wan-AI/Wan2.1-T2V-1.3B-Diffusers           (transformer/config.json)
    wan-14b     https://huggingface.co/Wan-AI/Wan2.1-T2V-14B-Diffusers            (transformer/config.json)
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

from progdist._utils.words import significant
from progdist.cli.fit import CARDS, gib
from progdist.models.components import PipelineFolder
from progdist.runs.estimate.fit import KINDS, Fits, Setting, fits

SDXL = {
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
WAN = {"num_layers": 40, "num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824}
SMALL_WAN = {"num_layers": 30, "num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960}
ORDER = [(checkpointing, batch) for checkpointing in (False, True) for batch in (1, 4)]


class Released(NamedTuple):
    """A released model."""

    title: str
    pipeline: str
    part: str
    network: str
    config: dict[str, Any]  # where it is not the default of diffusers' class
    parameters: float  # as published


MODELS = {
    "sdxl": Released("SDXL", "StableDiffusionXLPipeline", "unet", "UNet2DConditionModel", SDXL, 2.567e9),
    "flux-dev": Released(
        "Flux dev", "FluxPipeline", "transformer", "FluxTransformer2DModel", {"guidance_embeds": True}, 11.9e9
    ),
    "wan-1.3b": Released("Wan 2.1 1.3B", "WanPipeline", "transformer", "WanTransformer3DModel", SMALL_WAN, 1.42e9),
    "wan-14b": Released("Wan 2.1 14B", "WanPipeline", "transformer", "WanTransformer3DModel", WAN, 14.3e9),
}


def write_configs(model: Released, place: Path) -> Path:
    """A pipeline's folder of two configs; gives it."""
    parts = {"_class_name": model.pipeline, model.part: ["diffusers", model.network]}
    (place / model.part).mkdir(parents=True, exist_ok=True)
    (place / "model_index.json").write_text(json.dumps(parts))
    (place / model.part / "config.json").write_text(json.dumps({"_class_name": model.network, **model.config}))
    return place


def sums(title: str, found: Fits) -> list[str]:
    """The sums of one model in GiB, a line for each kind of training."""
    lines = []
    for kind in KINDS:
        of_kind = [row for row in found.rows if (row.setting.training, row.setting.bits) == kind]
        if not of_kind:
            continue
        rows = {(row.setting.checkpointing, row.setting.batch): row for row in of_kind}
        cells = " | ".join(gib(rows[way].memory.total) for way in ORDER)
        operations = " / ".join(significant(rows[way].operations / 1e12, 3) for way in ((False, 1), (True, 1)))
        lines.append(f"| {title} | {named(of_kind[0].setting)} | {cells} | {operations} |")
    return lines


def named(setting: Setting) -> str:
    """What is trained, in a word or two."""
    return f"{setting.training}, {setting.bits} bits" if setting.bits else setting.training


def best(title: str, found: Fits) -> str:
    """The best setting of one model for each card, on a line."""
    cells = []
    for card in CARDS:
        row = found.best(card * 2**30)
        words = "none"
        if row:
            checkpointing = ", checkpointing" if row.setting.checkpointing else ""
            words = f"{named(row.setting)}{checkpointing}, {row.setting.batch} at a time: {gib(row.memory.total)}"
        cells.append(words)
    return f"| {title} | {' | '.join(cells)} |"


def main() -> None:
    """Count every model, and print three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="Folder of the folders.")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    arguments = parser.parse_args()
    counted: dict[str, Fits] = {}
    for name in arguments.models:
        folder = write_configs(MODELS[name], arguments.out / name)
        counted[MODELS[name].title] = fits(PipelineFolder.read(folder))
        print(f"{name} is counted", flush=True)
    print("\n| | network | parameters | made by default | TFLOP of an evaluation |\n|---|---|---:|---|---:|")
    for title, found in counted.items():
        evaluation = significant(found.evaluation / 1e12, 3)
        print(f"| {title} | `{found.network}` | {found.parameters:,} | {found.size} | {evaluation} |")
    heads = ("", "training", "1", "4", "1, ckpt", "4, ckpt", "TFLOP of an update of 1, without and with ckpt")
    print(f"\n| {' | '.join(heads)} |\n|---|---|{'---:|' * 5}")
    for title, found in counted.items():
        print("\n".join(sums(title, found)))
    print(f"\n| | {' | '.join(f'{card:g} GiB' for card in CARDS)} |\n|---|---|---|---|")
    for title, found in counted.items():
        print(best(title, found))


if __name__ == "__main__":
    main()
