"""Models out of the ordinary: each is trained right, or what stands in the way is said."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hand_written import HIDDEN, Residual, Stack, stream
from torch import nn
from torch.nn import functional as F

import estfx
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage

SCHEDULE = Schedule(stages=[Stage(start=0, heads=0.6, neurons=0.5, layers=0.5), Stage(start=10)])
NARROW, WHOLE = 0, 10  # steps
X = (stream(),)


def evolving(model: nn.Module, **options: Any) -> nn.Module:
    return estfx.transform(model, SCHEDULE, **{"example_inputs": X, "compile": False, **options})


def gradients(model: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    y = model(*X)
    y.square().mean().backward()
    return y.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_whole_is(model: nn.Module, twin: nn.Module, run: Callable[[nn.Module], Any] = gradients) -> None:
    """Values and gradients of the whole model equal the original's to the bit."""
    model.set_step(WHOLE)
    (y, grads), (want_y, want_grads) = run(model), run(twin)
    assert torch.equal(y, want_y)
    assert grads.keys() == want_grads.keys()
    assert [name for name in grads if not torch.equal(grads[name], want_grads[name])] == []


def axes(model: nn.Module) -> list[dict[str, int]]:
    return [{axis.role: axis.size for axis in layer.axes} for layer in model.report.layers]


# -- several devices -----------------------------------------------------------------------------------------------


class Moving(Stack):
    """Moves the stream to where the next layer lies."""

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x_BTD = layer(x_BTD.to(next(layer.parameters()).device))
        return x_BTD


def test_layers_may_lie_on_two_devices(caplog: pytest.LogCaptureFixture) -> None:
    model = Moving(Residual(), Residual(), Residual().to("meta"), Residual().to("meta"))
    evolving(model)
    assert axes(model) == [{"neurons": 56}] * 4
    with caplog.at_level("INFO", logger="estfx"):
        for step in range(4):  # forward alone: no gradient comes back from the meta device
            model.set_step(step)
            assert model(*X).device.type == "meta"
    assert sum("new call signature" in record.message for record in caplog.records) == 1


def test_refusal_of_a_model_that_lies_on_two_devices_and_does_not_run() -> None:
    with pytest.raises(estfx.TraceError) as error:
        evolving(Stack(Residual(), Residual().to("meta")))
    said = str(error.value)
    assert "`layers.0.up.weight`, `layers.0.up.bias`, `layers.0.down.weight` and 1 more on cpu; " in said
    assert "`layers.1.up.weight`, `layers.1.up.bias`, `layers.1.down.weight` and 1 more on meta. " in said
    assert "let the model's own forward move the stream between its layers" in said


# -- quantised weights ---------------------------------------------------------------------------------------------


