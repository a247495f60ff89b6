"""Students that take a guidance scale."""

from dataclasses import replace

from torch import nn

from progdist.methods.conversion import converted_form
from progdist.models.guidance_input import (
    GuidedClasses,
    with_class_guidance,
)
from progdist.models.model import Model
from progdist.models.prompts import network_arguments


def student(teacher: Model, steps: int = 4) -> Model:
    """A student of the teacher whose guidance scale does something."""
    form = converted_form(teacher.denoiser, zero_terminal_snr=False)
    network = with_class_guidance(form.network, (1.0, 8.0))
    for each in network.modules():
        if isinstance(each, GuidedClasses):
            nn.init.normal_(each.guidance.weight, std=0.3)
    denoiser = form.with_parts(network=network, arguments=network_arguments(network))
    return replace(teacher, denoiser=denoiser, steps=(steps,))
