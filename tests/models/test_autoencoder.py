"""A latent model's autoencoder is the stock one; damaged ones are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import progdist
from progdist.data.sources import load_images
from progdist.teachers.open import open_teacher
from support.commands import call


def test_latents_are_those_of_the_stock_autoencoder(latent: Path) -> None:
    autoencoder = open_teacher(str(latent)).model.autoencoder
    assert autoencoder is not None
    x = load_images("digits").sample(3, 0)[0]
    network: Any = autoencoder.network
    found = network.encode(x)
    means = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latents
    torch.testing.assert_close(autoencoder.encode(x), 0.18215 * means)
    torch.testing.assert_close(autoencoder.decode(0.18215 * means), network.decode(means).sample, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder, part: (folder / part / "config.json").unlink(), "config.json"),
        (lambda folder, part: next((folder / part).glob("*.safetensors")).unlink(), "lacks"),
        (
            lambda folder, part: next((folder / part).glob("*.safetensors")).rename(folder / part / "a.bin"),
            "is a pickle",
        ),
    ],
)
def test_a_damaged_autoencoder_is_one_line(
    latent: Path, tmp_path: Path, damage: Callable[[Path, str], None], message: str
) -> None:
    damage(latent, "vae" if latent.name == "DiT" else "vqvae")
    result = call("distill", latent, "--data", "digits", "--out", tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_autoencoder_with_a_word_for_its_scale_is_refused(latent: Path) -> None:
    config = next(latent.glob("v*/config.json"))
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scaling_factor": "x"}))
    with pytest.raises(progdist.UserError, match="scaling_factor is 'x'"):
        open_teacher(str(latent))
