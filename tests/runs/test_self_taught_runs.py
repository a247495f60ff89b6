"""A run whose students teach themselves goes on where it stopped, average and all."""

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from progdist import UserError
from progdist.methods import transitive as variants
from progdist.teachers.own import load
from support.commands import SHORT_EVALUATION, call, refused, succeeds
from support.training import flat_weights

TRACT = (
    *("--set", "distill.method=tract", "--set", "distill.ema=0.5", "--set", "distill.chain=[8,1]"),
    *("--set", "distill.updates=6", *SHORT_EVALUATION),
)


@pytest.mark.slow
def test_a_stage_that_teaches_itself_is_resumed_bit_for_bit(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is another one with another average, or with none."""
    succeeds("run", tiny_recipe, "--out", tmp_path / "whole", *TRACT)
    target, calls = variants.transitive_target, 0

    def breaking(*arguments: Any, **options: Any) -> Tensor:  # noqa: ANN401
        nonlocal calls
        calls += 1
        if calls == 6:
            raise UserError("stopped")
        return target(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(variants, "transitive_target", breaking)
        refused(call("run", tiny_recipe, "--out", tmp_path / "run", *TRACT), "stopped")
    assert (tmp_path / "run" / "checkpoints" / "student-0001" / "00000004.safetensors").is_file()
    refused(
        call("run", tiny_recipe, "--out", tmp_path / "whole", *TRACT, "--set", "distill.method=stochastic"),
        "another recipe",
    )
    succeeds("run", tiny_recipe, "--out", tmp_path / "run", *TRACT)
    assert load(tmp_path / "run" / "student-0001").method == "tract"
    assert "transitive closure time distillation (Berthelot" in (tmp_path / "run" / "report.html").read_text()
    whole, resumed = (
        flat_weights(load(tmp_path / name / "student-0001").denoiser.network) for name in ("whole", "run")
    )
    assert whole.equal(resumed)
    succeeds("run", tiny_recipe, "--out", tmp_path / "none", *TRACT, "--set", "distill.ema=0")
    assert not whole.equal(flat_weights(load(tmp_path / "none" / "student-0001").denoiser.network))
