"""Layers that the user names, by patterns such as `blocks.*`, and names for what looks like layers in a model."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import takewhile

from torch import nn

from estfx.errors import UnsupportedModelError
from estfx.tracing.find_layers import CONTAINERS, could_be_a_layer, outermost, parent_of
from estfx.tracing.layer_calls import Recording

__all__ = ["LayerPatterns", "check_named", "looks_like_layers", "named_modules"]

LayerPatterns = str | Sequence[str]
FEW = 6  # names in a message


def matches(pattern: str, path: str) -> bool:
    """Component by component: `blocks.*` is `blocks.3`, not `blocks.3.mlp`."""
    parts, wanted = path.split("."), pattern.split(".")
    return path == pattern or (len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted)))


def named_modules(model: nn.Module, patterns: LayerPatterns) -> dict[str, nn.Module]:
    """The modules that the patterns name, each once. Raises UnsupportedModelError for a pattern that names none."""
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    if not wanted or not all(isinstance(pattern, str) and pattern for pattern in wanted):
        raise UnsupportedModelError(
            f'layers={patterns!r} names nothing; pass a pattern such as "blocks.*", or a list of patterns or names.'
        )
    everything = [(path, module) for path, module in model.named_modules(remove_duplicate=False) if path]
    found: dict[int, tuple[str, nn.Module]] = {}
    for pattern in wanted:
        hits = [(path, module) for path, module in everything if matches(pattern, path)]
        if not hits:
            raise UnsupportedModelError(
                f"layers={pattern!r} matches no module of `{type(model).__name__}`. {looks_like_layers(model)}"
            )
        for path, module in hits:
            found.setdefault(id(module), (path, module))
    return dict(found.values())


def check_named(model: nn.Module, recording: Recording) -> None:
    """Raises UnsupportedModelError unless each named module was called, mapped a stream to its own shape each time,
    and lies in no other.
    """
    named = recording.candidates
    called = dict.fromkeys(observed.path for observed in recording.calls)
    silent = [path for path in named if path not in called]
    if silent:
        lists = [path for path in silent if isinstance(named[path], (nn.ModuleList, nn.ModuleDict))]
        advice = (
            f'`{lists[0]}` only holds modules; name its members, layers="{lists[0]}.*".'
            if lists
            else f"{looks_like_layers(model)} Name those that are called on these example inputs."
        )
        raise UnsupportedModelError(
            f"layers= names {_few(silent)}, which `{type(model).__name__}` never calls. {advice}"
        )
    failing = list(dict.fromkeys(observed.path for observed in recording.calls if observed.call is None))
    if failing:
        raise UnsupportedModelError(
            f"layers= names {_few(failing)} ({type(named[failing[0]]).__name__}), which does not map a residual stream "
            "to its own shape: a layer takes a floating-point tensor [batch, …, hidden] and returns one of the same "
            f"shape. {looks_like_layers(model)}"
        )
    inner = [path for path in called if path not in outermost(called, recording)]
    if inner:
        outer = next((path for path in called if inner[0].startswith(f"{path}.")), None)
        outer = outer or next(o.within[-1] for o in recording.calls if o.path == inner[0] and o.within)
        raise UnsupportedModelError(
            f"layers= names `{inner[0]}` and `{outer}`, one of which lies in the other; name only one of them."
        )


def looks_like_layers(model: nn.Module) -> str:
    """A sentence with patterns for the siblings of one class that could be layers; those inside others left out."""
    found: list[tuple[str, str]] = []
    for name, parent in model.named_modules():
        if any(parent_of(pattern) and f"{name}.".startswith(f"{parent_of(pattern)}.") for pattern, _ in found):
            continue
        groups: dict[type, list[str]] = {}
        for key, child in parent.named_children():
            if could_be_a_layer(child) and not isinstance(child, CONTAINERS):
                groups.setdefault(type(child), []).append(key)
        for cls, keys in groups.items():
            if len(keys) > 1 or isinstance(parent, CONTAINERS):
                pattern = _pattern(keys, list(parent._modules))
                found.append((f"{name}.{pattern}" if name else pattern, f"{len(keys)} of `{cls.__name__}`"))
    if not found:
        return "No modules of it look like layers: none are siblings of one class with two matrices each."
    return f"What looks like layers in it: {', '.join(f'`{pattern}` ({what})' for pattern, what in found[:FEW])}."


def _pattern(keys: list[str], siblings: list[str]) -> str:
    """The shortest pattern for these children alone, or the first of them if none is."""
    shared = "".join(letters[0] for letters in takewhile(lambda each: len(set(each)) == 1, zip(*keys, strict=False)))
    for pattern in ("*", f"{shared}*"):
        if [key for key in siblings if fnmatchcase(key, pattern)] == keys:
            return pattern
    return keys[0]


def _few(paths: Sequence[str]) -> str:
    shown = ", ".join(f"`{path}`" for path in paths[:FEW])
    return shown if len(paths) <= FEW else f"{shown} and {len(paths) - FEW} more"
