"""Gradient checkpointing saves memory and changes nothing."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from progdist import Cosine, Denoiser, UserError
from progdist.cli.doctor import TRIAL
from progdist.diffusion.parameterization import PARAMETERIZATIONS
from progdist.models.unet import unet
from progdist.runs.estimate.memory import activation_bytes
from support.stock import stock_network
from support.training import CONFIG, flat_weights, train_briefly


def test_gradient_checkpointing_changes_nothing() -> None:
    plain, checkpointed = (
        train_briefly(stock_network()),
        train_briefly(stock_network(), replace(CONFIG, gradient_checkpointing=True)),
    )
    assert torch.equal(flat_weights(plain), flat_weights(checkpointed))


def test_gradient_checkpointing_saves_memory() -> None:
    network = unet(image=(1, 8, 8), width=8, multipliers=(1, 2), groups=4)
    denoiser = Denoiser(network, Cosine(), PARAMETERIZATIONS["v"])
    saved, saved_with_checkpointing = (
        activation_bytes(denoiser, (1, 8, 8), 4, replace(TRIAL, gradient_checkpointing=checkpointed), bf16=False)
        for checkpointed in (False, True)
    )
    assert saved_with_checkpointing < 0.5 * saved


def test_a_network_without_the_method_is_refused() -> None:
    with pytest.raises(UserError, match="enable_gradient_checkpointing"):
        train_briefly(nn.Linear(2, 2), replace(CONFIG, gradient_checkpointing=True))
