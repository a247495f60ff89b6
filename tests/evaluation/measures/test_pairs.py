"""A student beside its teacher, on images whose differences are known."""

import pytest
import torch

from progdist import UserError
from progdist.evaluation.measures.pairs import compare_pairs

CONDITIONS, EACH, SIZE = 40, 8, 20
LABELS = torch.arange(CONDITIONS * EACH) % CONDITIONS


def images(seed: int = 0) -> torch.Tensor:
    """Each condition has a mean of its own, far from the others'; noise of variance 1 beside it, drawn by the seed."""
    means = 10 * torch.randn(CONDITIONS, SIZE, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    return means[LABELS] + torch.randn(len(LABELS), SIZE, generator=torch.Generator().manual_seed(seed))


def test_the_teacher_itself() -> None:
    found = compare_pairs(images(), images(), LABELS)
    assert (found.rms.value, found.share.value) == (0, 0)
    assert found.diversity.value == pytest.approx(1)
    assert found.diversity.low == found.diversity.high == pytest.approx(1)
    assert found.unit.value == pytest.approx(0, abs=1e-12)


def test_other_images_of_the_same_conditions() -> None:
    """Of two independent draws the difference has variance 2 in each number, which is all there is."""
    found = compare_pairs(images(1), images(2), LABELS)
    assert found.rms.value == pytest.approx(2**0.5, rel=0.05)
    assert found.share.low < 1 < found.share.high
    assert found.diversity.low < 1 < found.diversity.high


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.5])
def test_a_student_that_varies_less_or_more(scale: float) -> None:
    """s = m + a (t - m): diversity a^2, and a share of (1 - a)^2 / 2 (n - 1) / n of that of independent images."""
    teacher = images()
    means = torch.stack([teacher[number == LABELS].mean(0) for number in range(CONDITIONS)])[LABELS]
    found = compare_pairs(means + scale * (teacher - means), teacher, LABELS)
    assert found.diversity.value == pytest.approx(scale**2, abs=1e-9)
    assert found.share.value == pytest.approx((1 - scale) ** 2 / 2 * (EACH - 1) / EACH, rel=1e-5)


def test_one_condition_and_its_intervals() -> None:
    """The interval over images holds the ratio of the two variances."""
    draw = torch.Generator().manual_seed(3)
    teacher, student = torch.randn(400, SIZE, generator=draw), 0.9 * torch.randn(400, SIZE, generator=draw)
    found = compare_pairs(student, teacher, torch.zeros(400, dtype=torch.int64))
    assert found.diversity.low < 0.81 < found.diversity.high
    assert found.diversity.high - found.diversity.low < 0.15
    assert found.rms.value == pytest.approx(1.81**0.5, rel=0.02)


@pytest.mark.parametrize("conditions", [1, 8])
def test_the_distance_of_unit_features(conditions: int) -> None:
    """2 - 2 cos of the angle between both, whatever their lengths; a feature vector of 0 has no direction."""
    angle, labels = torch.linspace(0, 3, 64, dtype=torch.float64), torch.arange(64) % conditions
    teacher = torch.tensor([[3.0, 0.0]], dtype=torch.float64).expand(64, 2)
    student = torch.stack([angle.cos(), angle.sin()], 1) * torch.rand(64, 1, dtype=torch.float64).add(0.1)
    jitter = torch.randn(64, 1, dtype=torch.float64).exp()
    found = compare_pairs(student, teacher * jitter, labels).unit
    assert found.value == pytest.approx(float((2 - 2 * angle.cos()).mean()))
    assert found.low < found.value < found.high
    assert compare_pairs(0 * student, teacher * jitter, labels).unit.value == pytest.approx(1)


def test_a_single_image_of_a_condition_is_refused() -> None:
    with pytest.raises(UserError, match="make at least two of each"):
        compare_pairs(torch.randn(3, 2), torch.randn(3, 2), torch.tensor([0, 0, 1]))
