"""`progdist.distill` on the networks that people have: their types, wrappers and parameters."""

import copy
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from progdist import Cosine, Denoiser, UserError, distill, sample
from progdist.methods import PROGRESSIVE
from support.training import flat_weights

X = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))


def options(**changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """Those of a short training, with changes."""
    return {"updates": 6, "batch": 16, "precision": "float32", "learning_rate": 1e-3, **changes}


class Net(nn.Module):
    """z (B, 2), timestep (B,) -> (B, 2)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, width), nn.Linear(width, 2)

    def hidden(self, z: Tensor, timestep: Tensor) -> Tensor:
        time = (timestep + 1) / 1024
        return self.a(torch.cat([z, torch.stack([time.sin(), time.cos()], 1).to(z)], 1))

    def forward(self, z: Tensor, timestep: Tensor) -> Tensor:
        return self.b(torch.tanh(self.hidden(z, timestep)))


class Normalized(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(32)

    def forward(self, z: Tensor, timestep: Tensor) -> Tensor:
        return self.b(torch.tanh(self.norm(self.hidden(z, timestep))))


class Tied(Net):
    def __init__(self) -> None:
        super().__init__(4)
        self.q = nn.Linear(4, 4)
        self.q.weight = self.a.weight

    def forward(self, z: Tensor, timestep: Tensor) -> Tensor:
        return self.b(self.q(torch.tanh(self.hidden(z, timestep))))


class Buffered(Net):
    """With buffers of a whole and a complex number, and of float64."""

    phase: Tensor
    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("phase", torch.ones(2, dtype=torch.complex64))
        self.register_buffer("table", torch.full((2,), 0.1, dtype=torch.float64))

    def forward(self, z: Tensor, timestep: Tensor) -> Tensor:
        return super().forward(z, timestep) * self.phase.real + self.table.to(z)


class Unused(Net):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(3, 3)


class FrozenLayer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a.requires_grad_(False)


def seeded(make: Callable[[], nn.Module]) -> Any:  # noqa: ANN401
    torch.manual_seed(0)
    return make()


def teacher(network: nn.Module) -> Denoiser:
    return Denoiser(network, Cosine(), "v")


@pytest.mark.parametrize(
    "make",
    [Net, Normalized, Tied, Buffered, Unused, FrozenLayer, lambda: Net().double(), lambda: Net().bfloat16(),
     lambda: Net().half(), lambda: Net().requires_grad_(False), lambda: nn.DataParallel(Net()),
     lambda: torch.compile(Net(), backend="eager"), lambda: Net().train()],
)  # fmt: skip
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_network_is_trained_and_its_teacher_left_as_it_is(make: Callable[[], nn.Module], precision: str) -> None:
    network = seeded(make)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    training = network.training
    student = distill(teacher(network), X, [4, 2], **options(precision=precision)).network
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert network.training == training
    inner = getattr(network, "module", getattr(network, "_orig_mod", network))
    assert type(student) is type(inner)
    moved = 0
    for (name, new), old in zip(student.state_dict().items(), inner.state_dict().values(), strict=True):
        assert new.dtype == old.dtype
        fixed = name.startswith("unused") or new.dtype in (torch.long, torch.complex64)
        frozen = isinstance(network, FrozenLayer) and name.startswith("a.")
        if fixed or frozen or name.startswith(("norm.running", "table")):
            assert torch.equal(new, old), name
        moved += not torch.equal(new, old)
    assert moved >= 2
    if isinstance(student, Tied):
        assert student.q.weight is student.a.weight
    if isinstance(student, FrozenLayer):
        assert [each.requires_grad for each in student.parameters()] == [False, False, True, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_are_trained_as_float32(dtype: torch.dtype) -> None:
    """The student is that of the same numbers in float32, rounded once: all of its weights that moved by a step did."""
    halved = seeded(Net).to(dtype)
    widened = copy.deepcopy(halved).float()
    student, exact = (
        distill(teacher(each), X, [4, 2], **options(updates=40, learning_rate=1e-4)).network
        for each in (halved, widened)
    )
    assert torch.equal(flat_weights(student), flat_weights(exact).to(dtype))
    assert (flat_weights(student) == flat_weights(halved)).float().mean() < 0.6  # 0.97 if bf16 weights are stepped


def test_a_network_of_float64_is_trained_in_it() -> None:
    """It sees its data in float64, and learns what it learns in float32 up to rounding."""
    seen = []

    class Seeing(Net):
        def forward(self, z: Tensor, timestep: Tensor) -> Tensor:
            seen.append(z.dtype)
            return super().forward(z, timestep)

    double, single = (
        distill(teacher(seeded(Seeing).to(each)), X, [4, 2], **options()) for each in (torch.double, None)
    )
    assert set(seen[: len(seen) // 2]) == {torch.float64}
    difference = flat_weights(double.network).float() - flat_weights(single.network)
    assert difference.abs().max() < 1e-5


class ComplexParameter(Net):
    def __init__(self) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.ones(2, dtype=torch.complex64))

    def forward(self, z: Tensor, timestep: Tensor) -> Tensor:
        return super().forward(z, timestep) * self.phase.real


class OldWeightNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        with pytest.warns(FutureWarning):
            nn.utils.weight_norm(self.b)
        self.b(torch.zeros(1, 32))


class Constant(Net):
    """Whose output depends on none of its parameters."""

    def forward(self, z: Tensor, timestep: Tensor) -> Tensor:
        return z


def with_nan() -> nn.Module:
    network = Net()
    network.b.weight.data[0, 3] = torch.nan
    return network


class Overflowing(Net):
    def forward(self, z: Tensor, timestep: Tensor) -> Tensor:
        return super().forward(z, timestep).exp() * 1e38 * 1e38


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nn.Identity, "Identity has no parameters"),
        (ComplexParameter, "parameter phase is complex64, expected a floating-point type"),
        (lambda: nn.Sequential(nn.LazyLinear(2)), "parameter 0.weight has no shape yet"),
        (OldWeightNorm, "the network cannot be copied"),
        (Constant, "the loss depends on no parameter in training"),
        (with_nan, "the teacher: 1 of the 64 values of b.weight are not finite"),
        (Overflowing, "the teacher's prediction is not finite at t = 1"),
    ],
)
def test_a_network_that_cannot_be_distilled_is_refused_in_one_line(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        distill(teacher(seeded(make)), X, [4, 2], **options())
    assert "\n" not in str(caught.value)


def test_a_frozen_complex_parameter_is_left_alone() -> None:
    network = seeded(ComplexParameter)
    network.phase.requires_grad_(False)
    student: Any = distill(teacher(network), X, [4, 2], **options()).network
    assert torch.equal(student.phase, network.phase)


@pytest.mark.parametrize(
    "mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16), lambda: Float64()]
)
def test_the_callers_modes_change_nothing(mode: Callable[[], Any]) -> None:
    expected = flat_weights(distill(teacher(seeded(Net)), X, [4, 2], **options()).network)
    one = teacher(seeded(Net))
    with mode():
        assert torch.equal(flat_weights(distill(one, X, [4, 2], **options()).network), expected)


class Float64:
    """float64 as torch's default type meanwhile."""

    def __enter__(self) -> None:
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *error: object) -> None:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("ema", [0.9999, 0.99])
def test_an_average_that_is_too_long_is_said(ema: float, caplog: pytest.LogCaptureFixture) -> None:
    """The share of the start that is left after K updates is ema^(K - 1): 0.9999^19 = 0.998, 0.99^19 = 0.83."""
    distill(teacher(seeded(Net)), X, [4, 2], **options(updates=20), ema=ema)
    (record,) = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert f"ema {ema:g} is too long for 20 updates" in record.message
    assert f"{ema**19:.0%}" in record.message


