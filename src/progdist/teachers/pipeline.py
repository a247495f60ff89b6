"""Any stock pipeline of prompts as a teacher: run it for three steps, learn from what is observed, and verify that.

    call          how it calls its network, without guidance, for two prompts and for three
    scale         the argument that its network takes as the guidance scale, if any
    guiding       how it mixes the predictions with and without the prompt, if it does
    schedule      that of its scheduler, with the observed shift
    spacing       whether the times of N steps are its own or its scheduler's
    decoding      what its autoencoder receives for the latents

It is verified before use: the network called this way gives the scheduler's input; a batch of different times gives the
same as its examples alone; `progdist.sample` makes the pipeline's latents with a student's scheduler.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor, nn

from progdist._utils.errors import UserError
from progdist.compute.placement import at_work
from progdist.diffusion.denoiser import Denoiser
from progdist.diffusion.sampler import sample
from progdist.models.calls import OUTPUTS, Call, Constant, Guidance, Rows, returned
from progdist.models.components import PipelineFolder
from progdist.models.conditioning import Spacing
from progdist.models.decoding import PICTURES, Decoding, decoded, learn_decoding
from progdist.models.learning import difference, learn_call
from progdist.models.model import Model
from progdist.models.pipeline_autoencoder import pictures, whole
from progdist.models.pipeline_prompts import OFF, OTHERS, Guiding, Pipeline, PipelinePrompts
from progdist.models.safe_loading import quiet
from progdist.models.watching import Step, Substitute, Watched, other_networks, watch
from progdist.teachers import SCHEDULERS
from progdist.teachers.schedulers import Formulation, read_formulation

PROMPTS = (
    "a cat",
    "a small red house beside a lake",
    "two dogs in the rain, one of them with a blue umbrella",
)
"""Prompts for watching a pipeline: of different lengths, the third by far the longest."""

STEPS = 3  # steps for which a pipeline is watched
COMPARED = (2, 5)  # step counts at which `progdist.sample` is compared with the pipeline
AGREES = 1e-4  # the largest relative difference accepted in checks
SCALE_NAMES = ("guidance_scale", "distilled_guidance_scale")  # arguments for the scale of a network that takes it
PROBED = (2.0, 4.0)  # guidance scales at which the network's arguments are compared


@dataclass(frozen=True)
class Findings:
    """What was learned and verified about a pipeline."""

    pipeline: Pipeline
    denoiser: Denoiser
    formulation: Formulation
    verified: Mapping[str, float]  # relative differences, by what was compared
    notes: tuple[str, ...] = ()


def takes_prompts(name: str) -> bool:
    """Whether diffusers has a pipeline of this name that takes prompts and a number of steps."""
    found = getattr(diffusers, name, None) if name.isidentifier() else None
    if not (isinstance(found, type) and issubclass(found, DiffusionPipeline)):
        return False
    taken = inspect.signature(cast(Any, found).__call__).parameters
    return "prompt" in taken and "num_inference_steps" in taken


def study(path: Path, arguments: Mapping[str, Any], prompts: Sequence[str] = PROMPTS) -> Findings:
    """Watch the pipeline of a folder, called with arguments besides the prompts, and verify what was learned.

    Raises:
        UserError: it cannot be opened or run, or does something unknown; the message says what was found.
    """
    folder = PipelineFolder.read(path)
    if not takes_prompts(folder.name):
        raise UserError(
            f"{path} is a {folder.name[:50]}: only a pipeline that takes a prompt and num_inference_steps can be "
            "watched; remove --call"
        )
    _check_arguments(folder, arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    part, network = folder.network, folder.component(folder.network).to(device)
    pipeline = folder.open(network, device)
    if others := other_networks(pipeline, part):
        raise UserError(
            f"{path} has {part} and {', '.join(others)}, which take turns, expected one network: use another"
        )
    try:
        return _study(Pipeline(folder, Call({}), (), dict(arguments)), pipeline, network, prompts)
    except UserError as error:
        raise UserError(f"{path}: {folder.name} cannot be distilled: {error}") from error
    finally:
        network.cpu()


def _study(pipeline: Pipeline, opened: Any, network: nn.Module, prompts: Sequence[str]) -> Findings:  # noqa: ANN401
    part = pipeline.folder.network
    pipeline = replace(pipeline, off=_unguided(pipeline, opened, prompts))
    seen = watch(opened, part, pipeline.asked(prompts[:2], STEPS), until=STEPS)
    if len(seen.steps) < STEPS:
        raise UserError(f"expected {STEPS} steps of its scheduler, got {len(seen.steps)}")
    other = watch(opened, part, pipeline.asked(prompts[:3], STEPS), until="call").calls[0].arguments
    call = learn_call(seen.steps, other, 2, 3)
    latents = tuple(seen.steps[0].sample.shape[1:])
    pipeline = replace(pipeline, call=call, latents=latents, spacing=_spacing(seen, opened.scheduler))
    pipeline = _with_scale(pipeline, opened, prompts)
    formulation = _formulation(pipeline.folder, seen)
    condition = pipeline.call.rows(seen.steps[0].calls[0].arguments)
    shapes = {name: tuple(rows.shape[1:]) for name, rows in condition.items()}
    pipeline = replace(pipeline, call=replace(pipeline.call, shapes=shapes))
    denoiser = Denoiser(
        network,
        formulation.schedule,
        formulation.parameterization,
        num_train_timesteps=formulation.num_train_timesteps or opened.scheduler.config.get("num_train_timesteps", 1000),
        offset=formulation.offset,
        call=pipeline.call,
    )
    if pipeline.scale:
        condition["guidance"] = _unguided_scale(pipeline, 2)
    verified = {
        "the network's output": _outputs_differ(pipeline.call, network, seen.steps, condition),
        "a batch of different times": _batches_differ(denoiser, seen.steps, condition),
    }
    pipeline, notes = _with_guiding(pipeline, opened, prompts[:2], condition)
    pipeline, verified["prompts one at a time"] = _with_encoding(pipeline, opened, denoiser, prompts)
    pipeline = replace(pipeline, decoding=_decoding(pipeline, opened))
    for steps in COMPARED:
        verified[f"{steps} steps"] = _samples_differ(pipeline, opened, denoiser, prompts[:2], steps)
    if wrong := [name for name, apart in verified.items() if not apart <= AGREES]:
        raise UserError(
            f"{wrong[0]} differs from the pipeline's own by {verified[wrong[0]]:.1g}, expected at most {AGREES:g}"
        )
    return Findings(pipeline, denoiser, formulation, verified, (*formulation.notes, *notes))


def _check_arguments(folder: PipelineFolder, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that the pipeline does not take, or that have their own options."""
    taken = inspect.signature(folder.pipeline.__call__).parameters
    own = {
        *("prompt", "negative_prompt", "num_inference_steps", "timesteps", "sigmas", "generator", "latents"),
        *("output_type", "return_dict", "num_images_per_prompt", "num_videos_per_prompt", *SCALE_NAMES, *OTHERS),
    }
    for name in arguments:
        if name in own or name.startswith("callback"):
            raise UserError(
                f"--call {name} has no effect: prompts, steps, noise and guidance have their own options; remove it"
            )
        if name not in taken:
            listed = ", ".join(each for each in taken if each not in own and each != "self")
            raise UserError(f"--call {name}: a {folder.name} has no such argument: use one of {listed[:400]}")


