"""`compile`: student and teacher are traced once for the whole chain, and learn what they learn without."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from progdist._utils.files import read_tensors
from support.commands import succeeds

pytestmark = pytest.mark.slow


def test_a_compiled_chain_is_the_same_and_is_traced_once(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, compiled = tmp_path / "plain", tmp_path / "compiled"
    succeeds("run", tiny_recipe, "--out", plain)
    compiled_networks: list[Any] = []
    trace = partial(torch.compile, backend="aot_eager")  # what is traced is run op by op: no compiler is needed

    def spy(network: Any) -> Any:  # noqa: ANN401
        compiled_networks.append(network)
        return trace(network)

    monkeypatch.setattr(torch, "compile", spy)
    torch._dynamo.reset()
    counters.clear()
    succeeds("run", tiny_recipe, "--out", compiled, "--set", "distill.compile=true")
    assert len(compiled_networks) == 6  # student and teacher of three stages
    assert counters["stats"]["unique_graphs"] == 2  # of the student with its gradient and of the teacher without
    for name in ("student-0004", "student-0001"):
        weights = "unet/diffusion_pytorch_model.safetensors"
        expected, found = (read_tensors(run / name / weights) for run in (plain, compiled))
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=1e-5)
