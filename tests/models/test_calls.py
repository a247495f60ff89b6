"""The calls of a pipeline's network, learned from calls that are written out here."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from progdist import UserError
from progdist.data.embeddings import padded
from progdist.models.calls import LENGTHS, Call, Guidance, Rows
from progdist.models.components import PipelineFolder
from progdist.models.learning import learn_call
from progdist.models.pipeline_prompts import Guiding, Pipeline
from progdist.models.pipeline_record import read_pipeline, write_pipeline
from progdist.models.watching import NetworkCall, Step

SHAPE = (3, 4)
PLACES = torch.arange(5.0)


class Network(nn.Module):
    """Looks at all that it is given, row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(
        self,
        x: Tensor,
        when: Tensor,
        words: Tensor,
        words_mask: Tensor | None,
        more: dict[str, Any],
        pieces: list[Tensor],
        return_dict: bool = True,
    ) -> Any:  # noqa: ANN401
        """Minus the latents and a number of each row."""
        mask = torch.ones(words.shape[:2]) if words_mask is None else words_mask
        number = (words.mean(2) * mask).sum(1) + more["sizes"].sum(1) + torch.stack([each.mean() for each in pieces])
        number = number + when + more["places"].sum() + sum(more["counts"][0])
        return (-(x * self.weight + number[:, None, None]),) if not return_dict else x


def arguments(z: Tensor, timestep: float, lengths: tuple[int, ...]) -> dict[str, Any]:
    """A call of prompts of some lengths, whose embeddings are told by the lengths."""
    words = padded([torch.linspace(0, length, length * 2).view(length, 2) for length in lengths])
    mask = padded([torch.ones(length, dtype=torch.int64) for length in lengths])
    return {
        "x": z,
        "when": torch.full((len(z),), 1 - timestep / 1000),
        "words": words,
        "words_mask": None if len(set(lengths)) == 1 else mask,
        "more": {
            "sizes": torch.tensor(lengths)[:, None].float(),
            "places": PLACES,
            "counts": [(1, 4, 4)] * len(z),
            "nothing": None,
        },
        "pieces": [torch.full((length, 2), float(length)) for length in lengths],
        "return_dict": False,
    }


def steps_of(network: Any, lengths: tuple[int, ...], change: Any = dict, times: int = 3) -> list[Step]:  # noqa: ANN401
    """Steps of a scheduler that receives minus what the network returns."""
    steps = []
    for number in range(times):
        z = torch.randn(len(lengths), *SHAPE, generator=torch.Generator().manual_seed(number))
        timestep = 900.0 - 300 * number
        given = change(arguments(z, timestep, lengths))
        given.pop("nowhere", None)
        with torch.no_grad():
            output = network(**{**given, "more": {name: each for name, each in given["more"].items()}})
        calls = (NetworkCall(given, output),)
        steps.append(Step(calls, -output[0], timestep, z, z))
    return steps


@pytest.fixture
def network() -> Network:
    return Network()


def learned(network: Network) -> Call:
    other = arguments(torch.zeros(3, *SHAPE), 900.0, (2, 5, 3))
    return learn_call(steps_of(network, (2, 4)), other, 2, 3)


def test_what_is_learned_calls_the_network_for_other_batches(network: Network) -> None:
    """Rows, masks that are left out, lists, nested arguments, constants and the affine time, each as they were."""
    call, lengths, z = learned(network), (3, 1, 3, 2), torch.randn(4, *SHAPE)
    told = call.rows(arguments(torch.zeros(4, *SHAPE), 0.0, lengths))
    assert set(told) == {"words", "words_mask", "more.sizes", "pieces", "pieces" + LENGTHS}
    timesteps = torch.tensor([0.0, 250.0, 500.0, 999.0])
    got = call(network, z, timesteps, **told)
    for row, length in enumerate(lengths):
        alone = network(**arguments(z[row : row + 1], float(timesteps[row]), (length,)))[0]
        torch.testing.assert_close(got[row : row + 1], -alone, rtol=0, atol=1e-5)
    got.sum().backward()
    assert network.weight.grad is not None
    lines = " ".join(call.describe())
    assert "x; time: when = -0.001 t + 1; output: negated" in lines
    assert "more.places" in lines


def test_a_mask_that_is_left_out_is_all_ones(network: Network) -> None:
    told = learned(network).rows(arguments(torch.zeros(2, *SHAPE), 0.0, (3, 3)))
    assert torch.equal(told["words_mask"], torch.ones(2, 3, dtype=torch.int64))


