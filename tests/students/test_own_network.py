"""A denoiser around a network of one's own is kept and read again with all that its output means."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

import progdist
from progdist import Cosine, Denoiser, Discrete, RectifiedFlow, Schedule, UserError, distill, load, sample, save
from progdist.diffusion.parameterization import V
from support.commands import call, refused

NOISE = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """z (B, 3), timestep (B,) -> (B, heads * 3)."""

    def __init__(self, width: int = 16, heads: int = 1) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, width), nn.Linear(width, 3 * heads)

    def forward(self, z: Tensor, timestep: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(torch.cat([z, timestep[:, None].to(z) / 1000], 1))))


class Odd(Net):
    """Tied weights, a batch norm, and buffers of whole, complex and infinite numbers."""

    phase: Tensor
    mask: Tensor

    def __init__(self) -> None:
        super().__init__(4)
        self.q, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.q.weight = self.a.weight
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("phase", torch.tensor([1j, 2.0, 3.0], dtype=torch.complex64))
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))

    def forward(self, z: Tensor, timestep: Tensor) -> Tensor:
        hidden = self.norm(self.a(torch.cat([z, timestep[:, None].to(z) / 1000], 1)))
        return self.b(self.q(hidden)) * self.phase.abs() * self.mask.softmax(0).sum()


def perturbed(network: nn.Module) -> Any:  # noqa: ANN401
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.dtype.is_floating_point and tensor.isfinite().all():
            tensor.data.add_(0.1 * torch.rand(tensor.shape).to(tensor))
    return network.eval()


def same_samples(ours: Denoiser, theirs: Denoiser, steps: int = 4) -> bool:
    return torch.equal(*(sample(each, NOISE, steps) for each in (ours, theirs)))


def test_a_student_of_another_form_than_its_teacher_is_kept_whole(tmp_path: Path) -> None:
    """It predicts v on a rescaled table, and its teacher eps on the table itself."""
    teacher = Denoiser(perturbed(Net()), Discrete.linear(), "epsilon")
    data = 0.3 * torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    student = distill(teacher, data, [20, 4], updates=4, batch=16, precision="float32", conversion={"updates": 4})
    save(student, tmp_path / "student")
    back = load(tmp_path / "student", Net())
    assert same_samples(student, back)
    assert back.schedule == Discrete.linear().rescaled()
    assert back.parameterization.name == "v"
    assert not back.training
    assert (back.history["steps"], back.history["lineage"], back.history["method"]) == ((4,), (20,), "progressive")
    assert back.history["training"]["updates"] == 4
    save(back, tmp_path / "again")
    first, second = (json.loads((tmp_path / name / "progdist.json").read_text()) for name in ("student", "again"))
    assert first == second
    further = distill(back, data, [4, 2], updates=2, batch=16, precision="float32")
    assert (further.history["steps"], further.history["lineage"]) == ((2,), (20, 4))


@pytest.mark.parametrize(
    "schedule",
    [Cosine(), Cosine(math.inf, -math.inf), Cosine(8, -9), Discrete.scaled_linear(), RectifiedFlow(), RectifiedFlow(3)],
)
@pytest.mark.parametrize(("prediction_type", "heads"), [("x", 1), ("v", 1), ("velocity", 1), ("x_eps", 2)])
def test_what_the_output_means_is_kept(schedule: Schedule, prediction_type: str, heads: int, tmp_path: Path) -> None:
    ours = Denoiser(perturbed(Net(heads=heads)), schedule, prediction_type, num_train_timesteps=1, offset=0.25)
    save(ours, tmp_path / "model", steps=(8, 4))
    back = load(tmp_path / "model", Net(heads=heads))
    assert same_samples(ours, back)
    assert (back.num_train_timesteps, back.offset, back.history["steps"]) == (1, 0.25, (8, 4))


@pytest.mark.parametrize(
    "wrap",
    [lambda one: one, nn.Module.bfloat16, nn.DataParallel, lambda one: torch.compile(one, backend="eager")],
)
def test_odd_weights_are_kept(wrap: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    network = perturbed(Odd())
    wrapped = wrap(network)
    save(Denoiser(wrapped, Cosine(), "v"), tmp_path / "model")
    back = load(tmp_path / "model", wrap(Odd())).network
    inner: Any = getattr(back, "module", getattr(back, "_orig_mod", back))
    assert all(map(torch.equal, inner.state_dict().values(), network.state_dict().values()))
    assert inner.q.weight is inner.a.weight


class Line(Schedule):
    """A schedule of one's own."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - 0.9 * t

    def sigma(self, t: Tensor) -> Tensor:
        return t


class OwnV(V):
    name = "custom"


def backwards(network: nn.Module, z: Tensor, timestep: Tensor) -> Tensor:
    return -network(z, timestep)


