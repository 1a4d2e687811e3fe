"""Modules that users once imported: to import one now raises an error that names the door where its names are."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["MOVED", "tell_of_moved_modules"]

MOVED = {
    "capture": "Its functions are internal now.",
    "draws": "Import Draw, draw_units and selection_policy from estfx.",
    "fsdp": "Its functions are internal now; torch.distributed.checkpoint.state_dict has what they were made of.",
    "gather": "Write graphs that were dumped with it again, by estfx dump.",
    "made_with": "Import made_with and differences from estfx.runtime.",
    "model_spec": "Import build_model from estfx.training.",
    "registration": "Import rule and resizer from estfx.",
    "rules": "Import rule, resizer, Walk and Resize from estfx.",
    "schedule": "Import Schedule from estfx.",
    "stage": "Import Stage and kept_count from estfx.",
    "subnetwork": "Import Subnetwork from estfx.",
    "tags": "Import tags from estfx.graphs.",
    "text_data": "Import Tokens and tokens_of from estfx.training.",
    "train_config": "Import RunConfig from estfx.training.",
    "walk": "Import Walk and Resize from estfx.",
}


class _Finder(MetaPathFinder):
    """Asked last of all finders, so only for what is not there."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Raises ModuleNotFoundError for a module that has moved."""
        package, _, name = fullname.partition(".")
        if package == "estfx" and name in MOVED:
            raise ModuleNotFoundError(f"{fullname} is gone. {MOVED[name]}", name=fullname)
        return None


def tell_of_moved_modules() -> None:
    """From now on; further calls change nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
