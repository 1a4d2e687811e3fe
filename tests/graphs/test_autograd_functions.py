from __future__ import annotations

from typing import Any

import pytest
import torch
from hand_written import HIDDEN, Layer, analysed, graph_of, graph_of_function, halved, stream
from torch import nn
from torch.fx import GraphModule

from estfx.graphs import tags
from estfx.graphs.autograd_functions import is_own_function, kept_functions
from estfx.graphs.pipeline import run_passes
from estfx.passes import specialisation


class StraightThrough(torch.autograd.Function):
    """Rounds, and lets gradients through as if it did not."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, steps: float) -> torch.Tensor:
        return torch.round(x * steps) / steps

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        return grad * 2, None


class WithSetup(torch.autograd.Function):
    """The same, written in torch's newer form."""

    @staticmethod
    def forward(x: torch.Tensor, steps: float) -> torch.Tensor:
        return torch.round(x * steps) / steps

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        return grad * 2, None


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, gate)
        return x * gate.sigmoid()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        x, gate = ctx.saved_tensors
        s = gate.sigmoid()
        return grad * s, grad * x * s * (1 - s)


class OverRows(torch.autograd.Function):
    """Not pointwise: it mixes elements."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(-1, keepdim=True)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        return grad - grad.mean(-1, keepdim=True)


class CentredSum(torch.autograd.Function):
    """Mixes elements, and gives one of its inputs twice the gradient that its operators would."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x - x.mean(-1, keepdim=True) + y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        return grad - grad.mean(-1, keepdim=True), grad * 2


def own(gm: GraphModule) -> list[str]:
    return [n.target.__name__ for n in gm.graph.nodes if is_own_function(n.target)]


FUNCTIONS = {
    "straight through": (lambda m, x: x + m.g(StraightThrough.apply(m.f(x), 8.0)), ["StraightThrough"]),
    "with setup_context": (lambda m, x: x + m.g(WithSetup.apply(m.f(x), 8.0)), ["WithSetup"]),
    "two tensors": (lambda m, x: x + Swish.apply(m.f(x), m.g(x)), ["Swish"]),
    "twice": (lambda m, x: x + StraightThrough.apply(StraightThrough.apply(m.f(x), 8.0), 4.0), ["StraightThrough"] * 2),
    "not pointwise": (lambda m, x: x + OverRows.apply(m.f(x)), []),
    "not pointwise, and one gradient is its own": (lambda m, x: x + CentredSum.apply(m.f(x), m.g(x)), ["CentredSum"]),
    "of different shapes": (lambda m, x: x + Swish.apply(m.f(x), m.g(x)[..., :1]), []),
}


def with_gradients(function: Any, *inputs: torch.Tensor) -> list[torch.Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = function(*leaves)
    return [value, *torch.autograd.grad(value.square().sum(), leaves)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients_are_the_models_own(name: str) -> None:
    function, kept = FUNCTIONS[name]
    layer = Layer(function)
    gm = graph_of(layer)
    assert own(gm) == kept
    paths = [path for _, path in tags.get(gm, tags.Interface).weights]
    weights = [layer.get_parameter(path) for path in paths]

    def whole(x: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(paths, given, strict=True)), (x,))

    want = with_gradients(whole, stream(), *weights)
    got = with_gradients(lambda *inputs: gm(*inputs)[0], stream(), *weights)
    for x, y in zip(want, got, strict=True):
        if kept:
            assert torch.equal(x, y)
        else:  # inlined: its gradients are those of the operators
            torch.testing.assert_close(x, y)


class Activated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(HIDDEN, 56), nn.Linear(56, HIDDEN)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD + self.down(StraightThrough.apply(self.up(x_BTD), 8.0))


def test_axes_go_through_it() -> None:
    gm = analysed(Activated())
    assert [(role.name, role.axis.size) for role in tags.get(gm, tags.Roles).found] == [("neurons", 56)]
    run_passes(gm, specialisation(halved(gm)))
    (node,) = (n for n in gm.graph.nodes if is_own_function(n.target))
    assert node.meta["val"].shape[-1] == 28


def test_two_graphs_share_the_function() -> None:
    one, other = graph_of(Activated()), graph_of(Activated())
    targets = {n.target for gm in (one, other) for n in gm.graph.nodes if is_own_function(n.target)}
    assert len(targets) == 1


def test_apply_is_torchs_own_outside() -> None:
    before = torch.autograd.Function.__dict__["apply"]
    with kept_functions():
        assert torch.autograd.Function.__dict__["apply"] is not before
    assert torch.autograd.Function.__dict__["apply"] is before
    graph_of(Activated())
    assert torch.autograd.Function.__dict__["apply"] is before


def test_torchs_own_functions_and_plain_operators_are_none() -> None:
    gm = graph_of_function(lambda layer, x: x + layer.f(x).relu())
    assert own(gm) == []
    assert not is_own_function(torch.ops.aten.relu.default)
