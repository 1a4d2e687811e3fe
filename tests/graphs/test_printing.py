from __future__ import annotations

import inspect
import re
from collections.abc import Callable

import hand_written
import torch
from hand_written import Decoder, GatedMlp, GroupedAttention, Layer, Mlp, PreNorm, analysed, graph_of, graph_of_function
from torch import nn

from estfx import trace
from estfx.graphs.fx_graphs import clone
from estfx.graphs.pipeline import run_passes
from estfx.graphs.printing import graph_text
from estfx.passes import analysis


def lines(function: Callable[..., torch.Tensor]) -> list[str]:
    return [line.strip() for line in graph_text(graph_of_function(function)).splitlines()]


def test_golden(golden: Callable[[str, str], None]) -> None:
    golden("printing", graph_text(analysed(PreNorm(GroupedAttention(), GatedMlp()))))


def test_a_graph_is_always_printed_alike() -> None:
    assert graph_text(graph_of(PreNorm())) == graph_text(graph_of(PreNorm()))
    gm = analysed(PreNorm())
    assert graph_text(gm) == graph_text(clone(gm))


def test_a_line_names_the_line_of_the_models_own_code() -> None:
    text = graph_text(graph_of(PreNorm()))
    source, start = inspect.getsourcelines(Mlp.forward)
    number = start + next(i for i, line in enumerate(source) if "F.gelu" in line)
    (gelu,) = (line for line in text.splitlines() if " = gelu(" in line)
    assert gelu.endswith(f"# {hand_written.__name__}.py:{number}")


def test_kinds_of_values() -> None:
    def function(layer: Layer, x: torch.Tensor) -> torch.Tensor:
        y = layer.f(x).bfloat16().to(torch.float64) * torch.tensor([0.123456789])
        return x + torch.where(y > 0, y, 0.0).float()[:, :]

    found = lines(function)
    assert found[0] == "graph Layer:"
    assert re.fullmatch(r"%stream = input +f32\[b, t, 40\]", found[1])
    assert re.fullmatch(r"%f_weight = weight f.weight +f32\[40, 40\]", found[2])
    text = "\n".join(found)
    assert re.search(r"%constant_0 = constant constant_0 +f32\[1\]", text)
    assert re.search(r"= to\(%linear, bfloat16\) +bf16\[b, t, 40\]", text)
    assert re.search(r"= to\(%to, float64\) +f64\[b, t, 40\]", text)
    assert re.search(r"= gt\(%mul, 0\) +b1\[b, t, 40\]", text)
    assert re.search(r"= slice\(%\w+, 0, 0, end\)", text)
    assert found[-1] == "return [%add]"


def test_sizes_are_named_by_the_inputs_that_bring_them() -> None:
    """The stream's are b and t, whatever names the tracer gave them; sums and products of them are written out."""

    def function(layer: Layer, x: torch.Tensor) -> torch.Tensor:
        y = torch.cat([layer.f(x), x[:, :1]], dim=1)
        return x + (y.reshape(-1, 40) * 2).view(y.shape)[:, 1:]

    text = "\n".join(lines(function))
    assert re.search(r"f32\[b, t \+ 1, 40\]", text)
    assert re.search(r"f32\[b\*\(?t \+ 1\)?|b\*t \+ b, 40\]", text)
    assert not re.search(r"\bs\d+\b", text)


def test_axes_stand_beside_values_once_roles_are_known() -> None:
    gm = graph_of(PreNorm())
    assert "heads" not in graph_text(run_passes(gm, analysis()[:3]))
    text = graph_text(run_passes(gm, analysis()[3:]))
    assert re.search(r"f32\[120, 40\] +\(heads·8 \+ heads·8 \+ heads·8, \.\)", text)
    assert re.search(r"f32\[b, 5, t, 8\] +\(\., heads, \., \.\)", text)
    assert re.search(r"f32\[b, t, 56\] +\(\., \., neurons\)", text)
    assert "(., ., .)" not in text


def test_an_outer_graph_prints_too() -> None:
    decoder = trace(Decoder(PreNorm(), PreNorm()), (torch.randint(101, (3, 17)),))
    text = graph_text(decoder.outer)
    assert "layers.0(" in text
    assert "layers.1(" in text
    assert isinstance(decoder.outer, nn.Module)
