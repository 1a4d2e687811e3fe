"""Mixers without attention: what goes through them side by side, and what stays whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hand_written import HIDDEN, NEURONS, Attention, Mlp, PreNorm, Stack, analysed, before, stream
from torch import nn
from torch.nn import functional as F

from estfx import Schedule, Stage, transform
from estfx.errors import VerifyError
from estfx.graphs import tags
from estfx.graphs.pipeline import run_passes
from estfx.graphs.printing import graph_text
from estfx.passes.find_channels import FindChannels

CHANNELS, STATES, RANK, HEADS, KEYS, VALUES = 24, 3, 2, 6, 5, 4


class Convolution(nn.Module):
    """A gated short convolution, each channel with its own filter."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(HIDDEN, 2 * CHANNELS, bias=False)
        self.filters = nn.Conv1d(CHANNELS, CHANNELS, 4, groups=CHANNELS, padding=3)
        self.out = nn.Linear(CHANNELS, HIDDEN, bias=False)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        x, gate = self.into(x_BTD).chunk(2, dim=-1)
        y = self.filters(x.transpose(1, 2))[..., : x_BTD.shape[1]].transpose(1, 2)
        return self.out(F.silu(y) * F.silu(gate))


class Selective(nn.Module):
    """A selective state space: step sizes and what goes in and out of the states are made from the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(HIDDEN, 2 * CHANNELS, bias=False)
        self.filters = nn.Conv1d(CHANNELS, CHANNELS, 4, groups=CHANNELS, padding=3)
        self.inner = nn.Linear(CHANNELS, RANK + 2 * STATES, bias=False)
        self.step = nn.Linear(RANK, CHANNELS)
        self.log_decay = nn.Parameter(torch.rand(CHANNELS, STATES))
        self.through = nn.Parameter(torch.ones(CHANNELS))
        self.out = nn.Linear(CHANNELS, HIDDEN, bias=False)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        x, gate = self.into(x_BTD).chunk(2, dim=-1)
        x = F.silu(self.filters(x.transpose(1, 2))[..., : x_BTD.shape[1]]).transpose(1, 2)
        step, b, c = self.inner(x).split([RANK, STATES, STATES], dim=-1)
        step = F.softplus(self.step(step))
        log_kept = -torch.exp(self.log_decay) * step[..., None]
        given = (step * x)[..., None] * b[:, :, None]
        kept = log_kept.cumsum(dim=1)
        states = torch.exp(kept) * (given * torch.exp(-kept)).cumsum(dim=1)
        y = (states @ c[..., None]).squeeze(-1) + x * self.through
        return self.out(y * F.silu(gate))


class LinearAttention(nn.Module):
    """Keys and values are summed up over the positions, with nothing like a softmax in between."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = (nn.Linear(HIDDEN, HEADS * KEYS, bias=False) for _ in range(2))
        self.v = nn.Linear(HIDDEN, HEADS * VALUES, bias=False)
        self.out = nn.Linear(HEADS * VALUES, HIDDEN, bias=False)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        q, k, v = (f(x_BTD).unflatten(-1, (HEADS, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.elu(q) @ (F.elu(k).transpose(-1, -2) @ v)
        return self.out(y.transpose(1, 2).flatten(-2))


class StepByStep(nn.Module):
    """A recurrence in a loop over the positions, which writes its states into memory made for them."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(HIDDEN, CHANNELS)
        self.decay = nn.Parameter(torch.rand(CHANNELS))
        self.out = nn.Linear(CHANNELS, HIDDEN)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        x = self.into(x_BTD)
        states, state = torch.zeros_like(x), torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            state = state * self.decay + x[:, t]
            states[:, t] = state
        return self.out(states.tanh())


MIXERS: dict[type[nn.Module], tuple[str, int]] = {
    Convolution: ("channels", CHANNELS),
    Selective: ("channels", CHANNELS),
    LinearAttention: ("channels", HEADS),
    StepByStep: ("channels", CHANNELS),
}


def roles_of(mixer: nn.Module) -> tags.Roles:
    return tags.get(run_passes(before(FindChannels, PreNorm(mixer)), [FindChannels()]), tags.Roles)


@pytest.mark.parametrize("mixer", [Selective, LinearAttention])
def test_golden(mixer: type[nn.Module], golden: Callable[[str, str], None]) -> None:
    gm = before(FindChannels, PreNorm(mixer()))
    run_passes(gm, [FindChannels()])
    golden(f"find_channels_{mixer.__name__.lower()}", graph_text(gm))


def test_it_leaves_the_graph_alone() -> None:
    gm = before(FindChannels, PreNorm(Selective()))
    code = str(gm.graph)
    assert FindChannels().run(gm) == 1
    assert str(gm.graph) == code


def test_attention_and_mlp_have_no_channels() -> None:
    gm = before(FindChannels, PreNorm())
    roles = tags.get(gm, tags.Roles)
    assert FindChannels().run(gm) == 0
    assert tags.get(gm, tags.Roles) == roles


def test_refusal_without_roles() -> None:
    gm = before(FindChannels, PreNorm())
    del gm.meta["Roles"]
    with pytest.raises(VerifyError, match="pass find-channels needs Roles, which no pass before it has put"):
        run_passes(gm, [FindChannels()])


@pytest.mark.parametrize("mixer", MIXERS)
def test_what_goes_through_a_mixer_side_by_side(mixer: type[nn.Module]) -> None:
    roles = roles_of(mixer())
    assert [(role.name, role.axis.size) for role in roles.found] == [MIXERS[mixer]]
    assert roles.found[0].fraction == "heads"
    assert roles.notes == ()


def test_head_sizes_stay_whole_and_are_no_neurons() -> None:
    gm = analysed(PreNorm(LinearAttention()))
    assert [(r.name, r.axis.size) for r in tags.get(gm, tags.Roles).found] == [
        ("channels", HEADS),
        ("neurons", NEURONS),
    ]


def test_a_sum_inside_of_the_mixer_is_noted() -> None:
    (role,) = roles_of(Selective()).found
    assert role.note.startswith("the sum over them at linear_1, inside of the mixer, is scaled too")


class Routed(nn.Module):
    """A mixture of experts: what is chosen comes from the stream, as do the neurons that it weighs."""

    def __init__(self, weigh_before: bool) -> None:
        super().__init__()
        self.weigh_before = weigh_before
        self.router = nn.Linear(HIDDEN, 4, bias=False)
        self.up = nn.Parameter(torch.randn(4, HIDDEN, NEURONS) * 0.1)
        self.down = nn.Parameter(torch.randn(4, NEURONS, HIDDEN) * 0.1)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        scores, chosen = self.router(x_BTD).softmax(-1).topk(2, dim=-1)
        weights = torch.zeros_like(self.router(x_BTD)).scatter(-1, chosen, scores)
        y = F.gelu(torch.einsum("btd,edn->bten", x_BTD, self.up))
        if self.weigh_before:
            return torch.einsum("bten,end->btd", y * weights[..., None], self.down)
        return torch.einsum("bte,bted->btd", weights, torch.einsum("bten,end->bted", y, self.down))


@pytest.mark.parametrize("weigh_before", [False, True])
def test_neurons_behind_a_router_are_neurons(weigh_before: bool) -> None:
    roles = tags.get(analysed(PreNorm(mlp=Routed(weigh_before))), tags.Roles)
    assert [(role.name, role.axis.size) for role in roles.found] == [("heads", 5), ("neurons", NEURONS)]


class Shifted(Mlp):
    """Each position's neurons see those of the one before it."""

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        y = self.up(x_BTD)
        return self.down(F.gelu(y) * F.pad(y, (0, 0, 1, 0))[:, :-1].sigmoid())


def test_an_mlp_that_mixes_positions_has_channels() -> None:
    roles = roles_of(Shifted())
    assert [(role.name, role.axis.size) for role in roles.found] == [("channels", NEURONS)]


class Spatial(Mlp):
    """Positions are weighed against each other by a learned matrix, as in gMLP."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(64, 64) * 0.1)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        length = x_BTD.shape[1]
        y = self.up(x_BTD)
        return self.down(F.gelu(y) * (self.positions.tril()[:length, :length] @ y))


def test_an_mlp_that_mixes_positions_by_a_matrix_keeps_its_neurons() -> None:
    """A sum of weights and one value from the stream is what any projection is: the neurons keep their name."""
    roles = tags.get(analysed(PreNorm(mlp=Spatial())), tags.Roles)
    assert [(role.name, role.axis.size) for role in roles.found] == [("heads", 5), ("neurons", NEURONS)]


class Ordered(Convolution):
    """Channels are turned round between the two matrices."""

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        x, gate = self.into(x_BTD).chunk(2, dim=-1)
        y = self.filters(x.transpose(1, 2))[..., : x_BTD.shape[1]].transpose(1, 2)
        return self.out(y.sort(dim=-1)[0] * gate)


def test_refusal_names_the_obstacle() -> None:
    roles = roles_of(Ordered())
    assert roles.found == ()
    (note,) = roles.notes
    assert note.startswith(f"the channels that close at linear_1 stay whole ({CHANNELS}: sorted at sort = sort.")


class TwoOuts(Convolution):
    """The channels are summed up by two matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(CHANNELS, HIDDEN, bias=False)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        x, gate = self.into(x_BTD).chunk(2, dim=-1)
        y = self.filters(x.transpose(1, 2))[..., : x_BTD.shape[1]].transpose(1, 2) * gate
        return self.out(y) + self.second(y)


def test_channels_that_close_twice_have_one_role() -> None:
    roles = roles_of(TwoOuts())
    assert [(role.name, role.axis.size) for role in roles.found] == [("channels", CHANNELS)]


class TwoFilters(nn.Module):
    """Two convolutions of different widths, which end in one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.ModuleList(nn.Linear(HIDDEN, size) for size in (CHANNELS, 16))
        self.filters = nn.ModuleList(nn.Conv1d(size, size, 4, groups=size, padding=3) for size in (CHANNELS, 16))
        self.out = nn.Linear(CHANNELS + 16, HIDDEN)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        both = zip(self.into, self.filters, strict=True)
        each = [filters(into(x_BTD).mT)[..., : x_BTD.shape[1]].mT for into, filters in both]
        return self.out(torch.cat(each, -1).relu())


def test_each_part_of_a_sum_has_channels_of_its_own() -> None:
    roles = roles_of(TwoFilters())
    assert [(r.name, r.axis.size) for r in roles.found] == [("channels", CHANNELS), ("channels_2", 16)]


class ByThemselves(Convolution):
    """Positions are weighed by products of their channels: fewer of those would weigh them otherwise."""

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        x, gate = self.into(x_BTD).chunk(2, dim=-1)
        return self.out(((x @ x.mT).tanh() @ x) * gate)


def test_channels_over_which_positions_are_weighed_stay_whole() -> None:
    roles = roles_of(ByThemselves())
    assert roles.found == ()
    (note,) = roles.notes
    assert note.startswith(
        f"the channels that close at linear_1 stay whole ({CHANNELS}: a contraction that sums over it"
    )


class OfTheStream(nn.Module):
    """The stream itself is summed up in order: its width is no channels."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.out(x_BTD.cumsum(1))


def test_the_width_of_the_stream_is_no_channels() -> None:
    roles = roles_of(OfTheStream())
    assert (roles.found, roles.cores, roles.notes) == ((), (), ())


def test_channels_beside_heads() -> None:
    class Hybrid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.convolution = Attention(), Convolution()

        def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
            return self.attention(x_BTD) + self.convolution(x_BTD)

    roles = roles_of(Hybrid())
    assert [(role.name, role.axis.size) for role in roles.found] == [("heads", 5), ("channels", CHANNELS)]


@pytest.mark.parametrize("mixer", [*MIXERS, Shifted, Spatial])
def test_a_narrowed_mixer_is_the_whole_one_masked(mixer: type[nn.Module]) -> None:
    """`verify` compares, in float64, with the whole layer masked where a contraction sums over what was dropped."""
    layer = PreNorm(mlp=mixer()) if issubclass(mixer, Mlp) else PreNorm(mixer())
    schedule = Schedule(stages=[Stage(start=0, heads=0.5, neurons=0.5), Stage(start=1)])
    model = transform(Stack(layer), schedule, example_inputs=(stream(),), compile=False)
    (report,) = model.report.layers
    name = MIXERS[mixer][0] if mixer in MIXERS else "channels" if mixer is Shifted else "neurons"
    assert {name, "neurons" if mixer in MIXERS else "heads"} == {axis.role for axis in report.axes}
    assert not [note for note in report.notes if "verif" in note]
