from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hand_written import Layer, graph_of
from torch.fx import GraphModule

from estfx import switches
from estfx.errors import VerifyError
from estfx.graphs import tags
from estfx.graphs.pipeline import Analysis, Rewrite, run_passes
from estfx.passes import analysis, specialisation


@pytest.fixture
def gm() -> GraphModule:
    return graph_of(Layer(lambda layer, x: x + layer.f(x)))


def mirror(gm: GraphModule) -> None:
    add = next(n for n in gm.graph.nodes if n.target is torch.ops.aten.add.Tensor)
    add.args = add.args[::-1]


class Meddler(Analysis):
    def run(self, gm: GraphModule) -> int:
        mirror(gm)
        return 1


@dataclass(frozen=True)
class Claims(Rewrite):
    edits: int
    does: bool

    def run(self, gm: GraphModule) -> int:
        if self.does:
            mirror(gm)
        return self.edits


class PutsNothing(Analysis):
    puts: ClassVar = (tags.Roles,)

    def run(self, gm: GraphModule) -> int:
        return 0


class NeedsIt(Analysis):
    needs: ClassVar = (tags.Roles, tags.Indices)

    def run(self, gm: GraphModule) -> int:
        raise AssertionError("it must not run")


class Failing(Analysis):
    def run(self, gm: GraphModule) -> int:
        raise ZeroDivisionError("no such thing")


class LeavesADanglingArgument(Rewrite):
    def run(self, gm: GraphModule) -> int:
        first, second = [n for n in gm.graph.nodes if n.op == "call_function"][:2]
        first.args = (second, *first.args[1:])  # read before it is computed
        return 1


def test_a_pass_is_named_after_its_class() -> None:
    names = [step.name() for step in (*analysis(), *specialisation({}))]
    assert names == [
        "drop-noise",
        "find-separate-heads",
        "find-axes",
        "find-residuals",
        "find-attention",
        "find-channels",
        "find-mlp",
        "narrow-axes",
        "scale-contractions",
    ]


def test_what_a_pass_needs_an_earlier_one_puts() -> None:
    put: set[type] = {tags.Interface}
    for step in (*analysis(), *specialisation({})):
        assert set(step.needs) <= put, step.name()
        put |= set(step.puts)


def test_it_returns_the_graph_that_it_was_given(gm: GraphModule) -> None:
    assert run_passes(gm, ()) is gm
    assert run_passes(gm, analysis()) is gm


def test_a_missing_tag_is_an_error(gm: GraphModule) -> None:
    message = "pass needs-it needs Roles, Indices, which no pass before it has put"
    with pytest.raises(VerifyError, match=message):
        run_passes(gm, [NeedsIt()])


def test_a_tag_that_was_not_put_is_an_error(gm: GraphModule) -> None:
    with pytest.raises(VerifyError, match="pass puts-nothing was to put Roles, and did not"):
        run_passes(gm, [PutsNothing()])


def test_an_analysis_that_changes_the_graph_is_an_error(gm: GraphModule) -> None:
    with pytest.raises(VerifyError, match="pass meddler is an analysis, but it changed the graph"):
        run_passes(gm, [Meddler()])


@pytest.mark.parametrize(
    ("edits", "does", "said"),
    [
        (0, True, "pass claims claims 0 edits, but the graph did change"),
        (3, False, "3 edits, but the graph did not change"),
    ],
)
def test_a_rewrite_whose_count_lies_is_an_error(gm: GraphModule, edits: int, does: bool, said: str) -> None:
    with pytest.raises(VerifyError, match=said):
        run_passes(gm, [Claims(edits, does)])


def test_an_error_names_the_pass_and_the_graph_and_keeps_its_type(gm: GraphModule) -> None:
    with pytest.raises(ZeroDivisionError, match="no such thing") as error:
        run_passes(gm, [Failing()])
    assert error.value.__notes__ == ["in pass failing on the graph of Layer"]


def test_the_graph_is_linted(gm: GraphModule) -> None:
    with pytest.raises(RuntimeError, match="was used before it has been defined") as error:
        run_passes(gm, [LeavesADanglingArgument()])
    assert error.value.__notes__ == ["in pass leaves-a-dangling-argument on the graph of Layer"]


def test_a_rewritten_graph_runs_as_rewritten(gm: GraphModule) -> None:
    x = torch.ones(1, 2, 40)
    weight = torch.zeros(40, 40)
    assert torch.equal(gm(x, weight)[0], x)

    class Doubles(Rewrite):
        def run(self, gm: GraphModule) -> int:
            add = next(n for n in gm.graph.nodes if n.target is torch.ops.aten.add.Tensor)
            add.args = (add.args[0], add.args[0])
            return 1

    assert torch.equal(run_passes(gm, [Doubles()])(x, weight)[0], 2 * x)


def test_without_checks_nothing_is_compared(gm: GraphModule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switches, "VERIFY", 0)
    run_passes(gm, [Claims(3, False), PutsNothing()])


@pytest.mark.parametrize("level", [0, 1, 2])
def test_the_rules_are_verified_at_the_highest_level(
    gm: GraphModule, monkeypatch: pytest.MonkeyPatch, level: int
) -> None:
    class Forgets(Rewrite):
        def run(self, gm: GraphModule) -> int:
            del next(n for n in gm.graph.nodes if n.op == "call_function").meta["val"]
            mirror(gm)
            return 1

    monkeypatch.setattr(switches, "VERIFY", level)
    if level < 2:
        run_passes(gm, [Forgets()])
    else:
        with pytest.raises(VerifyError, match=r"every value has a shape: linear = linear\.default") as error:
            run_passes(gm, [Forgets()])
        assert error.value.__notes__ == ["in pass forgets on the graph of Layer"]


def test_passes_are_timed(gm: GraphModule, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="estfx.graphs.pipeline"):
        run_passes(gm, analysis()[:1])
    assert [r.getMessage().split(" in ")[0] for r in caplog.records if r.name == "estfx.graphs.pipeline"] == [
        "drop-noise: 0"
    ]
