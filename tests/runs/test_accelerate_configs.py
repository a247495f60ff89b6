"""The configurations of `accelerate launch` in examples/, and a sharded LoRA run under the one of two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from safetensors.torch import load_file

from support.commands import call
from support.paths import ROOT
from support.processes import CPU_ENVIRONMENT
from support.text import write_sd

FOLDER = ROOT / "examples" / "accelerate"
CARDS = {"one-card.yaml": 1, "two-cards.yaml": 2, "eight-cards.yaml": 8}


def test_there_is_one_for_each_number_of_cards() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(CARDS)


@pytest.mark.parametrize("name", CARDS)
def test_accelerate_takes_the_keys(name: str) -> None:
    """By its own class, which refuses unknown ones."""
    config = load_config_from_file(str(FOLDER / name))
    assert isinstance(config, ClusterConfig)
    assert set(yaml.safe_load((FOLDER / name).read_text())) <= set(vars(config))
    assert config.num_processes == CARDS[name]
    assert (str(config.distributed_type.value), config.mixed_precision) == (
        "NO" if CARDS[name] == 1 else "MULTI_GPU",
        "no",
    )


@pytest.mark.slow
def test_two_processes_train_the_lora_student_of_one(pairs: Path) -> None:
    """Adapters spread over both, on a base of 8 bits that stays whole: the same student within rounding."""
    place, settings = write_sd(pairs.parent / "teacher"), list[str]()
    for setting in ("evaluate.samples=16", "evaluate.resamples=2", "teacher.trust=true", "distill.chain=[8, 4]"):
        settings += ["--set", setting]
    for section in ("distill", "evaluate"):
        settings += ["--set", f"{section}.precision=float32"]
    words = ["distill", str(place), "--data", f"captions:{pairs}", "--start", "8", "--updates", "2", "--batch", "8"]
    words += ["--lora", "2", "--base-bits", "8", *settings, "--out"]
    alone, spread = pairs.parent / "alone", pairs.parent / "spread"
    assert call(*words, alone).exit_code == 0
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(FOLDER / "two-cards.yaml")]
    command = [sys.executable, *launcher, "--main_process_port", "0", "-m", "progdist", *words, str(spread), "--shard"]
    ended = subprocess.run(command, env=os.environ | CPU_ENVIRONMENT, capture_output=True, text=True, timeout=1800)
    assert ended.returncode == 0, ended.stderr
    for file in ("pytorch_lora_weights.safetensors", "unet/diffusion_pytorch_model.safetensors"):
        one, two = (load_file(out / "student-0004" / file) for out in (alone, spread))
        assert one.keys() == two.keys()
        for name, tensor in one.items():
            torch.testing.assert_close(
                two[name], tensor, rtol=0, atol=3e-5 * float(tensor.abs().max()) + 1e-7, msg=name
            )
    trained = load_file(spread / "student-0004" / "pytorch_lora_weights.safetensors")
    assert any(rows.any() for name, rows in trained.items() if "lora_B" in name or "lora.up" in name)
