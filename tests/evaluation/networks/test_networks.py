"""Inception-v3, DINOv2 and CLIP with drawn weights: torch-fidelity's recorded numbers, and those of transformers."""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, Dinov2Config, Dinov2Model
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from progdist import UserError
from progdist._utils.files import checksum
from progdist.data.images import to_uint8
from progdist.evaluation.features import clip_space, feature_space
from progdist.evaluation.networks import weights
from progdist.evaluation.networks.inception import read_inception
from progdist.evaluation.networks.resize import resize_bytes, resize_clean, resize_tensorflow, to_bytes
from progdist.evaluation.networks.weights import find_weights
from support.networks import byte_images, write_inception
from support.paths import REFERENCE


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inception(tmp_path_factory.mktemp("weights") / "inception.pth")


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, and nothing elsewhere."""
    monkeypatch.setenv("PROGDIST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "cache"


def test_inception_is_torch_fidelitys(inception_file: Path) -> None:
    """Pool and logits of two images of bytes, resized as TensorFlow 1 does; recorded from torch-fidelity."""
    recorded = np.load(REFERENCE / "inception.npz")
    images = byte_images().float() / 127.5 - 1
    space = feature_space("inception", (3, 20, 24), {"inception": inception_file})
    pool = space(images)
    torch.testing.assert_close(pool, torch.from_numpy(recorded["pool"]), rtol=1e-4, atol=1e-4)
    logits = space.logits(pool)
    assert logits is not None
    torch.testing.assert_close(logits, torch.from_numpy(recorded["logits"]), rtol=1e-4, atol=1e-4)
    assert space.labels(pool) is None  # ImageNet's classes are not the data's
    assert torch.equal(space(images + 0.3 / 127.5), pool)  # rounded to bytes first
    assert space.checksum == checksum(inception_file)
    assert space.warning is not None
    assert "do not compare with published numbers" in space.warning


def test_the_spatial_features_are_guided_diffusions(inception_file: Path) -> None:
    """The first 7 channels of block 6d's 1 x 1 branch, pixel by pixel: 2,023 numbers."""
    network = read_inception(find_weights("inception", {"inception": inception_file}))
    seen: list[Any] = []
    network.Mixed_6d.get_submodule("branch1x1").register_forward_hook(lambda module, given, output: seen.append(output))
    _, spatial = network(resize_tensorflow(byte_images()[:1].float(), 299))
    assert spatial.shape == (1, 2023)
    torch.testing.assert_close(spatial[0, 7:14], seen[0][0, :7, 0, 1])


def test_resizing_by_each_convention() -> None:
    pixels = byte_images().float()
    tensorflow = resize_tensorflow(pixels, 40)  # pixel i at i h / 40, h = 20: every other one is there
    torch.testing.assert_close(tensorflow[:, :, ::2, 0], pixels[..., 0])
    torch.testing.assert_close(tensorflow[:, :, 1:38:2, 0], (pixels[..., :-1, 0] + pixels[..., 1:, 0]) / 2)
    clean = resize_clean(pixels, 10)
    channel = Image.fromarray(pixels[1, 2].numpy()).resize((10, 10), Image.Resampling.BICUBIC)
    torch.testing.assert_close(clean[1, 2], torch.from_numpy(np.array(channel)))
    assert (clean - clean.round()).abs().max() > 0.1  # not rounded again
    assert not torch.allclose(clean, resize_tensorflow(pixels, 10), atol=10)
    squeezed = resize_bytes(pixels / 127.5 - 1, 10, crop=False)
    theirs = Image.fromarray(pixels[0].byte().movedim(0, -1).numpy()).resize((10, 10), Image.Resampling.BICUBIC)
    torch.testing.assert_close(squeezed[0], torch.from_numpy(np.array(theirs)).movedim(-1, 0).float())
    grey = torch.rand(1, 1, 4, 4) * 3 - 1.5
    np.testing.assert_array_equal(to_bytes(grey)[0, 2], to_uint8(grey)[0, ..., 0])  # clipped, and three channels


def test_missing_and_damaged_weights_are_one_line(no_cache: Path, inception_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"fetch the file https.*6726825d.pth and put it at {no_cache}/weights-incep"):
        find_weights("inception", {})
    with pytest.raises(
        UserError, match=r"fetch the folder https://huggingface.co/facebook/dinov2-large .*weights dinov2="
    ):
        find_weights("dinov2", {})
    with pytest.raises(UserError, match="there is no file"):
        find_weights("clip", {"clip": tmp_path})
    no_cache.mkdir()
    (no_cache / weights.INCEPTION.name).write_bytes(b"cut off")
    with pytest.raises(UserError, match=r"has SHA-256 .*, expected 6726825d...: fetch it again"):
        find_weights("inception", {})
    with pytest.raises(UserError, match="cannot be read as Inception's weights"):
        read_inception(find_weights("inception", {"inception": no_cache / weights.INCEPTION.name}))
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="cannot be read as Inception's weights"):
        read_inception(find_weights("inception", {"inception": tmp_path / "other.pth"}))


def test_weights_in_a_cache_are_found(
    no_cache: Path, inception_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = weights.Published("inception.pth", "https://there", sha256=checksum(inception_file))
    monkeypatch.setitem(weights.WEIGHTS, "inception", published)
    where = tmp_path / "torch" / "hub" / "checkpoints" / "inception.pth"
    where.parent.mkdir(parents=True)
    where.symlink_to(inception_file)
    found = find_weights("inception", {})
    assert (found.path, found.sha256, found.warning) == (where, published.sha256, None)


def test_dinov2_is_the_class_token(tmp_path: Path) -> None:
    config = Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    network = Dinov2Model(config).eval()
    network.save_pretrained(tmp_path)
    images = torch.rand(2, 1, 30, 20) * 2 - 1
    found = feature_space("dinov2", (1, 30, 20), {"dinov2": tmp_path})(images)
    pixels = resize_bytes(images, 224, crop=False) / 255
    mean, deviation = (
        torch.tensor(each)[:, None, None] for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )  # fmt: skip
    with torch.no_grad():
        tokens = network(pixel_values=(pixels - mean) / deviation).last_hidden_state
    torch.testing.assert_close(found, tokens[:, 0])


def test_clip_is_transformers(tmp_path: Path) -> None:
    """Images as CLIP's own processor prepares them, captions as its tokenizer does, both projected."""
    small: dict[str, Any] = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = CLIPTextConfig(**small, vocab_size=600, max_position_embeddings=12, eos_token_id=513, bos_token_id=512)
    config = CLIPConfig(
        text_config=text.to_dict(),
        vision_config=CLIPVisionConfig(**small, image_size=32, patch_size=16).to_dict(),
        projection_dim=6,
    )
    network = CLIPModel(config).eval()
    network.save_pretrained(tmp_path)
    letters = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(vocabulary)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    space, embed = clip_space({"clip": tmp_path})
    images = torch.rand(2, 3, 50, 40) * 2 - 1
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    prepared = processor(images=list(to_uint8(images)), return_tensors="pt")
    with torch.no_grad():
        theirs = cast(Any, network.get_image_features(**prepared)).pooler_output
    torch.testing.assert_close(space(images), theirs, rtol=1e-4, atol=1e-5)
    captions = embed(["a cat", "a dog", "a cat and much more than twelve tokens can hold"])
    assert captions.shape == (3, 6)
    assert nn.functional.cosine_similarity(captions[0], captions[1], dim=0) < 1 - 1e-4
