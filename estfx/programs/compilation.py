"""How programs, and functions around the layers, are compiled, and what is said when one has to be compiled again."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from estfx.errors import EstfxError
from estfx.graphs import opaque_modules
from estfx.programs.recompute_gathers import RecomputeGathers

__all__ = ["Compiled", "Compiler", "compiler_of", "load_compiled", "save_compiled"]

log = logging.getLogger(__name__)
BACKEND = "inductor"
AFTER_JOINT = "joint_custom_post_pass"  # the option that takes passes over a graph of forward and backward pass
ABSENT = "not given"
GLOBAL = "its inputs are the same, so it is something else: gradient mode, autocast, or a setting of torch or the model"


@dataclass
class Compiler:
    """What `torch.compile` is given for programs, and for what is compiled of the model around its layers."""

    mode: str | None = None
    options: Mapping[str, Any] | None = None
    outside: bool = True  # the loss, and modules outside of the layers
    quiet: bool = False  # while programs are warmed up, when to compile one again is no news
    _functions: dict[Callable[..., Any], OptionallyCompiled] = field(default_factory=dict, compare=False)

    @cached_property
    def given(self) -> dict[str, Any]:
        options = dict(self.options or {})
        if BACKEND == "inductor":
            if self.mode is not None:
                options |= torch._inductor.list_mode_options(self.mode)  # a mode and options cannot both be given
            own = options.get(AFTER_JOINT) or []
            options[AFTER_JOINT] = RecomputeGathers(own if isinstance(own, (list, tuple)) else [own])
        return {"backend": BACKEND, "options": options or None}

    def program(self, graph: GraphModule) -> Compiled:
        # The forward and not the module: a GraphModule's call looks into every exception that passes through it, in
        # code that torch.compile then tries to compile, and checkpointing stops its recomputation by an exception.
        whole = not opaque_modules(graph)  # around a module that no graph can hold, compilation may stop
        return Compiled(graph.forward, f"the program of {type(graph).__name__}", self, whole)

    def outer_function(self, function: Callable[..., Any], what: str) -> Callable[..., Any]:
        """A function of the model around its layers, compiled once; as it is if `outside` was not asked for."""
        if not self.outside:
            return function
        if function not in self._functions:
            self._functions[function] = OptionallyCompiled(Compiled(function, what, self))
        return self._functions[function]


def compiler_of(compile: bool, mode: str | None, options: Mapping[str, Any] | None, outside: bool) -> Compiler | None:
    """What `transform` was asked for. Raises EstfxError for what torch.compile takes not."""
    if not compile:
        if mode is not None or options is not None:
            raise EstfxError("mode and options are what torch.compile is given, but compile=False was asked for.")
        return None
    if mode is not None and options is not None:
        raise EstfxError("torch.compile takes either a mode or options, not both; options may hold what a mode sets.")
    known = torch._inductor.list_mode_options()
    if mode is not None and mode != "default" and mode not in known:
        raise EstfxError(f"unknown mode {mode!r} of torch.compile; known are default, {', '.join(sorted(known))}.")
    unknown = sorted(set(options or ()) - set(torch._inductor.list_options()))
    if unknown:
        raise EstfxError(
            f"torch.compile has no option {', '.join(unknown)}; torch._inductor.list_options() has all of them."
        )
    return Compiler(mode, options, outside)


class Compiled:
    """A compiled function. It says once for each cause that it had to be compiled again."""

    def __init__(self, function: Callable[..., Any], what: str, compiler: Compiler, whole: bool = True) -> None:
        self.function, self.what, self.compiler = function, what, compiler
        self.call = torch.compile(function, **compiler.given, fullgraph=whole)
        self.compiled_for: list[dict[str, str]] = []
        self.reported: set[str] = set()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # it is a part of something else that is being compiled
            return self.call(*args, **kwargs)
        graphs = counters["stats"]["unique_graphs"]
        result = self.call(*args, **kwargs)
        if counters["stats"]["unique_graphs"] != graphs:
            self._note(_described(self.function, args, kwargs))
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Compiled:
        return self

    def _note(self, described: dict[str, str]) -> None:
        cause = self._cause(described)
        self.compiled_for.append(described)
        if len(self.compiled_for) > 1 and not self.compiler.quiet and cause not in self.reported:
            self.reported.add(cause)
            log.warning("%s was compiled again: %s", self.what, cause)

    def _cause(self, described: dict[str, str]) -> str:
        """The inputs that are other than at the last compilation; the closest of all, if there were several."""
        if not self.compiled_for:
            return "it never was"
        differing = []
        for known in self.compiled_for:
            each = [(name, described.get(name, ABSENT), known.get(name, ABSENT)) for name in described | known]
            differing.append([f"`{name}` is {now}, was {before}" for name, now, before in each if now != before])
        return "; ".join(min(differing, key=len)[:3]) or GLOBAL


class OptionallyCompiled:
    """A function that runs compiled, or as it is if torch.compile does not take it, which is said once."""

    def __init__(self, compiled: Compiled) -> None:
        self.compiled, self.refused = compiled, False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.refused:
            return self.compiled.function(*args, **kwargs)
        try:
            return self.compiled(*args, **kwargs)
        except TorchDynamoException as error:
            self.refused = True
            log.warning(
                "%s runs as it is, uncompiled, since torch.compile does not take it: %s",
                self.compiled.what,
                str(error).splitlines()[0],
            )
            log.debug("why", exc_info=True)
            return self.compiled.function(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> OptionallyCompiled:
        return self


def _described(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, str]:
    """The arguments of a call by their names, as far as they decide what is compiled."""
    bound = inspect.signature(function).bind(*args, **kwargs).arguments
    return {name: ", ".join(map(_in_words, pytree.tree_leaves(value))) for name, value in bound.items()}


def _in_words(value: object) -> str:
    if isinstance(value, nn.Module):
        return type(value).__name__
    if not isinstance(value, torch.Tensor):
        return repr(value)
    kind = str(value.dtype).removeprefix("torch.")
    gradient = " with gradient" if value.requires_grad else ""
    layout = "" if value.is_contiguous() else f" strided {tuple(value.stride())}"
    return f"{kind}{list(value.shape)}{layout} on {value.device}{gradient}"


def save_compiled(path: str | Path) -> int:
    """Writes all that torch.compile has made in this process to a file, and returns how many bytes.

    For the same versions of torch and Triton on the same kind of machine. Raises EstfxError if there is nothing.
    Source: `torch.compiler.save_cache_artifacts`.
    """
    saved = torch.compiler.save_cache_artifacts()
    if saved is None:
        raise EstfxError("nothing was compiled in this process, so there is nothing to save. Train a step first.")
    return Path(path).write_bytes(saved[0])


def load_compiled(path: str | Path) -> None:
    """Puts what `save_compiled` wrote where torch.compile looks first; call it before the first step.

    Raises EstfxError if there is no such file or it is not of this version of torch.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise EstfxError(f"{path} cannot be read: {error}.") from None
    if torch.compiler.load_cache_artifacts(data) is None:
        raise EstfxError(
            f"{path} holds nothing that torch {torch.__version__} can load; save it anew with this version."
        )
