from collections.abc import Callable

import pytest
import torch
from hand_written import HIDDEN, Layer, PreNorm, graph_of, graph_of_function, stream
from torch.fx import GraphModule

from estfx.graphs import tags
from estfx.graphs.pipeline import run_passes
from estfx.graphs.printing import graph_text
from estfx.passes.drop_noise import DropNoise

aten = torch.ops.aten


def targets(gm: GraphModule) -> list[str]:
    return [str(node.target).removeprefix("aten.") for node in gm.graph.nodes if node.op == "call_function"]


def noisy(layer: Layer, x_BTD: torch.Tensor) -> torch.Tensor:
    y = layer.f(x_BTD.to(torch.float32))[:, :]
    y = y[..., [-4, -3, -2, -1]]
    last = torch.nn.functional.dropout(y, 0.0)[:, :, [3]] * torch.tensor([2.0])
    last += 1
    return x_BTD + last.expand(-1, -1, HIDDEN)


def test_golden(golden: Callable[[str, str], None]) -> None:
    gm = graph_of_function(noisy)
    text = graph_text(gm)
    run_passes(gm, [DropNoise()])
    golden("drop_noise", f"{text}\n{graph_text(gm)}")


def test_a_graph_without_noise_stays_as_it_is() -> None:
    gm = run_passes(graph_of(PreNorm()), [DropNoise()])
    text = graph_text(gm)
    assert DropNoise().run(gm) == 0
    assert graph_text(gm) == text


@pytest.mark.parametrize(
    "function",
    [
        noisy,
        lambda layer, x: _in_place(layer.f(x), "unsqueeze", 0) + x,
        lambda layer, x: _in_place(layer.f(x), "reshape", -1, HIDDEN) + x,
        lambda layer, x: _in_place(layer.f(x), "expand_as", x) + x,
        lambda layer, x: _in_place(layer.f(x), "detach") + x,
        lambda layer, x: _in_place(layer.f(x), "to", torch.float32) + x,
        lambda layer, x: (y := layer.f(x)).to(torch.float32, copy=True).mul_(2) + y + x,
        lambda layer, x: layer.f(x).bfloat16().add_(x * 1.001).float() + x,
        lambda layer, x: layer.f(x).mul_(2).add_(x).tanh_() + x,
        lambda layer, x: layer.f(x).gt_(0.0) + x,
        lambda layer, x: layer.f(x) * torch.tensor([2.0]).add_(1.0) + x,
        lambda layer, x: _own_values_and_written_ones(layer, x) + x,
        lambda layer, x: _seen_by_an_earlier_view(layer.f(x)) + x,
        lambda layer, x: layer.f(x)[..., []].sum() + x,
        lambda layer, x: layer.f(x)[..., [0, 2, 1]].sum(-1, keepdim=True) + x,
        lambda layer, x: layer.f(x)[..., list(range(HIDDEN))] + x,
    ],
)
def test_values_stay_the_same_to_the_bit(function: Callable[..., torch.Tensor]) -> None:
    """Also at the second run: no constant may be written to."""
    gm = graph_of_function(function)
    torch.manual_seed(0)
    weights = [torch.randn(HIDDEN, HIDDEN) for _ in tags.get(gm, tags.Interface).weights]
    want = gm(stream(), *weights)[0]
    run_passes(gm, [DropNoise()])
    for _ in range(2):
        assert torch.equal(gm(stream(), *weights)[0], want)
    assert DropNoise().run(gm) == 0


def _in_place(y: torch.Tensor, view: str, *args: object) -> torch.Tensor:
    """Writes to `y` through a view of it, and gives `y`."""
    getattr(y, view)(*args).add_(1.0)
    return y


def _seen_by_an_earlier_view(y: torch.Tensor) -> torch.Tensor:
    view = y.unsqueeze(0)
    y.add_(1.0)
    return view[0]


def _own_values_and_written_ones(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    y = layer.f(x)
    z = y * 2
    y.add_(1.0)
    return y + z


def test_a_plain_operator_stands_for_one_in_place_on_a_value_of_its_own() -> None:
    gm = run_passes(graph_of_function(lambda layer, x: x + layer.f(x).mul_(2).tanh_()), [DropNoise()])
    assert targets(gm) == ["linear.default", "mul.Tensor", "tanh.default", "add.Tensor"]


@pytest.mark.parametrize(
    ("function", "left"),
    [
        (lambda layer, x: x.add_(layer.f(x)), "add_.Tensor"),  # the stream belongs to the model
        (lambda layer, x: x + _in_place(layer.f(x), "unsqueeze", 0), "add_.Tensor"),  # others share its memory
        (lambda layer, x: x + _seen_by_an_earlier_view(layer.f(x)), "add_.Tensor"),
        (lambda layer, x: x + layer.f(x).bfloat16().add_(x).float(), "add_.Tensor"),  # plain, it would give float32
        (lambda layer, x: x + layer.f(x).gt_(0.0), "gt_.Scalar"),  # plain, it would give booleans
    ],
)
def test_in_place_where_something_else_would_see_a_difference_stays(
    function: Callable[..., torch.Tensor], left: str
) -> None:
    assert left in targets(run_passes(graph_of_function(function), [DropNoise()]))


def test_random_numbers_that_nothing_reads_are_still_drawn() -> None:
    def function(layer: Layer, x: torch.Tensor) -> torch.Tensor:
        torch.rand_like(x)
        layer.f(x * 2)
        return x + layer.f(x)

    gm = run_passes(graph_of_function(function), [DropNoise()])
    assert targets(gm) == ["rand_like.default", "linear.default", "add.Tensor"]
