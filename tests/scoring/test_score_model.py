"""Scores, against the same worked out by hand on a model whose parts are known by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_decoders import NanoGpt
from tiny_decoders import build, tokens

import estfx

BATCHES = [{"input_ids": tokens(2, 16, seed=i)} for i in range(3)]


@pytest.fixture(scope="module")
def llama() -> Any:
    """Two query heads of eight for each of three KV heads."""
    return build("llama_grouped").eval()


def test_magnitude_is_the_sum_over_the_weights_of_a_unit(llama: Any) -> None:
    scores = estfx.score(llama)
    assert (scores.by, scores.layers, scores.tokens) == ("magnitude", {}, 0)
    mlp, attention = llama.model.layers[1].mlp, llama.model.layers[1].self_attn
    want = mlp.gate_proj.weight.abs().sum(1) + mlp.up_proj.weight.abs().sum(1) + mlp.down_proj.weight.abs().sum(0)
    torch.testing.assert_close(scores.units["model.layers.1"]["neurons"], want.detach())
    q, o = attention.q_proj.weight.abs().sum(1), attention.o_proj.weight.abs().sum(0)
    k, v = attention.k_proj.weight.abs().sum(1), attention.v_proj.weight.abs().sum(1)
    want = (q + o).view(3, 16).sum(1) + (k + v).view(3, 8).sum(1)
    torch.testing.assert_close(scores.units["model.layers.1"]["heads"], want.detach())


def test_gradients_and_fisher_are_of_weights_times_gradients(llama: Any) -> None:
    down, up, gate = (getattr(llama.model.layers[0].mlp, name).weight for name in ("down_proj", "up_proj", "gate_proj"))
    summed, squares = [torch.zeros_like(w) for w in (down, up, gate)], torch.zeros(56)
    for batch in BATCHES:
        loss = llama(**batch, labels=batch["input_ids"], use_cache=False).loss
        grads = torch.autograd.grad(loss, (down, up, gate))
        summed = [s + g for s, g in zip(summed, grads, strict=True)]
        products = [w * g for w, g in zip((down, up, gate), grads, strict=True)]
        squares += (products[0].sum(0) + products[1].sum(1) + products[2].sum(1)).detach() ** 2
    want = sum((w * g).abs().sum(dim) for w, g, dim in zip((down, up, gate), summed, (0, 1, 1), strict=True))
    first = estfx.score(llama, "gradient", BATCHES)
    torch.testing.assert_close(first.units["model.layers.0"]["neurons"], want.detach(), rtol=1e-4, atol=1e-8)
    fisher = estfx.score(llama, "fisher", BATCHES).units["model.layers.0"]["neurons"]
    torch.testing.assert_close(fisher, squares, rtol=1e-3, atol=1e-12)
    assert first.tokens == 96
    assert not any(p.grad is not None for p in llama.parameters())


def test_activations_say_what_is_lost_when_the_others_make_up_for_it(llama: Any) -> None:
    """The score is the least squared error of a layer's MLP without a neuron, for a weak hold."""
    given: list[torch.Tensor] = []
    down = llama.model.layers[2].mlp.down_proj
    handle = down.register_forward_pre_hook(lambda _, args: given.append(args[0].detach().flatten(0, 1).double()))
    batches = [{"input_ids": tokens(8, 32, seed=i)} for i in range(2)]
    with torch.no_grad():
        for batch in batches:
            llama(**batch, use_cache=False)
    handle.remove()
    scores = estfx.score(llama, "activation", batches).units["model.layers.2"]["neurons"]
    x, w = torch.cat(given), down.weight.detach().double()
    gram = x.T @ x
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(56, dtype=torch.float64)
    for neuron in (0, 7, 55):
        others = [i for i in range(56) if i != neuron]
        # moving the others by d·w_neuron: min ‖x_n + X d‖² + λ‖d‖² + λ
        solved = torch.linalg.solve(damped[others][:, others], -damped[others, neuron])
        left = damped[neuron, neuron] + damped[neuron, others] @ solved
        want = w[:, neuron].square().sum() * left
        torch.testing.assert_close(scores[neuron].double(), want, rtol=1e-4, atol=0)


