"""A network of anyone's: what it may return, how its time is handed over, and what is refused by name."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

from progdist import Cosine, Denoiser, Discrete, RectifiedFlow, UserError, sample


@dataclass
class Output:
    sample: Tensor


class Returning(nn.Module):
    """Returns something made of z."""

    def __init__(self, made: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.made = made

    def forward(self, z: Tensor, timestep: Tensor) -> Any:  # noqa: ANN401
        return self.made(z)


@pytest.mark.parametrize(
    "made",
    [
        lambda z: z,
        lambda z: (z, 3),
        lambda z: [z],
        lambda z: {"sample": z, "hidden": 0},
        Output,
        lambda z: torch.cat([z, 5 * z], 1),  # learned variances in as many channels again
    ],
)
@pytest.mark.parametrize("shape", [(4, 12), (4, 3, 5), (4, 3, 8, 8)])
def test_every_form_of_an_output_is_the_prediction(made: Callable[[Tensor], Any], shape: tuple[int, ...]) -> None:
    z = torch.randn(shape)
    denoiser = Denoiser(Returning(made), Cosine(), "sample")
    assert torch.equal(denoiser(z, torch.tensor(0.5)), z)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda z: z[:, :1], r"returned \(4, 1, 8, 8\) for latents \(4, 3, 8, 8\), expected \(4, 3, 8, 8\)"),
        (lambda z: z[:1], r"returned \(1, 3, 8, 8\)"),
        (lambda z: z.mean((2, 3), keepdim=True), r"returned \(4, 3, 1, 1\)"),
        (lambda z: z.flatten(1), r"returned \(4, 192\)"),
        (lambda z: torch.cat([z, z[:, :1]], 1), r"returned \(4, 4, 8, 8\)"),
        (lambda z: z[:, 0, 0, 0], r"returned \(4,\) .* call=lambda network, z, t: network\(t, z\)"),
        (lambda z: z.mean(), r"returned \(\)"),
        (lambda z: {"eps": z}, "returned a dict of eps"),
        (lambda z: None, "returned a NoneType"),
        (lambda z: torch.distributions.Normal(z, 1.0), "returned a Normal"),
        (lambda z: (), "returned a tuple"),
    ],
)
def test_what_is_no_prediction_is_refused(made: Callable[[Tensor], Any], message: str) -> None:
    denoiser = Denoiser(Returning(made), Cosine(), "v")
    with pytest.raises(UserError, match=message):
        denoiser(torch.randn(4, 3, 8, 8), torch.tensor(0.5))


def test_a_network_that_takes_its_time_first_is_called_so() -> None:
    class TimeFirst(nn.Module):
        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            self.seen = t
            return x

    network = TimeFirst()
    with pytest.raises(UserError, match="if it takes time first, pass call="):
        Denoiser(network, RectifiedFlow(), "velocity")(torch.randn(4, 12), torch.tensor(0.5))
    denoiser = Denoiser(network, RectifiedFlow(), "velocity", num_train_timesteps=1, call=lambda net, z, t: net(t, z))
    denoiser(torch.randn(4, 12), torch.tensor(0.25))
    assert network.seen.tolist() == [0.25] * 4


def test_a_condition_that_a_network_does_not_take_is_named() -> None:
    class Labelled(nn.Module):
        def forward(self, z: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
            return z

    denoiser, z, t = Denoiser(Labelled(), Cosine(), "v"), torch.zeros(2, 3), torch.tensor(0.5)
    with pytest.raises(UserError, match="missing a required argument: 'label'"):
        denoiser(z, t)
    with pytest.raises(UserError, match=r"timestep, label=..., pitch=...\) \(got an unexpected keyword argument"):
        denoiser(z, t, label=t, pitch=t)


class Table(nn.Module):
    """v = z + e(t), e a table of timesteps."""

    def __init__(self, entries: int = 1000, cast: Callable[[Tensor], Tensor] = lambda t: t) -> None:
        super().__init__()
        self.table, self.cast, self.labels = nn.Embedding(entries, 2), cast, nn.Embedding(entries, 2)

    def forward(self, z: Tensor, timestep: Tensor, label: Tensor | None = None) -> Tensor:
        rest = 0 if label is None else self.labels(label.long())
        return z + self.table(self.cast(timestep)) + rest


CASTS = [lambda t: t, Tensor.long, Tensor.int, lambda t: t.round().long(), lambda t: t[:, None].long()[:, 0]]


@pytest.mark.parametrize("cast", CASTS)
def test_a_table_of_timesteps_is_asked_for_its_entries_alone(cast: Callable[[Tensor], Tensor]) -> None:
    network, z = Table(cast=cast), torch.randn(2, 2)
    denoiser = Denoiser(network, Discrete.linear(), "v")
    schedule, t = denoiser.schedule, torch.tensor([0.25, 1.0], dtype=torch.float64)
    alpha, sigma = (each.float()[:, None] for each in schedule.scales(t))
    v = z + network.table.weight[[249, 999]]
    torch.testing.assert_close(denoiser(z, t), alpha * z - sigma * v)
    assert denoiser.whole_timesteps
    assert sample(denoiser, z, 100).isfinite().all()
    with pytest.raises(UserError, match=r"table of 1000, but was called at 983.375, between two entries"):
        sample(denoiser, z, 64)
    other = Denoiser(network, Cosine(), "v")  # 1,024 timesteps
    with pytest.raises(UserError, match="table of 1000, but was called at 1023: set its num_train_timesteps"):
        sample(other, z, 4)


def test_a_table_of_labels_is_none_of_timesteps() -> None:
    class Continuous(Table):
        def forward(self, z: Tensor, timestep: Tensor, label: Tensor | None = None) -> Tensor:
            assert label is not None
            return z * (timestep[:, None] / 1000).cos() + self.labels(label)

    denoiser = Denoiser(Continuous(), Discrete.linear(), "v")
    t = torch.tensor(0.2505, dtype=torch.float64)  # timestep 249.5
    denoiser(torch.randn(3, 2), t, label=torch.full((3,), 249))
    assert not denoiser.whole_timesteps
    assert sample(denoiser, torch.randn(3, 2), 7, label=torch.tensor([1, 2, 3])).isfinite().all()


def test_the_learned_time_embedding_of_diffusers_is_a_table() -> None:
    network = UNet2DModel(
        8, 1, 1, time_embedding_type="learned", num_train_timesteps=1000, layers_per_block=1, norm_num_groups=4,
        block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    ).eval()  # fmt: skip
    z, denoiser = torch.randn(2, 1, 8, 8), Denoiser(network, Discrete.linear(), "v")
    with torch.no_grad():
        expected = network(z, torch.tensor([499, 499])).sample
        torch.testing.assert_close(denoiser.output(z, torch.tensor([499.0, 499.0])), expected)
    with pytest.raises(UserError, match="between two entries"):
        sample(denoiser, z, 64)


@pytest.mark.parametrize(("shape", "said"), [((4, 1), 1), ((4, 12), 1), ((4, 3, 8, 8), 0), ((4, 3, 5), 0)])
def test_half_of_a_vector_is_passed_over_with_a_word(
    shape: tuple[int, ...], said: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, whatever it is made into: a network of another width than its data is a likely mistake there."""
    denoiser = Denoiser(Returning(lambda z: torch.cat([z, 5 * z], 1)), Cosine(), "sample")
    with caplog.at_level("WARNING", "progdist"):
        for each in (denoiser, denoiser, denoiser.with_parts(prediction_type="v")):
            each(torch.randn(shape), torch.tensor(0.5))
    assert caplog.text.count(f"returns {2 * shape[1]} numbers for {shape[1]} of the data") == said
