from collections.abc import Callable

import pytest
import torch
from hand_written import HIDDEN, NEURONS, GatedMlp, Mlp, PreNorm, before
from torch import nn

from estfx.errors import VerifyError
from estfx.graphs import tags
from estfx.graphs.pipeline import run_passes
from estfx.graphs.printing import graph_text
from estfx.passes.find_mlp import FindMlp


@pytest.mark.parametrize("mlp", [Mlp, GatedMlp])
def test_golden(mlp: type[nn.Module], golden: Callable[[str, str], None]) -> None:
    gm = before(FindMlp, PreNorm(mlp=mlp()))
    run_passes(gm, [FindMlp()])
    golden(f"find_{mlp.__name__.lower()}", graph_text(gm))


def test_it_leaves_the_graph_alone() -> None:
    gm = before(FindMlp, PreNorm())
    code = str(gm.graph)
    assert FindMlp().run(gm) == 1
    assert str(gm.graph) == code


def test_it_keeps_what_find_attention_has_found() -> None:
    gm = before(FindMlp, PreNorm())
    heads = tags.get(gm, tags.Roles)
    roles = tags.get(run_passes(gm, [FindMlp()]), tags.Roles)
    assert roles.found[:-1] == heads.found
    assert roles.cores == heads.cores
    assert (roles.found[-1].name, roles.found[-1].axis.size) == ("neurons", NEURONS)


def test_refusal_without_roles() -> None:
    gm = before(FindMlp, PreNorm())
    del gm.meta["Roles"]
    with pytest.raises(VerifyError, match="pass find-mlp needs Roles, which no pass before it has put"):
        run_passes(gm, [FindMlp()])


class Sorted(Mlp):
    """Which neuron is which is lost between the two matrices."""

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x_BTD).sort(dim=-1)[0])


class Normed(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(NEURONS)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.down(self.norm(self.up(x_BTD)).relu())


class Twice(Mlp):
    """Two hidden widths in a row: only the second lies before the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(HIDDEN, 24)
        self.up = nn.Linear(24, NEURONS)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(self.first(x_BTD).relu()).relu())


class Double(nn.Module):
    """Two MLPs of different widths beside each other."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Mlp(), Mlp()
        self.two.up, self.two.down = nn.Linear(HIDDEN, 24), nn.Linear(24, HIDDEN)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.one(x_BTD) + self.two(x_BTD)


def roles_of(mlp: nn.Module) -> tags.Roles:
    return tags.get(run_passes(before(FindMlp, PreNorm(mlp=mlp)), [FindMlp()]), tags.Roles)


def test_refusal_names_the_obstacle() -> None:
    roles = roles_of(Sorted())
    assert [role.name for role in roles.found] == ["heads"]
    (note,) = roles.notes
    reason = f"a dimension of {NEURONS} that closes into the stream stays whole: sorted at sort = "
    assert note.startswith(reason)


def test_a_norm_over_the_neurons_is_noted() -> None:
    role = roles_of(Normed()).found[-1]
    assert (role.name, role.axis.size) == ("neurons", NEURONS)
    assert role.note == "a statistic at layer_norm_2 is taken over the kept part"


def test_two_norms_over_the_neurons_are_noted() -> None:
    class TwiceNormed(Normed):
        def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
            return self.down(self.norm(self.norm(self.up(x_BTD)).relu()))

    assert (
        roles_of(TwiceNormed()).found[-1].note
        == "a statistic at layer_norm_2, layer_norm_3 is taken over the kept part"
    )


def test_a_width_that_does_not_lead_into_the_stream_stays_whole() -> None:
    roles = roles_of(Twice())
    assert [(r.name, r.axis.size) for r in roles.found] == [("heads", 5), ("neurons", NEURONS)]


class Scored(Mlp):
    """The neurons are summed up once more, to weigh what they give: half of them would weigh it otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(NEURONS, 3)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        y = self.up(x_BTD).relu()
        return self.down(y) * self.score(y).amax(-1, keepdim=True).sigmoid()


def test_neurons_that_are_also_summed_up_elsewhere_stay_whole() -> None:
    roles = roles_of(Scored())
    assert [role.name for role in roles.found] == ["heads"]
    (note,) = roles.notes
    assert note == (
        f"a dimension of {NEURONS} that closes into the stream stays whole: a contraction that sums over it does not "
        "lead back into the residual stream"
    )


def test_a_second_mlp_has_neurons_of_its_own() -> None:
    roles = roles_of(Double())
    assert [(r.name, r.axis.size) for r in roles.found[1:]] == [("neurons", NEURONS), ("neurons_2", 24)]
    assert [r.fraction for r in roles.found] == ["heads", "neurons", "neurons"]


def test_attention_alone_has_no_neurons() -> None:
    class AttentionAlone(PreNorm):
        def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
            return x_BTD + self.attention(self.norm_1(x_BTD))

    roles = tags.get(run_passes(before(FindMlp, AttentionAlone()), [FindMlp()]), tags.Roles)
    assert [role.name for role in roles.found] == ["heads"]
    assert roles.notes == ()


class Shuffled(Mlp):
    """A neuron of one half beside one of the other, as channels are shuffled."""

    def __init__(self, halves: int) -> None:
        super().__init__()
        self.halves = halves

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        y = self.up(x_BTD).unflatten(-1, (self.halves, -1))
        return self.down(y.transpose(-1, -2).flatten(-2).relu())


@pytest.mark.parametrize(("halves", "size"), [(2, 28), (28, 28), (8, 8)])
def test_of_the_factors_of_a_dimension_one_is_narrowed(halves: int, size: int) -> None:
    roles = tags.get(run_passes(before(FindMlp, PreNorm(mlp=Shuffled(halves))), [FindMlp()]), tags.Roles)
    assert [(role.name, role.axis.size) for role in roles.found if role.name != "heads"] == [("neurons", size)]
    other = NEURONS // size
    assert roles.notes == (
        f"a dimension of {other} that closes into the stream stays whole: it multiplies one of {size}, which is "
        "narrowed in its place",
    )


class TwoInOne(Mlp):
    """Two kinds of neurons side by side: one matrix sums over both, and each is an axis of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(HIDDEN, 20), nn.Linear(HIDDEN, NEURONS - 20)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.down(torch.cat([self.first(x_BTD).relu(), self.second(x_BTD).sigmoid()], -1))


def test_parts_of_a_sum_are_narrowed_each() -> None:
    roles = tags.get(run_passes(before(FindMlp, PreNorm(mlp=TwoInOne())), [FindMlp()]), tags.Roles)
    assert sorted(role.axis.size for role in roles.found if role.name != "heads") == [20, NEURONS - 20]
    assert roles.notes == ()
