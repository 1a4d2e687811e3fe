"""The oracles that transform runs: what is right passes, and a planted fault costs savings, never correctness."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tiny_decoders import build
from torch import nn

import estfx
from estfx.axes.walk import RULES
from estfx.graphs import gather
from estfx.graphs.fx_graphs import arguments
from estfx.passes import drop_noise
from estfx.programs import verification
from estfx.programs.relative_errors import relative_error, worst_error
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage

SCHEDULE = Schedule(stages=[Stage(start=0, heads=0.5, neurons=0.5), Stage(start=10)])
aten = torch.ops.aten


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(12, 30), nn.Linear(30, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.mixed(torch.relu(self.up(x))))

    def mixed(self, x: torch.Tensor) -> torch.Tensor:
        return x.roll(1, -1)


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_a_wrong_rule_is_noticed_and_its_axis_stays_whole(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`roll` moves units to other places; a rule that says it does not would train something else."""
    monkeypatch.setitem(RULES, aten.roll.default, lambda walk, node, a: walk.of(a["self"]))
    example = (torch.randn(3, 7, 12),)
    found = estfx.inspect(Decoder(), example)
    assert [axis.role for axis in found.layers[0].axes] == ["neurons"]
    with caplog.at_level(logging.WARNING):
        model = estfx.transform(Decoder(), SCHEDULE, example_inputs=example, compile=False)
    (note,) = [n for n in model.report.layers[0].notes if "stay whole" in n]
    assert note.startswith("neurons (30) stay whole: narrowing them failed verification (relative error")
    assert model.report.layers[0].axes == []
    assert any("the schedule narrows neurons, but none were found" in r.message for r in caplog.records)
    model.set_step(0)
    want = Decoder.forward(estfx.restore(model), *example)
    estfx.transform(model, SCHEDULE, example_inputs=example, compile=False).set_step(0)
    assert torch.equal(model(*example), want)


@pytest.mark.parametrize("core", ["sdpa", "eager"])
def test_dropout_is_no_obstacle(core: str) -> None:
    """Its random numbers differ between widths, and say nothing about either."""
    model = build("gpt2", attn_implementation=core)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    model = estfx.transform(model, SCHEDULE, compile=False)
    assert {axis.role for axis in model.report.layers[0].axes} == {"heads", "neurons"}
    assert model.report.layers[0].notes == []


def test_an_operator_without_a_rule_pins_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(RULES, aten.roll.default)
    found = estfx.inspect(Decoder(), (torch.randn(3, 7, 12),))
    assert found.layers[0].axes == []
    assert any("no rule for the operator at roll = roll" in note for note in found.layers[0].notes)


def test_a_graph_that_is_not_the_layer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from estfx.passes.drop_noise import EDITS

    def forgets_a_factor(gm: torch.fx.GraphModule, node: torch.fx.Node) -> bool:
        if node.target is not aten.mul.Tensor or isinstance(arguments(node)["other"], torch.fx.Node):
            return False
        node.replace_all_uses_with(node.args[0])
        gm.graph.erase_node(node)
        return True

    monkeypatch.setattr("estfx.passes.drop_noise.EDITS", (*EDITS, forgets_a_factor))
    with pytest.raises(estfx.VerifyError, match=r"the graph of layer `transformer\.h\.0` does not compute"):
        estfx.transform(build("gpt2"), SCHEDULE)


class Halved(Block):
    def mixed(self, x: torch.Tensor) -> torch.Tensor:
        return x * 0.5


def of_halved() -> Decoder:
    model = Decoder()
    model.blocks = nn.ModuleList(Halved() for _ in range(2))
    return model


