"""Single-file checkpoints, read by the stock pipelines' own `from_single_file`, with the configs of a folder.

A file of weights does not name its model. So a diffusers folder of the same family must be given: configs, tokenizers
and scheduler, which the stock loader would otherwise download, and the weights of parts that the file lacks,
e.g. text encoders for most files of Flux. Both are untrusted: classes are looked up only in diffusers and transformers,
configs may describe no more than the file holds, and no pickle is read.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import safetensors
from diffusers.loaders.single_file import FromSingleFileMixin
from diffusers.loaders.single_file_model import FromOriginalModelMixin
from diffusers.loaders.single_file_utils import LDM_VAE_KEYS, is_clip_model_in_single_file, is_t5_in_single_file
from torch import Tensor, nn

from progdist._utils.errors import UserError
from progdist._utils.files import read_tensors
from progdist.models.components import OPTIONAL, PipelineFolder
from progdist.models.safe_loading import check_described, quiet

NETWORK = "model.diffusion_model."  # prefix of the network's weights, if a file holds several parts
UNUSED = "were not used when initializing"  # in the stock loader's warning about unused weights


def open_single_file(file: Path, config: Path) -> Any:  # noqa: ANN401  (a pipeline of diffusers)
    """The stock pipeline of a checkpoint, in float32, without a safety checker.

    Raises:
        UserError: the file is damaged, or a pickle; the folder is not one, or is of another family; or a part is in
            neither.
    """
    if not (config / "model_index.json").is_file():
        raise UserError(f"--config {config} has no model_index.json: give a diffusers folder of the same family")
    check_checkpoint(file)
    folder, checkpoint = PipelineFolder.read(config), read_tensors(file)
    _check_index(folder)
    if not issubclass(folder.pipeline, FromSingleFileMixin):
        raise UserError(f"a {folder.name} reads no single files: save it with save_pretrained, and give that folder")
    given = _parts_beside(folder, file, checkpoint)
    unused: list[str] = []
    try:
        with quiet(), _unused(unused):
            options: dict[str, Any] = {"config": str(config), "local_files_only": True, **given}
            pipeline = cast(Any, folder.pipeline).from_single_file(str(file), **options)
    except Exception as error:  # the loader raises many kinds: all mean that file and folder do not fit
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise _other_family(file, config, reason) from error
    for name in folder.parts:
        part = getattr(pipeline, name, None)
        if name not in given and isinstance(part, nn.Module):
            _check_whole(part, name, file, config)
            part.float().eval()
    network = cast(nn.Module, getattr(pipeline, folder.network))
    held = sum(tensor.numel() for name, tensor in checkpoint.items() if name.startswith(NETWORK))
    has = sum(tensor.numel() for tensor in network.state_dict().values())
    if unused or held > has:
        reason = unused[0] if unused else f"{held:,} numbers for a {folder.network} of {has:,}"
        raise _other_family(file, config, reason)
    return pipeline


def check_checkpoint(file: Path) -> None:
    """Refuse a file that is not safetensors, including pickles of any name, before anything reads it."""
    if file.suffix != ".safetensors":
        raise UserError(
            f"{file} is not .safetensors: a .ckpt, .bin or .pt is a pickle, which can run code and is never loaded; "
            "save it as safetensors"
        )
    if not file.is_file():
        raise UserError(f"{file} is not a file: give a checkpoint, or the folder of a diffusers pipeline")
    try:
        with safetensors.safe_open(file, "pt") as opened:
            opened.keys()
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{file} cannot be read as safetensors ({error}): restore the file") from error


def _check_index(folder: PipelineFolder) -> None:
    """Refuse an index whose values are not pairs of a library and a class, or null: the stock loader imports them."""
    for name, value in folder.index.items():
        if isinstance(value, list) and name not in folder.parts and value != [None, None]:
            raise UserError(f"{folder.path}/model_index.json: {name[:50]} is {str(value)[:50]}: restore it")


def _parts_beside(folder: PipelineFolder, file: Path, checkpoint: Mapping[str, Tensor]) -> dict[str, Any]:
    """The parts that are not in the file, opened from the folder; those not needed to make latents are None."""
    given: dict[str, Any] = {}
    for name in folder.parts:
        found = folder.component_class(name)
        if name in OPTIONAL:
            given[name] = None
        elif _in_file(name, found, folder, checkpoint):
            _check_config(found, folder, name, file)
        else:
            try:
                given[name] = folder.component(name)
            except UserError as error:
                if issubclass(found, nn.Module):
                    raise UserError(f"{file} holds no {name}, so --config must contain it: {error}") from error
                raise
    return given


def _in_file(name: str, found: Any, folder: PipelineFolder, checkpoint: Mapping[str, Tensor]) -> bool:  # noqa: ANN401
    """Whether the stock loader takes a part from the file."""
    if name == folder.network:
        return True
    if issubclass(found, FromOriginalModelMixin):
        return any(key.startswith(tuple(LDM_VAE_KEYS)) for key in checkpoint)
    t5 = found.__name__ == "T5EncoderModel" and is_t5_in_single_file(checkpoint)
    return issubclass(found, nn.Module) and (t5 or is_clip_model_in_single_file(found, checkpoint))


def _check_config(found: Any, folder: PipelineFolder, name: str, file: Path) -> None:  # noqa: ANN401
    """Refuse a config that describes more than the file, before the stock loader builds it."""

    def describe(config: Mapping[str, Any]) -> nn.Module:
        if hasattr(found, "from_config"):
            return found.from_config(config)
        return found(found.config_class.from_dict(dict(config)))

    try:
        check_described(found, folder.path / name, file, describe)
    except UserError:
        raise
    except Exception as error:  # diffusers checks few config values
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{folder.path / name} is damaged ({reason}): restore it") from error


def _check_whole(part: nn.Module, name: str, file: Path, config: Path) -> None:
    """Refuse a part with weights missing from the file."""
    if missing := [key for key, tensor in part.state_dict().items() if tensor.is_meta]:
        raise _other_family(file, config, f"{name} lacks {len(missing)} tensors, e.g. {missing[0][:100]}")


def _other_family(file: Path, config: Path, reason: str) -> UserError:
    return UserError(
        f"{file} does not fit --config {config} ({reason}): give a diffusers folder of the checkpoint's own family"
    )


@contextmanager
def _unused(found: list[str]) -> Iterator[None]:
    """Collect the stock loader's warnings about weights that no part uses."""

    class Listener(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            if UNUSED in (message := record.getMessage()):
                found.append(" ".join(message.split())[:200])
            return False

    logger, listener = logging.getLogger("diffusers.loaders.single_file_model"), Listener()
    level = logger.level
    logger.addFilter(listener)
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.removeFilter(listener)
        logger.setLevel(level)
