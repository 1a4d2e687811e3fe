from collections.abc import Callable

import pytest
import torch
from hand_written import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    NEURONS,
    Attention,
    GroupedAttention,
    Layer,
    PreNorm,
    before,
    graph_of_function,
)
from torch import nn
from torch.nn import functional as F

from estfx.errors import VerifyError
from estfx.graphs import tags
from estfx.graphs.pipeline import run_passes
from estfx.graphs.printing import graph_text
from estfx.passes import analysis
from estfx.passes.find_attention import FindAttention


@pytest.mark.parametrize("name", ["fused", "grouped"])
def test_golden(name: str, golden: Callable[[str, str], None]) -> None:
    gm = before(FindAttention, PreNorm() if name == "fused" else PreNorm(GroupedAttention()))
    run_passes(gm, [FindAttention()])
    golden(f"find_attention_{name}", graph_text(gm))


def test_it_leaves_the_graph_alone() -> None:
    gm = before(FindAttention, PreNorm())
    code = str(gm.graph)
    assert FindAttention().run(gm) == 1
    assert str(gm.graph) == code


def test_a_layer_without_attention_has_no_heads() -> None:
    gm = run_passes(graph_of_function(lambda layer, x: x + layer.f(x)), analysis()[:5])
    assert tags.get(gm, tags.Roles) == tags.Roles()


def test_refusal_without_axes() -> None:
    gm = before(FindAttention, PreNorm())
    del gm.meta["Axes"]
    with pytest.raises(VerifyError, match="pass find-attention needs Axes, which no pass before it has put"):
        run_passes(gm, [FindAttention()])


def roles_of(attention: nn.Module) -> tags.Roles:
    return tags.get(run_passes(before(FindAttention, PreNorm(attention)), [FindAttention()]), tags.Roles)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size"),
    [(6, 6, 6), (6, 3, 3), (6, 2, 2), (6, 1, 6)],
    ids=["multi-head", "grouped", "grouped by three", "multi-query"],
)
def test_whole_groups_of_heads_are_one_unit(heads: int, kv_heads: int, size: int) -> None:
    roles = roles_of(GroupedAttention(heads, kv_heads))
    assert [(role.name, role.axis.size) for role in roles.found] == [("heads", size)]
    assert roles.notes == ()


class QueriesInGroups(GroupedAttention):
    """Keys and values are never repeated: queries have a dimension for the group that shares them."""

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        q, k, v = self.q(x_BTD), self.k(x_BTD), self.v(x_BTD)
        q = q.unflatten(-1, (self.kv_heads, -1, HEAD_DIM))
        k, v = (y.unflatten(-1, (self.kv_heads, HEAD_DIM)) for y in (k, v))
        scores = (torch.einsum("btkgd,bskd->bkgts", q, k) / HEAD_DIM**0.5).softmax(dim=-1)
        return self.out(torch.einsum("bkgts,bskd->btkgd", scores, v).flatten(2))


