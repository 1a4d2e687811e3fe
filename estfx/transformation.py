"""`transform` and `restore`: an ordinary model becomes one that trains a part of itself, and back."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._dynamo import OptimizedModule

from estfx.errors import EstfxError, ScheduleError, UnsupportedModelError, VerifyError
from estfx.evolving import EvolvingModel, original_class
from estfx.mounting import Found, mount_all, unmount_all, verified
from estfx.programs import Variant, analysed, compiler_of, verify_kind
from estfx.report import Report
from estfx.runtime import (
    CopiedLayers,
    IdleUnits,
    MountedLayers,
    RankAgreement,
    Runtime,
    Selection,
    changed_outside,
    check_fusible,
    is_mounted,
)
from estfx.schedules import Schedule
from estfx.stand_ins import MadeBy
from estfx.tracing import LayerPatterns, trace, unsharded
from estfx.waiting import tell, working

__all__ = ["restore", "transform"]

log = logging.getLogger(__name__)
_STAYS_WHOLE = re.compile(r"stays? whole|always whole")  # in the notes of a report


@working("looking for the layers")
def transform(
    model: nn.Module,
    schedule: Schedule,
    *,
    example_inputs: object = None,
    layers: LayerPatterns | None = None,
    seed: int = 0,
    compile: bool = True,
    compile_outside: bool = True,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
    fuse_loss: bool = False,
    check_ranks_every: int = 100,
    verify: bool = True,
) -> Any:
    """Makes a decoder train as the schedule says: first a part of it, in the end the whole.

    Returns the model that it was given: same parameters, same `state_dict` keys, same class name. Call
    `model.set_step(step)` before each optimizer step; in eval mode the model is the original one, always whole.
    Where the schedule asks for what the model has not got, that stays whole, and a line is logged: a warning if it was
    asked for by itself, or is there and cannot be narrowed; else, as for a model without heads, one at level INFO.

    Args:
        model: any decoder of transformers, or any module of one's own.
        schedule: the stages, such as `Schedule.est(total_steps)`.
        example_inputs: keyword arguments (a dict) or arguments (a tuple) of the model's forward, on its device. A
            transformers model needs none.
        layers: names of the layers, for a model in which they are not found or not those that are meant: a pattern such
            as `"blocks.*"`, in which a star stands within one component of a dotted name, or a list of patterns and
            names. By default the members of an `nn.ModuleList`, an `nn.ModuleDict` or an `nn.Sequential`, or
            attributes of one class, that pass a stream along.
        seed: of the draws; the same on every rank.
        compile: compile each program with `torch.compile`; the first step of each stage then takes longer.
        compile_outside: with `compile`, compile what lies around the layers too, in training: the loss of a
            transformers model (`model.loss_function`), and embeddings, norms and heads of several operations. One that
            torch.compile does not take runs as it is, with a warning.
        mode: of `torch.compile`, such as `"max-autotune-no-cudagraphs"`.
        options: of `torch.compile`, instead of a mode.
        fuse_loss: compute a transformers model's LM head and loss together, in pieces, so that the logits of a batch
            are never in memory all at once (torch's `linear_cross_entropy`, from 2.13 on). The same loss up to
            rounding; the model's `logits` are then computed only when something reads them.
        check_ranks_every: with several processes of torch.distributed, `set_step` has them compare what each is about
            to train: at its first call, at every change of stage, and at every so many calls; 0 for never, where ranks
            hold different layers (pipelines).
        verify: check on a tiny batch that each kind of layer, whole, is the original to the bit, and narrowed, the
            masked original in float64; and that the model, with everything kept, does what the original does twice in a
            row: outputs, loss, every gradient, and what it leaves behind. An axis or a layer that fails stays whole and
            is reported.

    Raises:
        UnsupportedModelError: no layers, or nothing in them that could be skipped or narrowed; `layers` names what is
            no layer; the model was compiled before, or its weights hold NaN.
        TraceError: no layer can be made a graph, or the model does not run on the example inputs.
        VerifyError: a whole layer's graph, or the whole model with all of them, does not compute what the original
            does: a fault of estfx.
        EstfxError: the model is transformed already.

    Source: Evolving Subnetwork Training, arXiv 2406.06962.
    """
    arguments = {name: value for name, value in locals().items() if name != "model"}
    _check_model(model)
    if not isinstance(schedule, Schedule):
        raise ScheduleError(
            f"schedule is a {type(schedule).__name__}; pass an estfx.Schedule, such as Schedule.est(total_steps)."
        )
    compiler = compiler_of(compile, mode, options, compile_outside)
    if fuse_loss:
        check_fusible(model)
    decoder = trace(model, example_inputs, layers=layers)
    variants: dict[str, Variant] = {}
    notes: dict[str, list[str]] = {}
    for name, traced in list(decoder.traced.items()):
        tell(f"looking for heads and neurons in {name}")
        variants[name] = analysed(traced, scales=schedule.scales)
        if verify:
            tell(f"verifying {name}")
            call = next(info.call for info in decoder.infos.values() if info.program == name)
            try:
                with unsharded(model, call.path):
                    notes[name] = verify_kind(variants[name], call)
            except VerifyError as error:
                paths = [info.call.path for info in decoder.infos.values() if info.program == name]
                decoder.leave(dict.fromkeys(paths, str(error)))
                if not decoder.infos:
                    raise
    found = Found(decoder, variants, notes)

    def mounted() -> Runtime:
        report = found.report()
        _require_something(model, report)
        paths = {name: info.call.path for name, info in decoder.infos.items()}
        layers_found = MountedLayers(found.kinds(verify), paths, compiler)
        followers = (
            Selection(schedule, layers_found),
            IdleUnits(schedule, layers_found),
            CopiedLayers(schedule, layers_found),
            RankAgreement(schedule, seed, layers_found, check_ranks_every),
        )
        runtime = Runtime(
            schedule,
            seed,
            report,
            layers_found,
            followers,
            named=layers,
            fuses_loss=fuse_loss,
            made_by=MadeBy(_remade, arguments),
        )
        mount_all(model, runtime, {*paths.values(), *decoder.left})
        return runtime

    tell("comparing the whole model with the original")
    runtime = verified(model, found, mounted, example_inputs) if verify else mounted()
    report = runtime.report
    for name, reason in decoder.left.items():
        log.warning("layer `%s` runs as it is, always whole: %s", name, reason)
    for level, line in missing(schedule, report):
        log.log(level, line)
    if schedule.copies_layers and (loaded := getattr(model, "name_or_path", "")):
        log.warning(
            "this model was loaded from %s, and the schedule stacks layers (joining_layers='copies'): until a layer "
            "joins it is overwritten with a copy of another one. That is for a model that is trained from its "
            "beginning, or a run of this schedule that goes on; for a finished model use another schedule.",
            loaded,
        )
    return model


def _check_model(model: object) -> None:
    """Raises EstfxError for what is no model to be transformed."""
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"transform takes an nn.Module, not a {type(model).__name__}.")
    if isinstance(model, EvolvingModel):
        raise EstfxError(
            f"this `{type(model).__name__}` is transformed already. Call estfx.restore(model) first to do it anew."
        )
    if isinstance(model, OptimizedModule):
        raise UnsupportedModelError(
            "torch.compile was called on this model before transform, and would hide its layers. Transform the model "
            "itself, which torch.compile keeps as `_orig_mod`; estfx compiles what each stage runs (compile=True)."
        )
    compiled = [name for name, module in model.named_modules() if getattr(module, "_compiled_call_impl", None)]
    if compiled:
        raise UnsupportedModelError(
            f"`.compile()` was called on {', '.join(f'`{name}`' if name else 'the model' for name in compiled[:5])} "
            "before transform: it would run what was compiled, whole. Build the model without it; estfx compiles what "
            "each stage runs (compile=True)."
        )
    for name, parameter in model.named_parameters():
        if parameter.device.type != "meta" and parameter.is_floating_point() and _has_nan(parameter):
            raise UnsupportedModelError(
                f"the parameter `{name}` of `{type(model).__name__}` holds NaN: nothing that is computed with it can "
                "be verified or trained. Load or initialise the model again."
            )


def _has_nan(parameter: torch.Tensor) -> bool:
    local: Any = getattr(parameter, "_local_tensor", parameter)  # of FSDP2, the part on this rank
    return bool(local.detach().isnan().any())


def _remade(model: nn.Module, pickled: tuple[dict[str, Any], dict[str, Any], dict[str, Any]]) -> None:
    """Makes of a plain model, read from a pickle, the transformed one that was written."""
    state, again, arguments = pickled
    model.__setstate__(state)
    evolving = transform(model, **arguments)
    if evolving.schedule.in_shares and (total_steps := again.get("total_steps")) is not None:
        evolving.set_total_steps(total_steps)
        evolving._runtime.filled_in = again["filled_in"]
    if found := again["selection"]:
        selection = {k: torch.from_numpy(x.copy()) if isinstance(x, np.ndarray) else x for k, x in found.items()}
        evolving.selection.load_state_dict(selection)
    if again["step"] is not None:
        evolving.set_step(again["step"])


def restore(model: nn.Module) -> nn.Module:
    """Undoes `transform`, and returns the model; its parameters stay as they are."""
    if not isinstance(model, EvolvingModel):
        raise EstfxError(f"this `{type(model).__name__}` is not transformed; there is nothing to restore.")
    layers = [model.get_submodule(path) for path in model._runtime.layers.module_paths]
    changed = [module for module in layers if not is_mounted(module)] + changed_outside(model)
    if original_class(model) is None or changed:
        raise EstfxError(
            f"the class of this `{type(model).__name__}` or of its layers was changed again after transform, as "
            "fully_shard does it. Undo that first."
        )
    unmount_all(model)
    plain: nn.Module = model
    return plain


def _require_something(model: nn.Module, report: Report) -> None:
    if any(layer.axes or layer.droppable for layer in report.layers):
        return
    reasons = list(dict.fromkeys(note for layer in report.layers for note in layer.notes))
    raise UnsupportedModelError(
        f"nothing in the {len(report.layers)} layers of `{type(model).__name__}` can be narrowed or skipped: "
        f"{'; '.join(reasons)}. Training it in stages would change nothing."
    )


def missing(schedule: Schedule, report: Report) -> list[tuple[int, str]]:
    """What the schedule asks for and the model has not got: a level of `logging` and words for each.

    A warning, where something is lost: layers that cannot be skipped, heads or neurons of which the report says why
    they stay whole, and what a stage narrows for its own sake, by another fraction than anything that is there. A model
    that simply has no heads is no fault: a stage that narrows all it can by one fraction, as those of `Schedule.est`
    do, narrows the rest of it, and one line for information says so.
    """
    roles = {axis.role.split("_")[0] for layer in report.layers for axis in layer.axes}
    have = {
        "heads": bool(roles & {"heads", "channels"}),
        "neurons": "neurons" in roles,
        "layers": any(layer.droppable for layer in report.layers),
    }
    reasons = any(_STAYS_WHOLE.search(note) for layer in report.layers for note in layer.notes)
    warnings, absent = [], []
    for name in (name for name, there in have.items() if not there):
        stages = [stage for stage in schedule.stages if getattr(stage, name) < 1]
        meant = any(getattr(stage, name) not in {getattr(stage, n) for n in have if have[n]} for stage in stages)
        if stages and (reasons or meant or name == "layers"):
            line = f"the schedule narrows {name}, but none were found in `{report.model}`; they stay whole"
            if name == "layers":
                line = f"the schedule skips layers, but none of `{report.model}` can be skipped; they all run"
            warnings.append((logging.WARNING, f"{line}. model.report says why."))
        elif stages:
            absent.append(name)
    if absent:
        warnings.append(
            (logging.INFO, f"`{report.model}` has no {' and no '.join(absent)}; the schedule narrows the rest")
        )
    return warnings
