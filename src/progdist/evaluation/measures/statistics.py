r"""Reference statistics in files, in the layouts that other evaluators write and read.

    NAME.npz         `mu` (D,) and `sigma` (D, D): EDM, clean-fid, pytorch-fid. With `mu_s`, `sigma_s` of the spatial
                     features, and `arr_0`, bytes (N, H, W, 3): guided-diffusion
    NAME_kid.npz     `feats` (N, D): clean-fid's for KID
    NAME.pt          a dictionary of arrays `mu` and `sigma`, or a tensor of features (N, D): torch-fidelity's cache

progdist's files also record the feature space, the number of images and the source; other programs ignore that. No
pickle is run: from a .pt file torch reads only tensors and plain arrays.
"""

import io
import pickle
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from progdist._utils.errors import UserError
from progdist._utils.files import atomic_write
from progdist.data.images import Images, to_uint8
from progdist.evaluation.features import ROWS, FeatureSpace, features_of
from progdist.evaluation.measures.moments import Moments, moments, running_moments

Array = NDArray[Any]
SPATIAL = "inception_spatial"  # its moments are `mu_s` and `sigma_s` next to those of Inception's pool
PLAIN: list[Any] = [  # what plain arrays of floats consist of, for torch's reader, which refuses all else
    np.ndarray, np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType, np.zeros(1).__reduce__()[0],
    (np.zeros(1).__reduce__()[0], "numpy.core.multiarray._reconstruct"),
]  # fmt: skip
_DAMAGED = (
    OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError, NotImplementedError, SyntaxError,
    MemoryError, zipfile.BadZipFile, zlib.error, pickle.UnpicklingError,
)  # fmt: skip


@dataclass(frozen=True)
class Statistics:
    """The content of a file about the data in one feature space: moments, and features (N, D) if it has them."""

    moments: Moments
    features: Tensor | None = None


def read_statistics(path: Path, space: str) -> Statistics:
    """Read the statistics of a feature space from a file in any layout above. Raise a UserError for invalid ones."""
    try:
        arrays = _read(path)
        name = str(arrays["features"]) if "features" in arrays else space
        count = int(arrays["count"]) if "count" in arrays else None
        if "feats" in arrays:
            features = torch.from_numpy(np.ascontiguousarray(arrays["feats"], dtype=np.float32))
            statistics = Statistics(moments(features), features)
        else:
            end = "_s" if space == SPATIAL and "mu_s" in arrays else ""
            name = SPATIAL if end else name
            mean, covariance = (torch.from_numpy(arrays[f"{key}{end}"].astype(np.float64)) for key in ("mu", "sigma"))
            statistics = Statistics(Moments(mean, covariance, count))
    except _DAMAGED as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{path} cannot be read as reference statistics ({reason}): expected an .npz file with mu and sigma, or "
            "torch-fidelity's .pt"
        ) from error
    if name != space:
        raise UserError(f"{path} has statistics of {name} features, expected {space}: give the file of {space}")
    _check(path, statistics.moments.mean, statistics.moments.covariance)
    return statistics


def _check(path: Path, mean: Tensor, covariance: Tensor) -> None:
    """Refuse invalid moments."""
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise UserError(
            f"{path}: mu is {tuple(mean.shape)} and sigma {tuple(covariance.shape)}, expected (D,) and (D, D)"
        )
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise UserError(f"{path} has values that are not finite: make it again")
    if not torch.allclose(covariance, covariance.T, rtol=1e-4, atol=1e-6 * float(covariance.abs().max())):
        raise UserError(f"{path}: sigma is not symmetric, so it is not a covariance: make it again")
    least, most = torch.linalg.eigvalsh(covariance)[[0, -1]].tolist()
    if least < -1e-4 * abs(most):
        raise UserError(
            f"{path}: sigma has the negative eigenvalue {least:.3g}, so it is not a covariance: make it again"
        )


def _read(path: Path) -> dict[str, Array]:
    """The arrays of a file, without its images."""
    if path.suffix == ".pt":
        with torch.serialization.safe_globals(PLAIN):
            content = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(content, Tensor):
            return {"feats": content.numpy()}
        return {name: np.asarray(content[name]) for name in ("mu", "sigma")}
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        return {name: file[name] for name in file.files if not name.startswith("arr_")}


def make_statistics(spaces: Sequence[FeatureSpace], images: Images, out: Path, kept: int) -> None:
    """Write the statistics of all images of the data: moments, batch by batch, or features, depending on the layout.

    They cover one feature space, or one of Inception's with its spatial features, with `kept` images. The file name
    selects the layout. Raise a UserError if that is unknown or cannot hold all of this.
    """
    if out.suffix not in (".npz", ".pt"):
        raise UserError(f"--out {out} ends in {out.suffix or 'nothing'}, expected a name that ends in .npz or .pt")
    names = [space.name for space in spaces]
    if len(names) > 1 and not (len(names) == 2 and SPATIAL in names and names[0].startswith("inception")):
        raise UserError(f"a file holds the statistics of one feature space, got {', '.join(names)}: name one")
    if out.suffix == ".pt" and (len(names) > 1 or kept):
        raise UserError(f"{out}: torch-fidelity's layout holds only mu and sigma: give --out a name that ends in .npz")
    if kept > len(images):
        raise UserError(f"--images is {kept}, but {images.name} has {len(images)}: give at most that many")
    every, statistics = torch.arange(len(images)), dict[str, Statistics]()
    for space in spaces:
        if _holds_features(out):
            features = features_of(space, images, every)
            statistics[space.name] = Statistics(moments(features), features)
        else:
            parts = (space(images.at(rows)[0]) for rows in every.split(ROWS))
            statistics[space.name] = Statistics(running_moments(parts))
    pixels = to_uint8(images.at(images.chosen(kept, 0))[0].expand(-1, 3, -1, -1)) if kept else None
    write_statistics(out, statistics, images.name, pixels)


def _holds_features(path: Path) -> bool:
    """Whether the layout of this name holds features instead of their moments."""
    return path.name.endswith("_kid.npz")


def write_statistics(
    path: Path, statistics: Mapping[str, Statistics], source: str, images: NDArray[np.uint8] | None = None
) -> None:
    """Write the statistics by feature space: one, or Inception's pool with its spatial features.

    The file name selects the layout; `source` names the data, and `images` are bytes (N, H, W, 3) to keep.
    """
    main = next((name for name in statistics if name != SPATIAL), SPATIAL)
    own, features = statistics[main].moments, statistics[main].features
    arrays: dict[str, Any] = {"mu": own.mean.numpy(), "sigma": own.covariance.numpy()}
    buffer = io.BytesIO()
    if path.suffix == ".pt":
        torch.save(arrays, buffer)
    else:
        if _holds_features(path) and features is not None:
            arrays = {"feats": features.numpy()}
        if main != SPATIAL and SPATIAL in statistics:
            spatial = statistics[SPATIAL].moments
            arrays |= {"mu_s": spatial.mean.numpy(), "sigma_s": spatial.covariance.numpy()}
        if images is not None:
            arrays["arr_0"] = images
        arrays |= {"features": np.array(main), "count": np.array(own.count), "source": np.array(source)}
        np.savez(buffer, allow_pickle=False, **arrays)
    atomic_write(path, buffer.getvalue())