@pytest.mark.parametrize(
    ("parts", "what"),
    [
        ({"schedule": Line()}, "Line"),
        ({"prediction_type": OwnV()}, "OwnV"),
        ({"call": backwards}, "backwards"),
        ({"arguments": lambda: {}}, "lambda"),
    ],
)
def test_code_of_ones_own_is_given_again(parts: dict[str, Any], what: str, tmp_path: Path) -> None:
    ours = Denoiser(perturbed(Net()), **{"schedule": Cosine(), "prediction_type": "v"} | parts)
    save(ours, tmp_path / "model")
    (part,) = parts
    with pytest.raises(UserError, match=rf"was saved with your own {part}, .*{what}.*: pass it as {part}="):
        load(tmp_path / "model", Net())
    assert same_samples(ours, load(tmp_path / "model", Net(), **parts))
    save(Denoiser(Net(), Cosine(), "v"), tmp_path / "plain")
    with pytest.raises(UserError, match=f"{part} has no effect"):
        load(tmp_path / "plain", Net(), **parts)


class Scaled(Denoiser):
    def forward(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return 5 * super().forward(z / 5, t, **condition)


def test_what_cannot_be_kept_or_read_is_one_line(tmp_path: Path, tiny_model: Callable[..., Denoiser]) -> None:
    with pytest.raises(UserError, match="expected a Denoiser, got its subclass Scaled, whose code is not saved"):
        save(Scaled(Net(), Cosine(), "v"), tmp_path / "scaled")
    folder = tmp_path / "model"
    save(Denoiser(Net(), Cosine(), "v"), folder)
    with pytest.raises(UserError, match=r"your own network, .*\.Net: load it from Python with an instance"):
        load(folder)
    with pytest.raises(UserError, match=r"the given Net does not fit .*: a.bias is of \(16,\) in the folder and of"):
        load(folder, Net(8))
    with pytest.raises(UserError, match="the given Odd does not fit"):
        load(folder, Odd())
    with pytest.raises(UserError, match=r"a.bias is of \(16,\) in the folder and missing in the network"):
        load(folder, nn.Sequential(nn.Linear(1, 1)))
    save(tiny_model(), tmp_path / "stock")
    with pytest.raises(
        UserError, match=r"network has no effect: .* holds a diffusers network, which needs no network="
    ):
        load(tmp_path / "stock", Net())
    refused(call("sample", folder, "--out", tmp_path / "a.png"), "your own network")


@pytest.mark.parametrize(
    "change",
    [
        {"own": None},
        {"own": {"call": 3}},
        {"schedule": None},
        {"parameterization": "w"},
        {"timesteps": "many"},
        {"network": []},
        {"steps": [0]},
        {"schedule": {"kind": "cosine", "log_snr_max": "a"}},
        {"training": 3},
        {"sha256": {}},
    ],
)
def test_a_damaged_folder_is_one_line(change: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save(Denoiser(Net(), Cosine(), "v"), folder)
    where = folder / "progdist.json"
    where.write_text(json.dumps(json.loads(where.read_text()) | change))
    if change in ({"sha256": {}}, {"network": []}):
        load(folder, Net())
        return
    with pytest.raises(UserError) as caught:
        load(folder, Net())
    assert "\n" not in str(caught.value)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save(Denoiser(Net(), Cosine(), "v"), folder)
    path = folder / "network.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match="is not what was written"):
        load(folder, Net())


def test_a_diffusers_folder_is_loaded_as_the_teacher_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    scheduler = DDPMScheduler(prediction_type="v_prediction")
    DDPMPipeline(network, scheduler).save_pretrained(tmp_path / "teacher")
    teacher = load(tmp_path / "teacher")
    assert isinstance(teacher.schedule, Discrete)
    torch.testing.assert_close(torch.tensor(teacher.schedule.alphas_cumprod), scheduler.alphas_cumprod)
    x = torch.randn(2, 1, 8, 8)
    expected = network(x, torch.full((2,), 499.0)).sample
    torch.testing.assert_close(teacher.output(x, torch.full((2,), 499.0)), expected)
    with pytest.raises(UserError, match=r"network has no effect on .*, a diffusers pipeline"):
        load(tmp_path / "teacher", Net())
    with pytest.raises(UserError, match="not a model folder"):
        progdist.load(tmp_path)


def test_a_class_in_place_of_a_network_is_told(tmp_path: Path) -> None:
    save(Denoiser(Net(), Cosine(), "v"), tmp_path / "own")
    with pytest.raises(UserError, match=r"network is the class Net: pass an instance, Net\(\.\.\.\)"):
        load(tmp_path / "own", Net)  # pyright: ignore[reportArgumentType]
