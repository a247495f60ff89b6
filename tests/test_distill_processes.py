"""`progdist.distill` in two processes: it trains what one trains, and processes that were given other things say so."""

import re
from pathlib import Path

import pytest

from support.processes import RunProcess, start_process

pytestmark = pytest.mark.slow

SCRIPT = """
import os
import sys
import torch
from torch import nn
from progdist import Cosine, Denoiser, UserError, distill

RANK = int(os.environ.get("RANK", 0))

class Net(nn.Module):
    def __init__(self, unused=False, norm=False, draws=False):
        super().__init__()
        self.a, self.b, self.draws = nn.Linear(3, 32), nn.Linear(32, 2), draws
        self.norm = nn.BatchNorm1d(32) if norm else nn.Identity()
        self.unused = nn.Linear(3, 3) if unused else None

    def forward(self, z, timestep):
        hidden = torch.tanh(self.norm(self.a(torch.cat([z, timestep[:, None] / 1000], 1))))
        return self.b(nn.functional.dropout(hidden, 0.2, training=True) if self.draws else hidden)

def attempt(case, make=Net, seed=0, chain=(4, 2), **options):
    torch.manual_seed(seed)
    network = make()
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    try:
        options = {"updates": 6, "batch": 8, "precision": "float32", "learning_rate": 1e-2, **options}
        student = distill(Denoiser(network, Cosine(), "v"), x, list(chain), **options)
        weights = torch.cat([each.detach().double().flatten() for each in student.network.parameters()])
        numbers = [float(weights.sum()), float((weights ** 2).sum()), float(weights[5]), type(student.network).__name__]
        assert torch.equal(torch.get_rng_state(), before)
        print(f"<{case} {RANK} {numbers}>", flush=True)
    except UserError as error:
        print(f"<{case} {RANK} refused: {error}>", flush=True)

if sys.argv[1:2] == ["spawned"]:  # a program that starts its processes itself
    RANK = int(sys.argv[2])
    meeting = "file://" + sys.argv[3]
    torch.distributed.init_process_group("gloo", init_method=meeting, world_size=2, rank=RANK)
    attempt("plain")
    attempt("teachers", seed=RANK)
else:
    attempt("plain")
    attempt("unused", lambda: Net(unused=True))
    attempt("norm", lambda: Net(norm=True))
    attempt("wrapped", lambda: nn.DataParallel(Net()))
    attempt("accumulated", gradient_accumulation_steps=2)
    attempt("average", method="tract", ema=0.5)
    attempt("adversarial", method="adversarial")
    attempt("trajectory", method="adversarial", options={"judged": "trajectory"}, gradient_accumulation_steps=2)
    attempt("half", lambda: Net().bfloat16())
    attempt("auto", precision="auto")
if "RANK" in os.environ:
    attempt("teachers", seed=RANK)
    attempt("chains", chain=(4, 2) if RANK else (8, 4, 2))
    attempt("updates", updates=6 + RANK)
    attempt("draws", lambda: Net(draws=True))
    torch.distributed.destroy_process_group()
"""

REFUSED = {
    "teachers": "the network of process 1 has other weights than that of process 0",
    "chains": "process 1 got a different chain, data or options than process 0",
    "updates": "process 1 got a different chain, data or options than process 0",
}


def finished(process: RunProcess) -> dict[tuple[str, int], str]:
    code, errors = process.finish()
    assert code == 0, errors
    return told(process.output)


def told(output: str) -> dict[tuple[str, int], str]:
    """(case, process) -> what it printed."""
    return {(case, int(rank)): text for case, rank, text in re.findall(r"<(\w+) (\d) (.*?)>", output, re.S)}


def test_two_processes_train_what_one_trains_and_agree_on_what_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    exec(SCRIPT, {})
    alone = told(capsys.readouterr().out)
    together = finished(start_process(str(script), errors=tmp_path / "together", ranks=2))
    spawned = [
        start_process(str(script), "spawned", str(rank), str(tmp_path / "meeting"), errors=tmp_path / f"rank-{rank}")
        for rank in (0, 1)
    ]
    both = finished(spawned[0]) | finished(spawned[1])
    for rank in (0, 1):
        assert both["plain", rank] == together["plain", rank]
        assert REFUSED["teachers"] in both["teachers", rank]
    for (case, _), expected in alone.items():
        *numbers, name = eval(expected)
        for rank in (0, 1):
            *found, kind = eval(together[case, rank])
            assert found == pytest.approx(numbers, rel=1e-2 if case in ("half", "auto") else 1e-4, abs=1e-5), case
            assert kind == name == "Net"
        assert together[case, 0] == together[case, 1]
    for case, message in REFUSED.items():
        assert all(message in together[case, rank] for rank in (0, 1)), together[case, 0]
    assert together["draws", 0] == together["draws", 1]