def _unguided(pipeline: Pipeline, opened: Any, prompts: Sequence[str]) -> dict[str, float]:  # noqa: ANN401
    """The arguments for which the network is called once per step, with one row per prompt."""
    taken = inspect.signature(type(opened).__call__).parameters
    tried = [{name: value for name, value in each.items() if name in taken} for each in (*OFF, {})]
    counts: list[int] = []
    for off in [each for number, each in enumerate(tried) if each not in tried[:number]]:
        asked = replace(pipeline, off=off).asked(prompts[:2], STEPS)
        step = watch(opened, pipeline.folder.network, asked, until=1).steps
        if step and len(step[0].calls) == 1 and _rows_of_latents(step[0]) == len(step[0].sample):
            return off
        counts.append(len(step[0].calls) if step else 0)
    raise UserError(
        f"without guidance its network is called {counts[0]} times per step, or with extra rows, expected once"
    )


def _rows_of_latents(step: Step) -> int:
    """The number of examples in a call of the network: the rows of the argument with the latents' size."""
    shape = step.sample.shape[1:]
    for value in step.calls[0].arguments.values():
        rows = value if isinstance(value, list | tuple) else [value]
        if isinstance(value, Tensor) and value.ndim > 1 and value.numel() % shape.numel() == 0:
            return value.numel() // shape.numel()
        if rows and all(isinstance(each, Tensor) and each.numel() == shape.numel() for each in rows):
            return len(rows)
    return len(step.sample)


