"""The loop around the passes: it lints, recompiles, verifies, times, dumps and explains, so that no pass has to."""

from __future__ import annotations

import logging
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule

from estfx import switches
from estfx.errors import VerifyError
from estfx.graphs import invariants as graph_rules
from estfx.graphs.pass_files import write_graph
from estfx.graphs.provenance import snapshot, write_down

__all__ = ["Analysis", "Pass", "Rewrite", "run_passes"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pass(ABC):
    """One edit or one finding. Its options are fields; what it needs and puts are tags."""

    needs: ClassVar[tuple[type, ...]] = ()
    puts: ClassVar[tuple[type, ...]] = ()

    @abstractmethod
    def run(self, gm: GraphModule) -> int:
        """Does it, and returns how many edits were made or things found."""

    @classmethod
    def name(cls) -> str:
        return re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()


class Analysis(Pass):
    """Finds, and leaves the graph alone."""


class Rewrite(Pass):
    """Edits, and counts its edits."""


def run_passes(gm: GraphModule, passes: Sequence[Pass]) -> GraphModule:
    """Runs the passes in order on `gm`, in place, and returns it."""
    for step in passes:
        missing = [tag.__name__ for tag in step.needs if tag.__qualname__ not in gm.meta]
        if missing:
            raise VerifyError(f"pass {step.name()} needs {', '.join(missing)}, which no pass before it has put")
        before = _text(gm) if switches.VERIFY else ""
        nodes = snapshot(gm)
        started = time.perf_counter()
        try:
            count = step.run(gm)
            if isinstance(step, Rewrite):
                write_down(gm, nodes, step.name())
                gm.recompile()
            if switches.VERIFY:
                gm.graph.lint()
                _check_claim(step, count, before, gm)
            if switches.VERIFY >= 2:
                graph_rules.verify(gm)
        except Exception as error:
            error.add_note(f"in pass {step.name()} on the graph of {gm._get_name()}")
            raise
        log.debug("%s: %d in %.1f ms", step.name(), count, 1e3 * (time.perf_counter() - started))
        if switches.DUMP is not None:
            write_graph(switches.DUMP, gm, step.name())
    return gm


def _text(gm: GraphModule) -> str:
    return str(gm.graph)


def _check_claim(step: Pass, count: int, before: str, gm: GraphModule) -> None:
    changed = _text(gm) != before
    if isinstance(step, Analysis) and changed:
        raise VerifyError(f"pass {step.name()} is an analysis, but it changed the graph")
    if isinstance(step, Rewrite) and changed != (count > 0):
        did = "did" if changed else "did not"
        raise VerifyError(f"pass {step.name()} claims {count} edits, but the graph {did} change")
    absent = [tag.__name__ for tag in step.puts if tag.__qualname__ not in gm.meta]
    if absent:
        raise VerifyError(f"pass {step.name()} was to put {', '.join(absent)}, and did not")
