"""The fine-tune of docs/lora.md: its example makes a file that stock diffusers and progdist read."""

# pyright: reportPrivateImportUsage=false

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer
from PIL import Image

from progdist._utils.files import read_tensors
from progdist.teachers.prepared import Source, prepare
from support.paths import ROOT
from support.text import PROMPTS, write_sd


@pytest.mark.filterwarnings("ignore")  # diffusers', of its schedulers' fields
def test_a_fine_tune_on_turned_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every picture lies on its back, every tensor of the file is fused, and the network says something else."""
    base, pairs, turned, out = (tmp_path / name for name in ("base", "pairs", "turned", "lora"))
    write_sd(base)
    pairs.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8), dtype=np.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(pairs / f"{number}.png")
    lines = [json.dumps({"file_name": f"{number}.png", "text": PROMPTS[number]}) for number in range(4)]
    (pairs / "metadata.jsonl").write_text("\n".join(lines))
    arguments = [base, pairs, turned, out, "--updates", 2, "--rank", 2, "--batch", 4]
    monkeypatch.setattr(sys, "argv", ["fine_tune_lora.py", *map(str, arguments)])
    runpy.run_path(str(ROOT / "examples" / "fine_tune_lora.py"), run_name="__main__")
    assert np.array_equal(np.array(Image.open(turned / "2.png")), np.rot90(pixels[2]))
    assert (turned / "metadata.jsonl").read_text() == (pairs / "metadata.jsonl").read_text()
    file = out / "pytorch_lora_weights.safetensors"
    pipeline: Any = diffusers.StableDiffusionPipeline.from_pretrained(base)
    pipeline.load_lora_weights(str(out))
    layers = [name for name, layer in pipeline.unet.named_modules() if isinstance(layer, LoraLayer)]
    assert 2 * len(layers) == len(read_tensors(file))
    fused: Any = diffusers.DiffusionPipeline.from_pretrained(
        prepare(Source(str(base), [str(file)]), tmp_path / "fused")
    )
    z, words = torch.randn(2, 4, 4, 4), torch.randn(2, 12, 16)
    with torch.no_grad():
        ours, theirs = (each.unet(z, 300, words).sample for each in (fused, pipeline))
        plain = diffusers.StableDiffusionPipeline.from_pretrained(base).unet(z, 300, words).sample
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert float((ours - plain).abs().max()) > 1e-4
