"""Runs pytest again and again, each time in a process forked from this one, which has imported what takes long.

For `mutants.py`, most of whose runs would take longer to import torch and transformers than to run a test. Orders come
line by line: JSON with the folder to run in, pytest's arguments, a file for what is printed, and a limit in seconds. A
line with the status answers each: pytest's, less than 0 if a signal ended it, -1000 if it took longer.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

IMPORTED = ("networkx", "numpy", "pydantic", "sympy", "torch", "torch._dynamo", "torch._inductor.custom_graph_pass",
            "torch.export", "transformers", "transformers.models.llama.modeling_llama",
            "transformers.models.gpt2.modeling_gpt2", "transformers.trainer", "typer", "yaml")  # fmt: skip
HUNG = -1000


def run_there(tree: str, arguments: Sequence[str], out: str) -> NoReturn:
    """Runs pytest in a folder, in a process of its own."""
    os.setsid()
    for number, target in ((0, os.open(os.devnull, os.O_RDONLY)), (1, os.open(out, os.O_WRONLY)), (2, 1)):
        os.dup2(target, number)
    os.chdir(tree)
    os.environ["PYTHONPATH"] = tree
    sys.path[:] = [tree, *(path for path in sys.path if path not in ("", str(Path(__file__).parent)))]
    import pytest

    early = "ignore::pytest.PytestAssertRewriteWarning"  # of plugins that were imported before pytest began
    status = pytest.main(["-W", early, *arguments])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(status))


def status_of(process: int, limit: float) -> int:
    """How a process ended; what it has started ends with it."""
    until, status = time.monotonic() + limit, HUNG
    while time.monotonic() < until:
        done, code = os.waitpid(process, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(code)
            break
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)  # the ranks that a test has started, too
    if status == HUNG:
        os.waitpid(process, 0)
    return status


def main() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        process = os.fork()
        if process == 0:
            run_there(order["tree"], order["arguments"], order["out"])
        print(status_of(process, order["limit"]), flush=True)


if __name__ == "__main__":
    main()
