"""DDP sends the gradients of what was trained, and what comes of it is what it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from hand_written import Decoder, PreNorm
from ranks import on_ranks
from tiny_decoders import build, tokens
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_wrapper
from torch.nn.parallel import DistributedDataParallel

import estfx
from estfx.costs.schedule_plan import plan
from estfx.errors import EstfxError
from estfx.integrations.data_parallel import _Part
from estfx.runtime.model_state import numbers_left_out, part_at_work
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage

STAGES = [Stage(start=0, heads=0.5, neurons=0.5, layers=0.5), Stage(start=2, heads=0.5, neurons=0.5), Stage(start=4)]
SCHEDULE = Schedule(stages=STAGES, total_steps=6)
SHARED = "shared"


def evolving(name: str) -> Any:
    model: nn.Module
    if name == SHARED:  # two layers share a matrix, of which each keeps other rows
        torch.manual_seed(0)
        model = Decoder(PreNorm(), PreNorm(), PreNorm())
        model.layers[1].mlp.up = model.layers[0].mlp.up
        ids: Any = (torch.zeros(1, 8, dtype=torch.long),)
        return estfx.transform(model, SCHEDULE, example_inputs=ids, compile=False)
    return estfx.transform(build(name, num_hidden_layers=4), SCHEDULE, compile=False)


HOOKS = {"own": estfx.ddp_hook, "in half": fp16_compress_wrapper(estfx.ddp_hook)}


def gradients(name: str, hook: str | None = None, options: Any = None) -> Any:
    """Of every step: the gradients, the numbers that were sent, and how many were at work."""
    sent: list[int] = []
    all_reduce = dist.all_reduce

    def counting(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sent.append(tensor.numel())
        return all_reduce(tensor, *args, **kwargs)

    model = evolving(name)
    ddp = DistributedDataParallel(model, find_unused_parameters=True, **(options or {}))
    if hook is not None:
        ddp.register_comm_hook(model, HOOKS[hook])
    found = []
    for step in range(6):
        model.set_step(step)
        ids = tokens(batch=4, seed=step).chunk(dist.get_world_size())[dist.get_rank()]
        sent.clear()
        out = ddp(ids)
        dist.all_reduce = counting  # of the hook alone
        try:
            getattr(out, "logits", out).mul(30).pow(2).mean().backward()  # not too small for half precision
        finally:
            dist.all_reduce = all_reduce
        values = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        at_work = sum(p.numel() for p in model.parameters()) - numbers_left_out(model)
        found.append((values, sum(sent), at_work))
        model.zero_grad(set_to_none=True)
    return found


@pytest.mark.sweep("name", days=3)
@pytest.mark.parametrize("name", ["gpt2", "llama_grouped", SHARED])
def test_gradients_are_those_without_it_to_the_bit(name: str) -> None:
    for plain, hooked in zip(on_ranks(gradients, name), on_ranks(gradients, name, "own"), strict=True):
        for (before, _, _), (after, sent, at_work) in zip(plain, hooked, strict=True):
            for key in before.keys() | after.keys():
                zeros = torch.zeros_like(before.get(key, after.get(key)))
                assert torch.equal(before.get(key, zeros), after.get(key, zeros)), key
            assert sent == at_work


@pytest.mark.sweep("options", days=3)
@pytest.mark.parametrize("options", [{"bucket_cap_mb": 0.01}, {"gradient_as_bucket_view": True}])
def test_buckets_may_be_small_and_gradients_views_of_them(options: dict[str, Any]) -> None:
    plain, _ = on_ranks(gradients, "llama_grouped")
    hooked, _ = on_ranks(gradients, "llama_grouped", "own", options)
    for (before, _, at_work), (after, sent, _) in zip(plain, hooked, strict=True):
        assert sent == at_work
        for key, value in before.items():
            assert torch.equal(value, after.get(key, torch.zeros_like(value))), key


@pytest.mark.sweep(day=2, days=3)
def test_it_sends_in_half_precision_what_was_trained() -> None:
    plain, _ = on_ranks(gradients, "llama_grouped")
    hooked, _ = on_ranks(gradients, "llama_grouped", "in half")
    for (before, _, at_work), (after, sent, _) in zip(plain, hooked, strict=True):
        assert sent == at_work
        for key, value in before.items():
            other = after.get(key, torch.zeros_like(value))
            assert other.dtype == torch.float32
            torch.testing.assert_close(other, value, rtol=2e-2, atol=1e-3 * float(value.abs().max()))
            assert not other[value == 0].any(), key


def test_what_is_at_work_is_what_a_plan_counts() -> None:
    model = evolving("llama_grouped")
    costs = plan(build("llama_grouped", num_hidden_layers=4), SCHEDULE, batch_size=1, seq_len=8)
    model.set_step(2)  # all layers run, so that no draw makes a difference
    assert sum(p.numel() for p in model.parameters()) - numbers_left_out(model) == costs.stages[1].parameters
    assert part_at_work(model) is part_at_work(model)
    model.set_step(4)
    assert part_at_work(model) == {}


def on_a_plain_model() -> str:
    model = build("gpt2")
    ddp = DistributedDataParallel(model)
    ddp.register_comm_hook(model, estfx.ddp_hook)
    with pytest.raises(EstfxError) as caught:
        ddp(tokens(batch=1)).logits.sum().backward()
    return str(caught.value)


def test_a_model_that_is_not_transformed_is_refused() -> None:
    for message in on_ranks(on_a_plain_model):
        assert "is no evolving model, and holds none: call `estfx.transform" in message


def test_a_part_of_two_dimensions_goes_back_where_it_was_taken() -> None:
    gradient = torch.randn(4, 5, 6)
    rows, columns = torch.tensor([3, 1]), torch.tensor([0, 4, 5])
    expected = gradient.clone()
    expected[rows[:, None], :, columns] *= 2
    part = _Part(gradient, {0: rows, 2: columns})
    assert part.put(part.taken().reshape(-1) * 2) == 2 * 5 * 3
    assert torch.equal(gradient, expected)
