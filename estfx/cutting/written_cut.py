"""A cut that no configuration can say, written down: which layers, which sizes, and which numbers its code reads."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from estfx.cutting.cut_modules import renamed
from estfx.cutting.edits import Edit, apply_edits, value_at
from estfx.errors import EstfxError

__all__ = ["apply_to_model", "as_it_was", "cut_as_written", "written"]

log = logging.getLogger(__name__)
FORMAT = 1


def written(
    model: nn.Module,
    layers: Mapping[str, Sequence[int]],
    shapes: Mapping[str, Sequence[int]],
    edits: Sequence[Edit],
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A cut as plain data, for a configuration or a file.

    `model`: the whole one. `layers`: by the path of each list of them, the positions that stay. `shapes`: of each
    weight that became smaller, by its name in the cut. `before`: what is written of the model, if it was cut by
    attributes itself.
    """
    own = [edit for edit in edits if edit.path[0] == "config" and hasattr(model, "config")]
    data: dict[str, Any] = {
        "format": FORMAT,
        "class": type(model).__name__,
        "torch": torch.__version__.partition("+")[0],
        "transformers": _version_of_transformers(model),
        "layers": {path: list(left) for path, left in layers.items()},
        "shapes": {name: list(shape) for name, shape in shapes.items()},
        "edits": [[list(edit.path), edit.value] for edit in edits],
        "config": [[list(edit.path[1:]), value_at(model, edit.path)] for edit in own],
    }
    if before:
        data = _after(before, data)
    return {**data, "sha256": _hash(data)}


def _after(first: Mapping[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two cuts, one after the other, as one."""
    names = [
        (f"{path}.{old}", f"{path}.{new}") for path, left in second["layers"].items() for new, old in enumerate(left)
    ]
    gone = {
        f"{path}.{old}"
        for path, left in second["layers"].items()
        for old in range(max([*left, *map(int, _numbers(first, path))], default=-1) + 1)
        if old not in left
    }

    def staying(path: str) -> bool:
        return not any(path == each or path.startswith(f"{each}.") for each in gone)

    layers = dict(first["layers"])
    for path, left in second["layers"].items():
        layers[path] = [layers[path][i] for i in left] if path in layers else left
    edits = [
        [renamed(".".join(map(str, path)), names).split("."), value]
        for path, value in first["edits"]
        if staying(".".join(map(str, path)))
    ]
    known = [path for path, _ in first["config"]]
    return {
        **second,
        "layers": layers,
        "shapes": {
            **{renamed(name, names): shape for name, shape in first["shapes"].items() if staying(name)},
            **second["shapes"],
        },
        "edits": [*edits, *second["edits"]],
        "config": [*first["config"], *([path, value] for path, value in second["config"] if path not in known)],
    }


def _numbers(data: Mapping[str, Any], path: str) -> list[str]:
    """Positions in a list of layers that are named in what is written."""
    names = [*data["shapes"], *(".".join(map(str, steps)) for steps, _ in data["edits"])]
    inside = (name.removeprefix(f"{path}.").partition(".")[0] for name in names if name.startswith(f"{path}."))
    return [each for each in inside if each.isdecimal()]


def _version_of_transformers(model: nn.Module) -> str:
    if not hasattr(model, "save_pretrained"):
        return ""
    import transformers

    return str(transformers.__version__)


def _hash(data: Mapping[str, Any]) -> str:
    plain = json.dumps({key: value for key, value in data.items() if key != "sha256"}, sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()


def checked(data: Any) -> Mapping[str, Any]:
    """What was written, if it is as it was written; raises EstfxError."""
    if not isinstance(data, Mapping) or not {"format", "layers", "shapes", "edits", "config", "sha256"} <= data.keys():
        raise EstfxError("this is no cut as estfx writes one: entries are missing. Make the cut again.")
    if data["format"] != FORMAT:
        raise EstfxError(
            f"this cut was written in format {data['format']}; this version of estfx reads format {FORMAT}. Use the "
            "version that wrote it, or make the cut again."
        )
    if data["sha256"] != _hash(data):
        raise EstfxError(
            "the entry that says how this model was cut was changed since it was written (its hash differs). Take it "
            "from the original folder, or make the cut again."
        )
    return data


def as_it_was(config: Any, data: Any) -> None:
    """Gives a configuration the values that it had before the cut: from these the whole model is built first."""
    data = checked(data)
    if data["transformers"]:
        import transformers

        if transformers.__version__ != data["transformers"]:
            log.warning(
                "this cut was made with transformers %s, and is loaded with %s. Its code may read other numbers than "
                "those that the cut has set; compare its outputs.",
                data["transformers"],
                transformers.__version__,
            )
    apply_edits(config, [Edit(tuple(path), value) for path, value in data["config"]])


def cut_as_written(model: nn.Module, data: Any) -> None:
    """Makes of a whole model, just built, the cut that is written; its weights are still to be loaded."""
    data = checked(data)
    prefix = getattr(model, "base_model_prefix", "")
    inner = bool(prefix) and type(model).__name__ != data["class"] and not hasattr(model, prefix)

    def here(path: str) -> str:
        return path.removeprefix(f"{prefix}.") if inner else path

    def steps(path: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(path[1:] if inner and path[0] == prefix else path)

    for path, left in data["layers"].items():
        container: Any = model.get_submodule(here(path))
        for number in sorted(set(range(len(container))) - set(left), reverse=True):
            del container[number]
    for name, shape in data["shapes"].items():
        _resize(model, here(name), tuple(shape))
    apply_to_model(model, [Edit(steps(path), value) for path, value in data["edits"]])


def _resize(model: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    owner, _, last = name.rpartition(".")
    try:
        module = model.get_submodule(owner)
        old = getattr(module, last)
    except AttributeError as error:
        raise EstfxError(
            f"the cut has a weight `{name}`, which `{type(model).__name__}` has not got here: its code is another than "
            "that of the model that was cut."
        ) from error
    if isinstance(old, nn.Parameter):
        setattr(module, last, nn.Parameter(old.new_empty(shape), requires_grad=old.requires_grad))
    else:
        module._buffers[last] = old.new_zeros(shape)
        module._non_persistent_buffers_set.discard(last)  # the model's own code would make it for the whole


def apply_to_model(model: nn.Module, edits: Sequence[Edit]) -> None:
    """Applies edits. The model's configuration is changed where it stands, for all modules that share it."""
    for edit in edits:
        if edit.path[0] == "config" and len(edit.path) > 1:
            apply_edits(model.config, [Edit(edit.path[1:], edit.value)])
        else:
            apply_edits(model, [edit])
