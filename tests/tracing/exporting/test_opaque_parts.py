"""A submodule that no graph can hold is one node; what is around it is narrowed, and the layer can be skipped."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from hand_written import HIDDEN, Attention, Chain, Decoder, Mlp, PreNorm, stream
from torch import nn
from torch.nn import functional as F

import estfx
from estfx.dumping import GraphRecord, graph_module, graph_record
from estfx.programs import compilation
from estfx.schedules import Schedule, Stage

EXPERTS, NEURONS = 4, 24
HALF = Schedule(stages=[Stage(start=0, heads=0.4, layers=0.75), Stage(start=10)])
WHOLE = Schedule(stages=[Stage(start=0)])


class HitExperts(nn.Module):
    """Loops over the experts that some token chose."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(EXPERTS, NEURONS, HIDDEN) * 0.1)
        self.down = nn.Parameter(torch.randn(EXPERTS, HIDDEN, NEURONS) * 0.1)
        self.calls = None

    def forward(self, x_ND: torch.Tensor, chosen_NK: torch.Tensor, weights_NK: torch.Tensor) -> torch.Tensor:
        result_ND = torch.zeros_like(x_ND)
        hit = F.one_hot(chosen_NK, EXPERTS).sum((0, 1)).nonzero()
        for expert in hit:
            number = int(expert)
            token, place = torch.where(chosen_NK == number)
            hidden = F.gelu(x_ND[token] @ self.up[number].T) @ self.down[number].T
            result_ND.index_add_(0, token, hidden * weights_NK[token, place, None])
        return result_ND


class Mixture(nn.Module):
    """A router, experts, and a part that every token takes."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(HIDDEN, EXPERTS)
        self.experts = HitExperts()
        self.shared = Mlp()

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        x_ND = x_BTD.flatten(0, 1)
        weights, chosen = self.router(x_ND).softmax(-1).topk(2)
        return self.experts(x_ND.clone(), chosen, weights).view_as(x_BTD) + self.shared(x_BTD)


class Branching(nn.Module):
    """Looks at its numbers before it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(HIDDEN, HIDDEN) * 0.1)

    def forward(self, x_1ND: torch.Tensor) -> torch.Tensor:
        return x_1ND @ self.weight if bool((x_1ND.abs() < 1e9).all()) else x_1ND


class Scattered(nn.Module):
    """Each expert gets the tokens that chose it, as many as there are."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(HIDDEN, 2)
        self.experts = nn.ModuleList(Branching() for _ in range(2))

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        x_ND = x_BTD.flatten(0, 1)
        chosen_N, result_ND = self.router(x_ND).argmax(-1), torch.zeros_like(x_ND)
        for number, expert in enumerate(self.experts):
            (token,) = torch.where(chosen_N == number)
            result_ND = result_ND.index_add(0, token, expert(x_ND[None, token])[0])
        return result_ND.view_as(x_BTD)


class Counted(nn.Module):
    """How many experts are hit leaves the module: its result has a size that only its data say."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(HIDDEN, EXPERTS)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.router(x_BTD).argmax(-1).unique()


class Scaled(Mixture):
    def __init__(self) -> None:
        super().__init__()
        self.counted = Counted()

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return super().forward(x_BTD) * float(self.counted(x_BTD).numel())


class Remembers(HitExperts):
    def forward(self, x_ND: torch.Tensor, chosen_NK: torch.Tensor, weights_NK: torch.Tensor) -> torch.Tensor:
        self.calls = (self.calls or 0) + 1
        return super().forward(x_ND, chosen_NK, weights_NK)


class InPlace(HitExperts):
    def forward(self, x_ND: torch.Tensor, chosen_NK: torch.Tensor, weights_NK: torch.Tensor) -> torch.Tensor:
        x_ND += super().forward(x_ND, chosen_NK, weights_NK)
        return x_ND


def chain(mixture: type[Mixture] = Mixture, experts: type[HitExperts] = HitExperts) -> Chain:
    torch.manual_seed(0)
    layers = [PreNorm(Attention(), mixture()) for _ in range(4)]
    for layer in layers:
        layer.mlp.experts = experts()  # type: ignore[union-attr]
    return Chain(*layers)


def gradients(model: nn.Module, x: torch.Tensor) -> dict[str, Any]:
    model.zero_grad()
    loss = model(x)
    loss.backward()
    return {"": loss.detach(), **{name: p.grad for name, p in model.named_parameters()}}


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(torch.equal(one[n], other[n]) if one[n] is not None else other[n] is None for n in one | other)


def test_the_loop_is_one_node_and_all_around_it_is_narrowed() -> None:
    report = estfx.inspect(chain(), (stream(),))
    for layer in report.layers:
        assert layer.droppable
        assert {axis.role: axis.size for axis in layer.axes} == {"heads": 5, "neurons": 56}
        (note,) = (note for note in layer.notes if "runs as it is" in note)
        assert note.startswith("`mlp.experts` (HitExperts) runs as it is, always whole: torch.export fails at ")
        assert "for expert in hit" in note


@pytest.mark.parametrize("batch", [(3, 17), (2, 5)])
def test_with_everything_kept_it_is_the_model_at_any_length(batch: tuple[int, int]) -> None:
    plain = chain()
    model = estfx.transform(copy.deepcopy(plain), WHOLE, example_inputs=(stream(),), compile=False)
    model.set_step(0)
    x = torch.randn(*batch, HIDDEN)
    assert alike(gradients(plain, x), gradients(model, x))
    variants = {id(v) for kind in model._runtime.layers.kinds.values() for v in kind.all_variants()}
    assert len(variants) == 1  # no size in it is fixed


