"""What policies that rank units learn of them, and what they then keep."""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_decoders import build, tokens

import estfx
from estfx.programs.program import Variant
from estfx.schedules.draws import draw_units
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage
from estfx.schedules.step_draw import widths

WHOLE = (Stage(start=0),)
STAGES = (Stage(start=0, heads=0.5, neurons=0.25, layers=0.5), Stage(start=12, heads=0.5, neurons=0.5), Stage(start=24))


def evolving(name: str = "gpt2", stages: tuple[Stage, ...] = STAGES, layers: int = 4, **options: Any) -> Any:
    options = {"policy": "weighted_gradient_magnitude", "refresh_every": 5} | options
    size = {"n_layer": layers} if name == "gpt2" else {"num_hidden_layers": layers}
    return estfx.transform(build(name, **size), Schedule(stages=stages, **options), compile=False, verify=False)


def train(model: Any, optimizer: Any, steps: range, after: Callable[[int], None] = lambda step: None) -> list[Any]:
    """The loss and the units of each step."""
    found = []
    for step in steps:
        model.set_step(step)
        loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        after(step)
        kept = {name: {r: u.tolist() for r, u in roles.items()} for name, roles in model.subnetwork.units.items()}
        found.append((loss.item(), kept))
    return found


def loss_of(model: Any, seed: int) -> torch.Tensor:
    ids = tokens(batch=2, seed=seed)
    loss: torch.Tensor = model(input_ids=ids, labels=ids).loss
    return loss


def adam(model: Any) -> Any:
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def weighted_gradient(weight: torch.Tensor) -> torch.Tensor:
    assert weight.grad is not None
    return (weight * weight.grad).abs().detach()


