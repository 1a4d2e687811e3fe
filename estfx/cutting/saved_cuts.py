"""A cut on the disk: written with its weights, and built again from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from estfx.cutting.make_cut import cut_record
from estfx.cutting.written_cut import cut_as_written
from estfx.cutting_entry import build_cuts
from estfx.errors import EstfxError

__all__ = ["load", "save"]

WEIGHTS, ENTRY_FILE = "model.safetensors", "estfx_cut.json"


def save(model: Any, folder: str | Path) -> None:
    """Writes a cut into a folder: for a model of transformers, what its `save_pretrained` writes; else the weights as
    `model.safetensors`, with `estfx_cut.json`, which says how a whole model is made into this one.
    """
    record = cut_record(model)
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder)
        return
    from safetensors.torch import save_model

    where = Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    save_model(model, str(where / WEIGHTS))
    (where / ENTRY_FILE).write_text(json.dumps(record.entry, indent=1) + "\n", encoding="utf-8")


def load(folder: str | Path, model: nn.Module | Callable[[], nn.Module] | None = None) -> Any:
    """A cut from the folder that `save`, or transformers' `save_pretrained`, has written.

    `model`: the whole model, or what makes one, for a model that is none of transformers; it becomes the cut.

    Raises EstfxError if there is no cut in the folder, or if what is written of it was changed.
    """
    where = Path(folder)
    if not where.is_dir():
        raise EstfxError(f"there is no folder `{where}` to load a cut from.")
    if (where / ENTRY_FILE).exists():
        if model is None:
            raise EstfxError(
                f"the cut in `{where}` is of a class of your own: pass the whole model, or a function that makes one, "
                "as estfx.load(folder, model=…). It becomes the cut, with the weights of the folder."
            )
        from safetensors.torch import load_model

        whole = model if isinstance(model, nn.Module) else model()
        cut_as_written(whole, _entry(where))
        load_model(whole, str(where / WEIGHTS))
        return whole
    if not (where / "config.json").exists():
        raise EstfxError(
            f"`{where}` holds no cut: neither `{ENTRY_FILE}` nor a `config.json` of transformers is in it. It holds "
            f"{', '.join(sorted(each.name for each in where.iterdir())[:8]) or 'nothing'}."
        )
    import transformers

    build_cuts()
    config = json.loads((where / "config.json").read_text(encoding="utf-8"))
    named = next(iter(config.get("architectures") or ()), "")
    cls: Any = getattr(transformers, named, None) or transformers.AutoModelForCausalLM
    return cls.from_pretrained(where)


def _entry(where: Path) -> Any:
    try:
        return json.loads((where / ENTRY_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise EstfxError(f"`{where / ENTRY_FILE}` is not readable: {error}. Make the cut again.") from error
