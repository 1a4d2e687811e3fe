"""The oracles on one decoder: whole it is the original, in part the masked original, and its units are found."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any
from unittest import mock

import torch
from drawn_decoders.decoder import Decoder, Kept
from drawn_decoders.form import Form
from drawn_decoders.units import Units

import estfx
from estfx.programs import ROUNDS
from estfx.schedules import Schedule, Stage
from estfx.tracing.exporting import export_layer

__all__ = ["KEEPS", "TOLERANCE", "Verdict", "examine", "kept_of", "roles_of", "run"]

ROUNDING = 1e-13  # relative to the largest value, where a whole graph is its layer but for the order of sums
TOLERANCE = 1e-10  # of a part, relative to the largest value
ROUNDINGS = 10  # what a rounding of the parameters changes, times this, is no fault: some gradients nearly cancel out
MOST = 1e-6  # and no more than this
KEEPS = (0.3, 0.5, 0.8)


@dataclass
class Verdict:
    wrong: list[str] = field(default_factory=list)  # what is not as it must be
    refused: list[str] = field(default_factory=list)  # what stays whole, with estfx's reason
    found: int = 0  # kinds of units that are found


@dataclass
class Run:
    value: torch.Tensor
    loss: torch.Tensor
    grads: dict[str, torch.Tensor | None]
    left: list[torch.Tensor]


def run(model: Any, x: torch.Tensor) -> Run:
    model.zero_grad()
    result = model(x)
    value, loss = result if isinstance(result, tuple) else (result, torch.zeros(()))
    score = (value * torch.linspace(-1, 2, value.numel(), dtype=value.dtype).reshape(value.shape)).sum() + loss
    score.backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    return Run(value.detach(), loss.detach(), grads, [y.detach().clone() for y in model.left()])


def examine(form: Form, seed: int, *, verify: bool = False, open_sizes: bool = True) -> Verdict:
    """Transforms a decoder of the form, and compares it with the original, whole and in parts.

    With `verify`, `transform` looks for itself first. Without `open_sizes`, layers are traced as those are that estfx
    traces with fixed sizes, which is quicker. Raises what the decoder itself raises.
    """
    torch.manual_seed(seed)
    verify = verify or form.mlp.kind == "soft"  # alone, estfx takes experts for units, which a router divides by
    original = Decoder(form).double()
    keep, less = KEEPS[seed % 3], KEEPS[seed // 3 % 3]
    length = form.length if seed % 4 or not open_sizes else 9
    example, x = (torch.randn(2, t, form.hidden, dtype=torch.float64) for t in (form.length, length))
    stages = [
        Stage(start=0),
        Stage(start=1, heads=keep, neurons=less),
        Stage(start=2, heads=keep, neurons=less, layers=0.5),
    ]
    verdict = Verdict()
    run(copy.deepcopy(original), example)

    def transformed(verify: bool) -> Any:
        mine, schedule = copy.deepcopy(original), Schedule(stages=stages)
        with nullcontext() if open_sizes else mock.patch.object(export_layer, "UNROLLED", -1):
            return estfx.transform(mine, schedule, example_inputs=(example,), compile=False, seed=seed, verify=verify)

    try:
        model = transformed(verify)
    except (estfx.UnsupportedModelError, estfx.TraceError) as error:
        if isinstance(error, estfx.TraceError):  # a buffer that is written, or sizes that depend on the data
            may = form.effect == "buffer" or (form.mlp.kind == "hard scattered" and form.mlp.across != "none")
        else:
            may = may_stay_whole(form, "", "skipping")
        (verdict.refused if may else verdict.wrong).append(f"all: {_general(str(error))}")
        return verdict
    except Exception as error:
        verdict.wrong.append(f"transform fails with {type(error).__name__}: {str(error).strip().splitlines()[0]}")
        return verdict
    drawn = roles_of(verdict, original, model.report)
    for step in range(3):
        reference = copy.deepcopy(original)
        try:
            model.set_step(step)
            if step:
                reference.kept = kept_of(model.subnetwork, drawn)
            got, want = run(model, x), run(reference, x)
            if step:
                _compare_part(verdict, f"step {step}", got, want, reference, x)
            elif not _is_rounded(got, want, lambda: transformed(True)):
                _compare(verdict, f"step {step}", got, want, 0.0)
            else:
                verdict.refused.append(f"bits: {ROUNDS} rounding")
        except Exception as error:
            verdict.wrong.append(f"step {step} fails with {type(error).__name__}: {str(error).strip().splitlines()[0]}")
        _put_back(model, original)
    model.eval()
    _compare(verdict, "in eval mode", run(model, x), run(copy.deepcopy(original).eval(), x), 0.0)
    return verdict


def _is_rounded(got: Run, want: Run, verified: Callable[[], Any]) -> bool:
    """Whether a whole model is the original up to rounding and not to the bit, and estfx says so when it verifies."""
    exact, rounded = Verdict(), Verdict()
    _compare(exact, "whole", got, want, 0.0)
    _compare(rounded, "whole", got, want, ROUNDING)
    if rounded.wrong or not exact.wrong:
        return False
    report = verified().report
    alone = any(ROUNDS in note for layer in report.layers for note in layer.notes)
    return alone or any("in another order than the original" in note for note in report.notes)


def _put_back(model: Any, original: Decoder) -> None:
    """What a run has left: buffers, and attributes."""
    model.load_state_dict(original.state_dict())
    for layer in model.layers:
        layer.aux = None


Drawn = dict[str, dict[str, tuple[str, str]]]  # by layer and role, the module and the key of the units


def roles_of(verdict: Verdict, original: Decoder, report: estfx.Report) -> Drawn:
    """Which of the form's units the roles are; what is not found, or found and not there, goes to the verdict."""
    layers: dict[str, Any] = {layer.name: layer for layer in report.layers}
    found: Drawn = {}
    for name, layer in original.calls():
        told, found[name] = layers[name], {}
        for path, units in layer.units():
            role = next((axis.role for axis in told.axes if _is(axis, units)), None)
            if role is not None:
                found[name][role] = (path, units.key)
            elif units.size > 1:
                _refuse(verdict, original.form, path, units.role, told.notes)
        unknown = {axis.role: axis.size for axis in told.axes if axis.role not in found[name]}
        if unknown:
            verdict.wrong.append(f"{name} has found what the form has not: {unknown}")
        if not told.droppable:
            _refuse(verdict, original.form, "", "skipping", told.notes)
        verdict.found += len(found[name])
    return found


