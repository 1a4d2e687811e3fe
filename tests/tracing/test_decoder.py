from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hand_written import (
    HIDDEN,
    VOCABULARY,
    Decoder,
    GatedMlp,
    GroupedAttention,
    Mirrored,
    NormedStream,
    PreNorm,
    Stack,
    stream,
)
from shallow_decoders import layer_graph, shallow, traced
from tiny_decoders import DECODERS, build, tokens
from torch import nn
from torch.fx import GraphModule

from estfx import trace
from estfx.errors import TraceError, UnsupportedModelError
from estfx.graphs import tags
from estfx.programs.program import resolve
from estfx.tracing.call_signature import flatten
from estfx.tracing.capture import default_inputs
from estfx.tracing.decoder import Decoder as TracedDecoder
from estfx.tracing.exporting.export_layer import UNROLLED

IDS = (torch.randint(VOCABULARY, (3, 17)),)


# -- kinds ---------------------------------------------------------------------------------------------------------


def kinds(model: nn.Module, example_inputs: object = None) -> list[str]:
    decoder = trace(model, example_inputs)
    assert set(decoder.layers.values()) == set(decoder.programs) == set(decoder.traced)
    return list(decoder.layers.values())


@pytest.mark.parametrize("name", ["gpt2", "llama_grouped"])
def test_batch_and_length_of_a_layer_are_left_open(name: str) -> None:
    (layer,) = trace(build(name)).traced.values()
    assert layer.shapes[0][:2] == (None, None)


def test_a_loop_unrolled_over_positions_has_fixed_sizes() -> None:
    class Loop(PreNorm):
        def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
            state = x_BTD[:, 0]
            for _ in range(UNROLLED):
                state = torch.tanh(state)
            return super().forward(x_BTD + state[:, None])

    (layer,) = trace(Stack(Loop(), Loop()), (stream(),)).traced.values()
    assert layer.shapes == (tuple(stream().shape),)


def test_layers_that_compute_the_same_are_one_kind() -> None:
    assert kinds(Decoder(PreNorm(), PreNorm(), PreNorm()), IDS) == ["PreNorm"] * 3
    assert kinds(build("gpt2")) == ["GPT2Block"] * 3


def test_layers_of_different_classes_are_different_kinds() -> None:
    model = Decoder(PreNorm(), Mirrored(), PreNorm(), PreNorm(GroupedAttention()))
    assert kinds(model, IDS) == ["PreNorm", "Mirrored", "PreNorm", "PreNorm_2"]


def test_a_literal_that_depends_on_the_layer_makes_kinds() -> None:
    model = build("gpt2", scale_attn_by_inverse_layer_idx=True)
    assert kinds(model) == ["GPT2Block", "GPT2Block_2", "GPT2Block_3"]


def test_reading_other_weights_makes_kinds() -> None:
    class Choosing(PreNorm):
        """Holds a weight for each layer, of which it reads its own."""

        def __init__(self, weights: nn.ParameterList, number: int) -> None:
            super().__init__()
            self.weights = weights
            self.number = number

        def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
            return super().forward(x_BTD * self.weights[self.number])

    weights = nn.ParameterList(torch.randn(HIDDEN) for _ in range(3))
    model = Stack(*(Choosing(weights, number) for number in (0, 2, 0)))
    assert kinds(model, (stream(),)) == ["Choosing", "Choosing_2", "Choosing"]


def test_an_attribute_that_only_a_branch_reads_makes_kinds() -> None:
    class Branching(PreNorm):
        """Nothing can be noted in the branches, which torch.cond has compiled."""

        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
            x_BTD = torch.cond(x_BTD.sum() > 0, lambda x: x * self.factor, lambda x: x * 2, (x_BTD,))
            return super().forward(x_BTD)

    layers = (Branching(0.5), Branching(0.25), Branching(0.5))
    assert kinds(Stack(*layers), (stream(),)) == ["Branching", "Branching_2", "Branching"]


def test_an_attribute_that_changes_nothing_makes_no_kinds() -> None:
    class Numbered(PreNorm):
        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

        def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
            if self.number > 99:
                return x_BTD
            return super().forward(x_BTD)

    assert kinds(Stack(Numbered(0), Numbered(1)), stream()) == ["Numbered"] * 2


