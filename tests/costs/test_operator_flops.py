"""What each node of a layer's graph costs, for inputs of any size."""

from __future__ import annotations

import torch
from hand_written import HEADS, HIDDEN, NEURONS, VOCABULARY, Decoder, PreNorm, graph_of

import estfx
from estfx.costs.operator_flops import LENGTH, node_flops
from estfx.schedules import Schedule, Stage


def products(batch: int, length: int) -> list[int]:
    """Queries, keys and values; the core's two; its output; both of the MLP."""
    tokens = 2 * batch * length
    each = (3 * HIDDEN * HIDDEN, 2 * length * HIDDEN, HIDDEN * HIDDEN, HIDDEN * NEURONS, NEURONS * HIDDEN)
    return [tokens * size for size in each]


def test_sizes_are_those_of_the_inputs_or_of_one_sequence() -> None:
    graph = graph_of(PreNorm())
    for batch, length in ((2, 9), (5, 3), (1, 64)):
        found = node_flops(graph, [torch.empty(batch, length, HIDDEN, device="meta")])
        assert list(found.values()) == products(batch, length)
    assert list(node_flops(graph).values()) == products(1, LENGTH)


def test_parts_of_a_plan_add_up() -> None:
    schedule = Schedule(stages=[Stage(start=0, neurons=0.5), Stage(start=2)], total_steps=4)
    ids = torch.randint(VOCABULARY, (2, 9))
    found = estfx.plan(Decoder(PreNorm()), schedule, batch_size=3, seq_len=20, example_inputs=(ids,))
    qkv, core, out, up, down = products(3, 20)
    assert found.whole.flops_forward == {"heads": qkv + core + out, "neurons": up + down}
    assert found.stages[0].flops_forward == {"heads": qkv + core + out, "neurons": (up + down) / 2}
    assert found.whole.units == {"heads": (HEADS, HEADS), "neurons": (NEURONS, NEURONS), "layers": (1, 1)}
    assert found.stages[0].units == {**found.whole.units, "neurons": (NEURONS // 2, NEURONS)}
    assert 3 * sum(found.whole.flops_forward.values()) == found.whole.flops_layers