ABOUT = {  # what reports say of units of a role that stay whole
    "heads": r"the heads of|heads.* stay whole|the attention core .* has a single head|a dimension of",
    "neurons": r"a dimension of|neurons.* stay whole|the channels that|channels.* stay whole",
    "channels": r"the channels that|channels.* stay whole|a dimension of",
    "skipping": r"the layer cannot be skipped",
}


def _refuse(verdict: Verdict, form: Form, path: str, role: str, notes: list[str]) -> None:
    within = rf"`{re.escape(path)}` \(\w+\) runs as it is, always whole"  # the module that has the units
    about = [note for note in notes if re.match(f"{ABOUT[role]}|the layer runs as it is|{within}", note)]
    if not about:
        verdict.wrong.append(f"{role} stay whole without a reason; notes: {notes}")
    elif may_stay_whole(form, path, role):
        verdict.refused.append(f"{role}: {_general(' | '.join(about))}")
    else:
        verdict.wrong.append(f"{role} must be found, and stay whole: {' | '.join(about)}")


def may_stay_whole(form: Form, path: str, role: str) -> bool:
    """What estfx need not find. All else that it finds today it must find."""
    if role == "skipping":
        return form.effect in ("attribute", "argument", "object", "weights")  # something is left for others to read
    if path.startswith("mlp"):
        # a norm over two axes of neurons, of which a part of one, scaled, is not what the whole is
        coupled_halves = form.mlp.norm and form.mlp.across == "halves"
        two_orders = form.mlp.tied and form.mlp.across == "shuffled"  # of the rows of one weight
        return (
            coupled_halves
            or two_orders
            or form.mlp.across
            in (
                "weighed",
                "rolled",
                "flipped",
                "summed up",
                "largest",
                "permuted",
                "with the stream",
            )
        )
    return form.effect == "weights" or form.attention.across in ("rolled", "talking", "first added")