class Until(PreNorm):
    """Runs the same operators as its siblings on short sequences, others on longer ones than its own limit."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        x_BTD = super().forward(x_BTD)
        return x_BTD if x_BTD.shape[1] < self.limit else x_BTD * 2


def test_layers_that_ask_other_things_of_sizes_are_different_kinds() -> None:
    assert kinds(Stack(Until(40), Until(60), Until(40)), stream()) == ["Until", "Until_2", "Until"]


def test_an_attribute_that_is_a_factor_makes_kinds() -> None:
    class Scaled(PreNorm):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
            return x_BTD + self.factor * self.mlp(x_BTD)

    assert kinds(Stack(Scaled(0.5), Scaled(0.25), Scaled(0.5)), stream()) == ["Scaled", "Scaled_2", "Scaled"]


def test_a_constant_tensor_of_another_value_makes_kinds() -> None:
    class Weighted(PreNorm):
        def __init__(self, factors: list[float]) -> None:
            super().__init__()
            self.factors = factors

        def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
            return x_BTD + self.mlp(x_BTD) * torch.tensor(self.factors)

    layers = (Weighted([0.5]), Weighted([0.25]), Weighted([0.5]))
    assert kinds(Stack(*layers), stream()) == ["Weighted", "Weighted_2", "Weighted"]


def test_a_width_of_its_own_makes_a_kind() -> None:
    narrow = PreNorm(mlp=GatedMlp())
    narrow.mlp.gate, narrow.mlp.up, narrow.mlp.down = (
        nn.Linear(HIDDEN, 24, bias=False),
        nn.Linear(HIDDEN, 24, bias=False),
        nn.Linear(24, HIDDEN, bias=False),
    )
    assert kinds(Stack(PreNorm(mlp=GatedMlp()), narrow), stream()) == ["PreNorm", "PreNorm_2"]


def test_layer_types_with_the_same_graph_are_one_kind() -> None:
    """Gemma2 alternates sliding and full attention, which differ in the mask that they are given."""
    model = build("gemma2")
    assert len({layer.attention_type for layer in model.model.layers if hasattr(layer, "attention_type")}) != 1
    assert kinds(model) == ["Gemma2DecoderLayer"] * 3


# -- a layer's graph -----------------------------------------------------------------------------------------------


def by_hand(decoder: TracedDecoder, name: str) -> tuple[Any, Any]:
    """What a layer returns, and what its program does, on the arguments with which the model called it."""
    call = decoder.infos[name].call
    traced = decoder.traced[decoder.layers[name]]
    leaves, _ = flatten(call.args, call.kwargs)
    inputs = [leaves[i] for i in traced.input_leaves]
    weights = [resolve(call.module, path) for _, path in tags.get(traced.graph, tags.Interface).weights]
    values = traced.graph(*inputs, *weights)
    return call.module(*call.args, **call.kwargs), traced.pack(values, call.module, call.args, call.kwargs)


def same(one: Any, other: Any) -> bool:
    """Equal to the bit and in structure; what nothing outside reads may be missing."""
    if isinstance(one, torch.Tensor):
        return other is None or torch.equal(one, other)
    if isinstance(one, (tuple, list)):
        return type(one) is type(other) and all(same(x, y) for x, y in zip(one, other, strict=True))
    return bool(one == other)


@pytest.mark.parametrize("name", DECODERS)
def test_a_program_computed_by_hand_is_the_layer_to_the_bit(name: str) -> None:
    decoder = traced(name)
    (layer,) = decoder.layers
    want, got = by_hand(decoder, layer)
    assert same(want, got)
    assert isinstance(got[0] if isinstance(got, tuple) else got, torch.Tensor)


def test_each_layer_runs_the_program_with_its_own_weights() -> None:
    decoder = trace(Decoder(PreNorm(), PreNorm()), IDS)
    (first, got_first), (second, got_second) = (by_hand(decoder, name) for name in decoder.layers)
    assert torch.equal(first, got_first)
    assert torch.equal(second, got_second)
    assert not torch.equal(first, second)


def test_a_graph_takes_batches_and_lengths_of_any_size() -> None:
    model = Decoder(PreNorm(GroupedAttention(), GatedMlp()))
    traced = trace(model, IDS).traced["PreNorm"]
    assert traced.shapes[0] == (None, None, HIDDEN)
    weights = [resolve(model.layers[0], path) for _, path in tags.get(traced.graph, tags.Interface).weights]
    for batch, length in ((2, 5), (1, 1), (7, 64)):
        x = torch.randn(batch, length, HIDDEN)
        assert traced.accepts([x])
        assert torch.equal(traced.graph(x, *weights)[0], model.layers[0](x))
    assert not traced.accepts([torch.randn(2, 5, HIDDEN + 1)])


def test_each_size_and_each_guard_decides_alone() -> None:
    traced = trace(Decoder(PreNorm(GroupedAttention(), GatedMlp())), IDS).traced["PreNorm"]
    fixed = replace(traced, shapes=((None, 5, HIDDEN),), guards=())
    assert fixed.accepts([torch.randn(2, 5, HIDDEN)])
    assert not fixed.accepts([torch.randn(2, 6, HIDDEN)])
    asked = replace(traced, guards=('L["tensors"][0].size()[1] <= 5',))
    assert asked.accepts([torch.randn(2, 5, HIDDEN)])
    assert not asked.accepts([torch.randn(2, 6, HIDDEN)])
    twice = replace(traced, guards=('L["tensors"][0].size()[0] == 2', 'L["tensors"][0].size()[1] <= 5'))
    assert twice.accepts([torch.randn(2, 5, HIDDEN)])
    assert not twice.accepts([torch.randn(3, 5, HIDDEN)])
    assert not twice.accepts([torch.randn(2, 6, HIDDEN)])


def test_inputs_are_named_after_arguments_and_parameters() -> None:
    graph = layer_graph("llama_grouped")
    names = [n.name for n in graph.graph.nodes if n.op == "placeholder"]
    assert names[0] == "stream"
    assert "position_embeddings_0" in names
    assert "self_attn_q_proj_weight" in names
    interface = tags.get(graph, tags.Interface)
    assert ("self_attn_q_proj_weight", "self_attn.q_proj.weight") in interface.weights
    assert names == [interface.stream, *interface.sides, *(name for name, _ in interface.weights)]


class Beside(nn.Module):
    """Gives something beside the stream, made with a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.beside = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 3)

    def forward(self, x_BTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, str]:
        return x_BTD + self.f(x_BTD), self.beside(x_BTD), "text"


