"""The released models of benchmarks/performance/fit_table.py have as many parameters as is published."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from progdist.models.components import PipelineFolder
from support.paths import ROOT


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fit_table", ROOT / "benchmarks" / "performance" / "fit_table.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PUBLISHED = {"sdxl": 2.567e9, "flux-dev": 11.9e9, "wan-1.3b": 1.42e9, "wan-14b": 14.3e9}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_published(tmp_path: Path, name: str) -> None:
    module = script()
    folder = module.write_configs(module.MODELS[name], tmp_path / name)
    network = PipelineFolder.read(folder).empty_network()
    count = sum(each.numel() for each in network.parameters())
    assert count == pytest.approx(PUBLISHED[name], rel=0.02)
    assert module.MODELS[name].parameters == PUBLISHED[name]