def test_the_chosen_precision_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "progdist")
    distill(teacher(seeded(Net)), X, [4, 2], **options(precision="auto"))
    assert any(record.message in ("precision: float32", "precision: bf16") for record in caplog.records)


@pytest.mark.parametrize("rows", [slice(None), slice(5, 6), slice(63, 64)])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_data_that_are_not_finite_are_named_at_once(rows: slice, value: float) -> None:
    data = X.clone()
    data[rows, 1] = value
    message = f"example {rows.start or 0} of the data is not finite"
    for each in (data, list(data), ((row, {}) for row in data), {"x": data}, TensorDataset(data)):
        with pytest.raises(UserError, match=message):
            distill(teacher(seeded(Net)), each, [4, 2], **options(updates=1, batch=2))
    with pytest.raises(UserError, match=r"example \d+ of the data is not finite"):
        distill(teacher(seeded(Net)), Rows(data), [4, 2], **options(updates=8))


def test_a_condition_that_is_not_finite_is_named() -> None:
    class Conditioned(Net):
        def forward(self, z: Tensor, timestep: Tensor, scale: Tensor | None = None) -> Tensor:
            return super().forward(z, timestep) * (1 if scale is None else scale[:, None])

    data = [(x, {"scale": float("nan") if number == 7 else 1.0}) for number, x in enumerate(X[:16])]
    with pytest.raises(UserError, match="example 7 of the data is not finite: its 'scale'"):
        distill(teacher(seeded(Conditioned)), data, [4, 2], **options())


