"""The oracle of cuts on decoders of random form: a cut is the masked original, or is refused with a reason."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from drawn_decoders.decoder import Decoder
from drawn_decoders.form import Form
from drawn_decoders.oracles import KEEPS, TOLERANCE, Verdict, kept_of, roles_of, run

import estfx
from estfx.schedules import Schedule, Stage

__all__ = ["CutVerdict", "examine_cut"]


@dataclass
class CutVerdict:
    parts: str  # of "heads and neurons", what was cut; empty: nothing could be
    error: float  # of outputs and gradients, relative; 0 where nothing was cut
    refused: tuple[str, ...]  # what was said of parts that cannot be cut


def examine_cut(form: Form, seed: int) -> CutVerdict:
    """Cuts the subnetwork of a step out of a decoder: all of it, else its heads alone, else its neurons alone."""
    torch.manual_seed(seed)
    original = Decoder(form).double()
    x = torch.randn(2, form.length, form.hidden, dtype=torch.float64)
    schedule = Schedule(stages=[Stage(start=0, heads=KEEPS[seed % 3], neurons=KEEPS[seed // 3 % 3])])
    run(copy.deepcopy(original), x)
    try:
        model = estfx.transform(
            copy.deepcopy(original),
            schedule,
            example_inputs=(x,),
            compile=False,
            seed=seed,
            verify=form.mlp.kind == "soft",  # alone, estfx takes experts for units, which a router divides by
        )
    except estfx.EstfxError as error:
        return CutVerdict("", 0.0, (str(error),))
    model.set_step(0)
    subnetwork, roles = model.subnetwork, roles_of(Verdict(), original, model.report)
    refused = []
    for parts in ("heads and neurons", "heads", "neurons"):
        units = {
            name: {
                role: index if role.split("_")[0] in parts else torch.arange(_size(model, name, role))
                for role, index in each.items()
            }
            for name, each in subnetwork.units.items()
        }
        part = estfx.Subnetwork(step=0, layers=subnetwork.layers, units=units, _parameters=dict)
        try:
            small = estfx.cut(copy.deepcopy(original), part, example_inputs=(x,))
        except estfx.VerifyError as error:
            return CutVerdict(parts, float("inf"), (str(error),))
        except estfx.EstfxError as error:
            refused.append(f"{parts}: {error}")
            continue
        reference = copy.deepcopy(original)
        reference.kept = kept_of(part, roles)
        got, want = run(small.train(), x), run(reference.train(), x)
        error = float((got.value - want.value).abs().max() / want.value.abs().max().clamp(min=1e-12))
        return CutVerdict(parts, error if error > TOLERANCE else 0.0, tuple(refused))
    return CutVerdict("", 0.0, tuple(refused))


def _size(model: estfx.EvolvingModel, name: str, role: str) -> int:
    layer = next(layer for layer in model.report.layers if layer.name == name)
    return next(axis.size for axis in layer.axes if axis.role == role)
