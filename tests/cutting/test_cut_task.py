"""A cut must also compute with its KV cache."""

from __future__ import annotations

import pytest
import torch
from tiny_decoders import build, tokens

import estfx
from estfx.cutting import cut_task
from estfx.cutting.cut_task import CutTask
from estfx.cutting.kept_parts import kept_parts
from estfx.cutting.masked_whole import outputs_of
from estfx.programs import analysed
from estfx.tracing import trace


def task_of(name: str) -> CutTask:
    model = build(name).eval()
    decoder = trace(model)
    variants = {program: analysed(traced, scales=False) for program, traced in decoder.traced.items()}
    return CutTask(decoder, variants, kept_parts(decoder, variants, {}, None))


def test_a_model_whose_cache_mixes_its_layers_up_is_no_cut() -> None:
    task = task_of("llama")
    assert task.has_cache
    same, mixed = build("llama").eval(), build("llama").eval()
    for layer in mixed.model.layers:
        layer.self_attn.layer_idx = 0  # nothing shows it, as long as there is no cache
    ids = tokens()
    assert torch.equal(same(ids, use_cache=False).logits, mixed(ids, use_cache=False).logits)
    assert task.error(same) <= 1e-6
    assert task.error(mixed) > task.tolerance


def test_a_model_that_does_not_run_is_no_cut() -> None:
    task = task_of("gpt2")
    broken = build("gpt2").eval()
    broken.transformer.h[0].attn.split_size = 3
    assert task.error(broken) == float("inf")
    assert task.error(estfx.cut(build("gpt2").eval(), {"transformer.h.0": {"heads": [0]}})) > task.tolerance


def test_a_model_that_cannot_generate_is_no_cut_of_one_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the whole's own cache gives something else than a pass without it, so that values prove nothing."""
    task = task_of("llama")
    state = 1.0
    monkeypatch.setattr(
        cut_task, "cached_outputs_of", lambda model, inputs: outputs_of(model, inputs)[0][:, -1] + state
    )
    assert not task.has_cache
    same = build("llama").eval()
    assert task.error(same) <= 1e-6

    def fails(*_: object) -> None:
        raise RuntimeError("the sizes of its state do not fit")

    monkeypatch.setattr(cut_task, "cached_outputs_of", fails)
    assert task.error(same) == float("inf")