def _spacing(seen: Watched, scheduler: Any) -> Spacing:  # noqa: ANN401
    """The source of the times of N steps."""
    given = seen.timesteps[-1].get("sigmas") if seen.timesteps else None
    if given is None:
        return 0.0 if getattr(scheduler, "sigma_min", None) == 0 else "stock"
    sigmas = [float(sigma) for sigma in given][:STEPS]
    last = sigmas[-1]
    even = [1 - (1 - last) * number / (STEPS - 1) for number in range(STEPS)]
    if len(sigmas) < STEPS or any(abs(a - b) > 1e-3 for a, b in zip(sigmas, even, strict=True)):
        return "unknown"
    return "given" if abs(last - 1 / STEPS) < 1e-3 else round(last, 6)


def _formulation(folder: PipelineFolder, seen: Watched) -> Formulation:
    """Its scheduler's config, with the observed shift of its times."""
    config = dict(folder.scheduler().config)
    config["_class_name"] = type(folder.scheduler()).__name__
    if config.get("use_dynamic_shifting"):
        mu = seen.timesteps[-1].get("mu") if seen.timesteps else None
        if mu is None:
            raise UserError("its scheduler shifts its times by the size of each image, and no size was observed")
        linear = config.get("time_shift_type") == "linear"
        shift = float(mu) if linear else math.exp(mu)
        config |= {"use_dynamic_shifting": False, "shift": shift, "flow_shift": shift}
    return read_formulation(SCHEDULERS, folder.path, config)


def _with_scale(pipeline: Pipeline, opened: Any, prompts: Sequence[str]) -> Pipeline:  # noqa: ANN401
    """Add the network's argument that follows the guidance scale, if any."""
    taken = inspect.signature(type(opened).__call__).parameters
    rows = {path: leaf for path, leaf in pipeline.call.leaves() if isinstance(leaf, Rows | Constant)}
    for parameter in (name for name in SCALE_NAMES if name in taken):
        asked = [pipeline.guided(opened, prompts[:2], parameter, scale, negative="") for scale in PROBED]
        seen = [watch(opened, pipeline.folder.network, each, until="call").calls[0].arguments for each in asked]
        for path in rows:
            first, second = (_single(each, path) for each in seen)
            if first and second == 2 * first:
                factor = Guidance(first / PROBED[0])
                call = replace(pipeline.call, arguments=_put(pipeline.call.arguments, path, factor))
                default = taken[parameter].default
                return replace(pipeline, call=call, scale=(parameter, float(default or 1.0)))
    return pipeline


def _single(arguments: Mapping[str, Any], path: str) -> float | None:
    """The number of an argument that has the same one per example; None for any other."""
    value: Any = arguments
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim != 1 or not len(value):
        return None
    return float(value[0]) if bool((value == value[0]).all()) else None


def _put(tree: Mapping[str, Any], path: str, leaf: Any) -> dict[str, Any]:  # noqa: ANN401
    name, _, rest = path.partition(".")
    return {**tree, name: _put(tree[name], rest, leaf) if rest else leaf}


def _outputs_differ(call: Call, network: nn.Module, steps: Sequence[Step], condition: Mapping[str, Tensor]) -> float:
    """How much the network called this way differs from the scheduler's input."""
    worst = 0.0
    for step in steps:
        z = call.latents(step.calls[0].arguments)
        timestep = torch.full((len(z),), step.timestep, device=z.device)
        with torch.no_grad():
            worst = max(worst, difference(call(network, z, timestep, **condition), step.model_output))
    return worst


def _batches_differ(denoiser: Denoiser, steps: Sequence[Step], condition: Mapping[str, Tensor]) -> float:
    """How much a batch of different times differs from its examples alone."""
    z = denoiser.call.latents(steps[0].calls[0].arguments)  # pyright: ignore[reportFunctionMemberAccess]
    t = torch.linspace(1, 0.25, len(z), dtype=torch.float64)
    with torch.no_grad():
        together = denoiser(z, t, **condition)
        alone = [
            denoiser(
                z[row : row + 1], t[row : row + 1], **{name: each[row : row + 1] for name, each in condition.items()}
            )
            for row in range(len(z))
        ]
    return difference(torch.cat(alone), together)


def _with_encoding(
    pipeline: Pipeline,
    opened: Any,  # noqa: ANN401
    denoiser: Denoiser,
    prompts: Sequence[str],
) -> tuple[Pipeline, float]:
    """Choose to encode prompts together, or one at a time if only that matches the pipeline for each alone.

    Also return how much the network differs from that.
    """
    apart = math.inf
    for alone in (False, True):
        pipeline = replace(pipeline, alone=alone)
        try:
            rows = pipeline.rows(opened, prompts)
            apart = max(_alone_differs(pipeline, opened, denoiser, each, rows, k) for k, each in enumerate(prompts))
        except (UserError, RuntimeError):  # a network that cannot be called with rows of several prompts
            continue
        if apart <= AGREES:
            break
    return pipeline, apart


