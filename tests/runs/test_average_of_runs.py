"""A run, and its dry run, say when an average of the weights is too long for its training."""

from pathlib import Path

import pytest

from support.commands import succeeds

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("dry", [("--dry-run",), ()])
def test_an_average_that_is_too_long_is_said(tiny_recipe: Path, tmp_path: Path, dry: tuple[str, ...]) -> None:
    """0.9999 over 500 updates keeps 0.9999^499 = 95 % of the start; 0.99 over 500 keeps 0.7 %."""
    settings = ("--set", "teacher.updates=500") if dry else ("--set", "teacher.updates=8")
    share = "95%" if dry else "100%"
    result = succeeds("run", tiny_recipe, "--out", tmp_path / "run", *settings, "--set", "teacher.ema=0.9999", *dry)
    text = " ".join((result.output + result.stderr).split())
    assert f"teacher: ema 0.9999 is too long for {settings[1].split('=')[1]} updates" in text
    assert f"is {share} the weights at the start" in text
    if dry:
        fits = succeeds("run", tiny_recipe, "--out", tmp_path / "run", *settings, "--set", "teacher.ema=0.99", *dry)
        assert "is too long" not in fits.output + fits.stderr
