"""What was found in a model: its layers, their axes, and the reasons for whatever stays whole."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict
from torch import nn

from estfx.graphs import BRANCH, branches_of, tags
from estfx.programs import Variant, analysed
from estfx.showing import Block, Cells, Shown, counted
from estfx.tracing import Decoder, LayerPatterns, listed, loops_over_experts, trace

__all__ = ["AxisReport", "LayerReport", "Report", "inspect"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AxisReport(_Record):
    """An axis that may be narrowed."""

    role: str  # "heads", "neurons", …
    size: int  # units in the whole layer
    parameters: dict[str, list[int]]  # the layer's parameters that have it, and in which dimensions
    note: str = ""

    @property
    def places(self) -> list[str]:
        """The parameters, each with its dimensions: `mlp.c_fc.weight [1]`."""
        return [f"{name} [{', '.join(map(str, dims))}]" for name, dims in self.parameters.items()]


class LayerReport(_Record):
    """A layer, and what of it may be narrowed or skipped."""

    name: str  # of the module; of its second call in one forward, `layers.0#2`
    program: str  # the kind; layers of one kind share their graphs. Empty: it has none and runs as it is, always whole
    droppable: bool
    axes: list[AxisReport]
    notes: list[str]  # why something stays whole, in words
    branches: list[str] = []  # the residual branches in order, each with what of it can be narrowed
    parameters: int = 0  # numbers that it holds

    @property
    def told(self) -> str:
        """Its kind, and whether it may be skipped, in words."""
        return f"{self.program or 'no graph'}, {'may' if self.droppable else 'cannot'} be skipped"


class Report(Shown, _Record):
    """What estfx finds in a model."""

    model: str  # class name
    layers: list[LayerReport]
    notes: list[str] = []

    def _blocks(self) -> Iterator[Block]:
        """One block for the layers that are alike, with their names, their axes, and in words what stays whole."""
        yield f"{self.model}, {len(self.layers)} layers"
        alike: dict[object, list[LayerReport]] = {}  # but for their names, in order of first appearance
        for layer in self.layers:
            alike.setdefault(layer.model_copy(update={"name": ""}).model_dump_json(), []).append(layer)
        for layers in alike.values():
            names, layer = listed(layer.name for layer in layers), layers[0]
            count = f" ({len(layers)})" if len(layers) > 1 else ""
            numbers = f", {counted(layer.parameters)} parameters" if layer.parameters else ""
            yield f"\n{names}{count}: {layer.told}{numbers}{' each' if numbers and count else ''}"
            yield from (f"  {branch}" for branch in layer.branches)
            if layer.axes:
                yield _axes(layer)
            yield from (f"- {note}" for note in dict.fromkeys(layer.notes))
        yield from (f"- {note}" for note in self.notes)


def _axes(layer: LayerReport) -> Cells:
    noted = any(axis.note for axis in layer.axes)
    headings = ["axis", "size", "parameters [dimension]", *(["note"] if noted else [])]
    rows = [[axis.role, f"{axis.size}", "\n".join(axis.places), *([axis.note] if noted else [])] for axis in layer.axes]
    return Cells(headings, rows, words=frozenset({0, 2, 3}))


def inspect(model: nn.Module, example_inputs: object = None, *, layers: LayerPatterns | None = None) -> Report:
    """What estfx finds in a model, without changing it. `layers` names the layers, as for `trace`.

    Raises UnsupportedModelError if the model has no layers, TraceError if none of them can be made a graph.
    """
    decoder = trace(model, example_inputs, layers=layers)
    return report_of(decoder, {name: analysed(traced) for name, traced in decoder.traced.items()})


def report_of(
    decoder: Decoder,
    variants: dict[str, Variant],
    notes: dict[str, list[str]] | None = None,
    whole: list[str] | None = None,
) -> Report:
    """What was found; `notes` are of each kind of layer, `whole` of the whole model."""
    layers: list[LayerReport] = []
    for name, info in decoder.infos.items():
        variant = variants[info.program]
        found = [_axis_report(variant, role) for role in variant.roles.found]
        reasons = [*variant.roles.notes, *(notes or {}).get(info.program, [])]
        if loops_over_experts(info.call.module):
            reasons.append(
                "its experts are looped over in Python, which depends on the data; its graph computes them as grouped "
                "products, equal up to rounding"
            )
        if not variant.residuals.droppable:
            reasons.append(f"the layer cannot be skipped: {variant.residuals.reason}")
        if not found and not variant.roles.notes:
            reasons.append("no axis of it closes into the residual stream")
        layers.append(
            LayerReport(
                name=name,
                program=info.program,
                droppable=variant.residuals.droppable,
                axes=found,
                notes=reasons,
                branches=[title for title, _ in branches_of(variant.traced.graph) if title.startswith(BRANCH)],
                parameters=sum(parameter.numel() for parameter in info.call.module.parameters()),
            )
        )
    for name, reason in decoder.left.items():
        note = f"the layer runs as it is, always whole: {reason}"
        layers.append(LayerReport(name=name, program="", droppable=False, axes=[], notes=[note]))
    layers.sort(key=lambda layer: decoder.order.index(layer.name))
    return Report(model=type(decoder.model).__name__, layers=layers, notes=whole or [])


def _axis_report(variant: Variant, role: tags.Role) -> AxisReport:
    weights = dict(tags.get(variant.traced.graph, tags.Interface).weights)
    parameters: dict[str, list[int]] = {}
    for node, path in weights.items():
        dims = [i for i, dim in enumerate(variant.axes.dims[node]) if role.axis in dim.axes()]
        if dims:
            parameters[path] = dims
    return AxisReport(role=role.name, size=role.axis.size, parameters=parameters, note=role.note)
