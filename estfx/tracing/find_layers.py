"""Which of a model's modules are its layers: four places to look, each tried only if those before it had none.

1. Members of `nn.ModuleList`s that map a stream to its own shape.
2. Members of `nn.Sequential`s and `nn.ModuleDict`s. Such a container may as well hold the parts of one MLP or the whole
   model, so its members must be in a chain: the stream that one returns is the tensor that another is given.
3. Plain attributes, `block0 … block5`: siblings of one class, in a chain likewise.
4. One module that is called again with what it returned.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from estfx.tracing.call_signature import flatten
from estfx.tracing.layer_call import LayerCall
from estfx.tracing.layer_calls import Recording

__all__ = ["WAYS", "Way", "could_be_a_layer", "layer_calls", "outermost", "parent_of"]

CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
Modules = Mapping[str, nn.Module]


@dataclass(frozen=True)
class Way:
    """A place to look for layers: which modules to watch, and which of those that were called are the layers."""

    candidates: Callable[[nn.Module], dict[str, nn.Module]]
    choose: Callable[[Recording], list[str]]


def parent_of(path: str) -> str:
    return path.rpartition(".")[0]


def num_matrices(module: nn.Module) -> int:
    return sum(parameter.ndim >= 2 for parameter in module.parameters())


def could_be_a_layer(module: nn.Module) -> bool:
    """A branch has a matrix into its width and one out of it; a norm and a projection have not."""
    return num_matrices(module) >= 2


# -- where to look -------------------------------------------------------------------------------------------------


def _members(model: nn.Module, *containers: type[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if isinstance(module, containers):
            for key, member in module.named_children():
                yield (f"{name}.{key}" if name else key), member


def members_of_lists(model: nn.Module) -> dict[str, nn.Module]:
    members = dict(_members(model, nn.ModuleList))
    likely = {path: module for path, module in members.items() if could_be_a_layer(module)}
    return likely or {path: module for path, module in members.items() if next(module.parameters(), None) is not None}


def members_of_other_containers(model: nn.Module) -> dict[str, nn.Module]:
    members = _members(model, nn.Sequential, nn.ModuleDict)
    return {path: module for path, module in members if could_be_a_layer(module)}


def attributes_of_one_class(model: nn.Module) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for name, parent in model.named_modules():
        if isinstance(parent, CONTAINERS):
            continue
        groups: dict[type, dict[str, nn.Module]] = {}
        for key, child in parent.named_children():
            if could_be_a_layer(child) and not isinstance(child, CONTAINERS):
                groups.setdefault(type(child), {})[f"{name}.{key}" if name else key] = child
        for group in groups.values():
            if len(group) > 1:
                found |= group
    return found


def all_modules(model: nn.Module) -> dict[str, nn.Module]:
    modules = model.named_modules()
    return {path: m for path, m in modules if path and could_be_a_layer(m) and not isinstance(m, CONTAINERS)}


# -- which of them are layers --------------------------------------------------------------------------------------


def _with_streams(recording: Recording) -> list[str]:
    """The candidates that were called, and mapped a stream to its own shape each time; in the order of the calls."""
    called = dict.fromkeys(observed.path for observed in recording.calls)
    failing = {observed.path for observed in recording.calls if observed.call is None}
    return [path for path in called if path not in failing]


def outermost(paths: Iterable[str], recording: Recording) -> list[str]:
    """Those that lie in no other, neither by their place in the model nor by the calls."""
    chosen = list(paths)
    among = set(chosen)
    inner = {o.path for o in recording.calls if any(path in among for path in o.within)}
    inner |= {path for path in chosen if any(path.startswith(f"{other}.") for other in chosen)}
    return [path for path in chosen if path not in inner]


def every_stream(recording: Recording) -> list[str]:
    return outermost(_with_streams(recording), recording)


def _chained(recording: Recording, group: Callable[[str], Hashable]) -> set[str]:
    """The candidates that a link leads to or from, both ends in one group and at one depth of the calls."""
    possible = set(_with_streams(recording))
    calls = [(o.call, o.within) for o in recording.calls if o.call is not None and o.path in possible]
    givers: dict[int, list[tuple[LayerCall, tuple[str, ...]]]] = {}
    for call, within in calls:
        givers.setdefault(id(call.outputs[call.stream_output]), []).append((call, within))
    found: set[str] = set()
    for second, within in calls:
        stream = flatten(second.args, second.kwargs)[0][second.stream_leaf]
        for first, depth in givers.get(id(stream), ()):
            if first is not second and depth == within and group(first.name) == group(second.name):
                found |= {first.name, second.name}
    return found


def chains_in_containers(recording: Recording) -> list[str]:
    chained = _chained(recording, parent_of)
    stacks = {
        path
        for path in chained
        if isinstance(recording.candidates[path], CONTAINERS) and any(x.startswith(f"{path}.") for x in chained)
    }
    return outermost([path for path in _with_streams(recording) if path in chained - stacks], recording)


def chains_of_one_class(recording: Recording) -> list[str]:
    chained = _chained(recording, lambda path: (parent_of(path), type(recording.candidates[path])))
    return outermost([path for path in _with_streams(recording) if path in chained], recording)


def called_again(recording: Recording) -> list[str]:
    chained = _chained(recording, lambda path: path)
    return outermost([path for path in _with_streams(recording) if path in chained], recording)


def layer_calls(paths: Iterable[str], recording: Recording) -> list[LayerCall]:
    """The calls of the layers at these paths, in order, each under a name of its own."""
    chosen = set(paths)
    counts: dict[str, int] = {}
    calls: list[LayerCall] = []
    for observed in recording.calls:
        if observed.path in chosen and observed.call is not None:
            call = observed.call
            call.number = counts[observed.path] = counts.get(observed.path, 0) + 1
            call.name = observed.path if call.number == 1 else f"{observed.path}#{call.number}"
            calls.append(call)
    for path in (path for path, count in counts.items() if count > 1):
        # what is read of one call is given by all: a recomputation does not know which of them it repeats
        own = [call for call in calls if call.path == path]
        alive = set().union(*(call.alive for call in own))
        added = all(call.added for call in own)
        for call in own:
            call.alive, call.added = set(alive), added
    return calls


WAYS = (
    Way(members_of_lists, every_stream),
    Way(members_of_other_containers, chains_in_containers),
    Way(attributes_of_one_class, chains_of_one_class),
    Way(all_modules, called_again),
)
