"""Class-conditional students that take a guidance scale: what it adds, the folder, and what stock diffusers samples."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import progdist
from progdist import Cosine, Denoiser, UserError
from progdist.diffusion.analytic import Gaussian
from progdist.diffusion.loss import WEIGHTINGS
from progdist.diffusion.parameterization import PARAMETERIZATIONS
from progdist.diffusion.sampler import sample
from progdist.evaluation.generate import sampling_noise
from progdist.methods.conversion import conversion_loss
from progdist.methods.guidance import Guided, Input
from progdist.models.guidance_input import (
    GuidedClasses,
    class_guidance,
    guidance_embedding,
    with_class_guidance,
)
from progdist.models.model import Model
from progdist.models.networks import network_interface
from progdist.students.folder import save
from progdist.teachers.open import open_teacher
from progdist.teachers.own import load
from support.commands import call
from support.guidance import student
from support.latent import save_dit, stock_latent_images
from support.stock import SaveStock, load_ddim, load_unet, stock_network, stock_samples

SCALES = torch.tensor([1.0, 2.5, 4.0, 8.0], dtype=torch.float64)
LABELS = torch.tensor([0, 3, 5, 9])


@pytest.fixture(params=["UNet2DModel", "DiTTransformer2DModel"])
def place(request: pytest.FixtureRequest, stock: SaveStock, tmp_path: Path) -> Path:
    """The folder of a class-conditional teacher of each kind."""
    return stock(classes=11) if request.param == "UNet2DModel" else save_dit(tmp_path / "dit")


def images(model: Model, noise: Tensor, guidance: float | None) -> Tensor:
    return progdist.sample(model.denoiser, noise, 4, class_labels=LABELS, guidance=guidance)


@torch.no_grad()
def test_an_input_that_was_not_taught_changes_nothing(place: Path) -> None:
    teacher = open_teacher(str(place)).model
    network = with_class_guidance(teacher.denoiser.network, Input(1.0, 8.0))
    untaught = teacher.denoiser.with_parts(network=network, **network_interface(network))
    z, t = torch.randn(4, *teacher.shape), torch.tensor(0.6, dtype=torch.float64)
    expected = teacher.denoiser(z, t, class_labels=LABELS)
    assert torch.equal(untaught(z, t, class_labels=LABELS, guidance=SCALES), expected)
    assert class_guidance(teacher.denoiser.network) is None
    shared = {id(weight) for weight in teacher.denoiser.parameters()}
    assert {id(weight) for weight in network.parameters()} >= shared


@torch.no_grad()
def test_what_is_added_is_the_formula() -> None:
    """e(c) + W (gamma(g - 1) - gamma(g_0 - 1)), in float64."""
    table = nn.Embedding(5, 3)
    guided = GuidedClasses(table, 3, Input(1.0, 8.0))
    nn.init.normal_(guided.guidance.weight)
    frequencies = 10_000.0 ** (-torch.arange(128, dtype=torch.float64) / 127)

    def gamma(w: Tensor) -> Tensor:
        angles = 1000 * w[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], 1)

    labels, difference = torch.tensor([0, 4, 2, 2]), gamma(SCALES - 1) - gamma(torch.full_like(SCALES, 3.0))
    expected = table.weight[labels].double() + difference @ guided.guidance.weight.double().T
    torch.testing.assert_close(guided((labels, SCALES)).double(), expected, rtol=0, atol=1e-2)
    torch.testing.assert_close(guidance_embedding(SCALES).double(), gamma(SCALES - 1), rtol=0, atol=2e-3)
    assert torch.equal(guided(labels), guided((labels, torch.full((4,), 4.0))))


@pytest.mark.parametrize(("scales", "usual"), [((1.0, 8.0), 4.0), ((1.0, 3.0), 3.0), ((5.0, 8.0), 5.0)])
def test_the_usual_scale_is_the_nearest_to_that_of_the_stock_pipeline(
    scales: tuple[float, float], usual: float
) -> None:
    assert GuidedClasses(nn.Embedding(5, 3), 3, Input(*scales)).default_scale == usual


def test_the_folder_gives_the_model_back(place: Path, tmp_path: Path) -> None:
    model = student(open_teacher(str(place)).model)
    save(model, tmp_path / "one")
    again = load(tmp_path / "one")
    save(again, tmp_path / "two")
    weights, back = model.denoiser.network.state_dict(), load(tmp_path / "two").denoiser.network.state_dict()
    assert weights.keys() == back.keys()
    assert all(torch.equal(weights[name], back[name]) for name in weights)
    assert (again.guidance, again.scale(None), again.scale(2.0)) == (Input(1.0, 8.0), 4.0, 2.0)
    noise = torch.randn(4, *model.shape)
    for guidance in (None, 1.0, 3.0):
        assert torch.equal(images(again, noise, guidance), images(model, noise, guidance))


def test_stock_diffusers_samples_the_usual_scale(place: Path, tmp_path: Path) -> None:
    """It loads the folder, and what it makes is the student at a guidance of 4, no other; the card says so."""
    model = student(open_teacher(str(place)).model)
    folder, noise = tmp_path / "student", sampling_noise(model, 4, 0)
    save(model, folder)
    if model.autoencoder:
        theirs = stock_latent_images(folder, noise, 4, LABELS.tolist())
        denoiser = progdist.load(folder)
    else:
        theirs = stock_samples(load_unet(folder), load_ddim(folder), noise, 4, class_labels=LABELS)
        denoiser = load(folder).denoiser
    ours = progdist.sample(denoiser, noise, 4, class_labels=LABELS, guidance=4.0)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    other = progdist.sample(denoiser, noise, 4, class_labels=LABELS, guidance=2.0)
    assert float((other - theirs).abs().max()) > 1e-3
    card = (folder / "README.md").read_text()
    assert "`guidance` is an input, from 1 to 8" in card
    assert "without that part and samples at a guidance of 4" in card
    assert "guidance=4.5)" in card


def test_every_example_has_its_own_scale(place: Path) -> None:
    denoiser = student(open_teacher(str(place)).model).denoiser
    z, t = torch.randn(4, *open_teacher(str(place)).model.shape), torch.tensor([0.2, 0.5, 0.7, 0.9])
    with torch.no_grad():
        together = denoiser(z, t, class_labels=LABELS, guidance=SCALES)
        for row in range(4):
            part = slice(row, row + 1)
            alone = denoiser(z[part], t[part], class_labels=LABELS[part], guidance=SCALES[part])
            torch.testing.assert_close(together[part], alone)


@pytest.mark.slow
def test_onnx_takes_the_scale(stock: SaveStock, tmp_path: Path) -> None:
    model = student(open_teacher(str(stock(classes=11))).model, steps=1)
    save(model, tmp_path / "student")
    assert call("export", tmp_path / "student", "--onnx", tmp_path / "x.onnx").exit_code == 0
    session, noise = onnxruntime.InferenceSession(tmp_path / "x.onnx"), torch.randn(4, 1, 8, 8)
    given = {"noise": noise.numpy(), "labels": LABELS.numpy(), "guidance": SCALES.float().numpy()}
    expected = sample(model.denoiser, noise, 1, class_labels=LABELS, guidance=SCALES)
    torch.testing.assert_close(torch.from_numpy(session.run(None, given)[0]), expected, rtol=1e-4, atol=1e-4)


def test_what_takes_no_scale_refuses_one(tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="guidance applies only to models distilled for a guidance range"):
        progdist.sample(tiny_model(classes=3), torch.randn(1, 1, 8, 8), 1, class_labels=torch.tensor([0]), guidance=2)
    with pytest.raises(UserError, match="got a Linear"):
        with_class_guidance(nn.Linear(1, 1), Input(1.0, 2.0))
    with pytest.raises(UserError, match="UNet2DModel with a NoneType of classes"):
        with_class_guidance(stock_network(), Input(1.0, 2.0))


@pytest.mark.parametrize("damage", [{"class_guidance": [3, 1]}, {"class_guidance": "1:8"}, {"class_guidance": [1]}])
def test_a_damaged_description_is_one_line(damage: dict[str, Any], stock: SaveStock, tmp_path: Path) -> None:
    save(student(open_teacher(str(stock(classes=11))).model), tmp_path / "student")
    path = tmp_path / "student" / "progdist.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **damage}))
    with pytest.raises(UserError, match="is damaged"):
        load(tmp_path / "student")
    path.write_text(path.read_text().replace('"class_guidance"', '"other"'))
    (tmp_path / "student" / "guidance" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"guidance/model.safetensors is missing"):
        load(tmp_path / "student")


class ExactClasses:
    """The exact denoiser of classes, each a Gaussian around an image of one value; class 0 stands for none."""

    schedule = Cosine()

    def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        means = torch.tensor([0.0, -0.5, 0.5])[condition["class_labels"]]
        return Gaussian(self.schedule, means[:, None, None, None], 0.3)(z, t)


@pytest.mark.slow
def test_a_student_learns_what_guidance_does() -> None:
    """Of an exact teacher, whose guided mean is g times the class's: far better than any student without the input."""
    network = with_class_guidance(stock_network(classes=3), Input(1.0, 5.0))
    denoiser = Denoiser(network, Cosine(), PARAMETERIZATIONS["v"], **network_interface(network))
    teacher = Guided(ExactClasses(), {"class_labels": torch.tensor([0])})
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)

    def batch(count: int) -> dict[str, Tensor]:
        labels, guidance = torch.randint(1, 3, (count,)), 1 + 4 * torch.rand(count, dtype=torch.float64)
        x = torch.tensor([0.0, -0.5, 0.5])[labels][:, None, None, None] + 0.3 * torch.randn(count, 1, 8, 8)
        u = torch.rand(count, dtype=torch.float64)
        return {"x": x, "eps": torch.randn_like(x), "u": u, "class_labels": labels, "guidance": guidance}

    def loss(**batch: Any) -> Tensor:  # noqa: ANN401
        return conversion_loss(denoiser, teacher, **batch, weighting=WEIGHTINGS["constant"]).mean()

    for _ in range(120):
        loss(**batch(16)).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        held = batch(256)
        t = 1 - held["u"]
        z = denoiser.schedule.alpha(t).float()[:, None, None, None] * held["x"]
        z += denoiser.schedule.sigma(t).float()[:, None, None, None] * held["eps"]
        told = {name: held[name] for name in ("class_labels", "guidance")}
        exact, usual = teacher(z, t, **told), teacher(z, t, **{**told, "guidance": torch.full_like(held["u"], 3.0)})
        error, ignorant = (float((made - exact).square().mean()) for made in (denoiser(z, t, **told), usual))
        assert error < 0.4 * ignorant
