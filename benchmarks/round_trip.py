"""Whether a layer's graph computes the same after it was written as JSON and read again."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["check_round_trip"]


def check_round_trip(model: Any) -> None:
    """Every kind's graph at stage 1, on the call that it was traced from. Raises AssertionError if anything differs."""
    from estfx.dumping import GraphRecord, graph_module, graph_record
    from estfx.graphs import opaque_modules
    from estfx.programs import resolve, stage_counts
    from estfx.tracing import flatten

    runtime = model._runtime
    for kind in {id(kind): kind for kind in runtime.layers.kinds.values()}.values():
        call, variant = kind.examples[0], kind.first
        counts = stage_counts(runtime.schedule, variant.roles, runtime.schedule.stages[0])
        program, kept = variant.program(counts, None), dict(counts)
        leaves, _ = flatten(call.args, call.kwargs)
        drawn = {
            role.name: torch.randperm(role.axis.size)[: kept[role.name]].sort().values.numpy()[None]
            for role in variant.roles.found
            if role.name in kept
        }
        indices = [torch.from_numpy(index[0]) for index in program.indices(drawn)]
        weights = [resolve(call.module, path) for path in program.weights]
        text = graph_record(program.graph).model_dump_json()
        again = graph_module(GraphRecord.model_validate_json(text), kind.name)
        if opaque_modules(program.graph):
            continue  # they are no part of what is written
        results = []
        for graph in (program.graph, again):
            torch.manual_seed(0)
            given = [leaves[i].detach().clone() for i in variant.traced.input_leaves]
            results.append(list(graph(*given, *indices, *weights)))
        for one, other in zip(*results, strict=True):
            if not torch.equal(one, other):
                raise AssertionError(f"{kind.name} computes something else after it was written as JSON and read again")
