"""Grids for people: small images are enlarged by whole factors, and their number is laid near 4:3."""

import pytest

from progdist.data.grid import columns_for, enlargement


@pytest.mark.parametrize(
    ("height", "width", "factor"), [(8, 8, 8), (28, 28, 3), (32, 32, 2), (64, 64, 1), (512, 512, 1), (16, 32, 2)]
)
def test_small_images_are_enlarged_to_64_pixels(height: int, width: int, factor: int) -> None:
    assert enlargement(height, width) == factor


@pytest.mark.parametrize(
    ("count", "columns"),
    [(1, 1), (2, 2), (4, 2), (8, 4), (12, 4), (16, 4), (48, 8), (10, 5), (64, 8), (100, 10), (192, 16)],
)
def test_a_grid_is_near_4_by_3_and_full(count: int, columns: int) -> None:
    assert columns_for(count, 32, 32) == columns


def test_wide_images_have_fewer_columns() -> None:
    assert columns_for(48, 32, 64) == 6
