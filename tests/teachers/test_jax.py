"""The released format against the recorded network, in all its variants, and damaged in many ways."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch

from progdist import UserError, sample
from progdist.students.folder import save
from progdist.teachers.jax import import_checkpoint, read_checkpoint
from progdist.teachers.own import load
from support.official import CHECKPOINT, known, nested, pack, recorded_difference
from support.stock import load_ddim, load_unet, stock_samples


def test_the_network_is_the_official_one() -> None:
    model = import_checkpoint(CHECKPOINT, size=16, parameterization="x")
    assert model.steps == (8,)
    assert model.denoiser.num_train_timesteps == 1000
    assert recorded_difference(model.denoiser.network) < 2e-4


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_stock_diffusers_samples_the_imported_folder(tmp_path: Path, steps: int) -> None:
    save(import_checkpoint(CHECKPOINT, size=16, parameterization="x"), tmp_path / "model")
    noise, labels = torch.randn(3, 3, 16, 16), torch.tensor([0, 4, 9])
    unet, scheduler = load_unet(tmp_path / "model"), load_ddim(tmp_path / "model")
    theirs = stock_samples(unet, scheduler, noise, steps, class_labels=labels)
    ours = sample(load(tmp_path / "model").denoiser, noise, steps, class_labels=labels)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)


VARIANTS: dict[str, Callable[[], tuple[bytes, tuple[int, ...]]]] = {
    "plain integers": lambda: (pack({"ema_params": nested(known()), "num_sample_steps": 4, "step": 1}), (4,)),
    "0-d arrays": lambda: (
        pack({"step": torch.tensor(7), "num_sample_steps": torch.tensor(2), "ema_params": nested(known())}), (2,),
    ),
    "numpy scalars": lambda: (pack({"num_sample_steps": np.int32(1), "ema_params": nested(known())}), (1,)),
    "steps missing": lambda: (pack({"ema_params": nested(known())}), (8192,)),
    "steps zero": lambda: (pack({"ema_params": nested(known()), "num_sample_steps": 0}), (8192,)),
    "an optimizer": lambda: (
        pack({
            "optimizer": {"target": nested(known()), "state": {"step": 3, "param_states": {}}},
            "ema_params": nested(known()), "num_sample_steps": 8,
        }), (8,),
    ),
    "chunks": lambda: (pack({"ema_params": nested(known()), "num_sample_steps": 8}, chunk=1000), (8,)),
    "broad scales": lambda: (
        pack({
            "num_sample_steps": 8,
            "ema_params": nested({
                path: value.reshape(1, 1, 1, -1) if path.endswith("/scale") else value
                for path, value in known().items()
            }),
        }), (8,),
    ),
    "another order": lambda: (
        pack({"num_sample_steps": 8, "ema_params": nested(dict(reversed(known().items())))}), (8,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_read(tmp_path: Path, variant: str) -> None:
    content, steps = VARIANTS[variant]()
    (tmp_path / "file").write_bytes(content)
    model = import_checkpoint(tmp_path / "file", size=16, parameterization="x", chain_start=8192)
    assert model.steps == steps
    assert recorded_difference(model.denoiser.network) < 2e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    halves = {path: value.to(dtype) for path, value in known().items()}
    (tmp_path / "file").write_bytes(pack({"ema_params": nested(halves)}))
    parameters, _ = read_checkpoint(tmp_path / "file")
    assert all(torch.equal(parameters[path], value) for path, value in halves.items())


def one_line(path: Path, **arguments: Any) -> str:  # noqa: ANN401
    with pytest.raises(UserError) as caught:
        import_checkpoint(path, **({"size": 16, "parameterization": "x"} | arguments))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    content = CHECKPOINT.read_bytes()
    rng = random.Random(0)
    for length in [0, 1, 2, 20, len(content) - 1, *(rng.randrange(len(content)) for _ in range(20))]:
        (tmp_path / "cut").write_bytes(content[:length])
        assert "fetch it again" in one_line(tmp_path / "cut")


def test_bytes_changed_anywhere_are_refused_or_read(tmp_path: Path) -> None:
    """Never another error than the tool's own; the numbers themselves are not checked, so some changes are read."""
    content, rng, refused = CHECKPOINT.read_bytes(), random.Random(0), 0
    for _ in range(60):
        changed = bytearray(content)
        for _ in range(rng.choice([1, 10, 5000])):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        changed[rng.randrange(60)] = rng.randrange(256)
        (tmp_path / "changed").write_bytes(changed)
        try:
            import_checkpoint(tmp_path / "changed", size=16, parameterization="x")
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.pop("conv_in/kernel"), "conv_in/kernel"),
        (lambda p: p.pop("down_0.block_0/norm1/bias"), "down_blocks.0.resnets.0.norm1.bias"),
        (lambda p: p.update({"extra/kernel": torch.zeros(1)}), "extra/kernel"),
        (lambda p: p.update({"mid.attn_1/norm/scale": torch.zeros(7)}), "(7,)"),
        (lambda p: p.update({"conv_out/kernel": torch.zeros(3, 3, 32, 4)}), "outputs"),
        (lambda p: p.update({"dense0/kernel": torch.zeros(5)}), "another"),
    ],
)
def test_another_network_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    parameters = known()
    change(parameters)
    (tmp_path / "file").write_bytes(pack({"ema_params": nested(parameters)}))
    assert message in one_line(tmp_path / "file")


