"""The released format against the recorded network, in all its variants, and damaged in many ways."""

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch

from progdist import UserError, sample
from progdist.models.io.folder import load, save
from progdist.models.io.jax_checkpoint import import_checkpoint, read_checkpoint
from progdist.models.io.jax_parameters import infer_layout, translate
from test_model_folder import stock, stock_ddim, stock_unet

DATA = Path(__file__).parent / "data"
CHECKPOINT = DATA / "checkpoint_8"


def recorded_difference(network: Any) -> float:  # noqa: ANN401  (a UNet2DModel)
    """The largest difference from the recorded output when the network is given 1000 t' - 1."""
    io = np.load(DATA / "unet_io.npz")
    log_snr = torch.from_numpy(io["logsnr"]).double()
    timestep = 1000 * torch.atan(torch.exp(-log_snr / 2)) / (math.pi / 2) - 1
    with torch.no_grad():
        output = network(
            torch.from_numpy(io["x"]).movedim(-1, 1), timestep.float(), torch.from_numpy(io["y"]).long()
        ).sample  # fmt: skip
    return float((output.movedim(1, -1) - torch.from_numpy(io["out"])).abs().max())


def test_the_network_is_the_official_one() -> None:
    model = import_checkpoint(CHECKPOINT, size=16, parameterization="x")
    assert model.steps == (8,)
    assert model.denoiser.timesteps == 1000
    assert recorded_difference(model.denoiser.network) < 2e-4


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_stock_diffusers_samples_the_imported_folder(tmp_path: Path, steps: int) -> None:
    save(import_checkpoint(CHECKPOINT, size=16, parameterization="x"), tmp_path / "model")
    noise, labels = torch.randn(3, 3, 16, 16), torch.tensor([0, 4, 9])
    theirs = stock(stock_unet(tmp_path / "model"), stock_ddim(tmp_path / "model"), noise, steps, class_labels=labels)
    ours = sample(load(tmp_path / "model").denoiser, noise, steps, class_labels=labels)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)


def pack(tree: dict[str, Any], chunk: int | None = None) -> bytes:
    """A file as flax writes it; arrays over `chunk` elements in chunks."""

    def encode(value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, dict):
            return {key: encode(item) for key, item in value.items()}
        if isinstance(value, np.generic):
            return msgpack.ExtType(3, msgpack.packb(((), value.dtype.name, value.tobytes())))
        if isinstance(value, torch.Tensor) and chunk and value.numel() > chunk:
            parts = value.flatten().split(chunk)
            return {
                "__msgpack_chunked_array__": True,
                "shape": {str(axis): size for axis, size in enumerate(value.shape)},
                "chunks": {str(index): encode(part) for index, part in enumerate(parts)},
            }
        if isinstance(value, torch.Tensor):
            raw = value.contiguous().view(torch.uint8).numpy().tobytes() if value.ndim else value.numpy().tobytes()
            name = str(value.dtype).removeprefix("torch.")
            return msgpack.ExtType(1, msgpack.packb((tuple(value.shape), name, raw)))
        return value

    return bytes(msgpack.packb(encode(tree)) or b"")