def test_a_loss_that_is_never_finite_is_no_training() -> None:
    """As of an output that overflows: of a weighting that is no number the mistake is told before."""
    method = replace(PROGRESSIVE, loss=lambda student, x, **rest: student(x, torch.ones(len(x))).mean(1) * torch.nan)
    for updates in (1, 5, 10):
        with pytest.raises(UserError, match=f"none of {updates} updates? had a finite loss"):
            distill(teacher(seeded(Net)), X, [4, 2], method=method, **options(updates=updates))
    with pytest.raises(UserError, match="the weighting is nan"):
        distill(teacher(seeded(Net)), X, [4, 2], weighting=lambda snr: snr * torch.nan, **options())


class Rows(Dataset[Tensor]):
    """A data set that is read as it is asked."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return self.rows[index]


class Noisy(Net):
    """Draws at every call, in evaluation, too."""

    def forward(self, z: Tensor, timestep: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(z, timestep), 0.1, training=True)


class Augmented(Dataset[Tensor]):
    """Draws an offset with every example."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Tensor:
        return X[index] + 0.1 * torch.randn(2)


@pytest.mark.parametrize(("make", "data"), [(Net, X), (Noisy, X), (Net, Augmented())])
def test_the_programs_generator_is_as_before_and_a_seed_is_enough(make: Callable[[], nn.Module], data: Any) -> None:  # noqa: ANN401
    one = teacher(seeded(make))
    results = []
    for state in (1, 2):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        results.append(flat_weights(distill(one, data, [4, 2], **options()).network))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*results)


@pytest.mark.parametrize("make", [Net, Noisy])
def test_two_threads_distil_as_each_alone(make: Callable[[], nn.Module]) -> None:
    one = teacher(seeded(make))
    train = lambda seed: flat_weights(distill(one, X, [4, 2], seed=seed, **options(updates=30)).network)  # noqa: E731
    alone = [train(seed) for seed in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(train, (0, 1)))
    assert all(map(torch.equal, alone, together))


def test_another_threads_numbers_are_its_own() -> None:
    """All draws of the main thread, while a training goes on, are those of its seed in order."""
    one = teacher(seeded(Net))
    thread = Thread(target=lambda: distill(one, X, [4, 2], **options(updates=60)))
    torch.manual_seed(3)
    thread.start()
    drawn = [float(torch.randn(()))]
    while thread.is_alive():
        drawn.append(float(torch.randn(())))
    torch.manual_seed(3)
    assert drawn == [float(torch.randn(())) for _ in drawn]


@pytest.mark.parametrize("settings", [{"gradient_accumulation_steps": 4}, {"mixed_precision": "bf16"}])
@pytest.mark.parametrize("first", [True, False])
def test_accelerate_is_the_programs_own(settings: dict[str, Any], first: bool) -> None:
    """Its settings of a loop of the user's own are as they set them, before or after a distillation."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    expected = flat_weights(distill(teacher(seeded(Net)), X, [4, 2], **options()).network)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        mine = Accelerator(cpu=True, **settings) if first else None
        assert torch.equal(flat_weights(distill(teacher(seeded(Net)), X, [4, 2], **options()).network), expected)
        assert first or not PartialState._shared_state
        mine = mine or Accelerator(cpu=True, **settings)
        assert (mine.gradient_accumulation_steps, mine.mixed_precision) == (
            settings.get("gradient_accumulation_steps", 1), settings.get("mixed_precision", "no"),
        )  # fmt: skip
        assert accumulated_steps(mine) == 8 // settings.get("gradient_accumulation_steps", 1)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def accumulated_steps(accelerator: Any) -> int:  # noqa: ANN401
    """How often an optimizer of accelerate's steps in eight batches."""
    network = nn.Linear(1, 1, bias=False)
    network, optimizer = accelerator.prepare(network, torch.optim.SGD(network.parameters(), 1.0))
    steps = 0
    for _ in range(8):
        with accelerator.accumulate(network):
            accelerator.backward(network(torch.ones(1, 1)).sum())
            before = flat_weights(network).clone()
            optimizer.step()
            steps += not torch.equal(before, flat_weights(network))
            optimizer.zero_grad()
    return steps


def test_output_of_a_student_of_16_bits_is_sampled_as_its_teachers() -> None:
    student = distill(teacher(seeded(Net).bfloat16()), X, [4, 2], **options())
    assert sample(student, X.bfloat16(), 2).dtype == torch.bfloat16


