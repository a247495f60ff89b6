"""How a pipeline decodes, learned from decodings that are written out here."""

import pytest
import torch
from torch import Tensor

from progdist.models.decoding import learn_decoding

MEANS = torch.tensor([0.5, -1.0, 0.0, 2.0]).view(4, 1, 1)
DEVIATIONS = torch.tensor([0.3, 1.0, 5.0, 2.0]).view(4, 1, 1)


def unpacked(z: Tensor) -> Tensor:
    """Tokens (B, h w / 4, 16) of 2x2 squares, row by row, as (B, 4, h, w)."""
    side = int(z.shape[1] ** 0.5)
    squares = z.unflatten(2, (4, 2, 2)).unflatten(1, (side, side))
    return squares.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


@pytest.mark.parametrize("side", [2, 24], ids=lambda side: f"{side * side * 16} numbers")
def test_patches_are_put_back_and_each_channel_scaled_and_shifted(side: int) -> None:
    def given(z: Tensor) -> Tensor:
        return unpacked(z) * DEVIATIONS + MEANS

    shape = (side * side, 16)
    found = learn_decoding(given, shape)
    assert found is not None
    assert (found.scale.shape, found.shift.shape, found.shape) == ((4, 1, 1), (4, 1, 1), (4, 2 * side, 2 * side))
    z = torch.randn(3, *shape)
    torch.testing.assert_close(found(z), given(z))
    torch.testing.assert_close(found.inverse(given(z), shape), z)


def test_latents_in_order_need_no_place() -> None:
    found = learn_decoding(lambda z: z / 0.18215, (4, 8, 8))
    assert found is not None
    assert found.place is None
    assert found.scale.shape == found.shift.shape == (1, 1, 1)
    assert float(found.scale) == pytest.approx(1 / 0.18215)


def test_frames_before_channels_are_put_behind_them() -> None:
    found = learn_decoding(lambda z: z.transpose(1, 2) * 2, (3, 4, 2, 2))
    assert found is not None
    assert found.shape == (4, 3, 2, 2)
    z = torch.randn(2, 3, 4, 2, 2)
    torch.testing.assert_close(found.inverse(found(z), (3, 4, 2, 2)), z)


@pytest.mark.parametrize(
    "given",
    [
        lambda z: z.square() + z,
        lambda z: z.tanh(),
        lambda z: z + z.flip(-1),
        lambda z: z[:, :2],
        lambda z: 0 * z,
        lambda z: None,
        lambda z: z + torch.arange(len(z)).view(-1, 1, 1, 1),  # other rows, other numbers
    ],
    ids=["square", "tanh", "mixed", "cut", "nothing", "not called", "by the row"],
)
def test_any_other_decoding_is_told_apart(given: object) -> None:
    assert learn_decoding(given, (4, 4, 4)) is None  # pyright: ignore[reportArgumentType]
