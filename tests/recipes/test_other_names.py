"""Names that other libraries have for our keys lead to keys that exist, and so do typing mistakes."""

import inspect

import pytest
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from transformers import TrainingArguments

from progdist._utils.errors import UserError
from progdist._utils.other_names import OTHER_NAMES
from progdist.recipes.files import known_keys, validated
from progdist.recipes.text import read_yaml
from progdist.training.config import DEFAULTS, OPTIONS, TrainConfig
from support.commands import TINY

KEYS = {key.rpartition(".")[2] for key in known_keys()}


def test_every_name_leads_to_a_key() -> None:
    assert {name for names in OTHER_NAMES.values() for name in names} <= KEYS
    assert {"network.class_conditional", "noise.kind", "distill.stages", "evaluate.samples"} <= set(known_keys())


def test_the_names_are_those_of_the_libraries() -> None:
    theirs = [
        name
        for kind in (UNet2DModel, DDPMScheduler, TrainingArguments)
        for name in inspect.signature(kind.__init__).parameters
    ]
    assert len(set(OTHER_NAMES) & set(theirs)) >= 20


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("network.num_classes=10", "did you mean class_conditional?"),
        ("num_classes=10", "did you mean network.class_conditional?"),
        ("lr=0.1", "did you mean teacher.learning_rate or conversion.learning_rate or distill.learning_rate?"),
        ("teacher.lr=0.1", "did you mean learning_rate?"),
        ("teacher.batch-size=4", "did you mean batch?"),
        ("distill.steps=4", "did you mean updates or chain?"),
        ("teacher.num_train_epochs=4", "did you mean updates?"),
        ("network.resolution=32", "did you mean data.size?"),
        ("data.image_size=32", "did you mean size?"),
        ("distill.num_train_timesteps=1000", "did you mean noise.num_train_timesteps?"),
        ("noise.prediction_type=v", "did you mean parameterization?"),
        ("distill.stages.4.lr=0.1", "did you mean learning_rate?"),
        ("distill.upd=5", "did you mean updates? (known here: "),
        ("network.widht=5", "did you mean width? (known here: "),
        ("network.colour_of_the_sky=5", "use width, multipliers"),
    ],
)
def test_the_key_that_is_meant_is_named(setting: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        validated(read_yaml(TINY), [setting], "recipe tiny")
    assert f"is unknown: {said}" in str(error.value)


def test_the_option_of_the_call_is_named() -> None:
    for other, ours in (("lr", "learning_rate"), ("batch_size", "batch"), ("updatse", "updates")):
        with pytest.raises(UserError, match=f"'{other}' is unknown: did you mean {ours}?"):
            TrainConfig(**DEFAULTS["distill"]).overridden(**{other: 1})
    assert not set(OPTIONS) & set(OTHER_NAMES)