class Dequantise(torch.autograd.Function):
    """A product with quantised weights that keeps no weight in floating point for its backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight, scale)
        return F.linear(x, weight.to(x.dtype) * scale)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        weight, scale = ctx.saved_tensors
        return grad @ (weight.to(grad.dtype) * scale), None, None


class Int8Linear(nn.Module):
    function: Any = None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.weight = nn.Parameter((linear.weight / scale).round().to(torch.int8), requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.function is not None:
            return self.function.apply(x, self.weight, self.scale) + self.bias
        return F.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


class FunctionLinear(Int8Linear):
    function = Dequantise


class PackedLinear(nn.Module):
    """Two weights of four bits in every byte, in one column: neither rows nor columns are left."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.rows, self.columns = linear.weight.shape
        bits = ((linear.weight.detach() / linear.weight.abs().max() * 7).round() + 8).to(torch.uint8).flatten()
        self.weight = nn.Parameter((bits[::2] * 16 + bits[1::2])[:, None], requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        packed = self.weight.flatten()
        bits = torch.stack([packed >> 4, packed & 15], dim=-1).flatten()
        return F.linear(x, (bits.view(self.rows, self.columns).to(x.dtype) - 8) / 70, self.bias)


def quantised(linear: type[nn.Module]) -> nn.Module:
    layers = [Residual(), Residual()]
    for layer in layers:
        layer.up, layer.down = linear(layer.up), linear(layer.down)
    return Stack(*layers)


@pytest.mark.parametrize("linear", [Int8Linear, FunctionLinear])
def test_weights_of_eight_bits_are_narrowed(linear: type[nn.Module]) -> None:
    model = quantised(linear)
    twin = copy.deepcopy(model)
    evolving(model)
    assert axes(model) == [{"neurons": 56}] * 2
    assert_whole_is(model, twin)
    model.set_step(NARROW)
    narrowed = model.subnetwork.parameters()
    runs = next(name for name, on in model.subnetwork.layers.items() if on)
    assert narrowed[f"{runs}.up.weight"][0].tolist() == narrowed[f"{runs}.up.scale"][0].tolist()
    assert gradients(model)[1].keys() == {f"{runs}.up.bias", f"{runs}.down.bias"}


def test_packed_weights_are_unpacked_whole_and_of_them_the_kept_rows_are_taken() -> None:
    model = quantised(PackedLinear)
    twin = copy.deepcopy(model)
    evolving(model)
    assert axes(model) == [{"neurons": 56}] * 2
    assert_whole_is(model, twin)
    model.set_step(NARROW)
    got, _ = gradients(model)
    units = model.subnetwork.units
    for name, layer in twin.layers.named_children():
        kept = units.get(f"layers.{name}", {}).get("neurons")
        if kept is None:
            layer.forward = lambda x: x
        else:
            mask = torch.zeros(56).index_fill(0, torch.as_tensor(kept), 56 / len(kept))
            layer.down.register_forward_pre_hook(lambda _, given, mask=mask: (given[0] * mask,))
    torch.testing.assert_close(got, gradients(twin)[0])


@torch.library.custom_op("estfx_tests::product", mutates_args=())
def _product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x @ weight.to(x.dtype).t()


@_product.register_fake
def _(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


class Custom(Residual):
    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD + torch.ops.estfx_tests.product(F.gelu(self.up(x_BTD)), self.down.weight)


def test_an_operator_of_ones_own_stays_whole() -> None:
    model = Stack(Custom(), Custom())
    for layer in model.layers:
        layer.down.requires_grad_(False)  # it has no backward
        layer.up.requires_grad_(False)
    twin = copy.deepcopy(model)
    evolving(model, verify=False)
    assert axes(model) == [{}, {}]
    assert all(layer.notes for layer in model.report.layers)
    model.set_step(WHOLE)
    assert torch.equal(model(*X), twin(*X))


# -- layers without a graph ----------------------------------------------------------------------------------------


class DependsOnValues(Residual):
    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        if x_BTD.sum() > 0:
            x_BTD = x_BTD * 2
        return super().forward(x_BTD)


class CountsInPlace(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(x_BTD)


class SetsAnew(CountsInPlace):
    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        self.calls = self.calls + 1
        return Residual.forward(self, x_BTD)


class RunningMean(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(HIDDEN))

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.mean.mul_(0.9).add_(x_BTD.mean((0, 1)), alpha=0.1)
        return super().forward(x_BTD - self.mean)


class Normed(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(HIDDEN)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD + super().forward(self.norm(x_BTD.transpose(1, 2)).transpose(1, 2))


class CountsInPython(Residual):
    calls = 0

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(x_BTD)


class Regional(Residual):
    """Autocast is off in a part of it, whatever it is outside."""

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            x_BTD = x_BTD + x_BTD.float().tanh()
        return super().forward(x_BTD)


WITHOUT_GRAPH = {
    DependsOnValues: r"fails at test_bad_models.py:\d+ \(`if x_BTD.sum\(\) > 0:`\): .*torch.where takes both",
    CountsInPlace: r"a call changes what the layer holds \(`calls` at add_ = add_.Tensor \(test_bad_models.py:\d+\)\)",
    SetsAnew: "a call sets `calls` anew",
    RunningMean: r"a call changes what the layer holds \(`mean` at mul_ = mul_.Tensor \(test_bad_models.py:\d+\)\)",
    Normed: "a call changes what the layer holds .`norm.num_batches_tracked` at",
    CountsInPython: "a call sets `calls` anew",
}


@pytest.mark.parametrize("layer", WITHOUT_GRAPH)
def test_a_layer_without_a_graph_stays_as_it_is_among_others(
    layer: type[nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    model = Stack(Residual(), layer(), Residual())
    twin = copy.deepcopy(model)
    evolving(model)
    assert axes(model) == [{"neurons": 56}, {}, {"neurons": 56}]
    left = model.report.layers[1]
    assert (left.name, left.program, left.droppable) == ("layers.1", "", False)
    assert left.notes[0] in caplog.text.replace("layer `layers.1` runs", "the layer runs")
    assert type(model.layers[1]) is layer
    for name, buffer in twin.named_buffers():  # transform ran it, and put the buffers back
        assert torch.equal(buffer, model.get_buffer(name))
    calls = int(getattr(model.layers[1], "calls", 0))
    assert_whole_is(model, twin)
    assert all(torch.equal(model.get_buffer(name), buffer) for name, buffer in twin.named_buffers())
    for step in range(3):
        model.set_step(step)
        gradients(model)
        assert "layers.1" not in model.subnetwork.layers
    assert int(getattr(model.layers[1], "calls", 4)) == calls + 4
    assert estfx.restore(model) is model


@pytest.mark.parametrize("layer", WITHOUT_GRAPH)
def test_refusal_of_a_model_in_which_no_layer_has_a_graph(layer: type[nn.Module]) -> None:
    name = rf"layer `layers.0` \({layer.__name__}\) cannot be exported as a graph: .*"
    with pytest.raises(estfx.TraceError, match=name + WITHOUT_GRAPH[layer]):
        evolving(Stack(layer(), layer()))


class Split(Residual):
    """Its second half lies where the stream goes on."""

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        device = self.down.weight.device
        return x_BTD.to(device) + self.down(F.gelu(self.up(x_BTD)).to(device))


def test_a_layer_that_lies_on_two_devices_stays_as_it_is() -> None:
    model = Stack(Split(), Split())
    model.layers[1].down.to("meta")
    evolving(model)
    assert axes(model) == [{"neurons": 56}, {}]
    where = "lies on several devices (`up.weight`, `up.bias` on cpu; `down.weight`, `down.bias` on meta)"
    assert where in model.report.layers[1].notes[0]
    for step in range(3):
        model.set_step(step)
        assert model(*X).device.type == "meta"


class WithoutGradients(Residual):
    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            gate = (x_BTD.mean(-1, keepdim=True) * self.down.bias.mean()).to(x_BTD.dtype)
            same = x_BTD.to(x_BTD.dtype)
        return super().forward(same * (1 + gate))


@pytest.mark.parametrize("layer", [WithoutGradients, Regional])
def test_regions_of_another_grad_mode_or_autocast_are_put_in_line(layer: type[nn.Module]) -> None:
    model = Stack(layer(), layer())
    twin = copy.deepcopy(model)
    evolving(model)
    assert axes(model) == [{"neurons": 56}] * 2
    assert_whole_is(model, twin)


def test_a_region_without_autocast_in_a_layer_under_autocast() -> None:
    model = Stack(Regional(), Regional())
    twin = copy.deepcopy(model)
    evolving(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert_whole_is(model, twin)
        model.set_step(NARROW)
        assert gradients(model)[0].dtype is gradients(twin)[0].dtype


# -- tied and frozen weights ---------------------------------------------------------------------------------------


def test_weights_tied_between_layers() -> None:
    model = Stack(Residual(), Residual())
    model.layers[1].down = model.layers[0].down
    model.layers[1].up.weight = model.layers[0].up.weight
    twin = copy.deepcopy(model)
    evolving(model)
    assert axes(model) == [{"neurons": 56}] * 2
    assert_whole_is(model, twin)
    model.set_step(NARROW)
    gradients(model)


@pytest.mark.parametrize("frozen", ["layers.0", "layers.0.up", "layers.1.down", ""])
def test_frozen_parameters_get_no_gradient(frozen: str) -> None:
    model = Stack(Residual(), Residual())
    model.get_submodule(frozen).requires_grad_(False)
    model.layers[1].up.bias.requires_grad_()
    twin = copy.deepcopy(model)
    evolving(model)
    assert_whole_is(model, twin)
    model.set_step(NARROW)
    running = {name for name, runs in model.subnetwork.layers.items() if runs}
    y = model(*X)
    if y.requires_grad:
        y.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad or parameter.grad is None
        assert not parameter.requires_grad or name.rsplit(".", 2)[0] not in running or parameter.grad is not None
