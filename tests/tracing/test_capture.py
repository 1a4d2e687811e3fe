from __future__ import annotations

from typing import Any

import pytest
import torch
from hand_written import HIDDEN, VOCABULARY, Decoder, PreNorm, Stack, stream
from tiny_decoders import build
from torch import nn

from estfx.errors import TraceError, UnsupportedModelError
from estfx.tracing.capture import SEQUENCE, call_arguments, capture_layers, default_inputs

IDS = (torch.randint(VOCABULARY, (3, 17)),)


def names(model: nn.Module, example_inputs: object = None) -> list[str]:
    return [call.name for call in capture_layers(model, example_inputs)]


# -- what is a layer -----------------------------------------------------------------------------------------------


def test_layers_are_found_by_their_calls() -> None:
    assert names(Decoder(PreNorm(), PreNorm()), IDS) == ["layers.0", "layers.1"]
    assert names(build("gpt2")) == ["transformer.h.0", "transformer.h.1", "transformer.h.2"]


def test_layers_come_in_the_order_of_their_calls() -> None:
    class Backwards(Stack):
        def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
            x_BTD = self.layers[2](x_BTD)
            return self.layers[0](x_BTD)

    assert names(Backwards(PreNorm(), PreNorm(), PreNorm()), stream()) == ["layers.2", "layers.0"]


class Experts(nn.Module):
    """Its experts, too, map the stream to its own shape and stand in a ModuleList."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN) for _ in range(3))

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD + sum(expert(x_BTD) for expert in self.experts)  # type: ignore[no-any-return]


def test_only_the_outermost_are_layers() -> None:
    assert names(Stack(Experts(), Experts()), stream()) == ["layers.0", "layers.1"]


def test_what_changes_the_shape_is_no_layer() -> None:
    with pytest.raises(UnsupportedModelError):
        names(Stack(nn.Linear(HIDDEN, 24)), stream())


def test_each_call_of_a_layer_is_a_layer() -> None:
    class Again(Stack):
        def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
            return super().forward(super().forward(x_BTD))

    calls = capture_layers(Again(PreNorm(), PreNorm()), stream())
    assert [call.name for call in calls] == ["layers.0", "layers.1", "layers.0#2", "layers.1#2"]
    assert [call.path for call in calls] == ["layers.0", "layers.1"] * 2
    assert calls[0].module is calls[2].module


class Wrapped(nn.Module):
    """A layer that takes and gives more than the stream, which is neither the first argument nor the first result."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, positions: torch.Tensor, *, x: torch.Tensor, scale: float) -> dict[str, Any]:
        return {"number": 7, "stream": x + self.f(x) * scale, "weights": x.mean(-1)}


class Around(Stack):
    reads = False

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            result = layer(torch.arange(17), x=x_BTD, scale=0.5)
            x_BTD = result["stream"]
            if self.reads:
                x_BTD = x_BTD * result["weights"].sum()
        return x_BTD


def test_how_a_layer_is_called_is_recorded() -> None:
    (call,) = capture_layers(Around(Wrapped()), stream())
    assert call.stream_leaf == 1  # behind the positions
    assert isinstance(call.outputs[0], int)
    assert call.stream_output == 1
    assert call.alive == set()
    assert call.kwargs["scale"] == 0.5


@pytest.mark.parametrize("layers", [1, 2])
def test_what_is_read_of_a_layer_beside_the_stream_is_noticed(layers: int) -> None:
    model = Around(*(Wrapped() for _ in range(layers)))
    model.reads = True
    assert [call.alive for call in capture_layers(model, stream())] == [{2}] * layers


def test_what_is_read_by_keyword_is_noticed() -> None:
    class ByKeyword(Around):
        def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
            result = self.layers[0](torch.arange(17), x=x_BTD, scale=0.5)
            return result["stream"] * torch.sum(input=result["weights"])

    (call,) = capture_layers(ByKeyword(Wrapped()), stream())
    assert call.alive == {2}


def test_what_the_model_returns_of_a_layer_is_noticed() -> None:
    class Returns(Around):
        def forward(self, x_BTD: torch.Tensor) -> Any:
            result = self.layers[0](torch.arange(17), x=x_BTD, scale=0.5)
            return result["stream"], {"weights": [result["weights"]]}

    (call,) = capture_layers(Returns(Wrapped()), stream())
    assert call.alive == {2}


# -- what is refused -----------------------------------------------------------------------------------------------


def test_refusal_of_a_model_without_lists() -> None:
    model = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN))
    message = (
        "no layers found in `Sequential`: it has no nn.ModuleList that holds modules that map a residual stream to its "
        "own shape, and no other siblings of it do so in a chain. Put the layers into an nn.ModuleList and let each "
        'take the stream and return it, or name them with layers="blocks.*". No modules of it look like layers: none '
        "are siblings of one class with two matrices each."
    )
    with pytest.raises(UnsupportedModelError) as error:
        capture_layers(model, stream())
    assert str(error.value) == message


