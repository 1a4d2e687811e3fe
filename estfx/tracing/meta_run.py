"""Running a model on the meta device although its code looks at numbers.

Masks and positions are decided by numbers ("is this batch packed?"), which meta tensors do not have. Here they have:
each tensor that comes from sizes and constants alone is computed on the CPU as well, and answers when its value is
asked for. Weights, activations and token ids stay without values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["NumbersHaveValues"]

aten = torch.ops.aten
WITHOUT_VALUES = {aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default, aten.empty_strided.default}
LARGEST = 2**24  # elements of a tensor that is computed on the CPU too


class NumbersHaveValues(TorchDispatchMode):
    """Within it, meta tensors that depend on no weight and no input can be asked for their values."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._values = WeakTensorKeyDictionary()

    def _real(self, leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return self._values[leaf] if leaf.device.type == "meta" else leaf
        return torch.device("cpu") if isinstance(leaf, torch.device) else leaf

    def _knows(self, leaves: list[Any]) -> bool:
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.device.type == "meta"]
        return all(t in self._values for t in tensors)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves, spec = pytree.tree_flatten((args, kwargs))
        on_meta = any(isinstance(x, torch.Tensor) and x.device.type == "meta" for x in leaves)
        on_meta |= any(isinstance(x, torch.device) and x.type == "meta" for x in leaves)
        if not on_meta or not self._knows(leaves):
            return func(*args, **kwargs)
        if func is torch.ops.aten._local_scalar_dense.default:
            return self._values[args[0]].item()
        result = func(*args, **kwargs)
        if torch.Tag.nondeterministic_seeded in func.tags:
            return result
        made = [x for x in pytree.tree_leaves(result) if isinstance(x, torch.Tensor)]
        if made and func not in WITHOUT_VALUES and all(x.numel() <= LARGEST for x in made):
            real_args, real_kwargs = pytree.tree_unflatten([self._real(x) for x in leaves], spec)
            values = pytree.tree_leaves(func(*real_args, **real_kwargs))
            for x, value in zip(pytree.tree_leaves(result), values, strict=True):
                if isinstance(x, torch.Tensor):
                    self._values[x] = value
        return result