class Told(nn.Module):
    """z (B, 2) and a price (B, 1) that it does not cast, or a kind (B,) in a table of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.line, self.kinds, self.types = nn.Linear(3, 2), nn.Embedding(4, 1), set[torch.dtype]()

    def forward(self, z: Tensor, timestep: Tensor, price: Tensor | None = None, kind: Tensor | None = None) -> Tensor:
        told = self.kinds(kind) if kind is not None else price
        assert told is not None
        self.types.add(told.dtype)
        return self.line(torch.cat([z, told.reshape(len(z), 1)], 1))


PRICES = np.linspace(0, 1, 64)  # float64, as NumPy makes them


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "data",
    [
        {"x": X.numpy(), "price": PRICES[:, None]},
        {"x": X, "price": PRICES.tolist()},
        (X, {"price": PRICES}),
        [(x, {"price": price}) for x, price in zip(X.numpy(), PRICES, strict=True)],
        [{"x": x, "price": [price]} for x, price in zip(X, PRICES, strict=True)],
        [{"x": x, "price": np.array([price])} for x, price in zip(X, PRICES, strict=True)],
        [(x, {"price": price}) for x, price in zip(X, PRICES.tolist(), strict=True)],
    ],
)
def test_floats_that_nobody_gave_a_type_have_that_of_the_weights(data: Any, dtype: torch.dtype) -> None:  # noqa: ANN401
    """They make the student that tensors of that type make."""
    first = teacher(seeded(Told).to(dtype))
    student = distill(first, data, [4, 2], **options())
    assert student.network.types == {dtype}
    same = distill(first, {"x": X, "price": torch.from_numpy(PRICES).float()}, [4, 2], **options())
    assert torch.equal(flat_weights(student.network), flat_weights(same.network))
    noise = torch.randn(4, 2, dtype=dtype)
    for price in (PRICES[:4], PRICES[:4].tolist(), np.float64(0.5), PRICES[:4, None]):
        tensor = torch.as_tensor(np.asarray(price)).float().to(dtype)
        tensor = tensor.expand(4) if tensor.ndim == 0 else tensor
        assert torch.equal(sample(student, noise, 2, price=price), sample(student, noise, 2, price=tensor))


def labelled(kind: Any) -> list[Any]:  # noqa: ANN401
    return [(x, kind) for x in X]


@pytest.mark.parametrize(
    ("data", "how", "message"),
    [
        (labelled(7), {}, r"\(index out of range in self\) with kind \(3,\) of torch.int64: .*labels as whole numbers"),
        (labelled(-1), {}, r"index out of range in self"),
        (labelled(1.0), {}, r"kind \(3,\) of torch.float32: .*labels as whole numbers \(int64\) from 0"),
        (labelled(True), {}, r"kind \(3,\) of torch.bool: .*labels as whole numbers"),
        (labelled(torch.ones(2, dtype=torch.long)), {}, r"does not take data .*kind \(3, 2\) of torch.int64"),
        (labelled(1), {"guidance": 2.0, "null_class": 7}, r"index out of range"),
        ([*labelled(1), (X[0], 9)], {"updates": 20}, r"fails on some of the data \(index out of range in self\)"),
        ((X, torch.full((64,), 7)), {}, r"index out of range in self"),
    ],
)
def test_conditions_that_a_network_does_not_take_are_named_at_once(
    data: Any,  # noqa: ANN401
    how: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        distill(teacher(seeded(Told)), data, [4, 2], label="kind", **options(**how))
    assert "\n" not in str(caught.value)


def test_a_tuple_of_columns_is_columns() -> None:
    """As of `TensorDataset(*columns)`."""
    kinds = torch.arange(64) % 4
    for columns, label, network in (((X,), None, Net), ((X, kinds), "kind", Told), ((X.numpy(), kinds), "kind", Told)):
        made = [
            distill(teacher(seeded(network)), data, [4, 2], label=label, **options())
            for data in (columns, TensorDataset(*map(torch.as_tensor, columns)))
        ]
        assert torch.equal(*(flat_weights(each.network) for each in made))


@pytest.mark.parametrize(
    "name", ["u", "eps", "t", "z", "steps", "student", "entries", "timestep", "network", "guidance"]
)
@pytest.mark.parametrize(
    "form", [dict, lambda data: [dict(zip(data, row, strict=True)) for row in zip(X, PRICES, strict=True)]]
)
def test_a_condition_of_a_name_that_training_uses_is_refused(name: str, form: Callable[..., Any]) -> None:
    message = f"condition '{name}' of an example has a name reserved for training: rename it"
    with pytest.raises(UserError, match=message):
        distill(teacher(seeded(Told)), form({"x": X, name: PRICES}), [4, 2], **options())


@pytest.mark.parametrize("chain", [np.array([4, 2]), torch.tensor([4, 2]), (np.int64(4), np.int64(2))])
def test_a_chain_may_be_of_numpy_or_torch(chain: Any) -> None:  # noqa: ANN401
    made = [distill(teacher(Net()), torch.zeros(4, 2), each, updates=1, batch=2) for each in (chain, [4, 2])]
    assert [(student.history["steps"], student.history["lineage"]) for student in made] == [((2,), (4,))] * 2