def test_refusal_of_a_model_whose_lists_hold_something_else() -> None:
    with pytest.raises(UnsupportedModelError, match=r"none of its ModuleLists \(layers\) holds modules that map"):
        capture_layers(Stack(nn.Linear(HIDDEN, 24)), stream())


def test_refusal_of_a_model_without_config_and_inputs() -> None:
    with pytest.raises(TraceError) as error:
        capture_layers(Decoder(PreNorm()))
    assert str(error.value) == (
        "`Decoder` has no `config.vocab_size` to make example token ids from. "
        "Pass example_inputs: a dict of keyword arguments or a tuple of arguments of its forward. A factory on the "
        "command line returns them with the model: (model, example_inputs)."
    )


def test_refusal_of_example_inputs_of_another_type() -> None:
    with pytest.raises(TraceError, match=r"example_inputs has the type int; pass a dict, a tuple or a tensor\."):
        capture_layers(Decoder(PreNorm()), 5)


def test_refusal_of_inputs_that_the_model_does_not_run_on() -> None:
    model = Decoder(PreNorm())
    with pytest.raises(TraceError, match="`Decoder` does not run on the example inputs: ") as error:
        capture_layers(model, (torch.randn(3, 17),))
    assert error.value.__cause__ is not None
    assert error.value.__cause__.__notes__ == ["while `Decoder` ran on the example inputs of estfx, in training mode"]
    assert type(model.layers[0]) is PreNorm
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# -- example inputs ------------------------------------------------------------------------------------------------


def test_arguments_may_be_given_in_any_form() -> None:
    x = stream()
    assert call_arguments(nn.Identity(), x) == ((x,), {})
    assert call_arguments(nn.Identity(), (x, 1)) == ((x, 1), {})
    assert call_arguments(nn.Identity(), [x]) == ((x,), {})
    assert call_arguments(nn.Identity(), {"x": x}) == ((), {"x": x})


def test_default_inputs_fit_the_model() -> None:
    model = build("gpt2", n_positions=11)
    tokens = default_inputs(model)["input_ids"]
    assert tokens.shape == (3, 11)
    assert tokens.max() < model.config.vocab_size
    assert torch.equal(tokens, default_inputs(model)["input_ids"])
    assert default_inputs(build("gpt2"))["input_ids"].shape == (3, SEQUENCE)


def test_the_cache_is_off() -> None:
    for call in capture_layers(build("llama_grouped")):
        assert call.kwargs.get("past_key_values") is None
        assert not call.kwargs.get("use_cache")


def test_a_cache_that_was_asked_for_stays() -> None:
    model = build("llama_grouped")
    inputs = {**default_inputs(model), "use_cache": True}
    assert all(call.kwargs["past_key_values"] is not None for call in capture_layers(model, inputs))


# -- what stays as it was ------------------------------------------------------------------------------------------


class Counting(PreNorm):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.dropout = nn.Dropout(0.5)
        self.batch_norm = nn.BatchNorm1d(HIDDEN)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        x_BTD = self.batch_norm(x_BTD.transpose(1, 2)).transpose(1, 2)
        return super().forward(x_BTD + self.dropout(x_BTD) * torch.rand(()))


def test_buffers_random_state_and_flags_stay() -> None:
    model = Decoder(Counting(), Counting())
    model.layers[0].eval()
    model.layers[1].dropout.eval()
    flags = {name: module.training for name, module in model.named_modules()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    state = torch.get_rng_state()
    capture_layers(model, IDS)
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: module.training for name, module in model.named_modules()} == flags
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert all(p.grad is None for p in model.parameters())


def test_classes_and_hooks_stay() -> None:
    model = build("opt")
    classes = {name: type(module) for name, module in model.named_modules()}
    capture_layers(model)
    assert {name: type(module) for name, module in model.named_modules()} == classes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_model_in_eval_mode_is_seen_in_training_mode() -> None:
    seen = []

    class Looking(PreNorm):
        def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
            seen.append(self.training)
            return super().forward(x_BTD)

    model = Decoder(Looking()).eval()
    capture_layers(model, IDS)
    assert seen == [True]
    assert not any(module.training for module in model.modules())


def test_the_models_own_inputs_stay() -> None:
    class Writing(Stack):
        def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            return super().forward(inputs["x"])

    inputs = ({"x": stream()},)
    capture_layers(Writing(PreNorm()), inputs)
    assert torch.equal(inputs[0]["x"], stream())
