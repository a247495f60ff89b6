"""The U-Net is the paper's: its output on a released checkpoint, its layers, its size."""

import pytest
import torch
from diffusers.models.downsampling import Downsample2D

from progdist import UserError
from progdist.models.conditioning import Classes, Conditioning
from progdist.models.networks import class_count, image_shape
from progdist.models.unet import unet


def test_an_untrained_network_returns_zero() -> None:
    network = unet(image=(1, 8, 8), width=8, multipliers=(1, 2), groups=4)
    assert not network(torch.randn(2, 1, 8, 8), torch.tensor([3.0, 7.0])).sample.any()


@pytest.mark.parametrize("attention", [(), (16,), (8,), (16, 8)])
def test_resolution_changes_in_residual_blocks(attention: tuple[int, ...]) -> None:
    """Whether a level attends or not, its sampling is residual: no bare strided convolution anywhere."""
    network = unet(image=(3, 16, 16), width=8, multipliers=(1, 2), groups=4, attention=attention)
    assert not any(isinstance(module, Downsample2D) and module.use_conv for module in network.modules())
    attends = {8: "down_blocks.1.attentions.0.to_q.weight", 16: "down_blocks.0.attentions.0.to_q.weight"}
    assert {size for size, name in attends.items() if name in network.state_dict()} == set(attention)


def test_cifar10_has_the_papers_size() -> None:
    """Appendix E's network for CIFAR-10: three blocks a level, one more on the way up."""
    with torch.device("meta"):
        network = unet(
            image=(3, 32, 32),
            width=256,
            multipliers=(1, 1, 1),
            blocks=3,
            attention=(8, 16),
            embedding=1024,
            dropout=0.2,
        )
    names = network.state_dict()
    for level in range(3):
        assert f"down_blocks.{level}.resnets.2.conv1.weight" in names
        assert f"down_blocks.{level}.resnets.3.conv1.weight" not in names
        assert f"up_blocks.{level}.resnets.3.conv1.weight" in names
    assert names["time_embedding.linear_1.weight"].shape == (1024, 256)
    assert sum(value.numel() for value in names.values()) == pytest.approx(60e6, rel=0.02)


def test_a_network_describes_its_data() -> None:
    network = unet(image=(3, 8, 16), width=8, multipliers=(1, 1), groups=4, classes=5)
    assert image_shape(network) == (3, 8, 16)
    assert class_count(network) == 5
    labels = torch.tensor([1, 4])
    assert Classes(("",) * 5).conditions(network, None)({"labels": labels})["class_labels"] is labels
    assert network(torch.randn(2, 3, 8, 16), torch.zeros(2), class_labels=labels).sample.shape == (2, 3, 8, 16)
    assert image_shape(torch.nn.Identity()) is None
    assert class_count(torch.nn.Identity()) == 0
    assert Conditioning().conditions(torch.nn.Identity(), None)({"labels": labels}) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": (1, 9, 9)}, "divisible by 2"),
        ({"width": 10}, "groups"),
        ({"width": 2, "groups": 1}, "width is 2, expected an even number of at least 4"),
        ({"attention": (5,)}, "expected some of the network's resolutions"),
    ],
)
def test_sizes_that_do_not_fit(change: dict[str, object], message: str) -> None:
    numbers: dict[str, object] = {"image": (1, 8, 8), "width": 8, "multipliers": (1, 2), "groups": 4}
    with pytest.raises(UserError, match=message):
        unet(**(numbers | change))  # pyright: ignore[reportArgumentType]