class TiledAttention(GroupedAttention):
    """Query heads that share keys and values do not lie side by side: keys are repeated as a whole."""

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        q, k, v = (f(x_BTD).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2) for f in (self.q, self.k, self.v))
        k, v = (y.repeat(1, self.heads // self.kv_heads, 1, 1) for y in (k, v))
        scores = (q @ k.transpose(2, 3) / HEAD_DIM**0.5).softmax(dim=-1)
        return self.out((scores @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("attention", [QueriesInGroups, TiledAttention])
@pytest.mark.parametrize(("kv_heads", "size"), [(3, 3), (2, 2), (1, 6)])
def test_whole_groups_however_they_are_spelt(attention: type[GroupedAttention], kv_heads: int, size: int) -> None:
    gm = run_passes(before(FindAttention, PreNorm(attention(6, kv_heads))), analysis()[3:])
    roles = tags.get(gm, tags.Roles)
    assert [(role.name, role.axis.size) for role in roles.found] == [("heads", size), ("neurons", NEURONS)]
    keys = tags.get(gm, tags.Axes).dims["attention_k_weight"][0]
    assert (roles.found[0].axis in keys.axes()) == (kv_heads > 1)


class ByHand(Attention):
    """Scores and their softmax written out, the softmax over one of the dimensions `[batch, heads, query, key]`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        q, k, v = (y.unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2) for y in self.qkv(x_BTD).split(HIDDEN, dim=2))
        y = (q @ k.transpose(-1, -2)).softmax(self.dim) @ v
        return self.out(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(("dim", "is_core"), [(-1, True), (3, True), (-2, False), (2, False), (1, False)])
def test_a_core_is_a_softmax_over_what_is_then_summed_over(dim: int, is_core: bool) -> None:
    roles = roles_of(ByHand(dim))
    assert len(roles.cores) == is_core
    assert [(role.name, role.axis.size) for role in roles.found] == [("heads", HEADS)] * is_core


class WithTwoCores(nn.Module):
    """Two attentions of different widths, their results added."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = GroupedAttention(), Attention()

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.first(x_BTD) + self.second(x_BTD)


def test_a_second_core_has_heads_of_its_own() -> None:
    roles = roles_of(WithTwoCores())
    assert [(role.name, role.axis.size) for role in roles.found] == [("heads", 3), ("heads_2", 5)]


class NormedQueries(GroupedAttention):
    """Queries and keys are normalised over all heads, as in OLMo2."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Sequential(self.q, nn.RMSNorm(6 * HEAD_DIM))  # type: ignore[assignment]


def test_a_statistic_over_all_heads_is_noted() -> None:
    (role,) = roles_of(NormedQueries()).found
    assert role.axis.size == 3
    assert role.note == "a statistic at rms_norm is taken over the kept part"


class Numbered(Attention):
    """Each head is weighted by its place in order, which means nothing once heads are missing."""

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        batch, length, hidden = x_BTD.shape
        q, k, v = self.qkv(x_BTD).split(hidden, dim=2)
        q, k, v = (y.view(batch, length, HEADS, HEAD_DIM).transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).cumsum(dim=1)
        return self.out(y.transpose(1, 2).reshape(batch, length, hidden))


class OneHead(Attention):
    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        q, k, v = (y[:, None] for y in self.qkv(x_BTD).split(HIDDEN, dim=2))
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0])


def test_refusal_names_the_obstacle() -> None:
    roles = roles_of(Numbered())
    assert roles.found == ()
    (note,) = roles.notes
    assert note.startswith(
        "the heads of the attention core scaled_dot_product_attention stay whole "
        "(5: summed up in order at cumsum = cumsum.default (hand_written.py:"
    ) or note.startswith(
        "the heads of the attention core scaled_dot_product_attention stay whole "
        "(5: summed up in order at cumsum = cumsum.default (test_find_attention.py:"
    )


def test_refusal_of_a_single_head() -> None:
    roles = roles_of(OneHead())
    assert roles.found == ()
    assert roles.notes == ("the attention core scaled_dot_product_attention has a single head",)


class MultiQuery(nn.Module):
    """All heads share one key and one value, which have no dimension for them; by einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Parameter(torch.randn(HIDDEN, HEADS, HEAD_DIM) / HIDDEN**0.5)
        self.k, self.v = (nn.Parameter(torch.randn(HIDDEN, HEAD_DIM) / HIDDEN**0.5) for _ in range(2))
        self.out = nn.Parameter(torch.randn(HEADS, HEAD_DIM, HIDDEN) / HIDDEN**0.5)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        q = torch.einsum("btd,dhk->bhtk", x_BTD, self.q)
        k, v = (torch.einsum("btd,dk->btk", x_BTD, w) for w in (self.k, self.v))
        weights = torch.einsum("bhtk,bsk->bhts", q, k).softmax(-1)
        mixed = torch.einsum("bhts,bsk->bhtk", weights, v)
        return torch.einsum("bhtk,hkd->btd", mixed, self.out)


def test_query_heads_that_the_values_know_nothing_of_are_heads() -> None:
    roles = tags.get(run_passes(before(FindAttention, PreNorm(MultiQuery())), analysis()[-3:]), tags.Roles)
    assert [(role.name, role.axis.size) for role in roles.found] == [("heads", HEADS), ("neurons", 56)]


def test_a_softmax_that_weighs_nothing_is_no_core() -> None:
    def function(layer: Layer, x: torch.Tensor) -> torch.Tensor:
        return x + layer.g(layer.f(x).softmax(dim=-1))

    gm = run_passes(graph_of_function(function), analysis()[:5])
    assert tags.get(gm, tags.Roles).found == ()