class ReadsBeside(Stack):
    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        total = 0
        for layer in self.layers:
            x_BTD, beside, _ = layer(x_BTD)
            total = total + beside.sum()
        return x_BTD * total


class DropsBeside(Stack):
    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x_BTD = layer(x_BTD)[0]
        return x_BTD


def test_what_is_read_beside_the_stream_is_given() -> None:
    decoder = trace(ReadsBeside(Beside(), Beside()), stream())
    traced = decoder.traced["Beside"]
    assert traced.outputs == (0, 1, None)
    assert traced.alive == {1}
    want, got = by_hand(decoder, "layers.0")
    assert same(want, got)
    assert got[1] is not None
    assert got[2] == "text"


def test_layers_of_which_other_outputs_are_read_are_different_kinds() -> None:
    class ReadsTheLast(Stack):
        def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x_BTD, beside, _ = layer(x_BTD)
            return x_BTD * beside.sum()

    decoder = trace(ReadsTheLast(Beside(), Beside()), stream())
    assert list(decoder.layers.values()) == ["Beside", "Beside_2"]
    assert [each.outputs for each in decoder.traced.values()] == [(0, None, None), (0, 1, None)]


def test_what_nothing_reads_is_not_computed() -> None:
    decoder = trace(DropsBeside(Beside(), Beside()), stream())
    traced = decoder.traced["Beside"]
    assert traced.outputs == (0, None, None)
    assert [path for _, path in tags.get(traced.graph, tags.Interface).weights] == ["f.weight", "f.bias"]
    want, got = by_hand(decoder, "layers.0")
    assert torch.equal(want[0], got[0])
    assert got[1:] == (None, "text")


def test_a_weight_that_nothing_needs_is_left_out() -> None:
    class Idle(PreNorm):
        def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
            self.attention.qkv(x_BTD)
            return x_BTD + self.mlp(x_BTD)

    traced = trace(Stack(Idle()), stream()).traced["Idle"]
    paths = [path for _, path in tags.get(traced.graph, tags.Interface).weights]
    assert paths == ["mlp.up.weight", "mlp.up.bias", "mlp.down.weight", "mlp.down.bias"]


def test_a_skipped_layer_returns_the_stream_in_its_own_structure() -> None:
    traced = trace(DropsBeside(Beside()), stream()).traced["Beside"]
    x = stream()
    passed = traced.give(x)
    assert passed[0] is x
    assert passed[1:] == (None, "text")

    class Second(Beside):
        def forward(self, x_BTD: torch.Tensor) -> tuple[str, torch.Tensor]:  # type: ignore[override]
            return "text", x_BTD + self.f(x_BTD)

    class TakesTheSecond(Stack):
        def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x_BTD = layer(x_BTD)[1]
            return x_BTD

    passed = trace(TakesTheSecond(Second()), stream()).traced["Second"].give(x)
    assert passed[0] == "text"
    assert passed[1] is x


