from collections.abc import Callable

import numpy as np
import pytest
import torch
from hand_written import HEADS, HIDDEN, NEURONS, GatedMlp, GroupedAttention, PreNorm, analysed, halved, stream
from shallow_decoders import layer_graph
from tiny_decoders import DECODERS, GROUPED, from_transformers
from torch import nn
from torch.nn import functional as F

from estfx import trace
from estfx.errors import VerifyError
from estfx.graphs import tags
from estfx.graphs.dimensions import Axis, Product
from estfx.graphs.fx_graphs import arguments, clone, sizes
from estfx.graphs.pipeline import run_passes
from estfx.graphs.printing import graph_text
from estfx.passes import analysis
from estfx.passes.narrow_axes import NarrowAxes, _Narrowing
from estfx.programs.program import numbers_at_work, resolve


def pair(name: str) -> nn.Module:
    return PreNorm() if name == "fused" else PreNorm(GroupedAttention(), GatedMlp())


@pytest.mark.parametrize("name", ["fused", "grouped"])
def test_golden(name: str, golden: Callable[[str, str], None]) -> None:
    gm = analysed(pair(name))
    golden(f"narrow_axes_{name}", graph_text(run_passes(gm, [NarrowAxes(halved(gm))])))


def test_whole_axes_change_nothing() -> None:
    gm = analysed(PreNorm())
    text = graph_text(gm)
    whole = {role.axis: role.axis.size for role in tags.get(gm, tags.Roles).found}
    for kept in ({}, whole):
        assert NarrowAxes(kept).run(gm) == 0
        assert graph_text(gm) == text
        assert tags.get(gm, tags.Indices) == tags.Indices()


def test_the_whole_graph_stays_as_it_is_when_a_copy_is_narrowed() -> None:
    gm = analysed(PreNorm())
    text = graph_text(gm)
    run_passes(clone(gm), [NarrowAxes(halved(gm))])
    assert graph_text(gm) == text


@pytest.mark.parametrize(("count", "said"), [(0, 0), (-1, -1), (HEADS + 1, HEADS + 1)])
def test_refusal_of_a_count_that_cannot_be(count: int, said: int) -> None:
    gm = analysed(PreNorm())
    heads = tags.get(gm, tags.Roles).found[0].axis
    message = f"{said} heads are to be kept; there are {HEADS}, and one at least must stay"
    with pytest.raises(VerifyError, match=message) as error:
        run_passes(gm, [NarrowAxes({heads: count})])
    assert error.value.__notes__ == ["in pass narrow-axes on the graph of PreNorm"]


def test_refusal_of_an_axis_without_a_role() -> None:
    with pytest.raises(VerifyError, match="3 of a-7:8 are to be kept, but no role was found for that axis"):
        run_passes(analysed(PreNorm()), [NarrowAxes({Axis(-7, 8): 3})])


