"""A teacher's output tried on images, through its autoencoder if it has one."""

import torch

from progdist._utils.random import EVALUATION_NOISE, generator
from progdist.data.images import Images
from progdist.models.conditions import prompt_conditions
from progdist.models.model import Model
from progdist.models.unet import class_conditions
from progdist.teachers.check import TeacherCheck, check_teacher

CHECK_IMAGES = 512
"""Images on which the readings of a teacher's output are tried."""


def check_on_images(model: Model, images: Images, seed: int) -> TeacherCheck:
    """Check a model's parameterization and timesteps on up to CHECK_IMAGES images."""
    device = next(model.denoiser.parameters()).device
    x, labels = images.sample(CHECK_IMAGES, seed)
    x = model.autoencoder.encode(x) if model.autoencoder else x
    eps = torch.randn(x.shape, generator=generator(seed, EVALUATION_NOISE, 2))
    conditions = class_conditions(model.denoiser.network)
    if model.text:
        distinct, labels = labels.unique(return_inverse=True)
        conditions = prompt_conditions(model, [images.classes[number] for number in distinct.tolist()], None)
    return check_teacher(model.denoiser, x.to(device), eps.to(device), **conditions({"labels": labels.to(device)}))