def test_what_is_learned_is_kept_in_a_folder(network: Network, tmp_path: Path) -> None:
    call = learned(network)
    rows = call.rows(arguments(torch.zeros(2, *SHAPE), 0.0, (2, 4)))
    shapes = {name: tuple(each.shape[1:]) for name, each in rows.items()}
    call = Call(call.arguments, call.output, shapes)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    folder, guiding = PipelineFolder.read(tmp_path), Guiding("guidance_scale", 5.0, 1.0, added=1.0)
    pipeline = Pipeline(folder, call, SHAPE, {"height": 8}, {"guidance_scale": 1.0}, guiding, None, "given")
    record = json.loads(json.dumps(write_pipeline(pipeline, tmp_path)))
    again = read_pipeline(record, tmp_path)
    z, timestep = torch.randn(2, *SHAPE), torch.tensor([100.0, 700.0])
    told = call.rows(arguments(torch.zeros(2, *SHAPE), 0.0, (2, 4)))
    assert torch.equal(again.call(network, z, timestep, **told), call(network, z, timestep, **told))
    assert (again.guiding, again.latents, again.arguments, again.spacing) == (guiding, SHAPE, {"height": 8}, "given")
    example = again.call.example(3, torch.device("cpu"))
    assert again.call(network, torch.randn(3, *SHAPE), torch.zeros(3), **example).shape == (3, *SHAPE)
    damage = {
        "output": "x",
        "latents": [0],
        "rows": {"words": ["b"]},
        "arguments": {"nothing": {}},
        "guiding": {"g": 1},
    }
    for name, value in damage.items():
        with pytest.raises((KeyError, TypeError, ValueError)):
            read_pipeline({**record, name: value}, tmp_path)


def test_latents_before_other_channels_are_found(network: Network) -> None:
    """As of pipelines that also serve another task: what is beside is the same for all."""
    rest = torch.full((1, 2, 4), 7.0)

    class Wide(Network):
        def forward(self, x: Tensor, *rest: Any, **named: Any) -> Any:  # noqa: ANN401
            return super().forward(x[:, :3], *rest, **named)

    def beside(given: dict[str, Any]) -> dict[str, Any]:
        return {**given, "x": torch.cat([given["x"], rest.expand(len(given["x"]), -1, -1)], dim=1)}

    wide = Wide()
    other = beside(arguments(torch.zeros(3, *SHAPE), 900.0, (2, 5, 3)))
    call = learn_call(steps_of(wide, (2, 4), beside), other, 2, 3)
    z = torch.randn(2, *SHAPE)
    given = call.filled(z, torch.tensor([1.0, 2.0]), call.rows(beside(arguments(z, 0.0, (2, 4)))))
    assert torch.equal(given["x"], torch.cat([z, rest.expand(2, -1, -1)], dim=1))


def test_a_scale_is_handed_to_the_network(network: Network) -> None:
    call = learned(network)
    guided = Call({**call.arguments, "scale": Guidance(1000.0)}, call.output)
    assert guided.takes_guidance
    assert not call.takes_guidance
    told = guided.rows({**arguments(torch.zeros(2, *SHAPE), 0.0, (2, 4)), "scale": None})
    given = guided.filled(torch.zeros(2, *SHAPE), torch.zeros(2), {**told, "guidance": torch.tensor([3.0, 4.0])})
    assert given["scale"].tolist() == [3000.0, 4000.0]
    with pytest.raises(UserError, match="requires words, and the condition has none"):
        call.filled(torch.zeros(2, *SHAPE), torch.zeros(2), {})


def changed(**what: Any) -> Any:  # noqa: ANN401
    return lambda given: {**given, **{name: change(given) for name, change in what.items()}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(x=lambda given: given["x"] ** 2), "occur nowhere in the call"),
        (changed(when=lambda given: torch.ones(2)), "changes in nothing from step to step, expected only in the time"),
        (changed(words=lambda given: given["words"] * given["when"][0]), "changes in when, words from step to step"),
        (changed(when=lambda given: given["when"] ** 2), "not an affine function of the scheduler's timestep"),
        (changed(when=lambda given: given["when"] * torch.tensor([1.0, 2.0])), "differs within a batch"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_with_what_was_found(network: Network, change: Any, message: str) -> None:  # noqa: ANN401
    other = arguments(torch.zeros(3, *SHAPE), 900.0, (2, 5, 3))
    with pytest.raises(UserError, match=message):
        learn_call(steps_of(network, (2, 4), change), other, 2, 3)


def test_other_calls_and_outputs_are_refused(network: Network) -> None:
    other, steps = arguments(torch.zeros(3, *SHAPE), 900.0, (2, 5, 3)), steps_of(network, (2, 4))
    twice = [Step(step.calls * 2, step.model_output, step.timestep, step.sample, step.result) for step in steps]
    with pytest.raises(UserError, match="calls its network 2 times per step without guidance, expected once"):
        learn_call(twice, other, 2, 3)
    squared = [Step(step.calls, step.model_output**2, step.timestep, step.sample, step.result) for step in steps]
    with pytest.raises(UserError, match="in an unknown way"):
        learn_call(squared, other, 2, 3)
    odd = {**other, "more": {**other["more"], "places": torch.zeros(7)}}
    with pytest.raises(UserError, match=r"more\.places is \(5,\) for 2 prompts and \(7,\) for 3"):
        learn_call(steps, odd, 2, 3)


def test_rows_of_several_for_each_prompt_are_kept_together() -> None:
    call = Call({"frames": Rows("frames", torch.float32, repeat=3)})
    told = call.rows({"frames": torch.arange(12.0).view(6, 2)})
    assert told["frames"].shape == (2, 3, 2)
    given = call.filled(torch.zeros(2, 1), torch.zeros(2), told)
    assert torch.equal(given["frames"], torch.arange(12.0).view(6, 2))
