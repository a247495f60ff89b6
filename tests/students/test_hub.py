"""`progdist export --push`: what would be uploaded, what the card says, and what goes to the hub; nothing does here."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import CommitOperationAdd, ModelCard, metadata_load

from progdist import Denoiser, UserError
from progdist.methods.guidance import Fixed, Guidance, Input
from progdist.models.model import Base, LoraWeights, Model
from progdist.models.pipeline_prompts import PipelinePrompts
from progdist.students import hub
from progdist.students.card import card
from progdist.students.folder import save
from progdist.teachers.open import open_teacher
from support.commands import call, refused, succeeds
from support.lora_readers import adapters
from support.text import text_student, write_sd

LICENCES = {
    *("apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigcode-openrail-m"),
    *("bsd", "cc", "cc0-1.0", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-sa-4.0", "cc-by-nc-sa-4.0", "gpl-3.0", "agpl-3.0"),
    *("openrail++", "deepfloyd-if-license", "unknown", "other"),
}
"""Of the identifiers that the hub takes: docs/hub/repositories-licenses.md of huggingface/hub-docs, those of pipelines.

There, too: `other` needs `license_name`; docs/hub/model-cards.md has `license_link` beside it.
"""

THREE = Fixed(3.0)

TASKS = {"text-to-image", "text-to-video", "text-to-audio", "unconditional-image-generation"}
"""Of the hub's pipeline tags those of what is distilled here: packages/tasks/src/pipelines.ts of huggingface.js."""

RELATIONS = {"adapter", "finetune", "merge", "quantized"}
"""Of `base_model_relation`: docs/hub/model-cards.md, "Specifying a base model"."""


def check_header(text: str) -> dict[str, Any]:
    """The metadata of a card, by the rules of the hub's YAML validator that its pages name."""
    data: Any = ModelCard(text).data  # a ValueError where it is no YAML
    assert data.library_name == "diffusers"
    assert data.pipeline_tag in TASKS
    assert data.license is None or data.license in LICENCES
    assert data.license != "other" or data.license_name
    fields = data.to_dict()
    assert (data.base_model is None) == ("base_model_relation" not in fields)
    assert fields.get("base_model_relation", "adapter") in RELATIONS
    if data.base_model is not None:
        huggingface_hub.utils.validate_repo_id(data.base_model)
    assert all(isinstance(tag, str) for tag in data.tags)
    numbers = fields.get("inference", {}).get("parameters", {})
    assert all(type(number) in (int, float) for number in numbers.values())
    return fields


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Model]:
    """A student of a tiny Stable Diffusion, of a base on the hub."""
    place = write_sd(tmp_path_factory.mktemp("base") / "sd")

    made = cache(lambda guidance: text_student(place, guidance))

    def of(guidance: Guidance = THREE, *, lora: bool = False, **licence: str) -> Model:
        model = made(guidance)
        weights = LoraWeights("hub:owner/name", adapters(model.denoiser.network)) if lora else None
        return replace(model, base=Base("hub:owner/name", licence), lora=weights)

    return of


@pytest.fixture
def folder(student: Callable[..., Model], tmp_path: Path) -> Path:
    save(student(license="openrail++"), tmp_path / "student")
    return tmp_path / "student"


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """No token, not offline, and an HfApi that only notes what it is asked."""
    asked: list[Any] = []

    class Api:
        def create_repo(self, repository: str, **options: Any) -> None:  # noqa: ANN401
            asked.append((repository, options))

        def create_commit(self, repository: str, operations: list[CommitOperationAdd], commit_message: str) -> Any:  # noqa: ANN401
            asked.append((repository, {each.path_in_repo: each.path_or_fileobj for each in operations}))
            return type("Commit", (), {"commit_url": f"https://huggingface.co/{repository}/commit/0"})

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield asked