def test_a_part_is_the_model_with_the_other_heads_masked() -> None:
    plain = chain()
    model = estfx.transform(copy.deepcopy(plain), HALF, example_inputs=(stream(),), compile=False)
    model.set_step(0)
    drawn = model.subnetwork
    x = torch.randn(2, 9, HIDDEN)
    got = gradients(model, x)
    for name, layer in plain.named_children():
        assert name == "layers"
        for index, each in enumerate(layer):
            units = drawn.units.get(f"layers.{index}")
            if units is None:
                each.forward = lambda x_BTD: x_BTD
                continue
            heads = torch.zeros(5).index_fill(0, torch.as_tensor(units["heads"]), 5 / len(units["heads"]))
            mask = heads.repeat_interleave(8)
            each.attention.out.register_forward_pre_hook(lambda _, given, mask=mask: (given[0] * mask,))
            neurons = torch.zeros(56).index_fill(0, torch.as_tensor(units.get("neurons", range(56))), 1.0)
            each.mlp.shared.down.register_forward_pre_hook(lambda _, given, mask=neurons: (given[0] * mask,))
    want = gradients(plain, x)
    torch.testing.assert_close(got[""], want[""])
    torch.testing.assert_close(got["layers.0.mlp.experts.up"], want["layers.0.mlp.experts.up"])
    torch.testing.assert_close(got["layers.0.attention.out.weight"], want["layers.0.attention.out.weight"])


@pytest.mark.sweep(day=0, days=2)
def test_it_runs_within_a_compiled_program(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    plain = chain()
    model = estfx.transform(copy.deepcopy(plain), WHOLE, example_inputs=(stream(),), compile_outside=False)
    model.set_step(0)
    x = stream()
    with caplog.at_level(logging.WARNING):
        got, want = gradients(model, x), gradients(plain, x)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, msg=name)


class Nothing(HitExperts):
    def forward(self, x_ND: torch.Tensor, chosen_NK: torch.Tensor, weights_NK: torch.Tensor) -> torch.Tensor:
        return x_ND * weights_NK.sum(-1, keepdim=True)


@pytest.mark.parametrize("batch", [3, 6])
def test_its_cost_is_counted_in_proportion_to_the_tokens(batch: int) -> None:
    def flops(experts: type[HitExperts]) -> float:
        model = Decoder(*chain(experts=experts).layers)
        ids = torch.arange(51).view(3, 17)
        whole = Schedule(stages=[Stage(start=0)], total_steps=1)
        return estfx.plan(model, whole, batch_size=batch, seq_len=17, example_inputs=(ids,)).whole.flops_layers

    rows = batch * 17 * 2  # each token goes through two experts, of two matrices each
    assert flops(HitExperts) - flops(Nothing) == 4 * 3 * rows * 2 * (2 * HIDDEN * NEURONS)


@pytest.mark.parametrize(
    ("mixture", "experts", "opaque"),
    [(Mixture, InPlace, "mlp"), (Scaled, HitExperts, "mlp")],
    ids=["writes into its input", "gives a size that its data say"],
)
def test_what_cannot_be_a_node_makes_its_parent_one(
    mixture: type[Mixture], experts: type[HitExperts], opaque: str
) -> None:
    plain = chain(mixture, experts)
    model = estfx.transform(copy.deepcopy(plain), WHOLE, example_inputs=(stream(),), compile=False)
    (note,) = {note for layer in model.report.layers for note in layer.notes if "runs as it is" in note}
    assert note.startswith(f"`{opaque}` ({mixture.__name__}) runs as it is")
    model.set_step(0)
    assert alike(gradients(plain, stream()), gradients(model, stream()))


def test_a_part_that_keeps_something_leaves_the_layer_whole() -> None:
    model = estfx.transform(
        Chain(*chain(experts=Remembers).layers, PreNorm()), WHOLE, example_inputs=(stream(),), compile=False
    )
    *others, last = model.report.layers
    assert last.axes
    for layer in others:
        assert not layer.axes
        assert "calls" in layer.notes[0]


@pytest.mark.sweep(day=1, days=2)
def test_a_written_graph_can_be_read_and_says_what_it_lacks() -> None:
    (graph,) = estfx.trace(chain(), (stream(),)).programs.values()
    again = graph_module(GraphRecord.model_validate_json(graph_record(graph).model_dump_json()), "Block")
    shapes = [node.meta["val"].shape for node in graph.graph.nodes if node.op == "placeholder"]
    with pytest.raises(estfx.EstfxError, match=r"runs `mlp.experts` \(HitExperts\), a part of the model itself"):
        again(*(torch.zeros([int(size) for size in shape]) for shape in shapes))
    with pytest.raises(estfx.EstfxError, match=r"calls `mlp.experts` \(HitExperts\).*use --format text"):
        estfx.dump(Decoder(*chain().layers), HALF, 0, format="code", example_inputs=(torch.arange(51).view(3, 17),))


def test_how_many_tokens_an_expert_gets_may_change() -> None:
    torch.manual_seed(0)
    plain = Chain(*(PreNorm(Attention(), Scattered()) for _ in range(2)))
    model = estfx.transform(copy.deepcopy(plain), WHOLE, example_inputs=(stream(),), compile=False)
    assert all(any("`mlp.experts.0` (Branching) runs as it is" in n for n in x.notes) for x in model.report.layers)
    model.set_step(0)
    for _ in range(3):
        x = torch.randn(2, 9, HIDDEN)
        assert torch.equal(model(x), plain(x))
