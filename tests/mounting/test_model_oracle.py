"""The whole model as oracle: what tells two tensors apart, and what is found that no layer alone shows."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from hand_written import HIDDEN, Mlp
from tiny_decoders import build, tokens
from torch import nn

import estfx
from estfx.mounting import all_or_none
from estfx.mounting.model_oracle import observed
from estfx.mounting.observations import ROUNDING, SMALL, difference_from, differs_in_last_bits, kept
from estfx.programs import Variant
from estfx.schedules import Schedule, Stage

WHOLE = Schedule(stages=[Stage(start=0)])
HALF = Schedule(stages=[Stage(start=0, neurons=0.5), Stage(start=10)])
KINDS = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64]


def compared(one: torch.Tensor, other: torch.Tensor, exact: bool) -> list[str]:
    return difference_from([{"x": kept(one)}], [{"x": kept(other)}], exact=exact)


@pytest.mark.parametrize("size", [7, SMALL + 9], ids=["copy", "fingerprint"])
@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_a_bit_is_told(dtype: torch.dtype, size: int) -> None:
    torch.manual_seed(0)
    value = torch.randn(size, 2).mul(3)
    value = torch.view_as_complex(value) if dtype == torch.complex64 else value[:, 0]
    value = value > 0 if dtype == torch.bool else value.to(dtype)
    assert compared(value, value.clone(), exact=True) == []
    for place in (0, size // 2, size - 1):
        other = value.clone()
        other[place] = ~other[place] if dtype == torch.bool else other[place] * 2 + 1
        assert compared(value, other, exact=True)
    other = value.clone()
    if dtype in (torch.float32, torch.float64):
        other[3] = torch.nextafter(value[3], torch.tensor(9.0, dtype=dtype))
        assert compared(value, other, exact=True)
        assert not compared(value, other, exact=False)


@pytest.mark.parametrize("size", [7, SMALL + 9], ids=["copy", "fingerprint"])
def test_rounding_is_forgiven_only_where_it_is_known(size: int) -> None:
    value = torch.randn(size)
    near, far = value * (1 + 1e-6), value * (1 + 3 * ROUNDING)
    assert compared(value, near, exact=True)
    assert compared(value, near, exact=False) == []
    (said,) = compared(value, far, exact=False)
    assert re.fullmatch(r"x of run 1 \(relative error( about)? \de-0\d\)", said)
    assert compared(value, value * 1.01, exact=False)


def test_a_sum_in_another_order_is_told_from_other_numbers() -> None:
    torch.manual_seed(0)
    value = torch.randn(40, dtype=torch.float64)
    other = value.clone()
    other[3] = torch.nextafter(value[3], torch.tensor(9.0, dtype=torch.float64))
    assert differs_in_last_bits([{"x": value, "y": 1}], [{"x": other, "y": 1}])
    assert not differs_in_last_bits([{"x": value}], [{"x": value * (1 + 1e-14)}])
    assert not differs_in_last_bits([{"x": value}], [{"x": value.float()}])
    assert not differs_in_last_bits([{"x": value, "y": 1}], [{"x": other, "y": 2}])
    assert not differs_in_last_bits([{"x": value}], [{}])
    assert not differs_in_last_bits([{"x": torch.tensor(5)}], [{"x": torch.tensor(6)}])


def test_a_model_that_rounds_otherwise_only_as_a_whole_is_transformed_and_the_report_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In what order sums are added up depends on the processor. So here a gradient is nudged by its last bit."""
    nudged: set[str] = set()

    def rounded_otherwise(*args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        runs = [dict(run) for run in observed(*args, **kwargs)]
        for run in runs:
            name = next(name for name, value in run.items() if "gradient" in name and isinstance(value, torch.Tensor))
            value = run[name].clone()
            value.view(-1)[0] = torch.nextafter(value.view(-1)[0], torch.tensor(9.0, dtype=value.dtype))
            run[name] = value
            nudged.add(name)
        return runs

    monkeypatch.setattr(all_or_none, "observed", rounded_otherwise)  # of the original alone
    model = estfx.transform(build("llama").double(), WHOLE, example_inputs=tokens(), compile=False)
    assert all(layer.axes for layer in model.report.layers)
    (note,) = model.report.notes
    assert "the whole model adds some sums up in another order than the original does: " in note
    (name,) = nudged
    assert name in note


def test_zeros_of_either_sign_are_equal_and_shapes_are_not() -> None:
    for size in (4, SMALL + 1):
        assert compared(torch.zeros(size), -torch.zeros(size), exact=True) == []
        (said,) = compared(torch.zeros(size), torch.zeros(size, 1), exact=False)
        assert said == f"x of run 1 (shape [{size}, 1] instead of [{size}])"
    assert difference_from([{"x": 1}, {}], [{}, {"y": 2}], exact=True) == ["x is missing in run 1", "y is new in run 2"]


def test_nothing_of_an_observation_stays() -> None:
    model = build("llama")
    model(tokens(), labels=tokens()).loss.backward()
    before = {name: (p.grad, p.grad.clone()) for name, p in model.named_parameters() if p.grad is not None}
    state = torch.random.get_rng_state()
    model.eval()
    first, second = observed(model, None)
    assert not model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, p in model.named_parameters():
        assert p.grad is before[name][0]
        assert torch.equal(p.grad, before[name][1])
        assert f"the gradient of {name}" in first
    assert "output['loss']" in first
    assert first.keys() == second.keys()


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = Mlp()

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD + self.mlp(x_BTD)


class Leaves(Layer):
    """Leaves a loss in an attribute, and counts its calls in another."""

    def __init__(self) -> None:
        super().__init__()
        self.loss: torch.Tensor | None = None
        self.calls = 0

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        self.loss, self.calls = x_BTD.square().mean(), self.calls + 1
        return super().forward(x_BTD)


def test_what_a_forward_pass_leaves_behind_is_observed() -> None:
    model = Chain(Leaves())
    first, second = observed(model, (stream(),))
    assert torch.equal(first["what is left in layers.0.loss, 0"], stream().square().mean())
    assert [run["what is left in layers.0.calls, 0"] for run in (first, second)] == [1, 2]


class Alternates(Layer):
    """Does another thing at every second call, which no trace shows."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden: Any = iter(())

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD + self.mlp(x_BTD) * (2 if COUNT.next_is_odd() else 1)


class _Count:
    """What cannot be looked into."""

    __slots__ = ("calls", "counts")

    def __init__(self) -> None:
        self.calls, self.counts = 0, False

    def next_is_odd(self) -> bool:
        self.calls += 1
        return self.calls % 2 == 1

    def is_second(self) -> int:
        """Whether it is the second call of a forward; of one that is no part of a forward, never."""
        self.calls += self.counts
        return int(self.counts and self.calls == 2)


COUNT = _Count()


class Chain(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        COUNT.calls, COUNT.counts = 0, True
        for layer in self.layers:
            x_BTD = layer(x_BTD)
        COUNT.counts = False
        return x_BTD.square().mean()


def stream() -> torch.Tensor:
    return torch.randn(2, 5, HIDDEN, generator=torch.Generator().manual_seed(1))


def loss_of(model: nn.Module) -> torch.Tensor:
    loss: torch.Tensor = model(stream())
    return loss.detach()


def test_a_layer_with_hidden_state_stays_whole_and_the_reason_is_told(caplog: pytest.LogCaptureFixture) -> None:
    original = Chain(Layer(), Alternates(), Alternates(), Layer())
    twin = copy.deepcopy(original)
    model: Any = estfx.transform(original, HALF, example_inputs=(stream(),), compile=False)
    left = [layer for layer in model.report.layers if not layer.program]
    assert [layer.name for layer in left] == ["layers.1", "layers.2"]
    assert all("does not compute what the layer does" in layer.notes[0] for layer in left)
    assert "layer `layers.1` runs as it is, always whole: the graph of layer" in caplog.text
    model.set_step(10)
    assert torch.equal(loss_of(model), loss_of(twin))


class Wanders(Layer):
    """Is told apart from a plain layer by the whole model alone: it counts the layers before it."""

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD + self.mlp(x_BTD) * (1 + 0.5 * COUNT.is_second())


def test_layers_that_are_wrong_together_alone_stay_whole(caplog: pytest.LogCaptureFixture) -> None:
    original = Chain(Layer(), Wanders(), Wanders(), Layer())
    twin = copy.deepcopy(original)
    model: Any = estfx.transform(original, HALF, example_inputs=(stream(),), compile=False)
    left = [layer for layer in model.report.layers if not layer.program]
    assert {layer.name for layer in left} <= {"layers.1", "layers.2"}
    assert left
    assert "the model does not do what the original does: output of run 1" in left[0].notes[0]
    assert "always whole: with its graph in place" in caplog.text
    model.set_step(10)
    assert torch.equal(loss_of(model), loss_of(twin))


def test_a_wrong_program_is_found_although_each_layer_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """If every layer is wrong in the model, and none is left, transform says so and leaves no trace."""
    own = Variant.program

    def wrong(self: Variant, *args: Any) -> Any:
        made = own(self, *args)
        return type(made)(made.graph, lambda *x: (made.call(*x)[0] * 1.5,), made.gathers, made.units, made.weights)

    monkeypatch.setattr(Variant, "program", wrong)
    model = Chain(Layer(), Layer())
    with pytest.raises(estfx.VerifyError, match=r"`layers.0`: with its graph in place, .*relative error"):
        estfx.transform(model, HALF, example_inputs=(stream(),), compile=False)
    assert type(model) is Chain
    assert all(type(layer) is Layer for layer in model.layers)


def test_a_wrong_gradient_is_found_although_every_value_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Variant.program

    def wrong(self: Variant, *args: Any) -> Any:
        made = own(self, *args)

        def call(x: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor]:
            return (made.call(x, *others)[0] + 0.5 * (x - x.detach()),)

        return type(made)(made.graph, call, made.gathers, made.units, made.weights)

    monkeypatch.setattr(Variant, "program", wrong)
    model: Any = estfx.transform(Chain(Layer(), Layer()), HALF, example_inputs=(stream(),), compile=False)
    whole = model.report.layers[1]  # of the first one's stream nobody asks for a gradient
    assert not whole.program
    assert "the model does not do what the original does: the gradient of layers.0.mlp.down.bias" in whole.notes[0]


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_tensors_of_the_same_numbers_in_another_order_are_told(dtype: torch.dtype, exact: bool) -> None:
    """As a gradient is in which heads have changed places."""
    value = torch.randn(512, 512).to(dtype)
    heads = value.view(512, 8, 64)
    swapped = torch.cat([value[2:4], value[:2], value[4:]])
    for other in (value.flip(0), value.roll(1, 0), value.roll(2, 1), heads.flip(1), heads[:, torch.randperm(8)]):
        assert compared(value, other.reshape(512, 512), exact)
    assert compared(value, swapped, exact=True)


def test_what_cannot_be_verified_is_told() -> None:
    with torch.device("meta"):
        model = build("gpt2")
    estfx.transform(model, HALF, compile=False)
    assert model.report.notes == ["the whole model was not verified: its weights are on the meta device"]
