r"""Reference statistics in files, in the layouts that this field's evaluators write and read.

    NAME.npz         `mu` (D,) and `sigma` (D, D): EDM, clean-fid, pytorch-fid. With `mu_s`, `sigma_s` of the spatial
                     features, and `arr_0`, bytes (N, H, W, 3): guided-diffusion
    NAME_kid.npz     `feats` (N, D): clean-fid's for KID
    NAME.pt          a dictionary of arrays `mu` and `sigma`, or a tensor of features (N, D): torch-fidelity's cache

Files of ours also say the feature space, the number of images and the source; others pass that over. No pickle is run:
of a .pt file torch reads tensors and plain arrays alone.
"""

import io
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from progdist._utils.errors import UserError
from progdist._utils.files import atomic_write
from progdist.evaluation.measures.moments import Moments, moments

Array = NDArray[Any]
SPATIAL = "inception_spatial"
"""The feature space whose moments are `mu_s` and `sigma_s` beside those of Inception's pool."""

PLAIN: list[Any] = [
    np.ndarray, np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType, np.zeros(1).__reduce__()[0],
    (np.zeros(1).__reduce__()[0], "numpy.core.multiarray._reconstruct"),
]  # fmt: skip
"""What a plain array of floats is made of, for torch's reader, which refuses all else."""

_DAMAGED = (
    OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError, NotImplementedError, SyntaxError,
    MemoryError, zipfile.BadZipFile, zlib.error, pickle.UnpicklingError,
)  # fmt: skip


@dataclass(frozen=True)
class Statistics:
    """What a file holds of the data in one feature space: moments, and features (N, D) if it has them."""

    moments: Moments
    features: Tensor | None = None


def read_statistics(path: Path, space: str) -> Statistics:
    """The statistics of one feature space in a file of any of the layouts above.

    Raises:
        UserError: the file is missing or damaged, or of another feature space.
    """
    try:
        arrays = _read(path)
        said = str(arrays["features"]) if "features" in arrays else space
        count = int(arrays["count"]) if "count" in arrays else None
        if "feats" in arrays:
            features = torch.from_numpy(np.ascontiguousarray(arrays["feats"], dtype=np.float32))
            found = Statistics(moments(features), features)
        else:
            end = "_s" if space == SPATIAL and "mu_s" in arrays else ""
            said = said if space != SPATIAL else SPATIAL if end else said
            mean, covariance = (torch.from_numpy(arrays[f"{key}{end}"].astype(np.float64)) for key in ("mu", "sigma"))
            found = Statistics(replace(Moments(mean, covariance), count=count))
    except _DAMAGED as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{path} cannot be read as reference statistics ({reason}): expected an .npz file with mu and sigma, or "
            "torch-fidelity's .pt"
        ) from error
    if said != space:
        raise UserError(f"{path} holds statistics of {said} features, not of {space}: name the file of {space}")
    _check(path, found.moments)
    return found


def _check(path: Path, found: Moments) -> None:
    """Refuse moments that are none."""
    mean, covariance = found.mean, found.covariance
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise UserError(f"{path}: mu is {tuple(mean.shape)} and sigma {tuple(covariance.shape)}, expected (D,), (D, D)")
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise UserError(f"{path} holds numbers that are not finite: make it again")
    if not torch.allclose(covariance, covariance.T, rtol=1e-4, atol=1e-6 * float(covariance.abs().max())):
        raise UserError(f"{path}: sigma is not symmetric, and so no covariance: make it again")
    least, most = torch.linalg.eigvalsh(covariance)[[0, -1]].tolist()
    if least < -1e-4 * abs(most):
        raise UserError(
            f"{path}: sigma has the negative eigenvalue {least:.3g}, and so is no covariance: make it again"
        )


def _read(path: Path) -> dict[str, Array]:
    """The arrays of a file but for its images."""
    if path.suffix == ".pt":
        with torch.serialization.safe_globals(PLAIN):
            content = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(content, Tensor):
            return {"feats": content.numpy()}
        return {name: np.asarray(content[name]) for name in ("mu", "sigma")}
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        return {name: file[name] for name in file.files if not name.startswith("arr_")}


def check_name(path: Path) -> None:
    """Refuse a file whose name is of none of the layouts.

    Raises:
        UserError: names them.
    """
    if path.suffix not in (".npz", ".pt"):
        raise UserError(f"--out {path} ends in {path.suffix or 'nothing'}: give a name that ends in .npz or .pt")


def keeps_features(path: Path) -> bool:
    """Whether the layout that the name asks for is of features, not of their moments."""
    return path.name.endswith("_kid.npz")


def write_statistics(
    path: Path, found: Mapping[str, Statistics], source: str, images: NDArray[np.uint8] | None = None
) -> None:
    """Write the statistics of one feature space, or of Inception's pool and its spatial features.

    Args:
        path: whose name says the layout.
        found: by feature space; the spatial ones beside another are `mu_s` and `sigma_s`.
        source: of the images.
        images: bytes (N, H, W, 3) to keep as `arr_0`.
    """
    main = next((name for name in found if name != SPATIAL), SPATIAL)
    arrays = {"mu": found[main].moments.mean.numpy(), "sigma": found[main].moments.covariance.numpy()}
    buffer = io.BytesIO()
    if path.suffix == ".pt":
        torch.save(arrays, buffer)
    else:
        features = found[main].features
        arrays = {"feats": features.numpy()} if keeps_features(path) and features is not None else arrays
        if main != SPATIAL and SPATIAL in found:
            spatial = found[SPATIAL].moments
            arrays |= {"mu_s": spatial.mean.numpy(), "sigma_s": spatial.covariance.numpy()}
        if images is not None:
            arrays["arr_0"] = images
        count = found[main].moments.count
        said: dict[str, Any] = {"features": np.array(main), "count": np.array(count), "source": np.array(source)}
        np.savez(buffer, allow_pickle=False, **(arrays | said))
    atomic_write(path, buffer.getvalue())
