"""The tiny pipelines: each is built, loaded by its class name alone, and sampled by stock code."""

from pathlib import Path

import pytest
import torch

from support.tiny_pipelines import BUILDERS, CALLS, NOT_BUILT, PROMPTS, build, load, prompted, sampled

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # diffusers tells of its deprecated classes and arguments
]

SOME = ("KolorsPipeline", "KandinskyV22PriorPipeline", "LTX2Pipeline", "AudioLDM2Pipeline", "Flux2Pipeline")
"""One of each file; those that are distilled are in tests/runs/test_pipeline_runs.py, all others the command tries."""


def check(name: str, folder: Path) -> None:
    """One pipeline samples, and its samples depend on its prompts."""
    state = torch.get_rng_state()
    build(name, folder)
    assert torch.equal(torch.get_rng_state(), state), name
    pipeline = load(folder)
    assert type(pipeline).__name__ == name.split("/")[0]
    first = sampled(pipeline, name, PROMPTS[:2], steps=2)
    other = sampled(pipeline, name, [PROMPTS[0], PROMPTS[2]], steps=2)
    assert len(first) == 2
    assert first.isfinite().all(), name
    assert first.std() > 0, name
    assert (first[1] - other[1]).std() > 1e-4 * first[1].std(), name


@pytest.mark.parametrize("name", SOME)
def test_a_pipeline_is_built_and_samples_two_prompts(name: str, tmp_path: Path) -> None:
    check(name, tmp_path / "pipeline")


def test_every_pipeline_of_diffusers_that_takes_prompts_is_built_or_has_its_reason() -> None:
    built = {name.split("/")[0] for name in BUILDERS}
    assert not built & set(NOT_BUILT)
    assert set(prompted()) == built | set(NOT_BUILT)
    assert set(CALLS) == set(BUILDERS)
    assert all(reason.endswith(".") for reason in NOT_BUILT.values())
