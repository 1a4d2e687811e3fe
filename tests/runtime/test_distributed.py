"""Several processes train one model: the same subnetwork on all, and what the single process computes."""

from __future__ import annotations

import copy
import re
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from tiny_decoders import build, tokens
from torch.distributed import checkpoint
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import estfx
from estfx.errors import TraceError
from estfx.runtime.rank_agreement import RankAgreement
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage

STEPS = 12
SCHEDULE = Schedule(
    stages=[Stage(start=0, heads=0.5, neurons=0.5, layers=0.5), Stage(start=4, heads=0.5, neurons=0.5), Stage(start=8)],
    total_steps=STEPS,
)
ROWS = 12  # of a global batch, for two ranks and for three


def evolving(name: str = "llama_grouped", schedule: Schedule = SCHEDULE, seed: int = 0, **options: Any) -> Any:
    return estfx.transform(build(name, num_hidden_layers=4), schedule, seed=seed, compile=False, **options)


def mesh() -> Any:
    return init_device_mesh("cpu", (dist.get_world_size(),))


def sharded(model: Any, **options: Any) -> Any:
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh(), **options)
    return fully_shard(model, mesh=mesh(), **options)


def loss_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = model(input_ids=ids, labels=ids).loss
    return loss


def train(
    inner: Any,
    model: Any,
    accumulation: int = 1,
    no_sync: bool = False,
    steps: range = range(STEPS),
    optimizer: Any = None,
) -> Any:
    """Losses of the global batch by step, and what was drawn. Each rank takes its rows."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses, drawn = [], []
    for step in steps:
        inner.set_step(step)
        mine = tokens(batch=ROWS, seed=step).chunk(world)[rank].chunk(accumulation)
        total = torch.zeros(())
        for number, rows in enumerate(mine):
            last = number == accumulation - 1
            skips = no_sync and not last and isinstance(model, DistributedDataParallel)
            if no_sync and not isinstance(model, DistributedDataParallel) and world > 1:
                model.set_requires_gradient_sync(last)
            with model.no_sync() if skips else nullcontext():
                loss = loss_of(model, rows) / accumulation
                loss.backward()
            total += loss.detach()
        if world > 1:
            dist.all_reduce(total)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total.item() / world)
        kept = inner.subnetwork
        drawn.append((kept.layers, {n: {r: u.tolist() for r, u in roles.items()} for n, roles in kept.units.items()}))
    return losses, drawn


def with_ddp(accumulation: int, no_sync: bool) -> Any:
    inner = evolving()
    return train(inner, DistributedDataParallel(inner, find_unused_parameters=True), accumulation, no_sync)


def with_fsdp(accumulation: int, no_sync: bool) -> Any:
    model = sharded(evolving())
    return train(model, model, accumulation, no_sync)


@pytest.mark.sweep("accumulation", days=3)
@pytest.mark.parametrize("way", [with_ddp, with_fsdp])
@pytest.mark.parametrize(("accumulation", "no_sync"), [(1, False), (3, False), (3, True)])
def test_losses_are_those_of_a_single_process(way: Any, accumulation: int, no_sync: bool) -> None:
    model = evolving()
    losses, drawn = train(model, model, accumulation)
    for their_losses, theirs_drawn in on_ranks(way, accumulation, no_sync):
        assert their_losses == pytest.approx(losses, rel=1e-5)
        assert theirs_drawn == drawn


def with_hsdp() -> Any:
    """Shards over two processes, and each shard on two."""
    model, two_by_two = evolving(), init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    for layer in model.model.layers:
        fully_shard(layer, mesh=two_by_two)
    return train(model, fully_shard(model, mesh=two_by_two))


@pytest.mark.sweep(day=1, days=4)
def test_a_mesh_of_two_dimensions_computes_what_a_single_process_does() -> None:
    model = evolving()
    losses, drawn = train(model, model)
    for their_losses, theirs_drawn in on_ranks(with_hsdp, world_size=4):
        assert their_losses == pytest.approx(losses, rel=1e-5)
        assert theirs_drawn == drawn


def with_tensor_parallelism(after: bool) -> str:
    """What is said of a model whose matrices are split, before it is transformed or after."""
    model = build("llama_grouped", num_hidden_layers=2)
    if after:
        model = estfx.transform(model, SCHEDULE, compile=False)
    plan = {"mlp.up_proj": ColwiseParallel(), "mlp.gate_proj": ColwiseParallel(), "mlp.down_proj": RowwiseParallel()}
    for layer in model.model.layers:
        parallelize_module(layer, init_device_mesh("cpu", (2,), mesh_dim_names=("tp",)), plan)
    if after:
        model.train().set_step(0)
    with pytest.raises(TraceError) as caught:
        loss_of(model, tokens(batch=2)) if after else estfx.transform(model, SCHEDULE, compile=False)
    return str(caught.value)


@pytest.mark.parametrize("after", [False, True])
def test_tensor_parallelism_is_refused_in_words(after: bool) -> None:
    for message in on_ranks(with_tensor_parallelism, after):
        assert re.search(
            r"layer `model\.layers\.0` .* `mlp\.\w+\.weight` is split over 2 processes \(tp\) by tensor", message
        )
        assert "Train with FSDP2, also over a mesh of two dimensions (HSDP), or with DDP" in message


RANKING = SCHEDULE.model_copy(update={"policy": "weighted_gradient_magnitude", "refresh_every": 2})


def ranked(way: str) -> Any:
    """What is drawn, and what is learnt of units, with the schedule that ranks them."""
    model = evolving(schedule=RANKING)
    if way == "fsdp":
        model = sharded(model)
    outer = DistributedDataParallel(model, find_unused_parameters=True) if way == "ddp" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    _, drawn = train(model, outer, steps=range(9), optimizer=optimizer)
    state = model.selection.state_dict()
    return drawn, state["mean"].tolist(), state["scores"].tolist()


@pytest.mark.sweep("way", days=2)
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_units_are_ranked_as_by_a_single_process(way: str) -> None:
    drawn, means, scores = ranked("alone")
    for their_drawn, their_means, their_scores in on_ranks(ranked, way):
        assert their_drawn == drawn
        assert their_means == pytest.approx(means, rel=1e-3, abs=1e-4)
        assert their_scores == pytest.approx(scores, rel=1e-3, abs=1e-4)


STAGES = (Stage(start=0, heads=0.5, neurons=0.25, layers=0.5), Stage(start=5, heads=0.5, neurons=0.5), Stage(start=9))
GROWING = Schedule(stages=STAGES, resample_every="never", kept_units="as_is")


def grown(way: str) -> dict[str, torch.Tensor]:
    """The whole weights after a few steps of a part that grows, with much weight decay."""
    model = evolving(schedule=GROWING)
    if way == "fsdp":
        model = sharded(model)
    outer = DistributedDataParallel(model, find_unused_parameters=True) if way == "ddp" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1.0)
    train(model, outer, steps=range(7), optimizer=optimizer)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return dict(get_model_state_dict(model, options=options)) if way == "fsdp" or dist.get_rank() == 0 else {}


@pytest.mark.sweep("way", days=2)
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_idle_units_are_left_alone(way: str) -> None:
    first, *_ = on_ranks(grown, way)
    model = evolving(schedule=GROWING)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.set_step(6)
    narrowed = model.subnetwork.parameters()
    assert narrowed
    for name, dims in narrowed.items():
        for dim, at_work in dims.items():
            idle = [i for i in range(before[name].shape[dim]) if i not in set(at_work.tolist())]
            index = torch.tensor(idle)
            assert torch.equal(first[name].index_select(dim, index), before[name].index_select(dim, index)), name
        assert not torch.equal(first[name], before[name]), name


COPIES = Schedule.stacking(9, whole_from=0.45)


def stacked(way: str) -> dict[str, torch.Tensor]:
    """The whole weights after a few steps of layers of which half have joined as copies."""
    model = evolving(schedule=COPIES)
    if way == "fsdp":
        model = sharded(model)
    outer = DistributedDataParallel(model, find_unused_parameters=True) if way == "ddp" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train(model, outer, steps=range(7), optimizer=optimizer)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return dict(get_model_state_dict(model, options=options)) if way == "fsdp" else dict(model.state_dict())


@pytest.mark.sweep("way", days=2)
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_layers_join_as_copies_as_in_a_single_process(way: str) -> None:
    alone = stacked("alone")
    for weights in on_ranks(stacked, way):
        for name, weight in weights.items():  # of FSDP2 on the first rank alone
            torch.testing.assert_close(weight, alone[name], rtol=1e-3, atol=1e-4, msg=name)


def fsdp_in_other_ways() -> dict[str, Any]:
    found = {}
    model = estfx.transform(sharded(build("llama_grouped", num_hidden_layers=4)), SCHEDULE, compile=False)
    found["before transform"] = train(model, model)
    model = evolving()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    sharded(model)
    found["checkpointing"] = train(model, model)
    model = sharded(evolving(), reshard_after_forward=False)
    found["not resharded"] = train(model, model)
    return found


@pytest.mark.sweep(day=1, days=2)
def test_fsdp_before_transform_and_with_checkpointing() -> None:
    model = evolving()
    losses, drawn = train(model, model)
    for found in on_ranks(fsdp_in_other_ways):
        for way, (their_losses, theirs_drawn) in found.items():
            assert their_losses == pytest.approx(losses, rel=1e-5), way
            assert theirs_drawn == drawn, way


def in_bfloat16() -> Any:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = sharded(evolving(), mp_policy=policy)
    return train(model, model)


@pytest.mark.sweep(day=0, days=2)
def test_fsdp_with_a_mixed_precision_policy() -> None:
    model = evolving()
    losses, drawn = train(model, model)
    for their_losses, theirs_drawn in on_ranks(in_bfloat16):
        assert their_losses == pytest.approx(losses, rel=0.03)
        assert their_losses != pytest.approx(losses, rel=1e-5)
        assert theirs_drawn == drawn


class Collectives(TorchDispatchMode):
    """Counts the gathers and the reductions."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.found[func._opname] += 1
        return func(*args, **(kwargs or {}))