def _is(axis: estfx.AxisReport, units: Units) -> bool:
    dims = axis.parameters.get(units.closing, ())
    return axis.role.startswith(units.role) and axis.size == units.size and units.dim in dims


def _general(text: str) -> str:
    """A reason without names and numbers of its own."""
    return re.sub(r"\b\w*\d+\w*\b", "…", text)[:300]


def kept_of(subnetwork: estfx.Subnetwork, drawn: Drawn) -> dict[str, Kept | None]:
    kept: dict[str, Kept | None] = {}
    for name, roles in drawn.items():
        if not subnetwork.layers.get(name, True):
            kept[name] = None
            continue
        units: Kept = {}
        for role, (path, key) in roles.items():
            units.setdefault(path, {})[key] = subnetwork.units[name][role]
        kept[name] = units
    return kept


def _rounded(model: Decoder) -> Decoder:
    """The model, its parameters changed by about a rounding; in place, since copies of running models are refused."""
    spacing = torch.finfo(torch.float64).eps
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + spacing * torch.randn_like(parameter))
    return model


def _compare_part(verdict: Verdict, when: str, got: Run, want: Run, reference: Decoder, x: torch.Tensor) -> None:
    """A part may differ by `TOLERANCE`, or by what the masked original itself changes for a rounding."""
    first = Verdict()
    _compare(first, when, got, want, TOLERANCE)
    if first.wrong:
        want = replace(want, grads={name: g if g is None else g.clone() for name, g in want.grads.items()})
        errors = _errors(run(_rounded(reference), x), want, part=True)
        slack = {what: min(ROUNDINGS * error, MOST) for what, error in errors if error is not None}
        _compare(verdict, when, got, want, TOLERANCE, slack)


def _compare(
    verdict: Verdict,
    when: str,
    got: Run,
    want: Run,
    tolerance: float,
    slack: Mapping[str, float] = MappingProxyType({}),
) -> None:
    for what, error in _errors(got, want, part=when.startswith("step")):
        if error is None:
            verdict.wrong.append(f"{when}: {what}")
        elif not error <= max(tolerance, slack.get(what, 0.0)):
            verdict.wrong.append(f"{when}: {what} differs by {error:.0e}, relative")


def _errors(got: Run, want: Run, *, part: bool) -> list[tuple[str, float | None]]:
    """What is not equal, and by how much relative to the largest value; None where it cannot be compared."""
    found: list[tuple[str, float | None]] = []

    def differ(what: str, one: torch.Tensor | None, other: torch.Tensor | None, floor: float = 0.0) -> None:
        if one is None or other is None:
            if one is not other:
                found.append((f"{what} is {'not there' if one is None else 'new'}", None))
        elif one.shape != other.shape:
            found.append((f"{what} is {list(one.shape)} instead of {list(other.shape)}", None))
        elif not torch.equal(one, other):
            found.append((what, float((one - other).abs().max()) / (max(float(other.abs().max()), floor) or 1.0)))

    differ("the stream", got.value, want.value)
    differ("the loss", got.loss, want.loss)
    largest = max(float(g.abs().max()) for g in want.grads.values() if g is not None)
    for name, grad in want.grads.items():
        differ(f"the gradient of {name}", got.grads[name], grad, 1e-3 * largest)
    left = list(got.left)  # of a part, units and layers that do not run leave zeros
    while (
        part and len(left) > len(want.left) and (idle := next((i for i, y in enumerate(left) if not y.any()), -1)) >= 0
    ):
        left.pop(idle)
    if len(left) != len(want.left):
        found.append((f"{len(left)} tensors are left instead of {len(want.left)}", None))
    for number, (one, other) in enumerate(zip(left, want.left, strict=False)):
        same = part and one.shape == other.shape
        differ(f"what is left, {number},", one, torch.where(one != 0, other, 0) if same else other)
    return found