@pytest.mark.parametrize("what", ["values", "gradients"])
def test_a_graph_that_is_nearly_the_layer_is_an_error(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It differs by a thousandth of a branch, or in what the branch's first matrix learns."""

    def nearly(gm: torch.fx.GraphModule, node: torch.fx.Node) -> bool:
        if node.target is not aten.mul.Tensor or node.args[1] != 0.5:
            return False
        if what == "values":
            node.args = (node.args[0], 0.5005)
            return True
        with gm.graph.inserting_before(node):
            cut = gm.graph.call_function(aten.detach.default, (node.args[0],))
            cut.meta = dict(node.args[0].meta)
        node.args = (cut, 0.5 + 2**-40)
        return True

    monkeypatch.setattr("estfx.passes.drop_noise.EDITS", (*drop_noise.EDITS, nearly))
    with pytest.raises(estfx.VerifyError, match=r"the graph of layer `blocks\.0` does not compute"):
        estfx.transform(of_halved(), SCHEDULE, example_inputs=(torch.randn(3, 7, 12),), compile=False)


def stay_whole(model: nn.Module, **options: Any) -> list[str]:
    """The notes of a layer of which nothing can be narrowed."""
    estfx.transform(model, SCHEDULE, compile=False, **options)
    assert model.report.layers[0].axes == []
    return [note for note in model.report.layers[0].notes if "stay whole" in note]


@pytest.mark.parametrize("error", [1e-4, 1e-8])
def test_a_part_that_is_nearly_the_masked_whole_stays_whole(error: float, monkeypatch: pytest.MonkeyPatch) -> None:
    own = verification.masked_whole
    monkeypatch.setattr(verification, "masked_whole", lambda *given: tuple(x * (1 + error) for x in own(*given)))
    (note,) = stay_whole(of_halved(), example_inputs=(torch.randn(3, 7, 12),))
    assert "neurons (30) stay whole: narrowing them failed verification (relative error 1.0e" in note


class Normed(Block):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(30)

    def mixed(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


def test_a_norm_over_neurons_is_compared_over_those_that_are_kept() -> None:
    model: Any = Decoder()
    model.blocks = nn.ModuleList(Normed() for _ in range(2))
    estfx.transform(model, SCHEDULE, example_inputs=(torch.randn(3, 7, 12),), compile=False)
    assert [(axis.role, axis.size) for axis in model.report.layers[0].axes] == [("neurons", 30)]
    assert not any("stay whole" in note for note in model.report.layers[0].notes)


def test_roles_that_fail_together_alone_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def together(variant: Any, roles: list[Any], inputs: Any) -> tuple[str, None]:
        return ("as planted" if len(roles) > 1 else ""), None

    monkeypatch.setattr(verification, "_verify_narrowed", together)
    assert stay_whole(build("gpt2")) == ["heads, neurons stay whole: narrowing them together failed (as planted)"]


def test_other_units_than_the_first_are_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes the first units whatever was drawn is right for those alone."""

    def first(ctx: Any, x: torch.Tensor, dim: int, index_K: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(index_K)
        ctx.dim, ctx.shape = dim, x.shape
        return x.narrow(dim, 0, len(index_K)).clone()

    monkeypatch.setattr(gather._Take, "forward", staticmethod(first))
    (note,) = stay_whole(of_halved(), example_inputs=(torch.randn(3, 7, 12),))
    assert "neurons (30) stay whole: narrowing them failed verification (relative error" in note


def test_a_state_that_begins_as_zeros_is_in_float64_too() -> None:
    class Recurrent(Block):
        def mixed(self, x: torch.Tensor) -> torch.Tensor:
            state = torch.zeros(x.shape[1], x.shape[1])
            return x + state.to(x) @ x

    model = Decoder()
    model.blocks = nn.ModuleList(Recurrent() for _ in range(2))
    estfx.transform(model, SCHEDULE, example_inputs=(torch.randn(3, 5, 12),), compile=False)
    notes = [note for layer in model.report.layers for note in layer.notes]
    assert not any("verif" in note for note in notes), notes


def test_relative_errors() -> None:
    x = torch.tensor([1.0, -4.0])
    assert relative_error(x, x.clone()) == 0.0
    assert relative_error(x, x + torch.tensor([0.0, 1.0])) == 0.25
    assert relative_error(x, torch.tensor([1.0, float("nan")])) == float("inf")
    assert relative_error(x, torch.zeros(3)) == float("inf")
    assert worst_error(([x], [torch.tensor([8.0])]), ([x], [torch.tensor([6.0])])) == 0.25
    tiny = torch.tensor([1e-9])
    assert worst_error(([x], [x, tiny]), ([x], [x, 2 * tiny])) == pytest.approx(1e-9 / 4e-3)
    assert worst_error(([x, tiny], []), ([x, 2 * tiny], [])) == 1.0
    assert relative_error(torch.tensor([1.0, float("nan")]), x) == float("inf")


@pytest.mark.parametrize(("rounding", "stays"), [(5e-5, False), (1e-6, True), (0.3, True)])
def test_an_error_within_the_rounding_of_the_graph_itself_is_none(
    rounding: float, stays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layer differs by 3e-5 from its graph; 0.3 is what dropout makes of a graph, and no rounding."""
    errors = iter([3e-5, rounding])
    monkeypatch.setattr(verification, "worst_error", lambda want, got: next(errors, 0.0))
    refused = pytest.raises(estfx.VerifyError, match=r"relative error 3\.00e-05") if stays else nullcontext()
    with refused:
        model: Any = estfx.transform(build("gpt2"), estfx.Schedule.est(30), compile=False)
        assert all(layer.axes for layer in model.report.layers)
