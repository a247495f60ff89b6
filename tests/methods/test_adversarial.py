"""Adversarial distillation at its optimum on Gaussian data, its parts, and its discriminators."""

import math
from collections.abc import Mapping

import pytest
import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from progdist import Cosine, Denoiser, UserError
from progdist.methods.adversarial import ADVERSARIAL, AdversarialOptions, adversarial_loss, squared_gradient
from progdist.methods.discriminators import Convolutions, TeacherFeatures, untrained
from progdist.methods.progressive import PROGRESSIVE, distillation_loss, distillation_target
from progdist.models.networks import network_interface
from progdist.training.gradients import total

MEAN, DEVIATION = 0.7, 0.4
GAUSSIAN = torch.float64


class Affine(nn.Module):
    """x = a z + b at every time."""

    def __init__(self, slope: float, offset: float) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([slope, offset], dtype=GAUSSIAN))

    def forward(self, z: Tensor, timestep: Tensor) -> Tensor:
        return self.weights[0] * z + self.weights[1]


class Quadratic(nn.Module):
    """The family in which log p_real - log p_student lies for Gaussians, of z_s alone or of z_s and z_t."""

    def __init__(self, *, conditional: bool) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(5 if conditional else 2, dtype=GAUSSIAN))

    def forward(
        self, z: Tensor, s: Tensor, condition: object, z_t: Tensor | None = None, t: Tensor | None = None
    ) -> Tensor:
        terms = [z, z * z] if z_t is None else [z, z * z, z * z_t, z_t, z_t * z_t]
        return (torch.cat(terms, 1) * self.weights).sum(1)


def denoiser(network: nn.Module) -> Denoiser:
    return Denoiser(network, Cosine(), "sample")


