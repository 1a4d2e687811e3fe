"""Lets transformers load checkpoints of cut models: an entry in a configuration says how such a model is built.

It is heard when transformers builds a model, and costs a look into the configuration. transformers is not imported
here: where it is not there yet, this waits until it is.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.machinery
import sys
import threading
from collections.abc import Sequence
from typing import Any

__all__ = ["ENTRY", "build_cuts"]

ENTRY = "estfx_cut"  # of a configuration
MODULE = "transformers.modeling_utils"
_building = threading.local()


def build_cuts() -> None:
    """Has transformers build cut models where a configuration asks for one, from now on or from its import on."""
    module = sys.modules.get(MODULE)
    if module is not None and hasattr(module, "PreTrainedModel"):
        _hear(module.PreTrainedModel)
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds nothing itself; once transformers' models are imported, it hears of them, and is gone."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                load(module)
                _hear(module.PreTrainedModel)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _hear(cls: Any) -> None:
    if ENTRY in vars(cls):
        return
    setattr(cls, ENTRY, None)  # that it is heard
    begin, end = cls.__init__, cls.post_init

    @functools.wraps(begin)
    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        entry = getattr(config, ENTRY, None)
        if entry:
            root = getattr(_building, "root", None)
            if root is None or root[1] is not config:  # the models within are given the same configuration
                importlib.import_module("estfx.cutting").as_it_was(config, entry)
                _building.root = self, config
        begin(self, config, *args, **kwargs)

    @functools.wraps(end)
    def post_init(self: Any, *args: Any, **kwargs: Any) -> None:
        end(self, *args, **kwargs)
        root = getattr(_building, "root", None)
        if root is not None and root[0] is self:
            _building.root = None
            importlib.import_module("estfx.cutting").cut_as_written(self, getattr(root[1], ENTRY))

    cls.__init__, cls.post_init = __init__, post_init
