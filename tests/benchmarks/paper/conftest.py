"""A recipe short enough to be run many times."""

from pathlib import Path

import pytest

from support.commands import TINY


@pytest.fixture(scope="session")
def short_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe with one feature space and fewer samples and updates."""
    path = tmp_path_factory.mktemp("short") / "short.yaml"
    text = TINY.replace("samples: 96, features: [digits, pixels]", "samples: 32, features: [digits]")
    path.write_text(text.replace("updates: 12", "updates: 4").replace("multipliers: [1, 2]", "multipliers: [1]"))
    return path
