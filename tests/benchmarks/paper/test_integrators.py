"""Integrators at equal cost."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from integrators import app, mixture_errors, order, steps_within
from progdist import Cosine, RectifiedFlow
from progdist.diffusion.sampler import network_evaluations
from progdist.diffusion.schedule import Schedule
from support.commands import call_in, read_records, succeeds_in
from support.toys import label

ORDERS = {"ddim": 1, "euler": 1, "euler_log_snr": 1, "heun": 2, "rk4": 4}


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()], ids=label)
def test_measured_orders_on_the_mixture(schedule: Schedule) -> None:
    found = {method: order(errors) for method, errors in mixture_errors(schedule).items()}
    assert found == pytest.approx(ORDERS, abs=0.15)


@pytest.mark.parametrize("method", ORDERS)
@pytest.mark.parametrize("budget", [1, 4, 8, 33])
def test_steps_within_a_budget(method: str, budget: int) -> None:
    steps = steps_within(budget, method)
    assert network_evaluations(steps, method) <= budget < network_evaluations(steps + 1, method)


@pytest.mark.slow
def test_every_integrator_is_measured(finished: tuple[Path, Result], tmp_path: Path) -> None:
    arguments = (finished[0] / "teacher", "-n", 16)
    succeeds_in(app, *arguments, "--evaluations", 4, "--evaluations", 9, "--out", tmp_path)
    measured = {(record["method"], record["evaluations"]) for record in read_records(tmp_path, "results")}
    assert measured >= {("rk4", 1), ("rk4", 9), ("heun", 3)}
    table = (tmp_path / "table.md").read_text()
    assert table.count("| rk4 |") == 2
    assert call_in(app, *arguments, "--out", tmp_path / "b", "--evaluations", 0).exit_code == 2


@pytest.mark.slow
def test_integrators_leave_out_what_cannot_begin(finished: tuple[Path, Result], tmp_path: Path) -> None:
    from diffusers.models.unets.unet_2d import UNet2DModel

    import progdist

    network: Any = UNet2DModel.from_pretrained(finished[0] / "teacher", subfolder="unet")
    flow = progdist.Denoiser(
        network, progdist.RectifiedFlow(), progdist.PARAMETERIZATIONS["velocity"], num_train_timesteps=1000
    )
    progdist.save(flow, tmp_path / "flow")
    result = succeeds_in(app, tmp_path / "flow", "-n", 16, "--evaluations", 4, "--out", tmp_path / "out")
    assert "euler_log_snr is left out" in result.output
    methods = {record["method"] for record in read_records(tmp_path / "out", "results")}
    assert methods == {"ddim", "euler", "heun", "rk4"}
