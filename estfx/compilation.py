"""How programs and the loss are compiled, and what is said when one has to be compiled again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters
from torch.fx import GraphModule

from estfx.errors import EstfxError

__all__ = ["CompiledProgram", "Compiler", "compiler_of", "load_compiled", "save_compiled"]

log = logging.getLogger(__name__)
BACKEND = "inductor"
GLOBAL = "its inputs are the same, so it is something global: gradient mode, autocast, or a setting of torch"


@dataclass
class Compiler:
    """What `torch.compile` is given for programs, and for the loss if that is compiled too."""

    mode: str | None = None
    options: Mapping[str, Any] | None = None
    loss: bool = True
    quiet: bool = False  # while programs are warmed up, when to compile one again is no news
    _losses: dict[Callable[..., Any], Callable[..., Any]] = field(default_factory=dict, compare=False)

    @cached_property
    def given(self) -> dict[str, Any]:
        options = dict(self.options) if self.options is not None else None
        return {"backend": BACKEND, "mode": self.mode, "options": options}

    def program(self, graph: GraphModule) -> CompiledProgram:
        # The forward and not the module: a GraphModule's call looks into every exception that passes through it, in
        # code that torch.compile then tries to compile, and checkpointing stops its recomputation by an exception.
        names = tuple(node.name for node in graph.graph.nodes if node.op == "placeholder")
        call = torch.compile(graph.forward, fullgraph=True, **self.given)
        return CompiledProgram(call, type(graph).__name__, names, self)

    def loss_function(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A loss, compiled once; as it is if losses are not compiled."""
        if not self.loss:
            return function
        if function not in self._losses:
            self._losses[function] = torch.compile(function, **self.given)
        return self._losses[function]


def compiler_of(compile: bool, mode: str | None, options: Mapping[str, Any] | None, loss: bool) -> Compiler | None:
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
    return Compiler(mode, options, loss)


@dataclass
class CompiledProgram:
    """A compiled graph. It says once for each cause that it had to be compiled again."""

    call: Callable[..., tuple[torch.Tensor, ...]]
    name: str
    inputs: tuple[str, ...]  # names of its arguments
    compiler: Compiler
    compiled_for: list[list[str]] = field(default_factory=list)
    reported: set[str] = field(default_factory=set)

    def __call__(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if torch.compiler.is_compiling():  # it is a part of something else that is being compiled
            return self.call(*values)
        graphs = counters["stats"]["unique_graphs"]
        result = self.call(*values)
        if counters["stats"]["unique_graphs"] != graphs:
            self._note([_described(value) for value in values])
        return result

    def _note(self, described: list[str]) -> None:
        cause = self._cause(described)
        self.compiled_for.append(described)
        if len(self.compiled_for) > 1 and not self.compiler.quiet and cause not in self.reported:
            self.reported.add(cause)
            log.warning("the program of %s was compiled again: %s", self.name, cause)

    def _cause(self, described: list[str]) -> str:
        """The inputs that are other than at the last compilation; the closest of all, if there were several."""
        if not self.compiled_for:
            return "it never was"
        differing = []
        for known in self.compiled_for:
            each = zip(self.inputs, described, known, strict=True)
            differing.append([f"`{name}` is {now}, was {before}" for name, now, before in each if now != before])
        return "; ".join(min(differing, key=len)[:3]) or GLOBAL


def _described(value: object) -> str:
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
