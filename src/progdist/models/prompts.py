"""Models of prompts: how a stock text-to-image pipeline encodes them, and what its network receives.

A prompt is a number, its index among the distinct prompts, like a label; its embeddings are a row of a table, made by
the stock pipeline's own `encode_prompt`. This is the one place that needs transformers (extra `text`); tokenizers and
text encoders are read as untrusted, like networks in `progdist.models.safe_loading`.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor, nn

from progdist._utils.digest import digest, digest_of_files
from progdist._utils.errors import UserError
from progdist._utils.extras import import_extra
from progdist._utils.files import own_files, read_json
from progdist.data.images import CaptionedImages, Images
from progdist.methods.guidance import Guidance, Input
from progdist.models.components import PipelineFolder
from progdist.models.conditioning import Conditioning, Rows, Shape
from progdist.models.networks import image_shape, kind_of
from progdist.models.pipelines import PIPELINES, PipelineKind
from progdist.models.safe_loading import quiet

BATCH = 64  # prompts encoded at a time


@dataclass(frozen=True)
class Prompts(Conditioning):
    """The conditioning of a text-to-image model."""

    takes_prompts: ClassVar[bool] = True
    task: ClassVar[str] = "text-to-image"

    folder: Path  # of the stock pipeline, whose other parts are copied into a saved student
    index: Mapping[str, Any]  # its model_index.json
    learned: Guidance | None = None  # a student's guidance: the range of its input, one scale, or None
    negative: str | None = None  # the negative prompt of that guidance; None for the empty one

    @property
    def pipeline(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The class of the stock pipeline."""
        return self.index["_class_name"]

    @property
    def stock(self) -> type[DiffusionPipeline]:
        """The stock pipeline's class itself."""
        return PipelineFolder(self.folder, self.index).pipeline

    @property
    def takes_lora(self) -> bool:
        """Whether the stock pipeline loads LoRA weights for its network."""
        saved = getattr(self.stock, "save_lora_weights", None)
        loads = hasattr(self.stock, "load_lora_weights")
        return loads and saved is not None and f"{self.part}_lora_layers" in inspect.signature(saved).parameters

    @property
    def kind(self) -> PipelineKind:
        """The kind of that class."""
        return PIPELINES[self.pipeline]

    def copied(self) -> list[Path]:
        """The files that every student copies from it: all parts but the network and the scheduler.

        Raises:
            UserError: a part is missing, or has a link that leads out of the folder.
        """
        files: list[Path] = []
        for part, value in self.index.items():
            present = not part.startswith("_") and isinstance(value, list) and value and value[-1]
            if present and part not in (self.part, "scheduler"):
                if not (self.folder / part).is_dir():
                    raise UserError(f"{self.folder} lacks {part}/: restore the folder, or save the pipeline again")
                files += own_files(self.folder, part)
        return files

    @property
    def part(self) -> str:
        """The network's part of the folder."""
        return "unet"

    @property
    def default_guidance(self) -> float:
        """The pipeline's default guidance scale."""
        return self.kind.default_guidance

    @property
    def takes_sizes(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the network takes each image's size and crop position."""
        return self.pipeline == "StableDiffusionXLPipeline"

    def drawn(self, count: int, prompts: Sequence[str] = (), shares: Sequence[int] = ()) -> Tensor:
        """The prompts' numbers in turn."""
        return torch.arange(count) % max(1, len(prompts))

    def describe(self) -> str:
        """A short description for users."""
        return "text-to-image"

    def shape(self, network: nn.Module) -> Shape | None:
        """(channels, height, width) of the latents; None if the config does not give it."""
        return image_shape(network)

    def guidance(self, network: nn.Module) -> Guidance | None:
        """A student's guidance; None for a stock teacher."""
        return self.learned

    def default_scale(self, network: nn.Module) -> float | None:
        """The pipeline's default, or the nearest in the learned range; None if the network takes none."""
        if not self.takes_guidance(network):
            return None
        return self.learned.nearest(self.default_guidance) if isinstance(self.learned, Input) else self.default_guidance

    def conditions(
        self, network: nn.Module, scale: float | None, prompts: Sequence[str] = (), image: Shape | None = None
    ) -> "PromptConditions":
        """The conditions of prompts, numbered by position: each distinct one is encoded once."""
        if not prompts:
            raise UserError('this model requires a prompt: pass one, e.g. prompt "a cat"')
        distinct = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
        table = self.encoder(next(network.parameters()).device)(list(distinct))
        places = torch.tensor([distinct[prompt] for prompt in prompts])
        return self.of_rows(lambda numbers: {name: rows[places[numbers]] for name, rows in table.items()}, scale, image)

    def of_rows(self, rows: Rows, scale: float | None, image: Shape | None) -> "PromptConditions":
        """The conditions of prompts whose embeddings are looked up by number; arguments as above."""
        constants: dict[str, Tensor] = {}
        if self.takes_sizes and image:
            _, height, width = image
            constants["time_ids"] = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
        return PromptConditions(rows, constants).at(scale)

    def check_data(self, images: Images) -> None:
        """Refuse data without captions."""
        self.prompts_of(images, torch.empty(0))

    def prompts_of(self, images: Images | None, labels: Tensor) -> tuple[str, ...]:
        """The captions for some labels (N,), which are caption numbers."""
        if not isinstance(images, CaptionedImages):
            raise UserError(
                f"the model requires prompts, and {images.name if images else 'no data'} has no captions: use "
                "captions:FOLDER, or name the column of its captions (caption_column)"
            )
        return tuple(images.classes[number] for number in labels.tolist())

    def of_images(
        self, network: nn.Module, scale: float | None, image: Shape, captions: Callable[[], Rows]
    ) -> "PromptConditions":
        """The conditions of the images' captions."""
        return self.of_rows(captions(), scale, image)

    def for_guidance(
        self,
        *,
        negative: str | None,
        null_class: int | None,
        data_classes: int = 0,
        notify: Callable[[str], None] = lambda text: None,
    ) -> Self:
        """The same with the negative prompt."""
        if null_class is not None:
            raise UserError("conversion.null_class applies only to class-conditional teachers: use conversion.negative")
        return replace(self, negative=negative)

    def unconditional(self, device: torch.device) -> Mapping[str, Tensor]:
        """The embeddings of the negative prompt, encoded on a device."""
        return self.encoder(device).unconditional(self.negative)

    def after(self, guidance: Guidance | None) -> Self:
        """The conditioning of a student that has learned a guidance."""
        return replace(self, learned=guidance)

    def to_json(self, network: nn.Module) -> dict[str, Any]:
        """The keys of progdist.json."""
        return {"guidance": self.learned and self.learned.to_json(), "negative": self.negative}

    def fingerprint(self) -> str:
        """Identifies its tokenizers and text encoders by the names, sizes and times of their files."""
        parts = sorted(part for part in self.index if part.startswith(("text_encoder", "tokenizer")))
        files = (file for part in parts for file in sorted((self.folder / part).rglob("*")) if file.is_file())
        return digest(self.pipeline, digest_of_files(self.folder, files))

    def encoder(self, device: torch.device | None = None) -> "PromptEncoder":
        """Its tokenizers and text encoders, loaded at every call: release them once the prompts are encoded.

        Raises:
            UserError: a file is missing, damaged or a pickle, or the extra `text` is missing.
        """
        import_extra("transformers", "text", "a text-to-image model")
        kind, folder, device = self.kind, PipelineFolder(self.folder, self.index), device or torch.device("cpu")
        parts: dict[str, Any] = {"vae": None, self.part: None, "scheduler": None, **kind.parts}
        parts |= {name: self.index.get(name, default) for name, default in kind.indexed.items()}
        with quiet():
            parts |= {part: folder.component(part) for part in kind.encoders}
            pipeline = folder.pipeline(**parts).to(device)
        return PromptEncoder(pipeline, kind, device, self.folder)


@dataclass(frozen=True)
class PromptConditions:
    """The condition of a batch: embeddings of its prompts, and constants for all of its examples.

    A batch may have `frame` (B, 4), the height and width of each image and the top and left of its crop: they replace
    place of the first numbers of `time_ids`, (height, width, top, left, new height, new width), as SDXL was trained
    (Podell et al. 2023, arXiv 2307.01952, section 2.2).
    """

    rows: Rows  # finds the embeddings
    constants: Mapping[str, Tensor]  # (1, ...) each

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The condition by name, for a batch with `labels` (B,), the prompts' numbers, and maybe `guidance` (B,)."""
        labels = batch["labels"]
        condition = {
            name: row.to(labels.device).expand(len(labels), *row.shape[1:]) for name, row in self.constants.items()
        }
        condition |= {name: rows.to(labels.device, torch.float32) for name, rows in self.rows(labels.cpu()).items()}
        if "frame" in batch:
            sizes = condition["time_ids"]
            condition["time_ids"] = torch.cat([batch["frame"].to(sizes), sizes[:, 4:]], dim=1)
        return condition | {name: batch[name] for name in ("guidance",) if name in batch}

    def at(self, scale: float | None) -> "PromptConditions":
        """The same with one guidance scale for all examples without their own; unchanged for None."""
        if scale is None:
            return self
        return replace(self, constants={**self.constants, "guidance": torch.tensor([scale], dtype=torch.float64)})


def read_prompts(folder: Path, network: nn.Module) -> Prompts | None:
    """The conditioning of a text-to-image pipeline's folder; None if its network takes no prompts.

    Raises:
        UserError: it is not one of PIPELINES, its index names parts elsewhere, or as in `Prompts.copied`.
    """
    kind = kind_of(network)
    if kind is None or kind.prompt is None:
        return None
    index = read_json(folder / "model_index.json")
    name = str(index.get("_class_name"))
    if name not in PIPELINES or PIPELINES[name].network != type(network).__name__:
        raise UserError(
            f"{folder} is a {name[:50]} of a {type(network).__name__}, expected one of these text-to-image pipelines: "
            f"{', '.join(PIPELINES)}"
        )
    if wrong := [part for part in index if not part.startswith("_") and Path(part).name != part]:
        raise UserError(f"{folder}/model_index.json names the part {wrong[0][:50]!r}, outside the folder: restore it")
    prompts = Prompts(folder, index)
    prompts.copied()
    return prompts


@dataclass(frozen=True)
class PromptEncoder:
    """Encodes prompts for the network."""

    pipeline: Any  # a stock pipeline with only tokenizers and text encoders
    kind: PipelineKind
    device: torch.device  # their device
    folder: Path  # the folder they were read from

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The network's inputs for N prompts, by name, each (N, ...) in float32 on the CPU."""
        parts = [list(prompts[first : first + BATCH]) for first in range(0, len(prompts), BATCH)]
        unguided = {"do_classifier_free_guidance": False}
        encoded = [self._encode(part, self.kind.prompts, unguided) for part in parts]
        return {name: torch.cat([each[name] for each in encoded]) for name in encoded[0]}

    @torch.no_grad()
    def unconditional(self, negative: str | None) -> dict[str, Tensor]:
        """The stock pipeline's inputs for the negative prompt, by default the empty one; each (1, ...)."""
        options = {} if negative is None else {"negative_prompt": [negative]}
        return self._encode([""], self.kind.negatives, {"do_classifier_free_guidance": True, **options})

    def _encode(self, prompts: list[str], places: Mapping[str, int], options: Mapping[str, Any]) -> dict[str, Tensor]:
        try:
            with quiet():
                results = self.pipeline.encode_prompt(prompts, device=self.device, **self.kind.options, **options)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # transformers checks few config values: any other error means damage
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise UserError(
                f"{self.folder}: its tokenizers and text encoders cannot encode a prompt ({reason}): restore them"
            ) from error
        return {name: results[place].float().cpu() for name, place in places.items()}
