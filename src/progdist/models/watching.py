"""Watch a stock pipeline while it samples: the calls of its network, the steps of its scheduler, its noise levels.

`network.forward`, `scheduler.step` and `scheduler.set_timesteps` are wrapped while the pipeline runs, and restored
afterwards. A run can be stopped once enough was observed, and the network or a step's result can be replaced.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Literal

import torch
from torch import Tensor, nn

from progdist._utils.errors import UserError
from progdist.models.safe_loading import quiet

Until = Literal["call", "decode"] | int | None
"""When a run stops: at the first call of the network or of the autoencoder, after a number of steps, or by itself."""


@dataclass(frozen=True)
class NetworkCall:
    """One call of the network."""

    arguments: Mapping[str, Any]  # by the names of `forward`
    output: Any


@dataclass(frozen=True)
class Step:
    """One step of the scheduler."""

    calls: tuple[NetworkCall, ...]  # of the network since the previous step
    model_output: Tensor  # what the scheduler received
    timestep: float
    sample: Tensor  # before the step
    result: Tensor  # after it


@dataclass
class Watched:
    """What was observed in a run."""

    steps: list[Step] = field(default_factory=list)
    calls: list[NetworkCall] = field(default_factory=list)  # since the last step
    timesteps: list[Mapping[str, Any]] = field(default_factory=list)  # the arguments of each `set_timesteps`
    sigmas: Tensor | None = None  # of the scheduler, after a step
    decoded: Tensor | None = None  # the only input of its autoencoder; None if it was not called so
    result: Any = None  # what the pipeline returned; None if the run was stopped before


class _SeenEnoughError(Exception):
    pass


@dataclass(frozen=True)
class Substitute:
    """Replacements for a pipeline's own network or steps."""

    network: Callable[[Mapping[str, Any]], Any] | None = None  # (arguments) -> output
    step: Callable[[Tensor], Tensor] | None = None  # (sample) -> the sample after the step


def watch(
    pipeline: Any,  # noqa: ANN401  (a stock pipeline)
    part: str,
    call: Mapping[str, Any],
    *,
    until: Until = None,
    substitute: Substitute = Substitute(),
) -> Watched:
    """Run a pipeline with these arguments and watch its network, the component `part`.

    Raises:
        UserError: the pipeline cannot be run like this; its own message is quoted.
    """
    seen, network, scheduler = Watched(), getattr(pipeline, part), pipeline.scheduler
    signature = inspect.signature(network.forward)
    forward, step, set_timesteps = network.forward, scheduler.step, scheduler.set_timesteps

    @wraps(forward)  # pipelines inspect its signature
    def seen_forward(*positional: Any, **named: Any) -> Any:  # noqa: ANN401
        arguments = _kept(dict(signature.bind(*positional, **named).arguments))
        if until == "call":
            seen.calls.append(NetworkCall(arguments, None))
            raise _SeenEnoughError
        output = forward(*positional, **named) if substitute.network is None else substitute.network(arguments)
        seen.calls.append(NetworkCall(arguments, output))
        return output

    @wraps(step)  # pipelines inspect its signature
    def seen_step(model_output: Tensor, timestep: Any, sample: Tensor, *rest: Any, **named: Any) -> Any:  # noqa: ANN401
        before, given = sample.clone(), model_output.clone()
        result = step(model_output, timestep, sample, *rest, **named)
        after = result[0] if isinstance(result, tuple) else result.prev_sample
        if substitute.step is not None:
            after = substitute.step(before)
            result = (after, *result[1:]) if isinstance(result, tuple) else type(result)(prev_sample=after)
        seen.steps.append(Step(tuple(seen.calls), given, float(timestep), before, after.clone()))
        seen.calls.clear()
        seen.sigmas = getattr(scheduler, "sigmas", None)
        if len(seen.steps) == until:
            raise _SeenEnoughError
        return result

    @wraps(set_timesteps)  # pipelines inspect its signature
    def seen_timesteps(*positional: Any, **named: Any) -> Any:  # noqa: ANN401
        seen.timesteps.append(dict(inspect.signature(set_timesteps).bind(*positional, **named).arguments))
        return set_timesteps(*positional, **named)

    def seen_decode(latents: Tensor, *rest: Any, **named: Any) -> Any:  # noqa: ANN401
        others = (*rest, *named.values())
        alone = all(each is None or isinstance(each, bool | torch.Generator) for each in others)
        seen.decoded = latents.clone() if alone else None
        raise _SeenEnoughError

    wrapped: list[tuple[Any, str, Callable[..., Any]]] = [(network, "forward", seen_forward)]
    wrapped.append((scheduler, "step", seen_step))
    if until == "decode" and hasattr(pipeline, "vae"):
        wrapped.append((pipeline.vae, "decode", seen_decode))
    with _replaced([*wrapped, (scheduler, "set_timesteps", seen_timesteps)]), quiet(), torch.no_grad():
        try:
            seen.result = pipeline(**call)
        except _SeenEnoughError:
            pass
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # pipelines raise any kind: their messages say what they got and expected
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            if isinstance(error, NameError) and not isinstance(error, UnboundLocalError):  # of an optional import
                reason = f"it needs the package {error.name}: pip install {error.name}"
            raise UserError(f"{type(pipeline).__name__} cannot be run with {_said(call)} ({reason})") from error
    return seen


@contextmanager
def _replaced(methods: list[tuple[Any, str, Callable[..., Any]]]) -> Iterator[None]:
    """The context in which some objects have other methods."""
    with ExitStack() as stack:
        for owner, name, method in methods:
            before = owner.__dict__.get(name)
            owner.__dict__[name] = method
            stack.callback(_restore, owner, name, before)
        yield


def _kept(value: Any) -> Any:  # noqa: ANN401
    """A value with copies of its tensors, since some pipelines modify theirs afterwards."""
    if isinstance(value, Tensor):
        return value.clone()
    if type(value) is dict:
        return {name: _kept(part) for name, part in value.items()}
    return type(value)(map(_kept, value)) if type(value) in (list, tuple) else value


def _restore(owner: Any, name: str, before: Any) -> None:  # noqa: ANN401
    if before is None:
        del owner.__dict__[name]
    else:
        owner.__dict__[name] = before


def other_networks(pipeline: Any, part: str) -> dict[str, nn.Module]:  # noqa: ANN401
    """Components other than the network that could replace it in some steps, e.g. a second expert."""
    return {
        name: each
        for name, each in pipeline.components.items()
        if name != part and name.startswith(part) and isinstance(each, nn.Module)
    }


def _said(call: Mapping[str, Any]) -> str:
    """The arguments of a call, except prompts and constants."""
    hidden = ("prompt", "negative_prompt", "generator", "output_type", "return_dict")
    shown = [f"{name}={value!r}"[:60] for name, value in call.items() if name not in hidden]
    return ", ".join(shown) or "its defaults"