def test_layers_by_influence_and_by_loss(llama: Any) -> None:
    seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    handles = [
        layer.register_forward_hook(lambda _, args, out, i=i: seen.update({i: (args[0].clone(), out)}))
        for i, layer in enumerate(llama.model.layers)
    ]
    with torch.no_grad():
        llama(**BATCHES[0], use_cache=False)
    for handle in handles:
        handle.remove()
    influence = estfx.score(llama, batches=BATCHES[:1]).layers
    for i, (before, after) in seen.items():
        want = 1 - torch.cosine_similarity(before, after, dim=-1).mean()
        assert influence[f"model.layers.{i}"] == pytest.approx(float(want), abs=1e-5)
    lost = estfx.score(llama, batches=BATCHES[:1], layers_by="loss").layers
    given = {**BATCHES[0], "labels": BATCHES[0]["input_ids"], "use_cache": False}
    with torch.no_grad():
        whole = llama(**given).loss
        layer = llama.model.layers[1]
        layer.forward = lambda x, *args, **kwargs: x
        try:
            want = llama(**given).loss - whole
        finally:
            del layer.forward
    assert lost["model.layers.1"] == pytest.approx(float(want), abs=1e-6)
    assert "forward" not in vars(layer)


def test_the_best_part_is_cut_and_scores_are_read_again(llama: Any, tmp_path: Path) -> None:
    scores = estfx.score(llama, "activation", BATCHES)
    scores.save(tmp_path / "scores.json")
    again = estfx.Scores.load(tmp_path / "scores.json")
    units, layers = again.best(heads=0.67, neurons=0.5, layers=0.67, round_to=8)
    assert (units, layers) == scores.best(heads=0.67, neurons=0.5, layers=0.67, round_to=8)
    assert len(layers) == 2
    gone = next(name for name in scores.order if name not in layers)
    assert scores.layers[gone] == min(scores.layers.values())
    for name in layers:
        assert [len(units[name][role]) for role in ("heads", "neurons")] == [2, 32]
        worst = min(scores.units[name]["neurons"][units[name]["neurons"]])
        left_out = [i for i in range(56) if i not in units[name]["neurons"]]
        assert max(scores.units[name]["neurons"][left_out]) <= worst
    made = estfx.cut(llama, units, layers=layers)
    assert estfx.cut_record(made).form == "configuration"


def test_a_model_of_ones_own_is_scored_and_stays_as_it_is() -> None:
    model = NanoGpt(flash=True).train()
    ids = tokens(2, 16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scores = estfx.score(model, "activation", [(ids,)])
    assert set(scores.units) == {f"transformer.h.{i}" for i in range(3)}
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(estfx.EstfxError, match="returns no loss for this batch"):
        estfx.score(build("gpt2").base_model, "gradient", [{"input_ids": ids}])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"by": "size"}, "units are scored by magnitude, gradient, fisher, activation"),
        ({"layers_by": "depth"}, "layers are scored by influence, loss"),
        ({"by": "activation"}, "need calibration text: pass batches"),
        ({"layers_by": "loss"}, "scores by loss need calibration text"),
    ],
)
def test_what_cannot_be_scored_is_refused(llama: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(estfx.EstfxError, match=said):
        estfx.score(llama, **options)


def test_fractions_and_files_that_are_none_are_refused(llama: Any, tmp_path: Path) -> None:
    scores = estfx.score(llama)
    with pytest.raises(estfx.EstfxError, match="with 0 nothing would be left"):
        scores.best(heads=0)
    with pytest.raises(estfx.EstfxError, match="there are no scores of layers"):
        scores.best(layers=0.5)
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(estfx.EstfxError, match="holds no scores of estfx"):
        estfx.Scores.load(tmp_path / "x.json")
