"""Ways into a transformed model other than calling it in training mode, and what it says of them."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from hand_written import HIDDEN, Mlp
from tiny_decoders import build, tokens
from torch import nn

import estfx
from estfx.schedules import Schedule, Stage

STAGES = Schedule(stages=[Stage(start=0, heads=0.5, neurons=0.5, layers=0.5), Stage(start=10)])


def evolving(**changes: Any) -> Any:
    return estfx.transform(build("llama", num_hidden_layers=4, **changes), STAGES, compile=False)


def test_training_in_eval_mode_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    model = evolving().eval()
    with torch.no_grad():
        model.set_step(0)
        model(tokens())
    assert "eval mode" not in caplog.text
    for step in range(2):
        model.set_step(step)
        model(tokens(), labels=tokens()).loss.backward()
    told = [record for record in caplog.records if "in eval mode, in which the whole model runs" in record.message]
    assert len(told) == 1
    assert told[0].levelno == logging.WARNING
    assert "Call model.train()" in told[0].message


def test_a_layer_in_eval_mode_runs_whole_in_a_model_that_trains() -> None:
    model, twin = evolving(), build("llama", num_hidden_layers=4)
    twin.load_state_dict(model.state_dict())
    model.model.layers[1].eval()
    model.set_step(0)
    stream = torch.randn(2, 5, model.config.hidden_size)
    position = model.model.rotary_emb(stream, torch.arange(5)[None])
    for number in range(4):
        got = model.model.layers[number](stream, position_embeddings=position)
        want = twin.model.layers[number](stream, position_embeddings=position)
        assert torch.equal(got, want) == (number == 1)


@pytest.mark.parametrize("entry", ["backbone", "forward"])
def test_a_part_called_by_itself_trains_a_part(entry: str, caplog: pytest.LogCaptureFixture) -> None:
    model = evolving()
    model.set_step(0)
    want = model(tokens(), output_hidden_states=True)
    if entry == "backbone":
        got = model.model(tokens()).last_hidden_state
        assert torch.equal(got, want.hidden_states[-1])
    else:
        got = model.forward(tokens()).logits
        assert torch.equal(got, want.logits)
    got.sum().backward()
    assert "KV cache" not in caplog.text
    skipped = [name for name, runs in model.subnetwork.layers.items() if not runs]
    assert skipped
    assert all(p.grad is None for name in skipped for p in model.get_submodule(name).parameters())


def test_hidden_states_keep_their_length_and_meaning() -> None:
    model = evolving()
    whole = copy.deepcopy(estfx.restore(copy.deepcopy(model)))
    model.set_step(0)
    states = model(tokens(), output_hidden_states=True).hidden_states
    assert len(states) == len(whole(tokens(), output_hidden_states=True).hidden_states) == 5
    runs = list(model.subnetwork.layers.values())
    assert runs.count(False) == 2
    for number in range(3):  # what comes out of the last is normed
        assert torch.equal(states[number], states[number + 1]) == (not runs[number])
    model.set_step(10)
    for one, other in zip(
        model(tokens(), output_hidden_states=True).hidden_states,
        whole(tokens(), output_hidden_states=True).hidden_states,
        strict=True,
    ):
        assert torch.equal(one, other)


def test_a_module_in_eval_mode_inside_of_a_layer_is_told(caplog: pytest.LogCaptureFixture) -> None:
    model = evolving()
    model.model.layers[2].mlp.eval()
    for step in range(3):
        model.set_step(step)
    told = [record.message for record in caplog.records if "a module in it is in eval mode" in record.message]
    assert len(told) == 1
    assert told[0].startswith("layer `model.layers.2` is in training mode")


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = Mlp()

    def forward(self, x_BTD: torch.Tensor, scale: float) -> torch.Tensor:
        return x_BTD + self.mlp(x_BTD) * scale


class Annealed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Scaled() for _ in range(2))

    def forward(self, x_BTD: torch.Tensor, scale: float) -> torch.Tensor:
        for layer in self.layers:
            x_BTD = layer(x_BTD, scale)
        return x_BTD


@pytest.mark.sweep(day=0, days=2)
def test_a_number_that_is_another_at_every_call_is_told(caplog: pytest.LogCaptureFixture) -> None:
    model = estfx.transform(Annealed(), STAGES, example_inputs=(torch.randn(2, 5, HIDDEN), 1.0), compile=False)
    for step in range(8):
        model.set_step(step)
        model(torch.randn(2, 5, HIDDEN), 1.0 - step / 16)
    told = [record.message for record in caplog.records if "values of one argument" in record.message]
    assert len(told) == 1
    assert "Give a value that changes as a tensor" in told[0]


@pytest.mark.parametrize("name", ["llama_grouped", "gpt2"])
def test_documents_packed_by_position_ids_are_kept_apart_in_evaluation_too(name: str) -> None:
    ids = tokens()
    length = ids.shape[1]
    positions = torch.cat([torch.arange(5), torch.arange(length - 5)])[None].expand(len(ids), -1)
    model: Any = estfx.transform(build(name), Schedule(stages=[Stage(start=0)]), compile=False)
    model.set_step(0)
    trained = model(input_ids=ids, position_ids=positions).logits
    first = model(input_ids=ids[:, :5]).logits
    assert torch.allclose(trained[:, :5], first, atol=1e-5)
    model.eval()
    with torch.no_grad():
        assert torch.allclose(model(input_ids=ids, position_ids=positions).logits, trained, atol=1e-5)
        whole = model(input_ids=ids, position_ids=torch.arange(length)[None])
    assert whole.past_key_values is not None  # which one document has as before
    assert not torch.allclose(whole.logits, trained, atol=1e-3)