def test_nothing_is_uploaded_without_a_token(folder: Path, no_hub: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is listed with its size, and the next step is said."""
    said = " ".join(succeeds("export", folder, "--push", "me/four").stdout.split())
    for path in folder.rglob("*"):
        if path.is_file():
            assert str(path.relative_to(folder)) in said
    assert "Nothing was uploaded to me/four" in said
    assert "hf auth login" in said
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in succeeds("export", folder, "--push", "me/four").output
    assert no_hub == []


def test_a_folder_is_uploaded_whole(folder: Path, no_hub: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """In one commit; what is hidden, unfinished or a pickle stays."""
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    for name in (".git/config", ".x.partial", "unet/weights.bin"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    result = succeeds("export", folder, "--push", "me/four", "--private")
    assert "https://huggingface.co/me/four/commit/0" in result.stdout
    assert "hf_secret" not in result.output
    created, (repository, files) = no_hub
    assert created == ("me/four", {"private": True, "exist_ok": True})
    assert repository == "me/four"
    expected = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files.keys() == expected - {".git/config", ".x.partial", "unet/weights.bin"}
    assert files["README.md"] == str(folder / "README.md")
    metadata: Any = metadata_load(folder / "README.md")
    assert metadata["base_model_relation"] == "finetune"


def test_an_exported_file_is_uploaded_with_a_card_of_its_own(
    student: Callable[..., Model], tmp_path: Path, no_hub: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    save(student(license="mit"), tmp_path / "whole")
    save(student(lora=True, license="mit"), tmp_path / "lora")
    file = tmp_path / "four.safetensors"
    succeeds("export", tmp_path / "whole", "--single-file", file, "--dtype", "bf16", "--push", "me/four")
    succeeds("export", tmp_path / "lora", "--lora-format", "kohya", "--out", file, "--push", "me/four")
    (_, created), (_, whole), _, (_, lora) = no_hub
    assert created == {"private": None, "exist_ok": True}
    for files, relation, code in ((whole, "finetune", "from_single_file"), (lora, "adapter", "load_lora_weights")):
        assert files.keys() == {"README.md", "four.safetensors"}
        text = files["README.md"].decode()
        found = check_header(text)
        assert (found["base_model"], found["base_model_relation"], found["license"]) == ("owner/name", relation, "mit")
        assert found["inference"] == {"parameters": {"num_inference_steps": 4, "guidance_scale": 1}}
        assert code in text
        assert "| sigmas | " in text
        assert str(tmp_path) not in text


def test_the_code_of_a_files_card_samples_the_student(
    student: Callable[..., Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run beside the file, with the folder as its config: the latents of the folder's own pipeline."""
    import diffusers

    from progdist.students.file_card import file_card
    from progdist.students.single_file import export_single_file

    model = student()
    save(model, tmp_path / "student")
    export_single_file(model, tmp_path / "four.safetensors")
    code = file_card(model, [tmp_path / "four.safetensors"]).partition("```python\n")[2].partition("```")[0]
    base: Any = model.conditioning
    more = f"config={str(base.folder)!r}, local_files_only=True)"
    code = code.replace('from_single_file("four.safetensors")', f'from_single_file("four.safetensors", {more}')
    code = code.replace("guidance_scale=1.0)", "guidance_scale=1.0, latents=latents, output_type='latent')")
    names: dict[str, Any] = {"latents": torch.randn(1, 4, 4, 4)}
    monkeypatch.chdir(tmp_path)
    exec(code, names)
    pipeline: Any = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "student")  # pyright: ignore
    how = {"num_inference_steps": 4, "guidance_scale": 1.0, "latents": names["latents"], "output_type": "latent"}
    expected = pipeline("a photograph of a lighthouse", **how).images
    torch.testing.assert_close(names["images"], expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"license": "mit"}, {"license": "mit"}),
        ({}, {"license": None}),
        (
            {"license": "other", "license_name": "mine", "license_link": "LICENSE.md"},
            {"license": "other", "license_name": "mine",
             "license_link": "https://huggingface.co/owner/name/blob/main/LICENSE.md"},
        ),
        (
            {"license": "other", "license_name": "mine", "license_link": "https://example.org/a"},
            {"license": "other", "license_name": "mine", "license_link": "https://example.org/a"},
        ),
    ],
)  # fmt: skip
def test_the_licence_in_the_header(given: dict[str, str], said: dict[str, str | None], student: Any) -> None:  # noqa: ANN401
    text = card(student(**given), "StableDiffusionPipeline", ())
    found = check_header(text)
    assert {name: found.get(name) for name in said} == said
    assert ("The licence is unknown: the card of the base model, `hub:owner/name`" in text) == (not given)
    assert bool(hub.lacking(text)) == (not given)


