"""ONNX export of the whole sampling loop: noise in, images out.

    noise (B, C, H, W) float32 [, labels (B,) int64 [, guidance (B,) float32]]  ->  images (B, C, H, W), about [-1, 1]

`guidance` is an input only for a class-conditional model with a guidance input. A latent model takes noise in the shape
of its latents, and its decoder is included. The batch size is dynamic, the number of steps is fixed. Running the file
requires neither progdist, torch nor diffusers.
"""

import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from progdist._utils.errors import UserError
from progdist._utils.extras import import_extra
from progdist._utils.files import atomic_write
from progdist.diffusion.sampler import ddim_update, initial_latents, time_grid
from progdist.models.model import Model

MAX_BYTES = 2**31 - 2**25  # largest weights that fit a protocol buffer file with the graph


class Loop(nn.Module):
    """DDIM of a loaded model in a fixed number of steps."""

    def __init__(self, model: Model, steps: int) -> None:
        super().__init__()
        self.denoiser, self.grid, self.autoencoder = model.denoiser, time_grid(steps).tolist(), model.autoencoder
        self.decoder = model.autoencoder.network if model.autoencoder else None

    def forward(self, noise: Tensor, labels: Tensor | None = None, guidance: Tensor | None = None) -> Tensor:
        """Images from noise (B, C, H, W), labels (B,) and guidance scales (B,)."""
        condition_kwargs = {} if labels is None else {"class_labels": labels}
        condition_kwargs |= {} if guidance is None else {"guidance": guidance}
        schedule = self.denoiser.schedule
        z = initial_latents(schedule, noise)
        for now, then in zip(self.grid[:-2], self.grid[1:-1], strict=True):
            t, s = (torch.tensor(time, dtype=torch.float64) for time in (now, then))
            z = ddim_update(schedule, z, self.denoiser(z, t, **condition_kwargs), t, s)
        data = self.denoiser(z, torch.tensor(self.grid[-2], dtype=torch.float64), **condition_kwargs)
        return self.autoencoder.images(data) if self.autoencoder else data


def export_onnx(model: Model, steps: int | None, out: Path) -> int:
    """Write a model's sampling loop of `steps` steps (None: the model's own) as ONNX; returns the number of steps.

    Raises:
        UserError: the file does not end in .onnx, no step count, the extra `onnx` is missing, or the weights exceed
            the size of one file.
    """
    if out.suffix.lower() != ".onnx" or out.is_dir():
        raise UserError(f"--onnx is {out}, expected a file that ends in .onnx")
    if model.conditioning.takes_prompts:
        raise UserError("--onnx does not support text-to-image models: sample the folder with the stock pipeline")
    steps = steps if steps is not None else min(model.steps, default=None)
    if steps is None:
        raise UserError("this model was trained for any number of steps: set steps, e.g. 16")
    for module in ("onnx", "onnxscript"):
        import_extra(module, "onnx", "exporting")
    parts = [model.denoiser.network, *([model.autoencoder.network] if model.autoencoder else [])]
    if (size := sum(4 * each.numel() for part in parts for each in part.parameters())) > MAX_BYTES:
        raise UserError(f"the weights are {size / 2**30:.1f} GiB, but one ONNX file holds 2: sample the folder instead")
    batch = torch.export.Dim("batch", min=1, max=4096)
    inputs = {"noise": torch.randn(2, *model.shape)}
    if model.classes:
        inputs["labels"] = torch.zeros(2, dtype=torch.int64)
    if model.guidance is not None:
        inputs["guidance"] = torch.ones(2)
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    registration.setLevel(logging.ERROR)  # it warns about missing torchvision, which is not exported
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own parts
        program = torch.onnx.export(
            Loop(model, steps).eval(),
            tuple(inputs.values()),
            dynamo=True,
            dynamic_shapes=[{0: batch}] * len(inputs),
            input_names=list(inputs),
            output_names=["images"],
            verbose=False,
        )
    assert program is not None  # of the dynamo exporter
    atomic_write(out, program.model_proto.SerializeToString())
    return steps
