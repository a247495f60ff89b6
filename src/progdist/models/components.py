"""Any stock pipeline's folder, opened part by part as untrusted: model_index.json names a class for each.

    ["diffusers", "WanTransformer3DModel"]              networks and autoencoders: configs and safetensors
    ["diffusers", "UniPCMultistepScheduler"]            schedulers: configs
    ["transformers", "UMT5EncoderModel"]                text encoders: configs and safetensors
    ["transformers", "T5TokenizerFast"]                 tokenizers and processors
    ["stable_audio", "StableAudioProjectionModel"]      networks that diffusers keeps beside a pipeline
    [null, null]                                        an optional part that is absent

Classes are looked up only in diffusers and transformers: no code in a folder is run, and no pickle is read.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
from diffusers.guiders.guider_utils import BaseGuidance
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import nn

from progdist._utils.errors import UserError
from progdist._utils.extras import import_extra
from progdist._utils.files import own_files, read_json
from progdist.diffusion.denoiser import MAX_TIMESTEPS
from progdist.models.safe_loading import check_config_limits, load_component, quiet

NETWORKS = ("transformer", "unet")  # the parts that pipelines call at every step
OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder", "watermark")  # not needed to make latents
Index = Mapping[str, Any]


@dataclass(frozen=True)
class PipelineFolder:
    """The folder of a stock pipeline."""

    path: Path
    index: Index  # its model_index.json

    @classmethod
    def read(cls, path: Path) -> "PipelineFolder":
        """Read a folder. Raise a UserError if its index is damaged, or names a part outside it."""
        index = read_json(path / "model_index.json")
        if wrong := [part for part in index if not part.startswith("_") and Path(part).name != part]:
            raise UserError(f"{path}/model_index.json names the part {wrong[0][:50]!r}, outside the folder: restore it")
        return cls(path, index)

    @property
    def name(self) -> str:
        """The name of the pipeline's class."""
        return str(self.index.get("_class_name"))

    @cached_property
    def pipeline(self) -> type[DiffusionPipeline]:
        """The pipeline's class. Raise a UserError if diffusers has none with that name."""
        found = getattr(diffusers, self.name, None) if self.name.isidentifier() else None
        if not (isinstance(found, type) and issubclass(found, DiffusionPipeline)):
            raise UserError(
                f"{self.path} is a {self.name[:50]}, expected a pipeline of diffusers {diffusers.__version__}: use "
                "another folder, or another version of diffusers"
            )
        return found

    @cached_property
    def parts(self) -> dict[str, tuple[str, str]]:
        """The library and the class of every part that exists."""
        return {
            name: (str(value[0]), str(value[1]))
            for name, value in self.index.items()
            if not name.startswith("_") and isinstance(value, list) and len(value) == 2 and value[1]
        }

    @property
    def network(self) -> str:
        """The name of the network's part. Raise a UserError if there is none."""
        if found := [name for name in NETWORKS if name in self.parts]:
            return found[0]
        listed = ", ".join(f"{name}: {value[1]}" for name, value in sorted(self.parts.items())) or "nothing"
        raise UserError(f"{self.path} has {listed[:400]}, expected a pipeline with a transformer/ or unet/")

    def component_class(self, part: str) -> Any:  # noqa: ANN401  (a class of either library)
        """The class of a part. Raise a UserError if neither library has it."""
        library, name = self.parts[part]
        transformers = import_extra("transformers", "text", f"a {self.name}")
        beside = getattr(diffusers.pipelines, library, None) if library.isidentifier() else None
        home = {"diffusers": diffusers, "transformers": transformers}.get(library, beside)
        found = getattr(home, name, None) if home is not None and name.isidentifier() else None
        automatic = name.startswith("Auto") and not name.startswith("Autoencoder")  # any class that a config names
        taken = part in inspect.signature(self.pipeline.__init__).parameters
        if not (taken and isinstance(found, type) and issubclass(found, _kinds(transformers))) or automatic:
            raise UserError(
                f"{self.path}: {part} is {library[:50]}.{name[:50]}, expected a network, scheduler, tokenizer or "
                "processor of diffusers or transformers: code in a folder is never run"
            )
        return found

    def component(self, part: str) -> Any:  # noqa: ANN401
        """Load a part with its weights; raises as `load_component` does, and for parts that cannot be read."""
        found, place = self.component_class(part), self.path / part
        if not place.is_dir():
            raise UserError(f"{self.path} lacks {part}/: restore the folder, or save the pipeline again")
        own_files(self.path, part)
        if issubclass(found, ModelMixin):
            return cast(Any, load_component(self.path, part, found)).requires_grad_(part == self.network)
        if issubclass(found, nn.Module):
            return self._text_encoder(part, found)
        if issubclass(found, SchedulerMixin):
            return self.scheduler()
        _check_vocabulary(place, found)
        try:
            with quiet():
                return found.from_pretrained(place, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # transformers raises many kinds: all mean that the part cannot be read
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise UserError(f"{place} is damaged ({reason}): restore it, or save the pipeline again") from error

    def _text_encoder(self, part: str, found: Any) -> nn.Module:  # noqa: ANN401
        if (self.path / part / "adapter_config.json").exists():
            raise UserError(
                f"{self.path / part} holds an adapter next to its weights: merge it, and save the pipeline again"
            )

        def describe(config: Mapping[str, Any]) -> nn.Module:
            return found(found.config_class.from_dict(dict(config)))

        return load_component(self.path, part, found, weights="model", describe=describe).requires_grad_(False)

    def scheduler(self) -> Any:  # noqa: ANN401
        """The scheduler, made from its config alone."""
        file = self.path / "scheduler" / "scheduler_config.json"
        config = read_json(file)
        name, count = str(config.get("_class_name")), config.get("num_train_timesteps", 1000)
        if not isinstance(count, int) or not 1 <= count <= MAX_TIMESTEPS:
            raise UserError(f"{file} is damaged (num_train_timesteps is {str(count)[:50]}): restore it")
        found = getattr(diffusers, name, None) if name.isidentifier() else None
        if not (isinstance(found, type) and issubclass(found, SchedulerMixin)):
            raise UserError(f"{file} is a {name[:50]}, expected a scheduler of diffusers: restore it")
        try:
            with quiet():
                return cast(Any, found).from_config(config)
        except Exception as error:  # diffusers checks few config values
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{file} is damaged ({reason}): restore it") from error

    def empty_network(self) -> nn.Module:
        """The network without weights or memory, but with its config. Raise a UserError if that is damaged."""
        found, place = self.component_class(self.network), self.path / self.network
        config = read_json(place / "config.json")
        check_config_limits(config, place)
        try:
            with torch.device("meta"), quiet():
                return cast(Any, found).from_config(config)
        except Exception as error:  # diffusers checks few config values
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise UserError(f"{place} is damaged ({reason}): restore it, or save the pipeline again") from error

    def open(self, network: nn.Module | None = None, device: torch.device | None = None) -> Any:  # noqa: ANN401
        """The pipeline, around a given network or one without weights, with its other parts on a device.

        Safety checkers and other parts that latents do not need are None.
        """
        device = device or torch.device("cpu")
        taken = inspect.signature(self.pipeline.__init__).parameters
        parts: dict[str, Any] = {}
        for name in self.parts:
            self.component_class(name)  # absent parts, too: students have them
            absent = name in OPTIONAL and name in taken
            if name == self.network:
                parts[name] = self.empty_network() if network is None else network
            else:
                parts[name] = None if absent else self.component(name)
            if isinstance(parts[name], nn.Module) and parts[name] is not network and name != self.network:
                parts[name].to(device)
        settings = {name: value for name, value in self.index.items() if name in taken and not isinstance(value, list)}
        absent_parts = {name: None for name in self.index if name in taken and name not in {*parts, *settings}}
        if "requires_safety_checker" in taken:
            settings["requires_safety_checker"] = False
        others = [each for name, each in parts.items() if isinstance(each, nn.Module) and name != self.network]
        first = next((weight for each in others for weight in each.parameters()), torch.empty(0, device=device))
        here = property(lambda pipeline: first.device)  # the current device of its parts
        placed = type(self.name, (self.pipeline,), {"_execution_device": here, "device": here})
        try:
            with quiet():
                pipeline = placed(**parts, **absent_parts, **settings)
        except Exception as error:  # each pipeline checks its parts in its own way
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise UserError(f"{self.path} cannot be opened as a {self.name} ({reason}): restore it") from error
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def _check_vocabulary(place: Path, found: Any) -> None:  # noqa: ANN401  (a class of transformers)
    """Refuse a tokenizer's folder without a vocabulary: it would silently know no words."""
    names = getattr(found, "vocab_files_names", None) or {}
    vocabularies = [names[kind] for kind in ("tokenizer_file", "vocab_file") if kind in names]
    held = [file.name for file in place.iterdir() if file.name in vocabularies or file.suffix == ".model"]
    if vocabularies and not held:
        raise UserError(f"{place} lacks {' or '.join(vocabularies)}: restore the file, or save the pipeline again")
    if held and "tokenizer.json" not in held and held[0].endswith(".model"):
        for module in ("sentencepiece", "google.protobuf"):
            import_extra(module, "text", str(place / held[0]))


def _kinds(transformers: Any) -> tuple[type, ...]:  # noqa: ANN401  (a module)
    """The base classes of a pipeline's parts."""
    names = ("PreTrainedTokenizerBase", "ProcessorMixin", "FeatureExtractionMixin", "ImageProcessingMixin")
    of_transformers = [getattr(transformers, name, None) for name in names]
    return (nn.Module, SchedulerMixin, BaseGuidance, *(each for each in of_transformers if isinstance(each, type)))