def test_what_shapes_cannot_tell_is_asked_for(tmp_path: Path) -> None:
    assert "--image-size" in one_line(CHECKPOINT, size=None)
    assert "--parameterization" in one_line(CHECKPOINT, parameterization=None)
    assert "output head" in one_line(CHECKPOINT, parameterization="x_eps")
    assert "No such file" in one_line(tmp_path / "nowhere")


def test_a_length_that_promises_too_much_costs_nothing(tmp_path: Path) -> None:
    bomb = msgpack.ExtType(1, msgpack.packb(((2**40,), "float32", b"1234")))
    (tmp_path / "bomb").write_bytes(bytes(msgpack.packb({"ema_params": {"a": bomb}}) or b""))
    assert "fetch it again" in one_line(tmp_path / "bomb")
    (tmp_path / "deep").write_bytes(b"\x81\xa1a" * 100_000)
    assert "fetch it again" in one_line(tmp_path / "deep")


@pytest.mark.parametrize(
    "shape", [(0,), (3, 3, 0, 16), (0, 2**40), (10**9, 0), (2**62, 0), (-1, -1)], ids=lambda shape: str(shape)
)
@pytest.mark.parametrize("name", ["conv_in/kernel", "dense0/kernel", "class_emb/kernel", "down_0.block_0/conv1/kernel"])
def test_arrays_of_no_width_are_refused(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    """Zeros by which a shape may be as large as it likes."""
    array = msgpack.ExtType(1, msgpack.packb([list(shape), "float32", b""]))
    tree = nested(known())
    *parents, leaf = name.split("/")
    node: Any = tree
    for parent in parents:
        node = node[parent]
    assert leaf in node
    content = msgpack.unpackb(pack({"ema_params": tree, "step": 1}))
    node = content["ema_params"]
    for parent in parents:
        node = node[parent]
    node[leaf] = array
    (tmp_path / "checkpoint").write_bytes(msgpack.packb(content))  # pyright: ignore
    with pytest.raises(UserError, match="not a released checkpoint"):
        import_checkpoint(tmp_path / "checkpoint", size=8, parameterization="x")


def test_widths_that_belong_to_other_parameters(tmp_path: Path) -> None:
    """A kernel of 300,000 channels in a megabyte, of which a network would have 300,000 squared numbers and more."""
    parameters = known()
    for name in [name for name in parameters if name.endswith("conv1/kernel")]:
        parameters[name] = torch.zeros(1, 1, 1, 3 * 2**16)
    (tmp_path / "checkpoint").write_bytes(pack({"ema_params": nested(parameters), "step": 1}))
    with pytest.raises(UserError, match="belong to another network"):
        import_checkpoint(tmp_path / "checkpoint", size=8, parameterization="x")


def test_not_finite_parameters_are_named(tmp_path: Path) -> None:
    parameters = known()
    parameters["conv_in/kernel"].view(-1)[3] = float("inf")
    (tmp_path / "checkpoint").write_bytes(pack({"ema_params": nested(parameters), "step": 1}))
    with pytest.raises(UserError, match=r"1 of the .* values of conv_in/kernel are not finite"):
        import_checkpoint(tmp_path / "checkpoint", size=8, parameterization="x")