def test_a_base_on_this_machine_is_said(student: Any) -> None:  # noqa: ANN401
    """A LoRA student's folder and files name it by its path."""
    model = student(lora=True, license="mit")
    text = card(model, "StableDiffusionPipeline", ())
    assert hub.lacking(text, model) == []
    (note,) = hub.lacking(text, replace(model, lora=replace(model.lora, base="/home/me/sd")))
    assert "the base is a path on this machine, /home/me/sd" in note


def test_a_link_within_an_unknown_repository_is_left_out(student: Any) -> None:  # noqa: ANN401
    licence = {"license": "other", "license_name": "mine", "license_link": "LICENSE.md"}
    text = card(replace(student(), base=Base("folder", licence)), "StableDiffusionPipeline", ())
    assert "license_link" not in check_header(text)
    assert any("names no base model" in note for note in hub.lacking(text))


def test_the_inference_settings(student: Any, tmp_path: Path) -> None:  # noqa: ANN401
    """Of a range the scale in its middle; of a watched pipeline its own arguments that are numbers."""
    from tiny_pipelines import CALLS, build

    found = check_header(card(student(Input(1.0, 14.0)), "StableDiffusionPipeline", ()))
    assert found["inference"]["parameters"] == {"num_inference_steps": 4, "guidance_scale": 7.5}
    folder, name = build("WanPipeline", tmp_path / "wan"), "WanPipeline"
    asked = {key: value for key, value in CALLS[name].items() if key not in ("guidance_scale", "output_type")}
    teacher = open_teacher(str(folder), call=asked).model
    prompts = teacher.conditioning
    assert isinstance(prompts, PipelinePrompts)
    text = card(replace(teacher, steps=(4,), conditioning=prompts.after(Fixed(3.0))), name, ())
    header = check_header(text)
    assert header["pipeline_tag"] == "text-to-video"
    numbers = header["inference"]["parameters"]
    assert numbers["num_inference_steps"] == 4
    assert numbers["num_frames"] == asked["num_frames"]


def test_models_without_prompts(tiny_model: Callable[..., Denoiser], tmp_path: Path) -> None:
    save(Model(tiny_model(), (4,), (16,), data="digits"), tmp_path / "student")
    found = check_header((tmp_path / "student" / "README.md").read_text())
    assert found["pipeline_tag"] == "unconditional-image-generation"
    assert "inference" not in found
    output = succeeds("export", tmp_path / "student", "--push", "me/four").output
    assert "names no licence" in " ".join(output.split())


def test_mistakes(folder: Path, no_hub: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for given, message in (
        (("--push", "four"), "--push is 'four', expected OWNER/NAME"),
        (("--push", "a/b/c"), "expected OWNER/NAME"),
        (("--push", "me/..x"), "expected OWNER/NAME"),
        (("--private",), "expected one of --onnx FILE"),
        (("--onnx", tmp_path / "a.onnx", "--push", "me/four"), "--push has no effect with --onnx"),
        (("--single-file", tmp_path / "a.safetensors", "--private"), "--private requires --push"),
    ):
        refused(call("export", folder, *given), message)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")

    def fails(*given: Any, **named: Any) -> None:  # noqa: ANN401
        raise OSError("403\nForbidden")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", fails)
    refused(call("export", folder, "--push", "me/four"), r"me/four was not uploaded (OSError: 403 Forbidden)")
    (folder / "README.md").write_text("---\na: [\n---\n")
    refused(call("export", folder, "--push", "me/four"), "the header of README.md cannot be read")
    (folder / "README.md").unlink()
    refused(call("export", folder, "--push", "me/four"), "requires a folder with a README.md")
    (folder / "other").symlink_to(tmp_path)
    refused(call("export", folder, "--push", "me/four"), "is a link to")
    assert [each for each in no_hub if isinstance(each[1], dict) and "README.md" in each[1]] == []
    with pytest.raises(UserError, match="OWNER/NAME"):
        hub.check_repository("")
