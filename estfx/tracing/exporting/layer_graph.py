"""One layer as a flat graph of ATen operators, for one call signature."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from types import CodeType
from typing import Any

import torch
from torch import nn
from torch.export.graph_signature import InputKind
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import SYMPY_INTERP
from torch.utils import _pytree as pytree

from estfx.errors import TraceError
from estfx.graphs import has_tensor, inline_regions, replace_calls, tags, tensor_of
from estfx.tracing.call_signature import flatten
from estfx.tracing.effects import Place, put_values, tensors_held
from estfx.tracing.exporting.export_layer import does_more, export_layer
from estfx.tracing.exporting.layer_state import changed_buffers
from estfx.tracing.exporting.split_parameters import refuse_split
from estfx.tracing.layer_call import LayerCall

__all__ = ["TracedLayer", "trace_call"]


@dataclass(frozen=True)
class TracedLayer:
    """A layer as a flat graph, for one call signature."""

    graph: GraphModule
    input_leaves: tuple[int, ...]  # which leaves of (args, kwargs) become the stream and the sides
    shapes: tuple[tuple[int | None, ...], ...]  # their sizes; None where any size will do
    out_spec: pytree.TreeSpec
    outputs: tuple[int | None, ...]  # for each leaf of the result, which value of the graph it is; None: not given
    constants: tuple[Any, ...]  # leaves of the result that are no tensors
    stream_leaf: int
    stream_output: int
    operations: int  # how many functions of torch the layer called
    written: tuple[Place, ...]  # where the layer leaves values beside its result; they are the last leaves
    alive: frozenset[int]  # leaves of the result, other than the stream, that something outside the layer reads
    guards: tuple[str, ...] = ()  # what the layer's own code asked about sizes, as Python over `L["tensors"]`
    unread: frozenset[int] = frozenset()  # leaves that are numbers, of any value

    @cached_property
    def _guard(self) -> CodeType | None:
        return compile(" and ".join(f"({g})" for g in self.guards), "<guards>", "eval") if self.guards else None

    def accepts(self, leaves: list[Any]) -> bool:
        """Whether the sizes of these arguments are such as the graph was made for."""
        same = all(
            all(want is None or want == size for want, size in zip(shape, leaves[i].shape, strict=True))
            for i, shape in zip(self.input_leaves, self.shapes, strict=True)
        )
        if not same or self._guard is None:
            return same
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        return bool(eval(self._guard, SYMPY_INTERP, {"L": {"tensors": tensors}}))

    def pack(
        self, values: tuple[torch.Tensor, ...], layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The graph's values in the structure that the layer itself returns; others are left where it leaves them."""
        if self.out_spec.is_leaf() and not self.written:
            return values[0]
        leaves = [self.constants[j] if i is None else values[i] for j, i in enumerate(self.outputs)]
        given = pytree.tree_unflatten(leaves, self.out_spec)
        if not self.written:
            return given
        result, left = given
        put_values(self.written, left, layer, args, kwargs)
        return result

    def give(self, stream: torch.Tensor) -> Any:
        """What the layer returns when it is passed over, and this tensor takes the place of its result."""
        leaves = [stream if i == 0 else self.constants[j] for j, i in enumerate(self.outputs)]
        given = pytree.tree_unflatten(leaves, self.out_spec)
        return given[0] if self.written else given

    def leave_zeros(self, given: list[Any], layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Leaves zeros where the layer leaves values beside its result: it is passed over, and none of its units runs.

        `given`: the leaves of its arguments. Sizes that are open are those of the stream.
        """
        if not self.written:
            return
        stream = given[self.stream_leaf]
        interface, nodes = tags.get(self.graph, tags.Interface), self.graph.graph
        traced = next(tensor_of(node) for node in nodes.nodes if node.name == interface.stream)
        sizes = {str(size): now for size, now in zip(traced.shape, stream.shape, strict=True)}
        leaves = list(self.constants)
        values: Sequence[Node] = nodes.output_node().args[0]  # type: ignore[assignment]
        for j, i in enumerate(self.outputs):
            if i in interface.left:
                value = tensor_of(values[i])
                shape = [size if isinstance(size, int) else sizes[str(size)] for size in value.shape]
                leaves[j] = stream.new_zeros(shape, dtype=value.dtype)
        put_values(self.written, pytree.tree_unflatten(leaves, self.out_spec)[1], layer, args, kwargs)


def trace_call(call: LayerCall) -> TracedLayer:
    """The layer's graph: placeholders for the stream, the other tensors it is given, its parameters and buffers.

    Raises TraceError if there is no graph of it that computes all that the layer does.
    """
    try:
        return _trace_call(call)
    except TraceError as error:
        raise TraceError(
            f"layer `{call.name}` ({type(call.module).__name__}) cannot be exported as a graph: {error}"
        ) from error.__cause__


def _trace_call(call: LayerCall) -> TracedLayer:
    if call.lost:
        raise TraceError(does_more(call.lost))
    refuse_split(call.module)
    exported, unread = export_layer(call)
    inline_regions(exported.graph_module)
    leaves, _ = flatten(call.args, call.kwargs)
    positions = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    old = exported.graph
    outputs = pytree.tree_leaves(old.output_node().args[0], is_leaf=lambda x: x is None)
    passed_on = {call.stream_output, *call.alive, *range(call.returned, len(outputs))}
    given = [j for j, out in enumerate(outputs) if j in passed_on and isinstance(out, Node) and has_tensor(out)]
    given.sort(key=lambda j: j != call.stream_output)

    users: list[Node] = []
    weights: list[tuple[Node, str]] = []
    constants: list[tuple[Node, torch.Tensor]] = []
    held = {id(tensor): path for path, tensor in tensors_held(call.module)}
    for node, spec_in in zip(
        [n for n in old.nodes if n.op == "placeholder"], exported.graph_signature.input_specs, strict=True
    ):
        if spec_in.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            weights.append((node, str(spec_in.target).removeprefix("layer.")))
        elif spec_in.kind == InputKind.USER_INPUT:
            users.append(node)
        elif spec_in.kind == InputKind.CONSTANT_TENSOR:
            value = exported.constants[str(spec_in.target)]
            if id(value) in held:  # whatever stands there when the graph runs
                weights.append((node, held[id(value)]))
            else:
                constants.append((node, value))
        else:
            raise TraceError(f"it takes an input of kind {spec_in.kind.name}, which estfx does not know")
    if len(users) != len(positions):
        raise TraceError(f"it was exported with {len(users)} tensors, but called with {len(positions)}")
    parameters = dict(call.module.named_parameters(remove_duplicate=False))
    kept = {node: path for node, path in weights if path not in parameters} | {n: "a constant" for n, _ in constants}
    if changed := changed_buffers(old, kept):
        places = ", ".join(f"`{path}` at {where}" for path, where in changed.items())
        raise TraceError(f"a call changes what the layer holds ({places}), and a graph of a part of it would not")

    # what nothing reads is left out, but never the stream
    drawing = [
        n for n in old.nodes if n.op == "call_function" and n.is_impure()
    ]  # from the random numbers, or in place
    needed = _reaching([*(outputs[j] for j in given), *drawing])
    stream = users[positions.index(call.stream_leaf)]
    sides = [n for n in users if n is not stream and n in needed and has_tensor(n)]
    weights = [(n, path) for n, path in weights if n in needed]

    gm = GraphModule(nn.Module(), torch.fx.Graph(), type(call.module).__name__)
    graph = gm.graph
    copies: dict[Node, Node] = {}
    names = _input_names(call, [positions[users.index(n)] for n in sides])
    wanted = ["stream", *names, *(re.sub(r"\W+", "_", path).strip("_") for _, path in weights)]
    for node, name in zip([stream, *sides, *(n for n, _ in weights)], wanted, strict=True):
        copies[node] = graph.placeholder(name if name.isidentifier() else f"input_{name}")
        copies[node].meta = dict(node.meta)
    for number, (node, value) in enumerate(constants):
        if node in needed:
            gm.register_buffer(name := f"constant_{number}", value, persistent=False)
            copies[node] = graph.get_attr(name)
            copies[node].meta = dict(node.meta)
    for node in old.nodes:
        if node in needed and node.op != "placeholder" and node not in copies:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
            if node.op == "get_attr":  # a tensor, or the body of a loop or a branch
                setattr(gm, str(node.target), attrgetter(str(node.target))(exported.graph_module))
    graph.output(tuple(copies[outputs[j]] for j in given))
    replace_calls(graph)
    tags.put(
        gm,
        tags.Interface(
            stream=copies[stream].name,
            sides=tuple(copies[n].name for n in sides),
            weights=tuple((copies[n].name, path) for n, path in weights),
            outputs=len(given),
            left=tuple(i for i, j in enumerate(given) if j >= call.returned and j not in call.alive),
            added=call.added,
        ),
    )
    gm.recompile()
    inputs = [stream, *sides]
    return TracedLayer(
        graph=gm,
        input_leaves=tuple(positions[users.index(n)] for n in inputs),
        shapes=tuple(tuple(None if _is_free(size) else int(size) for size in n.meta["val"].shape) for n in inputs),
        out_spec=call.out_spec,
        outputs=tuple(given.index(j) if j in given else None for j in range(len(outputs))),
        constants=tuple(None if isinstance(out, (Node, torch.Tensor)) else out for out in call.outputs),
        stream_leaf=call.stream_leaf,
        stream_output=call.stream_output,
        operations=call.operations,
        written=call.written,
        alive=frozenset(call.alive),
        guards=tuple(exported._guards_code),
        unread=unread,
    )


def _input_names(call: LayerCall, leaves: list[int]) -> list[str]:
    """The names of arguments, as the model gave them: `attention_mask`, `position_embeddings_0`, `argument_1`."""
    paths = pytree.tree_flatten_with_path((call.args, call.kwargs))[0]
    names = []
    for leaf in leaves:
        keys = [str(getattr(key, "key", getattr(key, "idx", ""))) for key in paths[leaf][0]]
        names.append("_".join(keys[1:] if keys[0] == "1" else ["argument", *keys[1:]]))
    return names


def _is_free(size: int | torch.SymInt) -> bool:
    return isinstance(size, torch.SymInt) and not size.node.expr.is_number


def _reaching(outputs: list[Node]) -> set[Node]:
    """The nodes that the outputs depend on."""
    seen: set[Node] = set()
    todo = list(outputs)
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo.extend(node.all_input_nodes)
    return seen
