"""Reference statistics made from data, an image at a time: only moments are kept, or features where they are wanted."""

from collections.abc import Sequence
from pathlib import Path

import torch

from progdist._utils.errors import UserError
from progdist.data.images import Images, to_uint8
from progdist.evaluation.features import ROWS, FeatureSpace, features_of
from progdist.evaluation.measures.moments import moments, running_moments
from progdist.evaluation.measures.statistics import SPATIAL, Statistics, check_name, keeps_features, write_statistics


def make_statistics(spaces: Sequence[FeatureSpace], images: Images, out: Path, kept: int) -> None:
    """Write the statistics of all images of the data.

    Args:
        spaces: one, or one of Inception's and its spatial features.
        images: the data.
        out: the file; its name says the layout (see `statistics`).
        kept: how many images to keep in it.

    Raises:
        UserError: a layout that is unknown, or that has no place for what is wanted.
    """
    check_name(out)
    names = [space.name for space in spaces]
    if len(names) > 1 and not (len(names) == 2 and SPATIAL in names and names[0].startswith("inception")):
        raise UserError(f"a file holds the statistics of one feature space, and {', '.join(names)} are given: name one")
    if out.suffix == ".pt" and (len(names) > 1 or kept):
        raise UserError(f"{out}: torch-fidelity's layout holds mu and sigma alone: give --out a name that ends in .npz")
    if kept > len(images):
        raise UserError(f"--images {kept}: {images.name} holds {len(images)}")
    every = torch.arange(len(images))
    if keeps_features(out):
        features = {space.name: features_of(space, images, every) for space in spaces}
        found = {name: Statistics(moments(each), each) for name, each in features.items()}
    else:
        found = {}
        for space in spaces:
            parts = (space(images.at(rows)[0]) for rows in every.split(ROWS))
            found[space.name] = Statistics(running_moments(parts))
    pixels = to_uint8(images.at(images.chosen(kept, 0))[0].expand(-1, 3, -1, -1)) if kept else None
    write_statistics(out, found, images.name, pixels)
