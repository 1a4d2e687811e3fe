"""A search stays within its target, finds what is better than the scores alone, and goes on where it was."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_decoders import build, tokens

import estfx
from estfx.searching.candidates import Candidate, Rates, Space

BATCHES = [{"input_ids": tokens(4, 16, seed=i)} for i in range(2)]
SMALL = {"population": 8, "kept": 3, "generations": 3, "levels": 4}


@pytest.fixture(scope="module")
def llama() -> Any:
    """Trained a little, so that its parts differ in what they are good for."""
    torch.manual_seed(0)
    model = build("llama_grouped", num_hidden_layers=4).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(30):
        model(**BATCHES[0], labels=BATCHES[0]["input_ids"], use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def loss_of(model: Any) -> float:
    with torch.no_grad():
        losses = [model(**batch, labels=batch["input_ids"], use_cache=False).loss for batch in BATCHES]
    return float(torch.stack(losses).mean())


@pytest.fixture(scope="module")
def found(llama: Any) -> Any:
    return estfx.search(llama, BATCHES, {"parameters": 0.7, "flops": 0.8}, **SMALL)


def test_what_is_found_is_within_the_target_and_no_worse_than_the_scores_alone(llama: Any, found: Any) -> None:
    assert found.shares["parameters"] <= 0.7
    assert found.shares["flops"] <= 0.8
    assert found.shares["parameters"] > 0.6  # the target is used
    assert found.loss <= found.first_loss
    assert [loss for _, loss in found.history] == sorted((loss for _, loss in found.history), reverse=True)
    assert found.history[0][0] == 8
    assert found.candidates == found.history[-1][0] > 24
    assert found.whole_loss == pytest.approx(loss_of(llama), rel=1e-6)


def test_the_cut_has_the_loss_and_the_parameters_that_the_search_says(llama: Any, found: Any) -> None:
    small = estfx.cut(llama, found.units, layers=found.layers)
    assert loss_of(small) == pytest.approx(found.loss, rel=1e-5)
    one, whole = (sum(p.numel() for p in model.model.layers.parameters()) for model in (small, llama))
    assert one / whole == pytest.approx(found.shares["parameters"], rel=1e-6)


def test_candidates_of_one_width_share_a_program(llama: Any, found: Any) -> None:
    """Far fewer programs than layers that ran; no more than there are pairs of widths."""
    assert found.programs <= 4 * 4
    assert found.programs < found.candidates * 3
    assert found.compilations == 0


def test_programs_are_compiled_once(llama: Any) -> None:
    torch._dynamo.reset()
    options = {**SMALL, "population": 4, "generations": 1, "levels": 2}
    found = estfx.search(llama, BATCHES, {"parameters": 0.7}, compile=True, **options)
    eager = estfx.search(llama, BATCHES, {"parameters": 0.7}, **options)
    assert 0 < found.compilations <= found.programs
    assert found.loss == pytest.approx(eager.loss, rel=1e-5)


def test_a_search_goes_on_where_it_was(llama: Any, found: Any, tmp_path: Path) -> None:
    class Stops(Exception):
        pass

    def stop(generation: int, loss: float) -> None:
        if generation == 1:
            raise Stops

    target, state = {"parameters": 0.7, "flops": 0.8}, tmp_path / "search.json"
    with pytest.raises(Stops):
        estfx.search(llama, BATCHES, target, state=state, told=stop, **SMALL)
    told: list[int] = []
    again = estfx.search(llama, BATCHES, target, state=state, told=lambda number, _: told.append(number), **SMALL)
    assert told == [2, 3]
    assert (again.loss, again.units, again.history) == (found.loss, found.units, found.history)
    with pytest.raises(estfx.EstfxError, match="is of another search: target, seed differ"):
        estfx.search(llama, BATCHES, {"parameters": 0.6}, seed=1, state=state, **SMALL)
    state.write_text(json.dumps({"no": "search"}))
    with pytest.raises(estfx.EstfxError, match="holds no search of estfx"):
        estfx.search(llama, BATCHES, target, state=state, **SMALL)


def test_the_model_is_as_it_was_and_an_evolving_one_can_be_searched(llama: Any) -> None:
    before = {name: p.clone() for name, p in llama.named_parameters()}
    evolving = estfx.transform(
        build("llama_grouped", num_hidden_layers=4), estfx.Schedule.est(10), compile=False, verify=False
    )
    evolving.load_state_dict(llama.state_dict())
    options = {**SMALL, "generations": 1}
    one = estfx.search(evolving.train(), BATCHES, {"seconds": 0.9}, **options)
    assert evolving.training
    assert one.shares["seconds"] <= 0.9
    estfx.search(llama, BATCHES, {"parameters": 0.7}, **options)
    assert all(torch.equal(before[name], p) for name, p in llama.named_parameters())
    assert "forward" not in vars(llama.model.layers[0])


@pytest.mark.parametrize(
    ("target", "options", "said"),
    [
        ({}, {}, "an empty target: a target names shares of parameters, flops, seconds"),
        ({"size": 0.5}, {}, "target 'size'"),
        ({"parameters": 1.5}, {}, "above 0 and below 1"),
        (
            {"parameters": 0.01},
            {},
            r"with the least of everything 0\.\d+ of the layers' parameters are left, 0\.\d+ too",
        ),
        ({"parameters": 0.5}, {"population": 0}, "population=0: it is 1 at least"),
        ({"parameters": 0.5}, {"scores": estfx.Scores("magnitude", {})}, "the scores are of another model"),
    ],
)
def test_what_cannot_be_searched_is_refused(llama: Any, target: Any, options: Any, said: str) -> None:
    with pytest.raises(estfx.EstfxError, match=said):
        estfx.search(llama, BATCHES, target, **{**SMALL, **options})


def test_without_text_nothing_is_searched(llama: Any) -> None:
    with pytest.raises(estfx.EstfxError, match="needs calibration text"):
        estfx.search(llama, [], {"parameters": 0.5})


def test_changes_of_candidates() -> None:
    scores = {name: {"neurons": [float(i) for i in range(8)]} for name in "ab"}
    space = Space(scores, {name: {"neurons": (2, 4, 6, 8)} for name in "ab"}, {"a": 0.5, "b": 0.1})
    half = space.uniform(0.5)
    assert half.units == {name: {"neurons": (4, 5, 6, 7)} for name in "ab"}
    assert space.resized(half, "a", "neurons", -1).units["a"]["neurons"] == (6, 7)
    assert space.resized(half, "a", "neurons", 1).units["a"]["neurons"] == (2, 3, 4, 5, 6, 7)
    assert space.resized(space.uniform(1.0), "a", "neurons", 1) is None
    assert space.smallest().skipped == {"b"}  # one layer stays, that which matters more
    draw = random.Random(0)
    for _ in range(200):
        other = space.mutated(half, Rates(0.5, 0.5, 0.5), draw)
        assert len(other.skipped) < 2
        assert all(len(units["neurons"]) in (2, 4, 6) for units in other.units.values())
        assert all(list(units["neurons"]) == sorted(set(units["neurons"])) for units in other.units.values())
        crossed = space.crossed(half, other, draw)
        assert all(crossed.units[name] in (half.units[name], other.units[name]) for name in "ab")
        assert Candidate.from_json(json.loads(json.dumps(other.to_json()))) == other
        half = space.mutated(half, Rates(0.0, 0.5, 0.0), draw)


def test_the_only_layer_is_never_skipped() -> None:
    space = Space({"a": {"neurons": [0.0, 1.0]}}, {"a": {"neurons": (1, 2)}}, {"a": 0.5})
    draw = random.Random(0)
    assert not any(space.mutated(space.uniform(1.0), Rates(0.0, 0.0, 1.0), draw).skipped for _ in range(5))
    assert not space.smallest().skipped
