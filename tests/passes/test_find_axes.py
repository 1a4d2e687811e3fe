import re
from collections.abc import Callable

import pytest
import torch
from hand_written import HIDDEN, GatedMlp, GroupedAttention, Layer, PreNorm, before, graph_of_function
from torch.fx import GraphModule

from estfx.errors import VerifyError
from estfx.graphs import tags
from estfx.graphs.pipeline import run_passes
from estfx.graphs.printing import graph_text
from estfx.passes import analysis
from estfx.passes.find_axes import FindAxes


def as_text(gm: GraphModule) -> str:
    """The dimensions of every value, axes numbered in the order in which they occur, and what was learnt of them."""
    axes = tags.get(gm, tags.Axes)
    letters: dict[str, str] = {}

    def renamed(text: object) -> str:
        words = str(text).replace("·", " · ").replace("(", "( ").replace(")", " )").split()
        for word in words:
            if ":" in word:
                letters.setdefault(word, f"a{len(letters)}:{word.partition(':')[2]}")
        return "".join(letters.get(word, word) for word in words).replace("+", " + ")

    lines = [f"    %{name}  [{', '.join(map(renamed, dims))}]" for name, dims in axes.dims.items()]
    lines += [f"    {renamed(c.dim)} closes at {c.node}{' into the stream' * c.to_stream}" for c in axes.closings]
    lines += sorted(f"    {renamed(axis)} coupled at {', '.join(where)}" for axis, where in axes.coupled.items())
    lines += sorted(f"    {renamed(axis)} pinned: {'; '.join(why)}" for axis, why in axes.pins.items())
    return re.sub(r" \(\S+:\d+\)", "", "\n".join(["axes:", *lines, ""]))


@pytest.mark.parametrize("name", ["fused", "grouped"])
def test_golden(name: str, golden: Callable[[str, str], None]) -> None:
    gm = before(FindAxes, PreNorm() if name == "fused" else PreNorm(GroupedAttention(), GatedMlp()))
    run_passes(gm, [FindAxes()])
    golden(f"find_axes_{name}", f"{graph_text(gm)}\n{as_text(gm)}")


def test_it_leaves_the_graph_alone() -> None:
    gm = before(FindAxes, PreNorm())
    text = graph_text(gm)
    assert FindAxes().run(gm) == len(tags.get(gm, tags.Axes).dims)
    assert graph_text(gm) == text


def test_refusal_without_an_interface() -> None:
    gm = before(FindAxes, PreNorm())
    del gm.meta["Interface"]
    with pytest.raises(VerifyError, match="pass find-axes needs Interface, which no pass before it has put"):
        run_passes(gm, [FindAxes()])


def test_an_operator_without_a_rule_pins_what_it_touches_and_says_so() -> None:
    def function(layer: Layer, x: torch.Tensor) -> torch.Tensor:
        return x + layer.g(torch.linalg.qr(layer.f(x))[0][..., :1].expand(-1, -1, HIDDEN))

    gm = run_passes(graph_of_function(function), analysis()[:3])
    axes = tags.get(gm, tags.Axes)
    (axis,) = axes.dims["linear"][-1].axes()
    assert axes.obstacle(axis).startswith("no rule for the operator at linalg_qr = linalg_qr.default (hand_written.py:")