def test_refusal_of_a_layer_that_cannot_be_exported() -> None:
    class DependsOnValues(PreNorm):
        def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
            return x_BTD + self.mlp(x_BTD) if x_BTD.sum() > 0 else x_BTD

    with pytest.raises(
        TraceError, match=r"layer `layers.0` \(DependsOnValues\) cannot be exported as a graph: "
    ) as error:
        trace(Stack(DependsOnValues()), stream())
    assert error.value.__cause__ is not None


def test_refusal_of_a_model_without_layers() -> None:
    with pytest.raises(UnsupportedModelError, match="no layers found in `Linear`"):
        trace(nn.Linear(HIDDEN, HIDDEN), stream())


# -- what stays as it was ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [True, False])
def test_the_model_stays_as_it_was(mode: bool) -> None:
    model = build("bloom").train(mode)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modules = {name: (type(module), set(module.__dict__), module.training) for name, module in model.named_modules()}
    parameters = {name: id(p) for name, p in model.named_parameters()}
    random = torch.get_rng_state()
    decoder = trace(model)
    assert decoder.outer is decoder.outer
    assert {name: id(p) for name, p in model.named_parameters()} == parameters
    assert {n: (type(m), set(m.__dict__), m.training) for n, m in model.named_modules()} == modules
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.state_dict().keys() == state.keys()
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_second_trace_gives_the_same() -> None:
    model = Decoder(PreNorm(), Mirrored())
    one, other = trace(model, IDS), trace(model, IDS)
    assert one.layers == other.layers
    assert [str(g.graph) for g in one.programs.values()] == [str(g.graph) for g in other.programs.values()]


# -- the outer graph -----------------------------------------------------------------------------------------------


def layer_calls(outer: GraphModule) -> list[str]:
    return [str(n.target) for n in outer.graph.nodes if n.op == "call_module"]


@pytest.mark.parametrize("name", ["gpt2", "llama_grouped", "bloom", "gptj", "gemma2"])
def test_the_outer_graph_calls_each_layer_and_is_the_model_to_the_bit(name: str) -> None:
    model = shallow(name, 2)
    decoder = trace(model)
    outer = decoder.outer
    assert layer_calls(outer) == list(decoder.layers)
    assert all(outer.get_submodule(layer) is model.get_submodule(layer) for layer in decoder.layers)
    inputs = {"input_ids": tokens(*default_inputs(model)["input_ids"].shape, seed=1)}  # other values, the same sizes
    assert torch.equal(outer(**inputs).logits, model(**inputs, use_cache=False).logits)


def test_the_outer_graph_heeds_a_mask_although_the_example_needed_none() -> None:
    """The capture saw layers called without a mask: nothing was padded."""
    model = shallow("llama_grouped", 2)
    ids = tokens(3, 17)
    outer = trace(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}).outer
    mask = torch.ones_like(ids)
    mask[1:, 12:] = 0
    want = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    assert torch.equal(outer(input_ids=ids, attention_mask=mask).logits, want)
    assert not torch.equal(outer(input_ids=ids, attention_mask=torch.ones_like(ids)).logits, want)


@pytest.mark.parametrize("layer", [PreNorm, NormedStream])
def test_the_outer_graph_of_a_decoder_written_by_hand(layer: type[nn.Module]) -> None:
    model = Decoder(layer(), layer())
    outer = trace(model, IDS).outer
    assert layer_calls(outer) == ["layers.0", "layers.1"]
    ids = torch.randint(VOCABULARY, (3, 17))
    assert torch.equal(outer(ids), model(ids))


def test_layers_that_give_more_than_the_stream_in_the_outer_graph() -> None:
    model = ReadsBeside(Beside(), Beside())
    outer = trace(model, stream()).outer
    assert torch.equal(outer(stream() * 2), model(stream() * 2))


def test_a_forward_that_stands_on_a_layer_itself_stays() -> None:
    """As accelerate's hooks put it there."""
    model = Decoder(PreNorm())
    layer = model.layers[0]
    layer.forward = own = lambda x_BTD: PreNorm.forward(layer, x_BTD)  # type: ignore[method-assign]
    assert layer_calls(trace(model, IDS).outer) == ["layers.0"]
    assert layer.__dict__["forward"] is own


def test_refusal_of_an_outer_part_that_cannot_be_exported() -> None:
    class Looks(Stack):
        def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
            return super().forward(x_BTD * (2.0 if x_BTD.sum() > 1e9 else 1.0))

    decoder = trace(Looks(PreNorm()), stream())
    message = "what lies around the layers of `Looks` cannot be exported as a graph: "
    with pytest.raises(TraceError, match=message):
        _ = decoder.outer
    assert "forward" not in decoder.model.layers[0].__dict__
