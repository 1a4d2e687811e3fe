"""The checkpoints of a run: folders `checkpoint-<step>`, each complete, because it is written elsewhere and renamed.

Tensors are in safetensors, everything else in JSON. Only the random states are in a file of torch's own, which is read
with `weights_only=True`: nothing that is read runs code.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from estfx.errors import EstfxError
from estfx.settings import parse_json

__all__ = ["CheckpointError", "checked", "finish", "latest", "load_state", "save_state", "step_of", "steps_of", "tidy"]

PREFIX, UNFINISHED = "checkpoint-", "unfinished"


class CheckpointError(EstfxError):
    """A checkpoint that cannot be gone on from."""

    page = "how-to/resume.md"


def steps_of(folder: Path) -> dict[int, Path]:
    """The complete checkpoints of a folder by their step, in order."""
    found = {path.name.removeprefix(PREFIX): path for path in folder.glob(f"{PREFIX}*") if path.is_dir()}
    return {int(step): found[step] for step in sorted((step for step in found if step.isdigit()), key=int)}


def step_of(checkpoint: Path) -> int:
    """How many steps were done when it was written."""
    return int(checkpoint.name.removeprefix(PREFIX))


def latest(folder: Path) -> Path | None:
    """The last complete checkpoint, or None."""
    found = steps_of(folder)
    return found[max(found)] if found else None


def finish(folder: Path, step: int, keep: int) -> None:
    """Puts a checkpoint that was written below `unfinished` among the complete ones, of which the last `keep` stay.

    Everything is on disk before its name is: whatever happens, the folder holds complete checkpoints only.
    """
    written = folder / UNFINISHED / f"{PREFIX}{step}"
    for path in sorted(written.rglob("*")):
        _flush(path)
    _flush(written)
    place = folder / written.name
    if place.exists():  # of a run that went on from an earlier step
        _remove(place)
    written.rename(place)
    _flush(folder)
    for path in list(steps_of(folder).values())[:-keep]:
        _remove(path)
    tidy(folder)


def tidy(folder: Path) -> None:
    """Removes what a run left that was stopped while it wrote or removed a checkpoint."""
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)


def _remove(path: Path) -> None:
    """Takes a checkpoint's name away first: half of one must not be found."""
    away = path.parent / UNFINISHED / f"removed-{path.name}"
    shutil.rmtree(away, ignore_errors=True)
    away.parent.mkdir(exist_ok=True)
    path.rename(away)
    shutil.rmtree(away)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_state(state: Mapping[str, Any], folder: Path, name: str) -> None:
    """Writes a state dict of numbers, texts and tensors, nested in dicts, lists and tuples, as two files."""
    tensors: dict[str, torch.Tensor] = {}
    plain = _without_tensors(state, "", tensors)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(plain) + "\n", encoding="utf-8")


def load_state(folder: Path, name: str) -> dict[str, Any]:
    """Reads what `save_state` wrote."""
    tensors = load_file(folder / f"{name}.safetensors")
    plain = parse_json((folder / f"{name}.json").read_text(encoding="utf-8"))
    restored: dict[str, Any] = _with_tensors(plain, tensors)
    return restored


def _without_tensors(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach().cpu()
        return {"tensor": path}
    if isinstance(value, Mapping):  # whose keys need not be texts
        return {"dict": [[key, _without_tensors(each, f"{path}.{key}", tensors)] for key, each in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_without_tensors(each, f"{path}.{i}", tensors) for i, each in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise CheckpointError(
        f"the state holds a {type(value).__name__} at `{path.removeprefix('.')}`, which a checkpoint cannot hold: only "
        "tensors, numbers, texts, and dicts, lists and tuples of them."
    )


def _with_tensors(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "dict":
        return {key: _with_tensors(each, tensors) for key, each in inner}
    each = [_with_tensors(one, tensors) for one in inner]
    return tuple(each) if kind == "tuple" else each


def checked(path: Path, ranks: int | None = 1) -> Path:
    """A checkpoint that has all its files, each as long as it says it is. Raises CheckpointError otherwise.

    With `ranks` it must have been written by that many processes, or random numbers would not go on where they were.
    """
    states = ["rng_state.pth"] if ranks == 1 else [f"rng_state_{rank}.pth" for rank in range(ranks or 0)]
    needed = ["trainer_state.json", "optimizer.safetensors", "optimizer.json", "scheduler.json", *states]
    missing = [name for name in needed if not (path / name).exists()]
    weights = list(path.glob("model*.safetensors"))
    if not weights:
        missing.append("model.safetensors")
    if missing:
        then = len(list(path.glob("rng_state*.pth")))
        if set(missing) <= set(states) and then not in (0, ranks):
            raise CheckpointError(
                f"{path} was written by {then} process{'es' if then > 1 else ''}, now there "
                f"{f'are {ranks}' if ranks != 1 else 'is 1'}: random numbers would not go on where they were. Start as "
                "many as then, or pass --accept-changes."
            )
        raise CheckpointError(f"{path} lacks {', '.join(missing)}. {_remedy(path)}")
    looks: dict[Path, Callable[[Path], object]] = dict.fromkeys([*weights, path / "optimizer.safetensors"], _tensors_in)
    looks.update((path / state, _look_into_archive) for state in states)
    looks.update((file, _look_into_json) for file in path.glob("*.json"))
    for file, look in looks.items():
        try:
            look(file)
        except (SafetensorError, BadZipFile, ValueError, KeyError, OSError) as error:
            raise CheckpointError(f"{file} is damaged ({error}). {_remedy(path)}") from None
    return path


def _tensors_in(file: Path) -> set[str]:
    """The names of the tensors in a file that is as long as it says it is."""
    with safe_open(file, "pt") as opened:
        return set(opened.keys())


def _look_into_archive(file: Path) -> None:
    """Raises BadZipFile unless every part of what `torch.save` wrote is as its checksum says."""
    with ZipFile(file) as archive:
        if (broken := archive.testzip()) is not None:
            raise BadZipFile(f"{broken} is not what was written")


def _look_into_json(file: Path) -> None:
    """Raises ValueError for a file that is no JSON, or says other than the files and the step beside it."""
    found = parse_json(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"an object was expected, it holds a {type(found).__name__}")
    if file.name == "optimizer.json":
        if lost := _named(found) - _tensors_in(file.with_suffix(".safetensors")):
            raise ValueError(f"optimizer.safetensors lacks {', '.join(sorted(lost)[:3])}")
    elif file.name == "model.safetensors.index.json":
        if lost := {name for name in found["weight_map"].values() if not (file.parent / name).exists()}:
            raise ValueError(f"there is no {', '.join(sorted(lost)[:3])}")
    elif file.name == "trainer_state.json" and found.get("global_step") != step_of(file.parent):
        raise ValueError(f"its step is {found.get('global_step')}")


def _named(value: Any) -> set[str]:
    """The tensors that a state which `save_state` wrote is made of."""
    if isinstance(value, dict):
        if isinstance(value.get("tensor"), str):
            return {value["tensor"]}
        value = list(value.values())
    return set().union(*map(_named, value)) if isinstance(value, list) else set()


def _remedy(path: Path) -> str:
    others = [each.name for each in steps_of(path.parent).values() if each != path]
    if not others:
        return "There is no other checkpoint to go on from: begin a new run."
    return f"Remove that folder to go on from {others[-1]}."
