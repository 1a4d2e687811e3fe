from collections.abc import Callable

import pytest
import torch
from hand_written import HEAD_DIM, HEADS, HIDDEN, NEURONS, PreNorm, analysed, halved
from torch import nn
from torch.fx import GraphModule
from torch.nn import functional as F

from estfx.errors import VerifyError
from estfx.graphs import Axis, Dim, Product, Sum, tags
from estfx.graphs.fx_graphs import sizes
from estfx.graphs.pipeline import run_passes
from estfx.graphs.printing import graph_text
from estfx.passes import specialisation
from estfx.passes.narrow_axes import NarrowAxes
from estfx.passes.scale_contractions import ScaleContractions, _runs

aten = torch.ops.aten


def factors(gm: GraphModule) -> list[float]:
    """The constants by which something is multiplied."""
    return [n.args[1] for n in gm.graph.nodes if n.target is aten.mul.Tensor and isinstance(n.args[1], float)]


def test_golden(golden: Callable[[str, str], None]) -> None:
    gm = analysed(PreNorm())
    run_passes(gm, [NarrowAxes(halved(gm))])
    golden("scale_contractions", graph_text(run_passes(gm, [ScaleContractions()])))


def test_a_whole_graph_stays_as_it_is() -> None:
    gm = run_passes(analysed(PreNorm()), [NarrowAxes()])
    text = graph_text(gm)
    assert ScaleContractions().run(gm) == 0
    assert graph_text(gm) == text


def test_refusal_of_a_graph_that_was_not_narrowed() -> None:
    with pytest.raises(VerifyError, match="pass scale-contractions needs Indices, which no pass before it has put"):
        run_passes(analysed(PreNorm()), [ScaleContractions()])


@pytest.mark.parametrize(("heads", "neurons"), [(1, 56), (2, 56), (5, 14), (3, 7)])
def test_the_factor_is_total_over_kept(heads: int, neurons: int) -> None:
    gm = analysed(PreNorm())
    kept = dict(zip((role.axis for role in tags.get(gm, tags.Roles).found), (heads, neurons), strict=True))
    run_passes(gm, specialisation(kept))
    assert factors(gm) == [total / n for total, n in ((HEADS, heads), (NEURONS, neurons)) if n < total]


class Fused(PreNorm):
    """Attention and MLP end in one matrix: a sum over heads and neurons, as in one of the forms of PaLM."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(HIDDEN + NEURONS, HIDDEN)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        batch, length, hidden = x_BTD.shape
        y = self.norm_1(x_BTD)
        q, k, v = self.attention.qkv(y).split(hidden, dim=2)
        q, k, v = (z.view(batch, length, HEADS, HEAD_DIM).transpose(1, 2) for z in (q, k, v))
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, length, hidden)
        return x_BTD + self.out(torch.cat([heads, F.gelu(self.mlp.up(y))], dim=-1))


@pytest.mark.parametrize(("heads", "neurons"), [(1, 56), (5, 14), (2, 28), (1, 7)])
def test_each_part_of_a_sum_has_its_own_factor(heads: int, neurons: int) -> None:
    gm = analysed(Fused())
    (head_axis, neuron_axis) = (role.axis for role in tags.get(gm, tags.Roles).found)
    run_passes(gm, specialisation({head_axis: heads, neuron_axis: neurons}))
    out = next(n for n in gm.graph.nodes if n.name == "linear_2")
    if HEADS / heads == NEURONS / neurons:
        assert out.args[1].args[1] == HEADS / heads
        return
    scaled = [
        (n.args[1], sizes(n)[-1]) if n.target is aten.mul.Tensor else (1.0, sizes(n)[-1]) for n in out.args[1].args[0]
    ]
    assert scaled == [(HEADS / heads, heads * HEAD_DIM), (NEURONS / neurons, neurons)]


class TwoMatrices(nn.Module):
    """A batch of two matrices, whose results are averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Parameter(torch.randn(2, HIDDEN + NEURONS, HIDDEN))

    def forward(self, y_BTN: torch.Tensor) -> torch.Tensor:
        return (y_BTN[:, None] @ self.both).mean(1)


def test_of_a_batch_of_matrices_the_activation_is_scaled() -> None:
    layer = Fused()
    layer.out = TwoMatrices()  # type: ignore[assignment]
    gm = analysed(layer)
    (head_axis, neuron_axis) = (role.axis for role in tags.get(gm, tags.Roles).found)
    run_passes(gm, specialisation({head_axis: 2, neuron_axis: 14}))
    (product,) = (n for n in gm.graph.nodes if n.target is aten.matmul.default)
    assert product.args[0].target is aten.cat.default
    assert [sizes(n)[-1] for n in product.args[0].args[0]] == [2 * HEAD_DIM, 14]
    assert sorted(factors(gm)) == [HEADS / 2, NEURONS / 14]


A, B, C = (Axis(i, size) for i, size in enumerate((2, 3, 5)))


@pytest.mark.parametrize(
    ("dim", "kept", "runs"),
    [
        (Product((A, B)), {A: 1}, [(3, 2.0)]),
        (Product((A, B)), {B: 2}, [(4, 1.5)]),
        (Product((A, B)), {A: 1, B: 1}, [(1, 6.0)]),
        (Sum((A, B)), {B: 1}, [(2, 1.0), (1, 3.0)]),
        (Sum((C, A, B)), {B: 1}, [(7, 1.0), (1, 3.0)]),
        (Sum((A, Product((A, C)))), {A: 1}, [(6, 2.0)]),
        (Product((Sum((A, B)), C)), {A: 1, C: 2}, [(2, 5.0), (6, 2.5)]),
        (Product((A, Sum((B, C)))), {B: 1}, None),
    ],
    ids=str,
)
def test_factors_along_a_dimension(dim: Dim, kept: dict[Axis, int], runs: list[tuple[int, float]] | None) -> None:
    assert _runs(dim, kept) == runs


class Transposed(PreNorm):
    """The matrix of the MLP's last product is an activation: there is no weight to be scaled."""

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        x_BTD = x_BTD + self.attention(self.norm_1(x_BTD))
        hidden = F.gelu(self.mlp.up(self.norm_2(x_BTD)))
        return x_BTD + (self.mlp.down.weight @ hidden.transpose(1, 2)).transpose(1, 2)


def test_an_activation_is_scaled_where_it_is_the_second_operand() -> None:
    gm = analysed(Transposed())
    run_passes(gm, specialisation(halved(gm)))
    product = next(n for n in gm.graph.nodes if n.target is aten.matmul.default)
    assert product.args[0].op == "call_function"
    assert product.args[1].target is aten.mul.Tensor