def counted() -> list[tuple[int, dict[str, int]]]:
    """Layers that run and collectives, at one step of each stage."""
    model = sharded(evolving())
    found = []
    for step in (0, 4, 8):
        model.set_step(step)
        with Collectives() as collectives:
            loss_of(model, tokens(seed=dist.get_rank())).backward()
        found.append((sum(model.subnetwork.layers.values()), dict(collectives.found)))
    return found


@pytest.mark.sweep(day=1, days=2)
def test_skipped_layers_are_neither_gathered_nor_reduced() -> None:
    for found in on_ranks(counted):
        (two, part), (four, all_layers), (_, whole) = found
        assert (two, four) == (2, 4)
        assert all_layers == whole
        assert set(part) == set(all_layers)
        for name, count in all_layers.items():
            each = {"_allgather_base_": 2, "_reduce_scatter_base_": 1}[name]  # gathered again for the backward pass
            assert count - part[name] == each * 2, name


BREAK = 6  # in the second stage; in the first some layers may never have run


def saved(folder: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Trains the first half on all ranks and saves it, asynchronously, and as transformers does."""
    model = sharded(evolving())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses, _ = train(model, model, steps=range(BREAK), optimizer=optimizer)
    state = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
    checkpoint.async_save(state, checkpoint_id=f"{folder}/shards").result()
    writer = HuggingFaceStorageWriter(f"{folder}/model", save_distributed=True, enable_consolidation=True)
    checkpoint.save(state["model"], storage_writer=writer)
    if dist.get_rank() == 0:
        model.config.save_pretrained(f"{folder}/model")
    return losses, get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def continued(folder: str) -> list[float]:
    model = sharded(evolving(seed=0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    state = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
    checkpoint.load(state, checkpoint_id=f"{folder}/shards")
    set_model_state_dict(model, state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    losses, _ = train(model, model, steps=range(BREAK, STEPS), optimizer=optimizer)
    return losses


@pytest.mark.sweep(day=1, days=2)
def test_a_sharded_checkpoint_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    model = evolving()
    losses, _ = train(model, model)
    first, second = on_ranks(saved, str(tmp_path))
    for each, _ in (first, second):
        assert each == pytest.approx(losses[:BREAK], rel=1e-5)
    for each in on_ranks(continued, str(tmp_path), world_size=3):
        assert each == pytest.approx(losses[BREAK:], rel=1e-5)
    loaded = type(estfx.restore(model)).from_pretrained(tmp_path / "model")
    weights = first[1]
    assert weights.keys() == loaded.state_dict().keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in loaded.state_dict().items())


GROWS = Schedule.growing(20, layers=0.5, heads=1, neurons=1, whole_from=0.5)


def growing(initialises: bool, folder: str, steps: range, after: int | None = None, later: bool = False) -> Any:
    """Losses of some steps; begins with a checkpoint if `after` is its step, and else writes one."""
    model = sharded(evolving(schedule=GROWS))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    if initialises:
        estfx.initialise_optimizer(optimizer)
    if after is not None:
        state = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
        checkpoint.load(state, checkpoint_id=f"{folder}/{after}")
        set_model_state_dict(model, state["model"])
        set_optimizer_state_dict(model, optimizer, state["optimizer"])
    losses, _ = train(model, model, steps=steps, optimizer=optimizer)
    state = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
    if later:
        checkpoint.async_save(state, checkpoint_id=f"{folder}/{steps.stop}").result()
    else:
        checkpoint.save(state, checkpoint_id=f"{folder}/{steps.stop}")
    return losses


@pytest.mark.sweep("later", days=4)
@pytest.mark.parametrize("later", [False, True])
def test_a_checkpoint_of_a_time_when_layers_have_never_run_is_loaded(tmp_path: Path, later: bool) -> None:
    folder = str(tmp_path)
    whole = on_ranks(growing, False, folder, range(12))
    first = on_ranks(growing, True, folder, range(1), None, later)  # initialised or not, the losses are the same
    second = on_ranks(growing, True, folder, range(1, 4), 1, later)
    third = on_ranks(growing, True, folder, range(4, 12), 4, later)  # the others join at step 10
    for rank, losses in enumerate(whole):
        assert first[rank] + second[rank] + third[rank] == losses
    on_ranks(growing, False, folder, range(2), None, later)
    with pytest.raises(AssertionError, match="Missing key"):
        on_ranks(growing, False, folder, range(2, 3), 2, later)


def disagreeing(what: str) -> Any:
    rank = dist.get_rank()
    schedule = SCHEDULE.model_copy(update={"neurons_multiple_of": 1 + 3 * rank}) if what == "schedule" else SCHEDULE
    model = evolving(seed=rank if what == "seed" else 0, schedule=schedule, check_ranks_every=5)
    start = time.perf_counter()
    for call in range(20):
        try:
            model.set_step(call + 1 if what == "step" and rank == 1 and call >= 2 else call)
        except estfx.EstfxError as error:
            return call, str(error), time.perf_counter() - start
    return None


@pytest.mark.parametrize(
    ("what", "said", "calls"),
    [
        ("seed", "seed 0 on rank 0, 1 on rank 1", (0, 0)),
        ("step", "calls of set_step 5 on rank 0, 4 on rank 1", (4, 3)),  # where the second stage begins
        ("schedule", "schedule .* on rank 0, .* on rank 1", (0, 0)),
    ],
)
def test_ranks_that_do_not_agree_all_say_so(what: str, said: str, calls: tuple[int, int]) -> None:
    for found, call in zip(on_ranks(disagreeing, what), calls, strict=True):
        assert found is not None
        at, message, seconds = found
        assert at == call
        assert re.search(said, message), message
        assert "Give every rank the same model, schedule and seed" in message
        assert seconds < 30


def test_a_single_process_compares_with_nobody() -> None:
    model = copy.deepcopy(evolving(check_ranks_every=1))
    model.set_step(0)
    assert model._runtime.follower(RankAgreement).calls == 1
