from __future__ import annotations

import pytest
import torch
from foreign_decoders import HeadsInAList, OneHead
from hand_written import HEAD_DIM, HEADS, HIDDEN, NEURONS, PreNorm, analysed, graph_of
from torch import nn

from estfx.graphs import tags
from estfx.graphs.fx_graphs import clone
from estfx.graphs.pipeline import run_passes
from estfx.graphs.printing import graph_text
from estfx.passes import specialisation
from estfx.passes.find_separate_heads import FindSeparateHeads
from estfx.programs.program import numbers_at_work


def found(attention: nn.Module) -> tuple[tags.Branches, ...]:
    gm = graph_of(PreNorm(attention))
    FindSeparateHeads().run(gm)
    return tags.get(gm, tags.SeparateHeads).found


def roles(attention: nn.Module) -> dict[str, int]:
    return {role.name: role.axis.size for role in tags.get(analysed(PreNorm(attention)), tags.Roles).found}


class Shared(OneHead):
    """All heads have the matrix of the first one's keys, as multi-query attention does."""


def shared_keys() -> HeadsInAList:
    attention = HeadsInAList()
    for head in attention.heads:
        head.key = attention.heads[0].key
    return attention


class Wider(OneHead):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2.0


def one_unlike() -> HeadsInAList:
    attention = HeadsInAList()
    attention.heads[2] = Wider()
    return attention


class Watched(HeadsInAList):
    """Something reads what lies within a head."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        each = [head(x) for head in self.heads]
        return self.out(torch.cat(each, -1)) + each[0].mean(-1, keepdim=True)


class NoCore(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Linear(HIDDEN, HEAD_DIM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.value(x).relu()


@pytest.mark.parametrize("stacked", [False, True])
def test_branches_that_differ_in_their_weights_are_heads(stacked: bool) -> None:
    (branches,) = found(HeadsInAList(stacked))
    assert branches.join == ("stack" if stacked else "cat")
    assert len(branches.nodes) == HEADS
    assert len({len(nodes) for nodes in branches.nodes}) == 1
    assert not set(branches.nodes[0]) & set(branches.nodes[1])
    assert [len(each) for each in branches.weights] == [HEADS] * 4  # query, key, value and mask
    assert roles(HeadsInAList(stacked)) == {"heads": HEADS, "neurons": NEURONS}


def test_what_all_share_is_no_weight_of_theirs() -> None:
    (branches,) = found(shared_keys())
    assert len(branches.weights) == 3
    assert roles(shared_keys()) == {"heads": HEADS, "neurons": NEURONS}


@pytest.mark.parametrize("make", [one_unlike, Watched, lambda: HeadsInAList(head=NoCore)])
def test_other_branches_are_none(make: type[nn.Module]) -> None:
    assert found(make()) == ()
    assert "heads" not in roles(make())


def test_of_a_part_as_many_branches_run_as_heads_are_kept() -> None:
    gm = analysed(PreNorm(HeadsInAList()))
    (role,) = (role for role in tags.get(gm, tags.Roles).found if role.name == "heads")
    narrowed = run_passes(clone(gm), specialisation({role.axis: 2}))
    text = graph_text(narrowed)
    assert text.count("softmax") == 2 * graph_text(gm).count("softmax") // HEADS
    assert text.count("stack(") == 4
    indices = tags.get(narrowed, tags.Indices)
    paths = [path for path, *_ in indices.of_one_unit]
    assert len(paths) == 4 * HEADS
    work = numbers_at_work(narrowed)
    queries = [path for path in paths if "query" in path]
    assert sum(work[path] for path in queries) == 2 * HIDDEN * HEAD_DIM
    run_passes(gm, specialisation({role.axis: HEADS}))
    assert graph_text(gm).count("stack(") == 0
