"""Which numbers a piece of code reads, in the order in which it does, and how far it comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from estfx.cutting.edits import Path, held_numbers
from estfx.stand_ins import stand_in_for

__all__ = ["ReadNumbers", "Run"]


@dataclass(frozen=True)
class Run:
    """What came of running code once."""

    result: Any
    error: Exception | None
    operations: int  # of torch, until it ended or failed
    read: tuple[Path, ...]  # the numbers that it read, the last one first


class _Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        return func(*args, **(kwargs or {}))


class ReadNumbers:
    """Runs code and notes which numbers it reads of those that a module holds."""

    def __init__(self, root: nn.Module, leave_out: Sequence[nn.Module] = ()) -> None:
        self.root, self.leave_out = root, leave_out
        self._classes: dict[type, type] = {}
        self._seen: list[tuple[int, str]] = []

    def run(self, function: Callable[[], Any]) -> Run:
        places: dict[tuple[int, str], list[Path]] = {}
        always: list[Path] = []
        holders: dict[int, Any] = {}
        for path, _, holder in held_numbers(self.root, self.leave_out):
            if isinstance(holder, Mapping):
                always.append(path)
            else:
                places.setdefault((id(holder), str(path[-1])), []).append(path)
                holders[id(holder)] = holder
        self._seen.clear()
        swapped: list[tuple[Any, type]] = []
        count = _Count()
        result, error = None, None
        try:
            for holder in holders.values():
                cls = type(holder)
                try:
                    object.__setattr__(holder, "__class__", self._recording(cls))
                    swapped.append((holder, cls))
                except TypeError:  # a class with a layout of its own
                    always += [p for (owner, _), paths in places.items() if owner == id(holder) for p in paths]
            with torch.no_grad(), count:
                result = function()
        except Exception as raised:
            error = raised
        finally:
            for holder, cls in swapped:
                object.__setattr__(holder, "__class__", cls)
        read = dict.fromkeys(path for key in reversed(self._seen) for path in places.get(key, ()))
        return Run(result, error, count.operations, (*read, *(path for path in always if path not in read)))

    def _recording(self, cls: type) -> type:
        if cls not in self._classes:
            lookup: Any = cls.__getattribute__
            renamed: Mapping[str, str] = getattr(cls, "attribute_map", None) or {}
            seen = self._seen

            def __getattribute__(self: Any, name: str) -> Any:
                if not name.startswith("__"):
                    seen.append((id(self), renamed.get(name, name)))
                return lookup(self, name)

            self._classes[cls] = stand_in_for(cls, {"__getattribute__": __getattribute__})
        return self._classes[cls]