def by_hand(model: Any, layer: str, name: str, measure: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    """Of a layer's units, by indexing its weights as the architecture lays them out."""
    module = model.get_submodule(layer)
    if name == "gpt2":
        attention, mlp, config = module.attn, module.mlp, model.config
        heads, width = config.n_head, config.n_embd // config.n_head
        qkv = measure(attention.c_attn.weight).sum(0) + measure(attention.c_attn.bias)
        return {
            "heads": qkv.view(3, heads, width).sum((0, 2)) + measure(attention.c_proj.weight).view(heads, -1).sum(1),
            "neurons": measure(mlp.c_fc.weight).sum(0) + measure(mlp.c_fc.bias) + measure(mlp.c_proj.weight).sum(1),
        }
    attention, mlp, groups = module.self_attn, module.mlp, model.config.num_key_value_heads
    rows = [attention.q_proj, attention.k_proj, attention.v_proj]
    heads = sum(measure(each.weight).view(groups, -1).sum(1) for each in rows)
    ends = measure(attention.o_proj.weight).t().reshape(groups, -1).sum(1)
    neurons = measure(mlp.gate_proj.weight).sum(1) + measure(mlp.up_proj.weight).sum(1)
    return {"heads": heads + ends, "neurons": neurons + measure(mlp.down_proj.weight).sum(0)}


@pytest.mark.parametrize("name", ["gpt2", "llama_grouped"])
def test_a_score_is_the_sum_over_all_weights_of_a_unit(name: str) -> None:
    model = evolving(name, WHOLE)
    model.set_step(0)
    loss_of(model, 0).backward()
    want = [
        by_hand(model, layer.name, name, weighted_gradient)[role]
        for layer in model.report.layers
        for role in ("heads", "neurons")
    ]
    adam(model).step()
    state = model.selection.state_dict()
    flat = torch.cat(want)
    torch.testing.assert_close(state["mean"], flat / flat.mean(), rtol=1e-5, atol=1e-6)
    assert state["count"].eq(1).all()


@pytest.mark.parametrize("name", ["gpt2", "llama_grouped"])
def test_units_are_kept_by_the_magnitude_of_their_weights(name: str) -> None:
    stages = (Stage(start=0, heads=0.5, neurons=0.25), Stage(start=8))
    model = evolving(name, stages, policy="weight_magnitude", exploration=0.0)
    model.set_step(0)
    for layer, units in model.subnetwork.units.items():
        scores = by_hand(model, layer, name, lambda w: w.detach().abs())
        for role, kept in units.items():
            assert kept.tolist() == sorted(scores[role].argsort(descending=True, stable=True)[: len(kept)].tolist())


def test_two_optimizers_teach_what_one_does() -> None:
    model, other = evolving(stages=WHOLE), evolving(stages=WHOLE)
    parameters = list(other.parameters())
    two = [torch.optim.SGD(parameters[::2], lr=0.0), torch.optim.SGD(parameters[1::2], lr=0.0)]
    train(model, torch.optim.SGD(model.parameters(), lr=0.0), range(1))
    other.set_step(0)
    loss_of(other, 0).backward()
    for optimizer in two:
        optimizer.step()
    torch.testing.assert_close(other.selection.state_dict()["mean"], model.selection.state_dict()["mean"])


def test_only_units_at_work_are_counted() -> None:
    model = evolving()
    counts = dict.fromkeys(model.selection.state_dict()["units"], 0)
    work = {name: np.zeros(int(name.split()[2])) for name in counts}

    def count(step: int) -> None:
        for layer, units in model.subnetwork.units.items():
            for role, kept in units.items():
                work[next(name for name in work if name.startswith(f"{layer} {role} "))][kept.numpy()] += 1

    train(model, adam(model), range(20), count)
    state = model.selection.state_dict()
    assert state["count"].tolist() == np.concatenate(list(work.values())).tolist()
    assert 0 < state["count"].min() < state["count"].max() <= 20


def test_units_are_ranked_on_a_period_and_at_the_beginning_of_each_stage() -> None:
    model = evolving(exploration=0.0)
    ranked = {}

    def remember(step: int) -> None:
        ranked[step] = model.selection.state_dict()["scores"].tolist()

    steps = train(model, adam(model), range(30), remember)
    assert ranked[0] == ranked[4] == []  # nothing was learnt yet
    changed = [step for step in range(1, 30) if ranked[step] != ranked[step - 1]]
    assert changed == [5, 10, 12, 15, 20, 24, 25]
    units: dict[str, list[Any]] = {}
    for step in range(5, 10):  # now the same units whenever a layer runs
        for layer, roles in steps[step][1].items():
            units.setdefault(layer, []).append(roles)
    assert all(each == own[0] for own in units.values() for each in own)


def test_the_best_are_kept_but_for_those_explored() -> None:
    scores = np.random.default_rng(0).random((3, 40))
    options: dict[str, Any] = {"seed": 0, "role": "neurons", "num_layers": 3, "size": 40, "kept": 20, "scores": scores}
    best = np.argsort(-scores, axis=1)
    seen = set()
    for step in range(50):
        drawn = draw_units("weighted_gradient_magnitude", step=step, exploration=0.2, **options)
        for row in range(3):
            assert set(best[row, :16]) <= set(drawn[row])
        seen |= set(drawn[0]) - set(best[0, :16])
    assert seen == set(best[0, 16:])  # all others have their turn
    all_best = draw_units("weighted_gradient_magnitude", step=0, exploration=0.0, **options)
    assert all_best.tolist() == np.sort(best[:, :20], axis=1).tolist()
    few = draw_units("weighted_gradient_magnitude", step=0, exploration=0.2, **options | {"kept": 10})
    assert [len(set(row) - set(best[i, :8])) for i, row in enumerate(few)] == [2] * 3  # a fifth of ten
    none = draw_units("weighted_gradient_magnitude", step=3, exploration=1.0, **options)
    assert none.tolist() == draw_units("random", step=3, **options | {"scores": None}).tolist()


@pytest.mark.parametrize("ranking", ["per_layer", "global"])
@pytest.mark.parametrize("at", [3, 10, 17])
def test_a_resumed_run_trains_what_the_uninterrupted_one_does(at: int, ranking: str) -> None:
    options = {"ranking": ranking}
    whole = evolving(**options)
    want = train(whole, adam(whole), range(30))
    first = evolving(**options)
    optimizer = adam(first)
    begun = train(first, optimizer, range(at))
    file = io.BytesIO()
    torch.save([first.state_dict(), optimizer.state_dict(), first.selection.state_dict()], file)
    file.seek(0)
    weights, moments, selection = torch.load(file, weights_only=True)
    second = evolving(**options)
    optimizer = adam(second)
    second.load_state_dict(weights)
    optimizer.load_state_dict(moments)
    second.selection.load_state_dict(selection)
    assert begun + train(second, optimizer, range(at, 30)) == want


def test_ranked_together_layers_have_widths_of_their_own_that_cost_the_same() -> None:
    model = evolving(stages=(Stage(start=0, heads=0.5, neurons=0.5), Stage(start=40)), ranking="global", layers=6)
    with torch.no_grad():  # so that some layers have more of the best units than others, and some fewer
        for layer, factor in ((0, 4.0), (1, 0.1)):
            model.transformer.h[layer].mlp.c_fc.weight.mul_(factor)
            model.transformer.h[layer].mlp.c_proj.weight.mul_(factor)
    kept = [units for _, units in train(model, adam(model), range(30))]
    per_layer = [[len(roles["neurons"]) for roles in each.values()] for each in kept]
    size = per_layer[0][0] * 2
    assert all(sum(each) == 6 * size // 2 for each in per_layer)
    assert {size // 4, size // 2, 3 * size // 4} == {width for each in per_layer for width in each}


@given(st.integers(1, 9), st.integers(2, 40), st.data())
def test_widths_are_three_and_sum_up(layers: int, size: int, data: Any) -> None:
    kept = data.draw(st.integers(1, size - 1))
    rows = st.lists(st.floats(0, 10), min_size=size, max_size=size)
    scores = np.array([data.draw(rows) for _ in range(layers)])
    each = widths(scores, kept)
    assert sum(each) == layers * kept
    assert len(set(each)) <= 3
    assert all(1 <= width <= size for width in each)
    best = np.argsort(-scores.ravel(), kind="stable")[: layers * kept] // size
    wanted = [int((best == layer).sum()) for layer in range(layers)]
    pairs = list(zip(each, wanted, strict=True))
    assert all(more >= fewer for wide, more in pairs for narrow, fewer in pairs if wide > narrow)


def test_widths_are_multiples() -> None:
    scores = np.arange(4 * 64, dtype=float).reshape(4, 64)
    assert widths(scores, 32, 8) == [16, 16, 48, 48]
    assert widths(scores, 24, 8) == [16, 16, 32, 32]


def test_a_copy_learns_by_itself() -> None:
    model = evolving()
    train(model, adam(model), range(8))
    twin = copy.deepcopy(model)
    before = model.selection.state_dict()
    train(twin, adam(twin), range(8, 20))
    after = model.selection.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in ("mean", "count", "scores"))
    assert twin.selection.state_dict()["count"].sum() > after["count"].sum()


def test_a_state_that_was_loaded_stays_as_it_is() -> None:
    model, other = evolving(), evolving()
    train(model, adam(model), range(8))
    state = model.selection.state_dict()
    before = copy.deepcopy(state)
    other.selection.load_state_dict(state)
    train(other, adam(other), range(8, 12))
    assert other.selection.state_dict()["count"].sum() > before["count"].sum()
    assert all(torch.equal(before[name], state[name]) for name in ("mean", "count", "scores"))


def test_a_copy_draws_by_its_own_scores() -> None:
    model = evolving()
    train(model, adam(model), range(8))
    twin, fresh = copy.deepcopy(model), evolving()
    train(twin, adam(twin), range(8, 14))
    fresh.selection.load_state_dict(twin.selection.state_dict())
    for step in range(14, 18):
        for each in (twin, fresh):
            each.set_step(step)
        for name, roles in fresh.subnetwork.units.items():
            for role, kept in roles.items():
                assert kept.tolist() == twin.subnetwork.units[name][role].tolist()


def test_without_an_optimizer_that_is_seen_it_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = evolving()
    with caplog.at_level(logging.WARNING):
        for step in range(8):
            model.set_step(step)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("at step 5 the policy weighted_gradient_magnitude, which ranks units by their gradients")


def test_a_step_that_is_lost_teaches_nothing() -> None:
    model = evolving()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    train(model, optimizer, range(8))
    before = model.selection.state_dict()
    model.set_step(8)
    (loss_of(model, 8) * torch.nan).backward()
    optimizer.step()
    after = model.selection.state_dict()
    assert torch.equal(before["mean"], after["mean"])
    assert torch.equal(before["count"], after["count"])


def test_the_state_of_another_model_is_refused() -> None:
    model, longer, random = evolving(), evolving(layers=5), evolving(policy="random", refresh_every=100)
    with pytest.raises(estfx.EstfxError, match=r"is of 10 modules' roles .*made with 8 modules' roles"):
        model.selection.load_state_dict(longer.selection.state_dict())
    with pytest.raises(estfx.EstfxError, match="a policy that ranks nothing, and the model is made with the policy"):
        model.selection.load_state_dict(random.selection.state_dict())
    random.selection.load_state_dict({})
    with pytest.raises(estfx.EstfxError, match="of the policy weighted_gradient_magnitude, and the model is made"):
        random.selection.load_state_dict(model.selection.state_dict())


def test_a_restored_model_is_left_alone() -> None:
    model = evolving()
    optimizer = adam(model)
    train(model, optimizer, range(3))
    plain = estfx.restore(model)
    loss_of(plain, 0).backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ranking": "global"}, "ranking is for policies that rank units .weighted_gradient_magnitude, weight_"),
        ({"refresh_every": 10}, "refresh_every is for policies that rank units"),
        ({"policy": "window", "exploration": 0.5}, "the policy window ranks none"),
        ({"policy": "weight_magnitude", "ranking": "global", "draws": "shared"}, "ranking=global gives layers widths"),
        ({"policy": "weight_magnitude", "exploration": 1.5}, "exploration must be less than or equal to 1"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(estfx.ScheduleError, match=said):
        Schedule(stages=STAGES, **options)


def test_a_policy_of_ones_own_may_use_scores() -> None:
    asked = []

    @estfx.selection_policy("worst", scores="weight")
    def worst(draw: estfx.Draw) -> Any:
        asked.append(draw.scores)
        assert draw.scores is not None
        return np.sort(np.argsort(draw.scores, axis=1)[:, : draw.kept], axis=1)

    model = evolving(policy="worst", stages=(Stage(start=0, neurons=0.5), Stage(start=8)))
    best = evolving(policy="weight_magnitude", stages=(Stage(start=0, neurons=0.5), Stage(start=8)), exploration=0.0)
    model.set_step(0)
    best.set_step(0)
    for layer, units in model.subnetwork.units.items():
        assert not set(units["neurons"].tolist()) & set(best.subnetwork.units[layer]["neurons"].tolist())
    assert asked


def test_all_widths_are_compiled_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    model = evolving(stages=(Stage(start=0, heads=0.5, neurons=0.5), Stage(start=9)), ranking="global")
    made = []
    narrowed = Variant.narrowed
    monkeypatch.setattr(Variant, "narrowed", lambda self, counts: made.append(counts) or narrowed(self, counts))
    ids = tokens(batch=2)
    schedule = model.schedule.model_copy(update={"total_steps": 12})
    plan = estfx.plan(build("gpt2", n_layer=4), schedule, batch_size=2, seq_len=8)
    made.clear()
    model.warmup(input_ids=ids, labels=ids)
    assert len(made) == len(set(made)) == plan.programs == 10
    train(model, adam(model), range(12))
    assert len(made) == 10


def test_a_part_that_is_drawn_once_grows() -> None:
    model = evolving(policy="random", refresh_every=100, resample_every="never")
    steps = [model.set_step(step) or model.subnetwork for step in (0, 7, 12, 20, 30)]
    first, again, second, _, last = steps
    assert first.units.keys() == again.units.keys() <= second.units.keys() == last.units.keys()
    for name, units in first.units.items():
        for role, kept in units.items():
            assert kept.tolist() == again.units[name][role].tolist()
            assert set(kept.tolist()) <= set(second.units[name][role].tolist()) < set(last.units[name][role].tolist())