def duel(student: Denoiser, teacher: Denoiser, options: AdversarialOptions, updates: int = 1000) -> None:
    """Train a student of one step on N(MEAN, DEVIATION^2) against a discriminator of the right family."""
    judge = Quadratic(conditional=options.judged == "trajectory")
    optimizers = [
        torch.optim.Adam(student.parameters(), 8e-3, (0.0, 0.99)),
        torch.optim.Adam(judge.parameters(), 2e-2, (0.0, 0.99)),
    ]
    draw, average = torch.Generator().manual_seed(0), torch.zeros(2, dtype=GAUSSIAN)
    for update in range(updates):
        eps, noises = (torch.randn(256, *shape, generator=draw, dtype=GAUSSIAN) for shape in ((1,), (2, 1)))
        x = MEAN + DEVIATION * torch.randn(256, 1, generator=draw, dtype=GAUSSIAN)
        u = torch.rand(256, generator=draw, dtype=GAUSSIAN)
        losses = adversarial_loss(
            student, teacher, x, eps, u, steps=1, substeps=2, weighting="constant", options=options, noises=noises,
            auxiliaries={"discriminator": judge},
        )  # fmt: skip
        total(losses).mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if update >= updates // 2:
            average += next(student.parameters()).detach() / (updates - updates // 2)
    with torch.no_grad():
        next(student.parameters()).copy_(average)


def test_the_optimum_is_the_data_where_these_are_real() -> None:
    """A student of one step, whose regression knows the mean alone, has the data's deviation, too."""
    student, teacher = denoiser(Affine(0.1, 0.0)), denoiser(Affine(0.0, MEAN))
    duel(student, teacher, AdversarialOptions(regression=0.0, r1=0.01))
    slope, offset = next(student.parameters()).tolist()
    assert abs(slope) == pytest.approx(DEVIATION, rel=0.1)  # z_1 is standard normal, and its sign is free
    assert offset == pytest.approx(MEAN, abs=0.05)


def test_the_conditional_form_keeps_the_teachers_trajectory() -> None:
    """From a slope of the other sign it comes to that of the teacher, which the data alone would not ask for."""
    student, teacher = denoiser(Affine(-0.2, 0.0)), denoiser(Affine(0.3, MEAN))
    duel(student, teacher, AdversarialOptions(regression=0.0, judged="trajectory", r1=0.01), updates=1500)
    z = torch.tensor([[-1.0], [1.0]], dtype=GAUSSIAN)

    exact = distillation_target(teacher, z, torch.ones(2, dtype=GAUSSIAN), torch.zeros(2, dtype=GAUSSIAN))
    made = student(z, torch.ones(2, dtype=GAUSSIAN)).detach()
    torch.testing.assert_close(made, exact, rtol=0, atol=0.1)


def test_without_weight_it_is_progressive_distillation() -> None:
    """The regression is the loss of that method, and there is no discriminator."""
    student, teacher = denoiser(Affine(0.5, 0.1)), denoiser(Affine(0.3, MEAN))
    x, eps, u = torch.randn(3, 6, 1, dtype=GAUSSIAN, generator=torch.Generator().manual_seed(1)).unbind()
    how = {"steps": 4, "substeps": 2, "weighting": "truncated_snr"}
    times = u.flatten().abs().remainder(1)
    losses = adversarial_loss(
        student, teacher, x, eps, times, options=AdversarialOptions(regression=2.0), noises=torch.zeros(6, 2, 1), **how
    )
    expected = distillation_loss(student, teacher, x, eps, times, **how)
    torch.testing.assert_close(losses.pop("regression"), 2 * expected)
    assert not losses
    made = ADVERSARIAL.configured({"weight": 0.0})
    assert made.auxiliaries is not None
    assert made.auxiliaries(made.options, teacher, x, {}) == {}


@pytest.mark.parametrize("judged", ["trajectory", "teacher", "data", "samples"])
@pytest.mark.parametrize("steps", [1, 4])
def test_each_loss_reaches_its_own_weights(judged: str, steps: int) -> None:
    """Gradients of the sum are those of each network's own part."""
    options = AdversarialOptions(judged=judged, r1=0.1)  # pyright: ignore[reportArgumentType]
    student, teacher = denoiser(Affine(0.5, 0.1)), denoiser(Affine(0.3, MEAN))
    judge = Quadratic(conditional=judged == "trajectory")
    nn.init.normal_(judge.weights)
    draw = torch.Generator().manual_seed(3)
    x, eps = torch.randn(2, 8, 1, dtype=GAUSSIAN, generator=draw)
    noises, u = torch.randn(8, 2, 1, dtype=GAUSSIAN, generator=draw), torch.rand(8, dtype=GAUSSIAN, generator=draw)

    def losses() -> Mapping[str, Tensor]:
        return adversarial_loss(
            student, teacher, x, eps, u, steps=steps, substeps=2, weighting="constant", options=options, noises=noises,
            auxiliaries={"discriminator": judge},
        )  # fmt: skip

    weights = [next(student.parameters()), judge.weights]
    whole = torch.autograd.grad(torch.stack(list(losses().values())).mean(1).sum(), weights)
    parts = losses()
    of_student = torch.autograd.grad((parts["regression"] + parts["adversarial"]).mean(), weights, allow_unused=True)
    of_judge = torch.autograd.grad(parts["discriminator"].mean(), weights, allow_unused=True)
    assert of_student[1] is None
    assert of_judge[0] is None
    assert of_student[0] is not None
    assert of_judge[1] is not None
    torch.testing.assert_close(whole, (of_student[0], of_judge[1]))
    assert all(each.requires_grad for each in judge.parameters())


def test_the_penalty_is_the_squared_gradient() -> None:
    """Of a linear discriminator exactly, in the mean over directions; of a quadratic one to O(delta^2)."""
    gradient = torch.tensor([0.5, -2.0, 1.0], dtype=GAUSSIAN)
    direction = torch.randn(200_000, 3, dtype=GAUSSIAN, generator=torch.Generator().manual_seed(0))
    z = torch.zeros_like(direction)
    penalty = squared_gradient(lambda z: z @ gradient, z, direction).mean()
    assert float(penalty) == pytest.approx(float(gradient @ gradient), rel=0.02)
    curved = squared_gradient(lambda z: z @ gradient + z.square().sum(1), z, direction).mean()
    assert float(curved) == pytest.approx(float(gradient @ gradient), rel=0.02)


def test_weights_get_no_gradient_meanwhile() -> None:
    layer, x = nn.Linear(2, 1), torch.ones(1, 2, requires_grad=True)
    layer.bias.requires_grad_(False)
    with untrained(layer):
        layer(x).sum().backward()
    assert layer.weight.grad is None
    assert x.grad is not None
    assert layer.weight.requires_grad
    assert not layer.bias.requires_grad


@pytest.mark.parametrize("shape", [(3,), (2, 17), (1, 8, 8), (3, 28, 20), (2, 4, 6, 5)])
@pytest.mark.parametrize("conditional", [False, True])
def test_convolutions_take_data_of_any_shape(shape: tuple[int, ...], conditional: bool) -> None:
    x, z_t = torch.randn(2, 4, *shape)
    condition = {"class_labels": torch.tensor([0, 1, 2, 9]), "text": torch.randn(4, 7, 5)}
    judge = Convolutions(x, condition, conditional=conditional)
    beside = {"z_t": z_t, "t": torch.ones(4)} if conditional else {}
    s = torch.tensor([0.0, 0.25, 0.5, 0.75], dtype=torch.float64)
    logits = judge(x, s, condition, **beside)
    assert logits.shape == (4,)
    for name, other in {"class_labels": torch.tensor([1, 1, 2, 9]), "text": torch.zeros(4, 7, 5)}.items():
        changed = judge(x, s, {**condition, name: other}, **beside)
        assert changed[0] != logits[0]
    assert judge(x, s.flip(0), condition, **beside)[0] != logits[0]
    if conditional:
        assert judge(x, s, condition, z_t=z_t + 1, t=torch.ones(4))[0] != logits[0]


def unet() -> tuple[nn.Module, dict[str, Tensor]]:
    network = UNet2DModel(
        sample_size=8, in_channels=2, out_channels=2, block_out_channels=(8, 16), norm_num_groups=4, num_class_embeds=3,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, layers_per_block=1,
    )  # fmt: skip
    return network, {"class_labels": torch.tensor([0, 2])}


def text_unet() -> tuple[nn.Module, dict[str, Tensor]]:
    network = UNet2DConditionModel(
        sample_size=8, in_channels=2, out_channels=2, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1, cross_attention_dim=6, attention_head_dim=4,
    )  # fmt: skip
    return network, {"encoder_hidden_states": torch.randn(2, 5, 6)}


def transformer() -> tuple[nn.Module, dict[str, Tensor]]:
    network = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=2, out_channels=2, num_layers=3, sample_size=8,
        patch_size=2, norm_num_groups=4,
    )  # fmt: skip
    return network, {"class_labels": torch.tensor([0, 2])}


