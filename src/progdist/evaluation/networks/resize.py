r"""Convert images in [-1, 1] for networks: rounded to bytes, as if they had been saved, and resized.

Conventions differ, and so do the distances that they give (Parmar et al. 2022, arXiv 2104.11222):

    tensorflow   bilinear without antialiasing, output pixel i at i h / 299 of the input: TensorFlow 1's, as in the
                 first FID, torch-fidelity, guided-diffusion and EDM
    clean        Pillow's bicubic, with antialiasing, not rounded again: clean-fid's
    bytes        Pillow's bicubic, rounded to bytes: as in CLIP's processor and dgm-eval's DINOv2
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from progdist.data.images import to_uint8


def to_bytes(images: Tensor) -> Tensor:
    """(B, 1 or 3, H, W) in [-1, 1], clipped, -> (B, 3, H, W) of integers 0..255, float32; halves to even."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().expand(-1, 3, -1, -1)


def resize_tensorflow(pixels: Tensor, size: int) -> Tensor:
    """Pixels (B, C, H, W) -> (B, C, size, size)."""
    rows, columns = (_bilinear(length, size).to(pixels) for length in pixels.shape[-2:])
    return rows @ pixels @ columns.T


def _bilinear(length: int, size: int) -> Tensor:
    """The matrix (size, length) that interpolates at i length / size, repeating the last pixel beyond it."""
    place = torch.arange(size) * (length / size)
    lower = place.floor().long()
    upper, weight = (lower + 1).clamp(max=length - 1), place - lower
    matrix = torch.zeros(size, length)
    rows = torch.arange(size)
    matrix.index_put_((rows, lower), 1 - weight, accumulate=True)
    return matrix.index_put_((rows, upper), weight, accumulate=True)


def resize_clean(pixels: Tensor, size: int) -> Tensor:
    """Pixels (B, C, H, W) -> (B, C, size, size), each channel separately in float32."""
    flat = pixels.cpu().float().flatten(0, 1).numpy()
    resized = [np.asarray(Image.fromarray(one).resize((size, size), Image.Resampling.BICUBIC)) for one in flat]
    return torch.from_numpy(np.stack(resized)).unflatten(0, pixels.shape[:2]).to(pixels.device)


def resize_bytes(images: Tensor, size: int, *, crop: bool) -> Tensor:
    """Images (B, 1 or 3, H, W) in [-1, 1] -> (B, 3, size, size) of integers 0..255.

    With `crop` the shorter side becomes `size` and the middle is kept; otherwise the image is squeezed to a square.
    """
    resized = []
    for pixels in to_uint8(images.expand(-1, 3, -1, -1)):
        image = Image.fromarray(pixels)
        short = min(image.size)
        target = tuple(size * side // short for side in image.size) if crop else (size, size)
        image = image.resize((target[0], target[1]), Image.Resampling.BICUBIC)
        left, top = (target[0] - size) // 2, (target[1] - size) // 2
        resized.append(np.asarray(image.crop((left, top, left + size, top + size))))
    return torch.from_numpy(np.stack(resized)).movedim(-1, 1).float().to(images.device)
