"""A stitched model is the small one's first layers, a map, and the large one's last layers, computed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_decoders import NanoGpt
from tiny_decoders import build, tokens
from torch import nn

import estfx
from estfx.stitching.palette import Palette

BATCHES = [{"input_ids": tokens(2, 12, seed=i)} for i in range(6)]


def pair() -> tuple[Any, Any]:
    torch.manual_seed(1)
    small = build("llama_grouped", hidden_size=24, num_hidden_layers=3)
    return small.eval(), build("llama_grouped", num_hidden_layers=6).eval()


@pytest.fixture(scope="module")
def stitched() -> Any:
    return estfx.stitch(*pair(), BATCHES).eval()


def streams(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    """What goes into each layer, and comes out of the last."""
    found: list[torch.Tensor] = []
    handles = [layer.register_forward_hook(lambda _, __, out: found.append(out)) for layer in model.model.layers]
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def rest(model: Any, stream: torch.Tensor, first: int) -> torch.Tensor:
    """The logits of a Llama from a stream before one of its layers."""
    places = torch.arange(stream.shape[1])[None]
    rotary = model.model.rotary_emb(stream, places)
    for layer in model.model.layers[first:]:
        stream = layer(stream, position_embeddings=rotary, attention_mask=None)
    logits: torch.Tensor = model.lm_head(model.model.norm(stream))
    return logits


def test_each_stitch_is_what_is_computed_by_hand(stitched: Any) -> None:
    ids = tokens(2, 9, seed=9)
    assert stitched.stitches == ((2, 4), (1, 2))
    for number, (before, passed) in enumerate(stitched.stitches, start=1):
        stream = stitched.own[number - 1].map(streams(stitched.small, ids)[before - 1])
        want = rest(stitched.large, stream, passed)
        torch.testing.assert_close(stitched.use(number)(input_ids=ids).logits, want, rtol=1e-5, atol=1e-6)
    assert torch.equal(stitched.use(0)(input_ids=ids).logits, stitched.small(input_ids=ids).logits)
    assert torch.equal(stitched.use(3)(input_ids=ids).logits, stitched.large(input_ids=ids).logits)


def test_the_maps_are_the_least_squares_between_the_streams(stitched: Any) -> None:
    x = torch.cat([streams(stitched.small, batch["input_ids"])[1].flatten(0, 1) for batch in BATCHES]).double()
    y = torch.cat([streams(stitched.large, batch["input_ids"])[3].flatten(0, 1) for batch in BATCHES]).double()
    x = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    best = (x @ torch.linalg.lstsq(x, y).solution - y).square().mean()
    linear = stitched.own[0].map
    mine = (x[:, :-1] @ linear.weight.double().T + linear.bias.double() - y).square().mean()
    assert best <= mine < 1.01 * best


def test_generation_without_a_cache_asks_both_models(stitched: Any) -> None:
    ids = tokens(1, 5)
    made = stitched.use(1).generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None)
    for _ in range(5):
        with torch.no_grad():
            ids = torch.cat([ids, stitched(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(made, ids)
    assert "forward" not in vars(stitched.large.model.layers[0])


def test_a_palette_is_tuned_together(tmp_path: Path) -> None:
    stitched = estfx.stitch(*pair(), BATCHES)
    before = Palette.of(stitched, BATCHES)
    assert stitched.add_updates(rank=4) == 9 * 7  # matrices of a layer
    own = [p for p in stitched.parameters() if p.requires_grad]
    frozen = {name: p.clone() for name, p in stitched.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW(own, lr=1e-2)
    stitched.train()
    drawn = []
    for step in range(40):
        drawn.append(stitched.draw())
        ids = BATCHES[step % len(BATCHES)]["input_ids"]
        stitched(input_ids=ids, labels=ids).loss.backward()
        stitched.note()
        optimizer.step()
        optimizer.zero_grad()
    assert set(drawn) == {1, 2}
    assert all(each > 0 for each in stitched.importance)
    assert all(torch.equal(frozen[name], p) for name, p in stitched.named_parameters() if name in frozen)
    with torch.no_grad():
        tuned = stitched.eval().use(1)(**BATCHES[0]).logits
    stitched.merge_updates()
    torch.testing.assert_close(stitched(**BATCHES[0]).logits, tuned, rtol=1e-4, atol=1e-5)
    after = Palette.of(stitched, BATCHES)
    for number in (1, 2):
        assert after.rows[number].loss < before.rows[number].loss - 0.1
    after.plot(tmp_path / "palette.svg", "tiny")
    assert "FLOPs of a forward pass" in (tmp_path / "palette.svg").read_text()


def test_what_a_palette_costs(stitched: Any) -> None:
    palette = Palette.of(stitched.use(2), BATCHES)
    assert stitched.used == 2
    assert [row.layers for row in palette.rows] == [(3, 0), (2, 2), (1, 4), (0, 6)]
    flops = [row.flops for row in palette.rows]
    assert flops == sorted(flops)
    small, large = (sum(p.numel() for p in model.parameters()) for model in (stitched.small, stitched.large))
    assert [palette.rows[0].parameters, palette.rows[3].parameters] == [small, large]
    layer = [sum(p.numel() for p in m.model.layers[0].parameters()) for m in (stitched.small, stitched.large)]
    own = sum(p.numel() for p in stitched.own[1].parameters())
    outer = stitched.small.model.embed_tokens.weight.numel() + stitched.large.model.norm.weight.numel()
    head = stitched.large.lm_head.weight.numel()
    assert palette.rows[2].parameters == layer[0] + 4 * layer[1] + own + outer + head
    assert "1 + 4" in str(palette)


def test_foreign_decoders_are_stitched() -> None:
    small, large = NanoGpt(flash=True).eval(), NanoGpt(flash=True).eval()
    batches = [(tokens(2, 8, seed=i),) for i in range(2)]
    stitched = estfx.stitch(small, large, batches).eval()
    with torch.no_grad():
        given = stitched.use(1)(tokens(2, 8))
    logits = given if isinstance(given, torch.Tensor) else next(x for x in given if x is not None and x.ndim == 3)
    assert logits.isfinite().all()


def test_what_cannot_be_stitched_is_refused(stitched: Any) -> None:
    small, large = pair()
    with pytest.raises(estfx.EstfxError, match="begins by least squares on text"):
        estfx.stitch(small, large, [])
    with pytest.raises(estfx.EstfxError, match=r"stitch \(3, 2\): the small model has 3 layers, so that 1 to 2"):
        estfx.stitch(small, large, BATCHES, stitches=[(3, 2)])
    with pytest.raises(estfx.EstfxError, match="the large model has 6 layers"):
        estfx.stitch(small, large, BATCHES, stitches=[(1, 6)])
    with pytest.raises(estfx.EstfxError, match="there is no stitch"):
        estfx.stitch(small, large, BATCHES, stitches=[])
    with pytest.raises(estfx.EstfxError, match=r"use\(4\): the palette has the numbers 0 \(the small model\) to 3"):
        stitched.use(4)
    with pytest.raises(estfx.EstfxError, match="rank=0"):
        stitched.add_updates(0)
    with pytest.raises(estfx.EstfxError, match="pass batches"):
        Palette.of(stitched, [])
    assert isinstance(stitched, nn.Module)