@pytest.mark.parametrize("make", [unet, text_unet, transformer])
@pytest.mark.parametrize("trained", [False, True])
def test_the_teachers_network_judges(make, trained: bool) -> None:  # noqa: ANN001
    """Its input gets a gradient; its weights only where a copy of them is trained, and the teacher's own never."""
    network, condition = make()
    network.eval()
    teacher = Denoiser(network, Cosine(), "v_prediction", **network_interface(network))
    x = torch.randn(2, 2, 8, 8, requires_grad=True)
    judge = TeacherFeatures(teacher, x.detach(), condition, conditional=True, trained=trained)
    before = {name: each.clone() for name, each in network.state_dict().items()}
    s = torch.tensor([0.0, 0.5], dtype=torch.float64)
    judge(x, s, condition, z_t=torch.randn(2, 2, 8, 8), t=s + 0.5).sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0
    assert all(each.grad is None for each in network.parameters())
    assert all(each.requires_grad for each in network.parameters())
    reached = {name for name, each in judge.named_parameters() if each.grad is not None}
    assert any(name.startswith("own.") for name in reached) == trained
    assert any(name.startswith("head.") for name in reached)
    assert all(torch.equal(before[name], each) for name, each in network.state_dict().items())
    assert trained or all(name.startswith("head.") for name in judge.state_dict())


def test_a_network_without_a_known_middle_is_refused() -> None:
    with pytest.raises(UserError, match="discriminator teacher requires a network whose middle is known, got a Affine"):
        TeacherFeatures(denoiser(Affine(1, 0)), torch.zeros(2, 1), {}, conditional=False, trained=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1.0}, "weight is -1.0, expected a number from 0"),
        ({"weight": math.nan}, "weight is nan"),
        ({"weight": True}, "weight is True"),
        ({"weight": 0, "regression": 0}, "both 0"),
        ({"judged": "photos"}, "judged is 'photos', expected one of trajectory, teacher, data"),
        ({"discriminator": "vgg"}, "discriminator is 'vgg'"),
        ({"discriminator_learning_rate": 0}, "expected a positive number"),
        ({"lambda": 1.0}, "option 'lambda' of method adversarial is unknown: use one of weight"),
    ],
)
def test_options_are_checked(options: Mapping[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ADVERSARIAL.configured(options)
    with pytest.raises(UserError, match="option 'weight' of method progressive is unknown: it has none"):
        PROGRESSIVE.configured({"weight": 1.0})
