"""Children are complementary parts, and an ensemble gives the mean of what its models say."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from foreign_decoders import NanoGpt
from tiny_decoders import build, tokens
from torch import nn
from torch.nn import functional as F

import estfx


@pytest.fixture(scope="module")
def llama() -> Any:
    return build("llama_grouped", num_key_value_heads=4, num_attention_heads=8, head_dim=8).eval()


@pytest.fixture(scope="module")
def pair(llama: Any) -> list[Any]:
    return estfx.children(llama, 2)


def test_a_pair_of_children_shares_no_unit_and_has_all_of_them(pair: list[Any]) -> None:
    one, other = (estfx.cut_record(child) for child in pair)
    for name, roles in one.units.items():
        for role, units in roles.items():
            size = one.sizes[name][role]
            assert len(units) == size // 2
            assert sorted([*units, *other.units[name][role]]) == list(range(size))


def test_children_of_other_shares_overlap_as_little_as_can_be(llama: Any) -> None:
    records = [estfx.cut_record(child).units for child in estfx.children(llama, 3, 0.75, seed=1)]
    neurons = [set(record["model.layers.0"]["neurons"]) for record in records]
    assert [len(each) for each in neurons] == [42, 42, 42]
    assert len(neurons[0] & neurons[1]) == 28  # 42 + 42 - 56
    assert neurons[2] not in neurons[:2]  # a new pair begins
    alone = [estfx.cut_record(child).units for child in estfx.children(llama, 2, 0.75, "random", seed=1)]
    assert alone[0] == records[0]
    assert alone[1] != records[1]


def test_scaled_children_are_as_the_part_of_a_step(llama: Any) -> None:
    """With one half and total / kept the closing weights are doubled."""
    (child,) = estfx.children(llama, 1)
    plain = estfx.children(llama, 1, scaled=False)[0]
    torch.testing.assert_close(
        child.model.layers[0].mlp.down_proj.weight, 2 * plain.model.layers[0].mlp.down_proj.weight
    )
    torch.testing.assert_close(child.model.layers[0].mlp.up_proj.weight, plain.model.layers[0].mlp.up_proj.weight)


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_an_ensemble_gives_the_mean(average: Any, pair: list[Any]) -> None:
    ids = tokens(2, 12)
    both = estfx.Ensemble(pair, average)
    result = both(input_ids=ids, labels=ids)
    each = torch.stack([child(input_ids=ids).logits for child in pair])
    mean = each.softmax(-1).mean(0) if average == "probabilities" else each.mean(0).softmax(-1)
    torch.testing.assert_close(result.logits.softmax(-1), mean, rtol=1e-5, atol=1e-7)
    want = F.nll_loss(mean[:, :-1].flatten(0, 1).log(), ids[:, 1:].flatten())
    torch.testing.assert_close(result.loss, want)
    result.loss.backward()
    assert all(p.grad is not None for p in both.parameters())
    both.zero_grad()


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_generation_is_that_of_the_mean_without_a_cache(options: dict[str, Any], pair: list[Any]) -> None:
    both, ids = estfx.Ensemble(pair), tokens(2, 6)
    made = both.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None, **options)
    assert made.shape == (2, 14)
    if options:
        return
    for _ in range(8):
        with torch.no_grad():
            ids = torch.cat([ids, both(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(made, ids)


def test_padding_before_a_prompt_changes_nothing(pair: list[Any]) -> None:
    both, ids = estfx.Ensemble(pair), tokens(1, 6)
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    alone = both.generate(ids, **options)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], 1)
    mask = torch.tensor([[0] * 3 + [1] * 6])
    assert torch.equal(both.generate(padded, attention_mask=mask, **options)[:, 3:], alone)


def test_foreign_decoders_are_averaged_too() -> None:
    models = [NanoGpt(flash=True).eval() for _ in range(2)]
    ids = tokens(2, 8)
    given = [model(ids) for model in models]
    logits = [each if isinstance(each, torch.Tensor) else next(x for x in each if x.ndim == 3) for each in given]
    got = estfx.Ensemble(models, "logits")(ids)
    got = got if isinstance(got, torch.Tensor) else next(x for x in got if x is not None and x.ndim == 3)
    torch.testing.assert_close(got, torch.stack(logits).mean(0))
    with pytest.raises(estfx.EstfxError, match="`NanoGpt` has no `generate`"):
        estfx.Ensemble(models).generate(ids)


def test_calibration_error_by_hand() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.35, 0.65], [0.5, 0.5]])
    labels = torch.tensor([0, 1, 1, -100])
    # each by itself in ten bins: 0.9 and right, 0.8 and wrong, 0.65 and right
    want = (0.1 + 0.8 + 0.35) / 3
    assert estfx.calibration_error(probabilities.log(), labels, bins=10) == pytest.approx(want, abs=1e-6)
    assert estfx.calibration_error(probabilities.log(), labels, bins=1) == pytest.approx(
        abs((0.9 + 0.8 + 0.65 - 2) / 3), abs=1e-6
    )
    sure = torch.tensor([[math.log(1e9), 0.0]])
    assert estfx.calibration_error(sure, torch.tensor([0])) == pytest.approx(0, abs=1e-6)


def test_what_cannot_be_is_refused(llama: Any) -> None:
    with pytest.raises(estfx.EstfxError, match="number=0"):
        estfx.children(llama, 0)
    with pytest.raises(estfx.EstfxError, match=r"keep=1\.0: a child keeps a share above 0 and below 1"):
        estfx.children(llama, keep=1.0)
    with pytest.raises(estfx.EstfxError, match="drawn complementary or random"):
        estfx.children(llama, pairs="other")  # type: ignore[arg-type]
    with pytest.raises(estfx.EstfxError, match="needs one model at least"):
        estfx.Ensemble([])
    with pytest.raises(estfx.EstfxError, match="over probabilities or logits"):
        estfx.Ensemble([llama], "both")  # type: ignore[arg-type]
    other = build("llama_grouped", vocab_size=50)
    with pytest.raises(estfx.EstfxError, match="do not fit together"):
        estfx.Ensemble([llama, other])(input_ids=tokens(1, 4) % 50)
    with pytest.raises(estfx.EstfxError, match="gives no logits"):
        estfx.Ensemble([nn.Identity()])("text")
    with pytest.raises(estfx.EstfxError, match="Shift them first"):
        estfx.calibration_error(torch.zeros(2, 3, 5), torch.zeros(2, 2, dtype=torch.long))
    with pytest.raises(estfx.EstfxError, match="no label is left"):
        estfx.calibration_error(torch.zeros(2, 5), torch.full((2,), -100))
