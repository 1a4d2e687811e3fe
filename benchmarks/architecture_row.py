"""What estfx makes of one model type: its layers and axes, what the oracles say, and one training step."""

from __future__ import annotations

import re
import time
from typing import Any

import torch
from round_trip import check_round_trip
from tiny_inputs import example_inputs
from tiny_models import tiny_model

__all__ = ["EQUAL", "Row", "all_of", "complete", "examine", "plain"]

Row = dict[str, Any]
DIFFERENCE = re.compile(r"its whole graph differs from the layer by (\S+), relative")
UNVERIFIED = re.compile(r"not verified|failed verification|narrowing them together failed")
WITHOUT_NEURONS = {"falcon_mamba", "mamba", "mamba2"}  # no MLP
EQUAL = 1e-5  # relative, of the logits of a whole model in float32
ONE_BRANCH = {"nemotron_h", "xlm"}  # a layer is a mixer or an MLP
# No copy of the stream passes such a layer unchanged, so there is nothing that could take its place.
MATHEMATICAL = re.compile(r"cannot be skipped: it mixes several residual streams")


def examine(model_type: str, experts: str | None = None) -> Row:
    """Builds, runs, transforms and trains; a failure is a result too, under `failed` and `error`."""
    import estfx
    from estfx.schedules import Schedule, Stage

    torch.set_num_threads(1)
    row: Row = {"type": model_type}
    try:
        stage = "build"
        model: Any = tiny_model(model_type, experts)
        row["class"] = type(model).__name__
        if experts is not None and not model._can_set_experts_implementation():
            return row | {"no_experts": True}
        row["experts"] = model.config._experts_implementation if model._can_set_experts_implementation() else None
        row["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        stage = "run"
        inputs = example_inputs(model_type, model, batch=2, seed=1)
        original = _with_gradient(model, inputs)
        logits = _logits(model, inputs)
        stage = "transform"
        examples = example_inputs(model_type, model)
        narrow, whole = Stage(start=0, heads=0.5, neurons=0.5, layers=0.67), Stage(start=1)
        started = time.perf_counter()
        # token ids are what estfx makes by itself
        plain = examples if set(examples) != {"input_ids"} or examples["input_ids"].shape != (3, 17) else None
        model = estfx.transform(model, Schedule(stages=[narrow, whole]), example_inputs=plain, compile=False)
        row["seconds"] = round(time.perf_counter() - started, 1)
        row |= _found(model.report)
        row["operators"] = _operators(model)
        stage = "train"
        model.set_step(0)
        trained = _with_gradient(model, inputs)
        skipped = tuple(f"{name}." for name, runs in model.subnetwork.layers.items() if not runs)
        row["without_gradient"] = sorted(name for name in original - trained if not name.startswith(skipped))
        row["unlisted"] = _unlisted(model)
        model.set_step(1)
        row["model_difference"] = _difference(_logits(model, inputs), logits)
        stage = "write as JSON and read again"
        check_round_trip(model)
    except Exception as error:
        row["failed"] = stage
        row["error"] = f"{type(error).__name__}: {error}".strip().splitlines()[0][:700]
    return row


def _with_gradient(model: Any, inputs: dict[str, Any]) -> set[str]:
    """The parameters to which a loss over all logits has a gradient; the gradients are taken away again."""
    from estfx.tracing import without_cache

    model(**without_cache(model, inputs)).logits.float().pow(2).mean().backward()
    found = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def _logits(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    from estfx.tracing import without_cache

    torch.manual_seed(0)
    logits: torch.Tensor = model(**without_cache(model, inputs)).logits
    return logits.detach()


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest distance of two tensors' values, relative to the largest value."""
    return float((one - other).abs().max() / other.abs().max())


def _operators(model: Any) -> list[str]:
    """The operators in the layers' graphs that estfx has a rule for."""
    from estfx.axes import RULES

    nodes = (n for kind in model._runtime.layers.kinds.values() for n in kind.first.traced.graph.graph.nodes)
    return sorted({str(node.target) for node in nodes if node.target in RULES})


def _found(report: Any) -> Row:
    kinds: dict[str, Row] = {}
    for layer in report.layers:
        axes = [[axis.role, axis.size] for axis in layer.axes]
        kind = kinds.setdefault(layer.program, {"layers": 0, "droppable": layer.droppable, "axes": axes})
        kind["layers"] += 1
        kind["whole_difference"] = max((float(m[1]) for n in layer.notes if (m := DIFFERENCE.match(n))), default=0.0)
        kind["unverified"] = [note for note in layer.notes if UNVERIFIED.search(note)]
        kind["notes"] = [note for note in layer.notes if not DIFFERENCE.match(note) and not UNVERIFIED.search(note)]
    return {"kinds": kinds}


def all_of(row: Row, key: str) -> list[Any]:
    """What the kinds of layers list under a key, each thing once."""
    listed: list[Any] = []
    for kind in row.get("kinds", {}).values():
        listed.extend(item for item in kind[key] if item not in listed)
    return listed


def _unlisted(model: Any) -> list[str]:
    """Parameters with units, as the report says, of which the subnetwork does not say what it keeps."""
    kept, listed = model.subnetwork, model.subnetwork.parameters()
    own = {name for name, _ in model.named_parameters(remove_duplicate=False)}  # and no buffers
    return sorted(
        f"{layer.name}.{name}"
        for layer in model.report.layers
        for axis in layer.axes
        if len(kept.units.get(layer.name, {}).get(axis.role, ())) not in (0, axis.size)
        for name, dims in axis.parameters.items()
        if f"{layer.name}.{name}" in own and not set(dims) <= set(listed.get(f"{layer.name}.{name}", ()))
    )


def complete(row: Row) -> bool:
    """The whole is equal, layers may be skipped, heads (or channels) and neurons narrowed; kept parameters learn.

    Layers that mix several residual streams into each other need not be skippable. Every kind of layer must have its
    heads or channels, unless the type's layers are one branch each; a missing note is no proof that there are none.
    """
    if "failed" in row or row["without_gradient"] or row.get("unlisted") or not row["model_difference"] <= EQUAL:
        return False
    kinds = row["kinds"].values()
    mixers = [_has_mixer(kind) for kind in kinds]
    all_mixers = any(mixers) and all(kind["axes"] for kind in kinds) if row["type"] in ONE_BRANCH else all(mixers)
    neurons = row["type"] in WITHOUT_NEURONS or "neurons" in {plain(role) for role, _ in all_of(row, "axes")}
    skippable = any(kind["droppable"] for kind in kinds) or any(map(MATHEMATICAL.search, all_of(row, "notes")))
    return all_mixers and neurons and skippable


def _has_mixer(kind: Row) -> bool:
    narrowed = {"heads", "channels"} & {plain(role) for role, _ in kind["axes"]}
    return bool(narrowed) or any("has a single head" in note for note in kind["notes"])


def plain(role: str) -> str:
    """heads, neurons or channels, without the number of one of several in a layer."""
    return re.sub(r"_\d+$", "", role)
