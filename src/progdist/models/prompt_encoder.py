"""Stock diffusers' text-to-image pipelines, as far as prompts go: the one place that needs transformers (extra `text`).

Tokenizers and text encoders are read as untrusted, as `progdist.models.safe_loading` reads networks, and a prompt is
encoded by the stock pipeline's own `encode_prompt`: whatever that does is done here.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
from torch import Tensor

from progdist._utils.errors import UserError
from progdist._utils.extras import import_extra
from progdist.models.pipelines import PIPELINES, TOKENIZERS, VOCABULARIES, PipelineKind
from progdist.models.safe_loading import load_component, quiet

BATCH = 64
"""Prompts encoded at a time."""


def _transformers() -> Any:  # noqa: ANN401  (a module)
    return import_extra("transformers", "text", "a text-conditional model")


@contextmanager
def _no_progress_bars(transformers: Any) -> Iterator[None]:  # noqa: ANN401  (a module)
    """Without the bars that transformers shows of every file it reads."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()


@dataclass(frozen=True)
class PromptEncoder:
    """Prompts to what the network attends to.

    Args:
        pipeline: a stock pipeline of tokenizers and text encoders alone.
        kind: what is particular to it.
        device: on which they are.
    """

    pipeline: Any
    kind: PipelineKind
    device: torch.device

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """What N prompts are to the network, float32 on the CPU.

        Returns:
            encoder_hidden_states (N, tokens, channels), and what else the pipeline's network is given of a prompt.
        """
        parts = [list(prompts[first : first + BATCH]) for first in range(0, len(prompts), BATCH)]
        unguided = {"do_classifier_free_guidance": False} if self.kind.negatives else {}
        found = [self._encode(part, self.kind.prompts, unguided) for part in parts]
        return {name: torch.cat([each[name] for each in found]) for name in found[0]}

    @torch.no_grad()
    def unconditional(self, negative: str | None) -> dict[str, Tensor]:
        """What the stock pipeline guides away from: the negative prompt, or the empty one; each (1, ...)."""
        if not self.kind.negatives:
            return self([negative or ""])
        given = {} if negative is None else {"negative_prompt": [negative]}
        return self._encode([""], self.kind.negatives, {"do_classifier_free_guidance": True, **given})

    def _encode(self, prompts: list[str], places: Mapping[str, int], given: Mapping[str, Any]) -> dict[str, Tensor]:
        with quiet():
            found = self.pipeline.encode_prompt(prompts, device=self.device, **self.kind.options, **given)
        return {name: found[place].float().cpu() for name, place in places.items()}


def prompt_encoder(folder: Path, index: Mapping[str, Any], device: torch.device) -> PromptEncoder:
    """The tokenizers and text encoders of a pipeline's folder, ready to encode.

    Args:
        folder: of the pipeline.
        index: its model_index.json.
        device: where the text encoders compute.

    Raises:
        UserError: a file is missing, damaged or a pickle, or the extra `text` is.
    """
    transformers, kind = _transformers(), PIPELINES[index["_class_name"]]
    parts: dict[str, Any] = {"vae": None, kind.part: None, "scheduler": None, **kind.parts}
    parts |= {name: index.get(name, usual) for name, usual in kind.indexed.items()}
    for part, class_name in kind.encoders.items():
        tokenizer = part.replace("text_encoder", "tokenizer")
        with _no_progress_bars(transformers):
            parts[part] = _text_encoder(folder, part, getattr(transformers, class_name)).to(device)
        parts[tokenizer] = _tokenizer(folder / tokenizer, transformers, TOKENIZERS[class_name])
    with quiet():
        pipeline = getattr(diffusers, index["_class_name"])(**parts)
    return PromptEncoder(pipeline, kind, device)


def _text_encoder(folder: Path, part: str, encoder_class: Any) -> Any:  # noqa: ANN401  (classes of transformers)
    if (folder / part / "adapter_config.json").exists():
        raise UserError(f"{folder / part} holds an adapter beside its weights: merge it, and save the pipeline again")

    def described(config: Mapping[str, Any]) -> torch.nn.Module:
        return encoder_class(encoder_class.config_class.from_dict(dict(config)))

    return load_component(folder, part, encoder_class, weights="model", describe=described).requires_grad_(False)


def _tokenizer(place: Path, transformers: Any, name: str) -> Any:  # noqa: ANN401  (a module, and a class of it)
    if not place.is_dir():
        raise UserError(f"{place.parent} lacks {place.name}/: restore the folder, or save the pipeline again")
    held = [file for file in VOCABULARIES[name] if (place / file).is_file()]
    if not held:
        wanted = " or ".join(VOCABULARIES[name])
        raise UserError(f"{place} lacks {wanted}: restore the file, or save the pipeline again")
    if held == ["spiece.model"] and not all(map(find_spec, ("sentencepiece", "google.protobuf"))):
        raise UserError(f"{place / held[0]} needs sentencepiece and protobuf: pip install 'progdist[text]'")
    try:
        return getattr(transformers, name).from_pretrained(place, local_files_only=True)
    except Exception as error:  # transformers raises many kinds: all mean that it cannot be read
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{place} is damaged ({reason}): restore it, or save the pipeline again") from error


def guidance_embedding(guidance: Tensor, dim: int) -> Tensor:
    """The stock pipelines' embedding of guidance scales, that of g - 1.

    Args:
        guidance: g, float64 (B,).
        dim: of the embedding, the network's `time_cond_proj_dim`.

    Returns:
        (B, dim) in float32, sines and then cosines. The stock function itself, since its float32 frequencies are off
        by 5e-4 at g = 14 from exact ones, and the student must see in training what it sees in use.
    """
    _transformers()
    with quiet():
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    embed = cast(Any, StableDiffusionPipeline.get_guidance_scale_embedding)
    return embed(None, (guidance.cpu() - 1).float(), embedding_dim=dim)