def _decoding(pipeline: Pipeline, opened: Any) -> Decoding | None:  # noqa: ANN401
    """What its autoencoder receives for latents; None if an autoencoder called this way gives other pictures."""

    def given(z: Tensor) -> Tensor | None:
        substitute = Substitute(pipeline.call.stand_in, lambda sample: z.to(sample))
        asked = pipeline.asked([""] * len(z), 2, output_type="pt")
        return watch(opened, pipeline.folder.network, asked, until="decode", substitute=substitute).decoded

    found = learn_decoding(given, pipeline.latents)
    if found is None or not hasattr(opened.vae, "encode"):
        return None
    z = torch.randn(1, *pipeline.latents, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = decoded(opened.vae, found(z.to(opened.device))).clamp(-1, 1).float().cpu()
    made = pictures(whole(pipeline, opened, z))
    return found if own.shape == made.shape and difference(own, made) <= PICTURES else None


def _alone_differs(
    pipeline: Pipeline,
    opened: Any,  # noqa: ANN401
    denoiser: Denoiser,
    prompt: str,
    rows: Mapping[str, Tensor],
    row: int,
) -> float:
    """How much the network, given one of several prompts' rows, differs from the pipeline's first step with it."""
    step = watch(opened, pipeline.folder.network, pipeline.asked([prompt], STEPS), until=1).steps[0]
    z, condition = (
        pipeline.call.latents(step.calls[0].arguments),
        {name: each[row : row + 1] for name, each in rows.items()},
    )
    if pipeline.scale:
        condition["guidance"] = _unguided_scale(pipeline, 1)
    timestep = torch.full((1,), step.timestep, device=z.device)
    with torch.no_grad():
        return difference(pipeline.call(denoiser.network, z, timestep, **condition), step.model_output)


def _unguided_scale(pipeline: Pipeline, count: int) -> Tensor:
    """The scale that the network receives if the pipeline is not guided, (count,)."""
    assert pipeline.scale is not None
    number = pipeline.off.get(pipeline.scale[0], pipeline.scale[1])
    return torch.full((count,), number, dtype=torch.float64)


def _samples_differ(
    pipeline: Pipeline,
    opened: Any,  # noqa: ANN401
    denoiser: Denoiser,
    prompts: Sequence[str],
    steps: int,
) -> float:
    """How much `progdist.sample` in some steps differs from the stock pipeline with a student's scheduler."""
    scheduler = stock_scheduler_of(denoiser, pipeline, steps)
    own = opened.scheduler
    opened.scheduler = scheduler
    try:
        return samples_differ(pipeline, opened, denoiser, prompts, steps)
    finally:
        opened.scheduler = own


def stock_scheduler_of(denoiser: Denoiser, pipeline: Pipeline, steps: int) -> Any:  # noqa: ANN401
    """The scheduler for a student of this many steps. Raise a UserError if there is none."""
    for kind in SCHEDULERS:
        if (scheduler := kind.write(denoiser, steps, pipeline.spacing)) is not None:
            return scheduler
    raise UserError(f"no stock scheduler visits the times of a {type(denoiser.schedule).__name__}'s students")


def samples_differ(
    pipeline: Pipeline,
    opened: Any,  # noqa: ANN401
    denoiser: Denoiser,
    prompts: Sequence[str],
    steps: int,
    scale: float | None = None,
) -> float:
    """How much `progdist.sample` differs from an opened stock pipeline, from the same noise, unguided or at a scale."""
    more: dict[str, Any] = {pipeline.scale[0]: scale} if pipeline.scale and scale is not None else {}
    seen = watch(opened, pipeline.folder.network, pipeline.asked(prompts, steps, **more), until=steps)
    condition = pipeline.call.rows(seen.steps[0].calls[0].arguments)
    if pipeline.scale:
        number = scale if scale is not None else pipeline.off.get(pipeline.scale[0], pipeline.scale[1])
        condition["guidance"] = torch.full((len(prompts),), number, dtype=torch.float64)
    with torch.no_grad():
        noise = seen.steps[0].sample.float() / float(getattr(opened.scheduler, "init_noise_sigma", 1.0))
        made = sample(denoiser, noise, steps, method="ddim", clip=False, generator=None, **condition)
    return difference(made, seen.steps[-1].result.float())


def student_differs(folder: Path, model: Model, prompts: Sequence[str] = PROMPTS[:2]) -> float:
    """How much a student's folder, loaded by diffusers alone, differs from its `progdist.sample`, in its own steps."""
    conditioning = model.conditioning
    assert isinstance(conditioning, PipelinePrompts)
    with quiet():
        stock: Any = conditioning.watched.folder.pipeline.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, torch_dtype=torch.float32
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stock.to(device).set_progress_bar_config(disable=True)
    with at_work(model.denoiser, device):
        return samples_differ(conditioning.watched, stock, model.denoiser, prompts, min(model.steps), model.scale(None))


def _with_guiding(
    pipeline: Pipeline,
    opened: Any,  # noqa: ANN401
    prompts: Sequence[str],
    condition: Mapping[str, Tensor],
) -> tuple[Pipeline, tuple[str, ...]]:
    """Learn how it is guided, with notes about it; the condition is that of the prompts."""
    taken = inspect.signature(type(opened).__call__).parameters
    notes = tuple(
        f"its {name} of {taken[name].default:g} is ignored"
        for name, off in pipeline.off.items()
        if name in OTHERS and name != "true_cfg_scale" and taken[name].default not in (None, off)
    )
    if pipeline.scale:
        return pipeline, notes
    for parameter, off in pipeline.off.items():
        steps = _guided_steps(pipeline, opened, prompts, parameter)
        if all(len(step.calls) == 1 and _rows_of_latents(step) == len(prompts) for step in steps):
            continue
        if odd := [len(step.calls) for step in steps if len(step.calls) > 2]:
            return pipeline, (*notes, f"its guidance calls the network {odd[0]} times per step: it is ignored")
        first = Guiding(parameter, float(taken[parameter].default or 1.0), off)
        found = [_guiding(pipeline, step, condition, first) for step in steps]
        guiding = replace(found[0], exact=all(each == found[0] and each.exact for each in found))
        what = "its guidance does more than mix two predictions alike in each step: students learn only the mixture"
        return replace(pipeline, guiding=guiding), notes if guiding.exact else (*notes, what)
    return pipeline, notes


def _guided_steps(
    pipeline: Pipeline,
    opened: Any,  # noqa: ANN401
    prompts: Sequence[str],
    parameter: str,
) -> list[Step]:
    """The steps of a run guided by PROBED[1]; some pipelines require a negative prompt."""
    part, scale, steps = pipeline.folder.network, PROBED[1], STEPS
    try:
        return watch(opened, part, pipeline.guided(opened, prompts, parameter, scale, steps=steps), until=steps).steps
    except UserError:
        asked = pipeline.guided(opened, prompts, parameter, scale, negative="", steps=steps)
        return watch(opened, part, asked, until=steps).steps


def _guiding(pipeline: Pipeline, step: Step, condition: Mapping[str, Tensor], guiding: Guiding) -> Guiding:
    """How a step guided by PROBED[1] mixed its predictions."""
    if len(step.calls) == 1 and _rows_of_latents(step) == len(step.sample):
        return replace(guiding, exact=False)  # this step is not guided
    read = OUTPUTS[pipeline.call.output].read
    outputs = [read(returned(call.output)) for call in step.calls]
    first, second = outputs if len(outputs) == 2 else outputs[0].chunk(2)
    rows, other = (_apart(half, condition) for half in pipeline.halves(step))
    negative_first = other < rows
    u, c = (first, second) if negative_first else (second, first)
    mixed, apart = (step.model_output - u).double().flatten(), (c - u).double().flatten()
    factor = float(mixed @ apart) / (float(apart @ apart) or 1.0)
    added = round(factor - PROBED[1], 3) + 0.0
    if added in (0.0, 1.0) and difference((PROBED[1] + added) * apart, mixed) <= 1e-3:
        return replace(guiding, negative_first=negative_first, added=added)
    plain = u + PROBED[1] * (c - u)
    with_norm = plain * c.norm(dim=-1, keepdim=True) / plain.norm(dim=-1, keepdim=True)
    normalized = difference(with_norm, step.model_output) <= 1e-3
    return replace(guiding, negative_first=negative_first, normalized=normalized, exact=normalized)


def _apart(rows: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> float:
    """How much two conditions differ, over their common length."""
    total = 0.0
    for name, value in rows.items():
        sides = [slice(min(pair)) for pair in zip(value.shape, others[name].shape, strict=True)]
        total += float((value[tuple(sides)].double() - others[name][tuple(sides)].double()).abs().mean())
    return total
