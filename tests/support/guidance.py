"""Students that take a guidance scale."""

from dataclasses import replace

from torch import nn

from progdist.methods.conversion import student_form
from progdist.methods.guidance import Input
from progdist.models.guidance_input import (
    GuidedClasses,
    with_class_guidance,
)
from progdist.models.model import Model
from progdist.models.networks import network_interface


def student(teacher: Model, steps: int = 4) -> Model:
    """A student of the teacher whose guidance scale does something."""
    form = student_form(teacher.denoiser, guided=False, zero_terminal_snr=False)
    network = with_class_guidance(form.network, Input(1.0, 8.0))
    for each in network.modules():
        if isinstance(each, GuidedClasses):
            nn.init.normal_(each.guidance.weight, std=0.3)
    denoiser = form.with_parts(network=network, **network_interface(network))
    return replace(teacher, denoiser=denoiser, steps=(steps,))