def nested(parameters: dict[str, torch.Tensor]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in parameters.items():
        *rooms, leaf = path.split("/")
        place = tree
        for room in rooms:
            place = place.setdefault(room, {})
        place[leaf] = value
    return tree


def known() -> dict[str, torch.Tensor]:
    return read_checkpoint(CHECKPOINT)[0]


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


LAYOUTS = {  # appendix E at reduced width: channels, multipliers, attention, head size, embedding, classes, heads
    "cifar10": (32, (1, 1, 1), (8, 16), None, 64, 0, 1, 32),
    "imagenet64": (32, (1, 2, 3, 4), (8, 16, 32), 16, 96, 10, 2, 64),
    "lsun-bedroom128": (32, (1, 2, 4, 6, 8), (8, 16, 32), 32, 96, 0, 2, 128),
    "lsun-church128": (64, (1, 2, 4, 6, 8), (8, 16, 32), 64, 96, 0, 2, 128),
}


def released(network: Any, head_size: int | None) -> dict[str, torch.Tensor]:  # noqa: ANN401  (a UNet2DModel)
    """Parameters of a network under their names and in their order of axes, written out room by room."""
    levels = len(network.config["block_out_channels"])
    parameters: dict[str, torch.Tensor] = {}

    def put(place: str, module: Any, names: dict[str, str]) -> None:  # noqa: ANN401
        for theirs, ours in names.items():
            layer = module.get_submodule(ours) if hasattr(module, ours.split(".")[0]) else None
            if layer is None:
                continue
            weight, bias = layer.weight, layer.bias
            if theirs.startswith("norm"):
                parameters[f"{place}/{theirs}/scale"] = weight
            elif theirs in ("q", "k", "v"):
                size = head_size or weight.shape[0]
                parameters[f"{place}/{theirs}/kernel"] = weight.T.reshape(weight.shape[1], -1, size)
                bias = bias.reshape(-1, size)
            elif theirs == "proj_out":
                size = head_size or weight.shape[0]
                parameters[f"{place}/{theirs}/kernel"] = weight.T.reshape(-1, size, weight.shape[0])
            elif theirs == "nin_shortcut":
                parameters[f"{place}/{theirs}/kernel"] = weight[:, :, 0, 0].T
            else:
                parameters[f"{place}/{theirs}/kernel"] = weight.permute(2, 3, 1, 0) if weight.ndim == 4 else weight.T
            parameters[f"{place}/{theirs}/bias"] = bias

    block = {"conv1": "conv1", "conv2": "conv2", "norm1": "norm1", "norm2": "norm2", "temb_proj": "time_emb_proj"}
    shortcut = {"nin_shortcut": "conv_shortcut"}
    attention = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}

    def put_block(place: str, module: Any) -> None:  # noqa: ANN401
        put(place, module, block | (shortcut if module.conv_shortcut is not None else {}))

    for way, rooms in (("down", network.down_blocks), ("up", network.up_blocks)):
        for number, room in enumerate(rooms):
            level = number if way == "down" else levels - 1 - number
            for index, module in enumerate(room.resnets):
                put_block(f"{way}_{level}.block_{index}", module)
            for index, module in enumerate(getattr(room, "attentions", [])):
                put(f"{way}_{level}.attn_{index}", module, attention)
            for module in getattr(room, f"{way}samplers", None) or []:
                put_block(f"{way}_{level}.{way}sample", module)
    middle: Any = network.mid_block
    put_block("mid.block_1", middle.resnets[0])
    put("mid.attn_1", middle.attentions[0], attention)
    put_block("mid.block_2", middle.resnets[1])
    top: Any = {"conv_in": network.conv_in, "conv_out": network.conv_out}
    for place, module in top.items():
        parameters[f"{place}/kernel"], parameters[f"{place}/bias"] = module.weight.permute(2, 3, 1, 0), module.bias
    parameters["norm_out/scale"] = network.conv_norm_out.weight
    parameters["norm_out/bias"] = network.conv_norm_out.bias
    embedding: Any = network.time_embedding
    for place, module in (("dense0", embedding.linear_1), ("dense1", embedding.linear_2)):
        parameters[f"{place}/kernel"], parameters[f"{place}/bias"] = module.weight.T, module.bias
    if network.class_embedding is not None:
        weight = network.class_embedding.weight
        parameters["class_emb/kernel"], parameters["class_emb/bias"] = weight - 0.5, torch.full_like(weight[0], 0.5)
    return {path: value.detach().contiguous() for path, value in parameters.items()}


@pytest.mark.parametrize("name", LAYOUTS)
def test_appendix_e_is_inferred_from_names_and_shapes(name: str) -> None:
    """The layout comes back, and the network then computes what the first one does one timestep earlier."""
    from progdist.models.unet import unet

    width, multipliers, attention, head_size, embedding, classes, heads, size = LAYOUTS[name]
    numbers: dict[str, Any] = {
        "width": width, "multipliers": multipliers, "attention": attention, "head_size": head_size,
        "embedding": embedding, "classes": classes, "heads": heads,
    }  # fmt: skip
    network = unet(image=(3, size, size), **numbers, blocks=3 if size == 32 else 1)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    parameters = released(network, head_size)
    layout = infer_layout(parameters)
    same = {"attention_head_dim": None}  # one head of 32 channels is told in two ways
    assert {**layout.build(size).config, **same} == {**network.config, **same}
    other = layout.build(size)
    other.load_state_dict(translate(parameters, other))
    z, timestep = torch.randn(1, 3, size, size), torch.tensor([417.3])
    condition = {"class_labels": torch.tensor([3])} if classes else {}
    with torch.no_grad():
        first = network(z, timestep, **condition).sample
        second = other(z, timestep - 1, **condition).sample
    torch.testing.assert_close(second, first, rtol=0, atol=2e-4)


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
    ("change", "says"),
    [
        (lambda p: p.pop("conv_in/kernel"), "conv_in/kernel"),
        (lambda p: p.pop("down_0.block_0/norm1/bias"), "down_blocks.0.resnets.0.norm1.bias"),
        (lambda p: p.update({"extra/kernel": torch.zeros(1)}), "extra/kernel"),
        (lambda p: p.update({"mid.attn_1/norm/scale": torch.zeros(7)}), "(7,)"),
        (lambda p: p.update({"conv_out/kernel": torch.zeros(3, 3, 32, 4)}), "outputs"),
        (lambda p: p.update({"dense0/kernel": torch.zeros(5)}), "another"),
    ],
)
def test_another_network_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], None], says: str) -> None:
    parameters = known()
    change(parameters)
    (tmp_path / "file").write_bytes(pack({"ema_params": nested(parameters)}))
    assert says in one_line(tmp_path / "file")


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