def test_the_indices_say_which_weights_they_narrow() -> None:
    gm = analysed(PreNorm())
    indices = tags.get(run_passes(gm, [NarrowAxes(halved(gm))]), tags.Indices)
    heads, qkv, neurons = (next(g.placeholder for g in indices.gathers if g.dim.size == n) for n in (40, 120, 56))
    assert set(indices.weights) == {
        ("attention.qkv.weight", 0, qkv),
        ("attention.qkv.bias", 0, qkv),
        ("attention.out.weight", 1, heads),
        ("mlp.up.weight", 0, neurons),
        ("mlp.up.bias", 0, neurons),
        ("mlp.down.weight", 1, neurons),
    }
    assert sorted(indices.kept.values()) == [HEADS // 2, NEURONS // 2]


@pytest.mark.parametrize("name", ["fused", "grouped"])
def test_a_narrowed_graph_is_the_whole_with_the_other_units_masked_where_they_close(name: str) -> None:
    layer = pair(name).double()
    gm = analysed(layer)
    kept = halved(gm)
    narrowed = run_passes(clone(gm), [NarrowAxes(kept)])
    rng = np.random.default_rng(0)
    weights = [resolve(layer, path) for _, path in tags.get(gm, tags.Interface).weights]
    units = {axis: np.sort(rng.permutation(axis.size)[:count]) for axis, count in kept.items()}
    chosen = [torch.from_numpy(g.dim.flat_index(units)) for g in tags.get(narrowed, tags.Indices).gathers]
    got = narrowed(stream().double(), *chosen, *weights)[0]
    masked = {path: w.clone() for (_, path), w in zip(tags.get(gm, tags.Interface).weights, weights, strict=True)}
    for path, axis in (("attention.out.weight", next(iter(kept))), ("mlp.down.weight", list(kept)[1])):
        mask = torch.zeros(axis.size, masked[path].shape[1] // axis.size, dtype=torch.float64)
        mask[torch.from_numpy(units[axis])] = 1
        masked[path] = masked[path] * mask.reshape(-1)
    want = gm(stream().double(), *masked.values())[0]
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


class MergedHeads(nn.Module):
    """Batch and heads in one dimension, whose size is a product that the layer computes."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(HIDDEN, 3 * 6 * 8), nn.Linear(6 * 8, HIDDEN)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x_BTD.shape
        q, k, v = (
            y.view(batch, length, 6, 8).transpose(1, 2).reshape(batch * 6, length, 8)
            for y in self.qkv(x_BTD).chunk(3, dim=-1)
        )
        y = torch.baddbmm(x_BTD.new_zeros(batch * 6, length, length), q, k.mT).softmax(-1) @ v
        return self.out(y.view(batch, 6, length, 8).transpose(1, 2).reshape(batch, length, 48))


@pytest.mark.parametrize("kept", [1, 2, 3, 4, 5])
def test_a_size_that_is_computed_is_that_of_the_kept_units(kept: int) -> None:
    gm = analysed(PreNorm(MergedHeads()))
    (heads,) = (role.axis for role in tags.get(gm, tags.Roles).found if role.name == "heads")
    narrowed = run_passes(clone(gm), [NarrowAxes({heads: kept})])
    layer = PreNorm(MergedHeads())
    weights = [resolve(layer, path) for _, path in tags.get(gm, tags.Interface).weights]
    units = {heads: np.arange(kept)}
    chosen = [torch.from_numpy(g.dim.flat_index(units)) for g in tags.get(narrowed, tags.Indices).gathers]
    assert narrowed(stream(), *chosen, *weights)[0].shape == stream().shape


def test_refusal_of_units_between_two_open_sizes() -> None:
    gm = analysed(PreNorm())
    kept = halved(gm)
    batch, length = (Axis(-i, size, dynamic=True) for i, size in ((1, 3), (2, 17)))
    (value,) = (n for n in gm.graph.nodes if n.op == "placeholder" and n.name == "mlp_up_bias")
    units = next(axis for axis in kept if axis.size == NEURONS)
    with pytest.raises(VerifyError, match="has dynamic parts on both sides"):
        _Narrowing(gm, kept)._gather_inside(value, 0, Product((batch, units, length)))


class TwoFusedGates(nn.Module):
    """Two gated MLPs of one width, each with its gate and its inner part in one projection: two indices for each."""

    def __init__(self) -> None:
        super().__init__()
        self.ups = nn.ModuleList(nn.Linear(HIDDEN, 2 * NEURONS) for _ in range(2))
        self.downs = nn.ModuleList(nn.Linear(NEURONS, HIDDEN) for _ in range(2))

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        for up, down in zip(self.ups, self.downs, strict=True):
            inner, gate = up(x_BTD).chunk(2, -1)
            x_BTD = x_BTD + down(inner * torch.sigmoid(gate))
        return x_BTD


def test_every_index_has_a_name_of_its_own() -> None:
    gm = analysed(TwoFusedGates())
    assert [role.name for role in tags.get(gm, tags.Roles).found] == ["neurons", "neurons_2"]
    narrowed = run_passes(clone(gm), [NarrowAxes(halved(gm))])
    names = [gather.placeholder for gather in tags.get(narrowed, tags.Indices).gathers]
    assert len(names) == len(set(names)) == 4


def test_a_literal_that_happens_to_equal_a_size_stays() -> None:
    """56 neurons, and a mean over 56 that has nothing to do with them: `view` must change in one place only."""

    class Coincidence(PreNorm):
        def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
            batch, length, hidden = x_BTD.shape
            tiled = x_BTD.unsqueeze(2).expand(batch, length, NEURONS, hidden).mean(dim=2)
            return x_BTD + self.mlp(tiled)

    gm = analysed(Coincidence())
    run_passes(gm, [NarrowAxes(halved(gm))])
    shapes = {
        str(node.target): sizes(node)
        for node in gm.graph.nodes
        if node.op == "call_function" and "val" in node.meta and hasattr(node.meta["val"], "shape")
    }
    assert shapes["aten.expand.default"][2] == NEURONS
    assert shapes["aten.gelu.default"][-1] == NEURONS // 2


@pytest.mark.sweep("name")
@pytest.mark.parametrize("name", DECODERS)
def test_every_architecture_narrows_to_one_unit(name: str) -> None:
    gm = run_passes(layer_graph(name), analysis())
    kept = {role.axis: 1 for role in tags.get(gm, tags.Roles).found}
    assert len(kept) == 2
    run_passes(gm, [NarrowAxes(kept)])  # the rules of the verifier compare every shape with its axes


class Channelwise(nn.Module):
    """A weight that is narrowed, and whose dimensions the groups of a convolution are counted from."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(HIDDEN, 24)
        self.filters = nn.Conv1d(24, 24, 4, groups=24, padding=3)
        self.fused = nn.Linear(24, 48, bias=False)
        self.out = nn.Linear(24, HIDDEN)

    def mixed(self, x_BTD: torch.Tensor) -> torch.Tensor:
        y = self.filters(self.into(x_BTD).transpose(1, 2))[..., : x_BTD.shape[1]]
        return y.transpose(1, 2)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.out(self.mixed(x_BTD))


class NarrowedTwice(Channelwise):
    """A weight that is narrowed in both dimensions, and then taken apart."""

    def halves(self) -> tuple[torch.Tensor, ...]:
        return self.fused.weight[:24], self.fused.weight[24:]

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        y = self.mixed(x_BTD)
        gate, value = self.halves()
        return self.out(y * F.linear(y, gate).sigmoid() * F.linear(y, value))


class NarrowedAndSplit(NarrowedTwice):
    """The same by an operator that gives several tensors."""

    def halves(self) -> tuple[torch.Tensor, ...]:
        return self.fused.weight.split(24, dim=0)


@pytest.mark.parametrize("mixer", [Channelwise, NarrowedTwice, NarrowedAndSplit])
def test_sizes_are_computed_from_weights_that_were_narrowed_before(mixer: type[nn.Module]) -> None:
    gm = analysed(PreNorm(mixer()))
    (channels,) = (role.axis for role in tags.get(gm, tags.Roles).found if role.name == "channels")
    indices = tags.get(run_passes(gm, [NarrowAxes({channels: 7})]), tags.Indices)
    (convolution,) = (node for node in gm.graph.nodes if node.target is torch.ops.aten.conv1d.default)
    assert arguments(convolution)["groups"] == 7
    assert sizes(convolution)[1] == 7
    twice = [position for path, position, _ in indices.weights if path == "attention.fused.weight"]
    assert twice == ([] if mixer is Channelwise else [0, 1])
    if mixer is not Channelwise:
        products = [n for n in gm.graph.nodes if n.target is torch.ops.aten.linear.default]
        assert [sizes(arguments(n)["weight"]) for n in products[1:3]] == [(7, 7), (7, 7)]
        assert numbers_at_work(gm)["attention.fused.weight"] == 2 * 7 * 7


def test_a_weight_with_a_size_that_a_side_input_leaves_open_is_taken_as_a_whole() -> None:
    """Queries are turned by tables of any width: a head is of the table's size, and the weight's rows are fixed."""
    model = from_transformers("ernie4_5", **GROUPED, head_dim=8)
    variant = next(iter(trace(model).traced.values()))
    gm = run_passes(variant.graph, analysis())
    heads = next(role.axis for role in tags.get(gm, tags.Roles).found if role.name == "heads")
    indices = tags.get(run_passes(clone(gm), [NarrowAxes({heads: 2})]), tags.Indices)
    narrowed = {(path, dim) for path, dim, _ in indices.weights}
    queries_and_keys = {(f"self_attn.{name}_proj.weight", 0) for name in "qkv"}
    assert narrowed == {*queries_and_keys, ("self_attn.o_proj.weight", 1)}
    axes = tags.get(gm, tags.Axes)
    assert any(axis.dynamic for dims in axes.dims.values() for dim in dims for axis in dim.axes())
