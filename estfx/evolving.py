"""`transform` and `restore`: an ordinary model becomes one that trains a part of itself, and back."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import nn

from estfx.caches import asks_for_cache
from estfx.capture import without_cache
from estfx.compilation import compiler_of
from estfx.errors import EstfxError, ScheduleError, UnsupportedModelError
from estfx.fused_loss import check_fusible, deferred_logits, fused
from estfx.layer_names import LayerPatterns
from estfx.mount import Call, is_mounted, mount, unmount
from estfx.programs import Kind, Variant, analysed
from estfx.report import Report, report_of
from estfx.runtime import Runtime
from estfx.schedule import Schedule, Stage
from estfx.subnetwork import Subnetwork
from estfx.trace import ATTRIBUTE, trace
from estfx.verification import verify_kind
from estfx.warmup import warm_up

__all__ = ["EvolvingModel", "restore", "transform"]

log = logging.getLogger(__name__)


class EvolvingModel:
    """The methods that `transform` adds to a model's class."""

    __dict__: dict[str, Any]

    def set_step(self, step: int) -> None:
        """Puts the stage and the subnetwork of an optimizer step in force: a pure function of (schedule, seed, step).

        Call it once before each optimizer step; under gradient accumulation the subnetwork stays the same within one.
        Raises ScheduleError if the step is negative or no integer.
        """
        for path in dict.fromkeys(self._runtime.paths.values()):
            layer: Any = self.get_submodule(path)  # type: ignore[attr-defined]
            layer.__dict__[ATTRIBUTE].look(layer)
        device = next((p.device for p in self.parameters()), torch.device("cpu"))  # type: ignore[attr-defined]
        self._runtime.set_step(step, device)

    def warmup(self, *args: Any, **kwargs: Any) -> None:
        """Compiles what every stage of the schedule runs, on a batch such as will be trained on; trains nothing.

        The arguments are those of a forward. Each stage then does one forward and backward pass of all its layers, and
        afterwards gradients, random numbers and the step are as they were, so that a switch of stages compiles nothing.
        Call it in the autocast state of training, once for each batch size and length, and before the model is given
        to DDP or FSDP. Raises EstfxError if the model is not in training mode.
        """
        warm_up(cast("nn.Module", self), self._runtime, args, kwargs)

    @property
    def stage(self) -> Stage:
        """The stage in force; the first one until `set_step` is called."""
        return self._runtime.stage

    @property
    def stage_index(self) -> int:
        return self._runtime.stage_index

    @property
    def step(self) -> int | None:
        """The step that was set last, or None."""
        return self._runtime.step

    @property
    def schedule(self) -> Schedule:
        return self._runtime.schedule

    @property
    def subnetwork(self) -> Subnetwork:
        """What is kept at the step in force. Raises EstfxError before the first `set_step`."""
        return self._runtime.subnetwork(self)  # type: ignore[arg-type]

    @property
    def report(self) -> Report:
        """What `transform` found."""
        return self._runtime.report

    @property
    def _runtime(self) -> Runtime:
        runtime: Runtime = self.__dict__[ATTRIBUTE]
        return runtime


_evolving_classes: dict[type[nn.Module], type[nn.Module]] = {}


def _evolving(cls: type[nn.Module]) -> type[nn.Module]:
    if cls not in _evolving_classes:

        def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            runtime: Runtime = self.__dict__[ATTRIBUTE]
            if self.training and not runtime.idle:
                runtime.require_step()
                _refuse_attentions(self, kwargs)
                kwargs = without_cache(self, kwargs)
                fuses = runtime.fuses_loss and kwargs.get("labels") is not None
                logits = deferred_logits(self) if fuses else nullcontext()
                with runtime.one_forward(discards_caches=not asks_for_cache(args, kwargs)), logits:
                    return cls.__call__(self, *args, **kwargs)
            return cls.__call__(self, *args, **kwargs)

        body = {"__call__": __call__, "__module__": cls.__module__, "__doc__": cls.__doc__}
        if isinstance(own_loss := getattr(cls, "loss_function", None), property):
            body["loss_function"] = _compiled_in_training(own_loss)
        made = type(cls.__name__, (EvolvingModel, cls), body)
        made.__qualname__ = cls.__qualname__
        _evolving_classes[cls] = made
    return _evolving_classes[cls]


def _compiled_in_training(loss: property) -> property:
    """A model's property that gives its loss, which gives it compiled or fused while the model trains."""

    def loss_function(self: Any) -> Any:
        runtime: Runtime = self.__dict__[ATTRIBUTE]
        function = loss.__get__(self)
        if not self.training or runtime.idle:
            return function
        if runtime.fuses_loss and (own := fused(function)) is not function:
            return own
        return function if runtime.compiler is None else runtime.compiler.loss_function(function)

    return property(loss_function, loss.fset, loss.fdel, loss.__doc__)


def _refuse_attentions(model: nn.Module, kwargs: dict[str, Any]) -> None:
    wanted = kwargs.get("output_attentions")
    if wanted is None:
        wanted = getattr(getattr(model, "config", None), "output_attentions", False)
    if wanted:
        raise EstfxError(
            "output_attentions was asked of a model that trains a part of itself, whose attention weights are those of "
            "the kept heads only. Ask for them after model.eval(), which runs the whole model."
        )


def transform(
    model: nn.Module,
    schedule: Schedule,
    *,
    example_inputs: object = None,
    layers: LayerPatterns | None = None,
    seed: int = 0,
    compile: bool = True,
    compile_loss: bool = True,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
    fuse_loss: bool = False,
    verify: bool = True,
) -> Any:
    """Makes a decoder train as the schedule says: first a random part of it, in the end the whole.

    Returns the model that it was given: same parameters, same `state_dict` keys, same class name. Call
    `model.set_step(step)` before each optimizer step; in eval mode the model is the original one, always whole.

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
        compile_loss: with `compile`, compile the loss of a transformers model too (`model.loss_function`), in training.
        mode: of `torch.compile`, such as `"max-autotune-no-cudagraphs"`.
        options: of `torch.compile`, instead of a mode.
        fuse_loss: compute a transformers model's LM head and loss together, in pieces, so that the logits of a batch
            are never in memory all at once (torch's `linear_cross_entropy`, from 2.13 on). The same loss up to
            rounding; the model's `logits` are then computed only when something reads them.
        verify: check on a tiny batch that each kind of layer, whole, is the original to the bit, and narrowed, the
            masked original in float64. An axis that fails stays whole and is reported.

    Raises:
        UnsupportedModelError: no layers, or nothing in them that could be skipped or narrowed; `layers` names what is
            no layer.
        TraceError: no layer can be made a graph, or the model does not run on the example inputs.
        VerifyError: a whole layer's graph does not compute what the layer does: a fault of estfx.
        EstfxError: the model is transformed already.

    Source: Evolving Subnetwork Training, arXiv 2406.06962.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"transform takes an nn.Module, not a {type(model).__name__}.")
    if not isinstance(schedule, Schedule):
        raise ScheduleError(
            f"schedule is a {type(schedule).__name__}; pass an estfx.Schedule, such as Schedule.est(total_steps)."
        )
    if isinstance(model, EvolvingModel):
        raise EstfxError(
            f"this `{type(model).__name__}` is transformed already. Call estfx.restore(model) first to do it anew."
        )
    compiler = compiler_of(compile, mode, options, compile_loss)
    if fuse_loss:
        check_fusible(model)
    decoder = trace(model, example_inputs, layers=layers)
    variants: dict[str, Variant] = {}
    notes: dict[str, list[str]] = {}
    for name, traced in decoder.traced.items():
        variants[name] = analysed(traced)
        if verify:
            call = next(info.call for info in decoder.infos.values() if info.program == name)
            notes[name] = verify_kind(variants[name], call)
    report = report_of(decoder, variants, notes)
    _require_something(model, report)
    kinds = {}
    for name, variant in variants.items():
        calls = [info.call for info in decoder.infos.values() if info.program == name]
        kinds[name] = Kind(name, variant, tuple(calls), verify_kind if verify else None)
    by_layer = {name: kinds[info.program] for name, info in decoder.infos.items()}
    paths = {name: info.call.path for name, info in decoder.infos.items()}
    runtime = Runtime(schedule, seed, report, by_layer, compiler, paths, layers, fuse_loss)
    for path in dict.fromkeys(paths.values()):
        own = [Call(name, kind) for name, kind in by_layer.items() if paths[name] == path]
        mount(model.get_submodule(path), path, own, runtime)
    model.__dict__[ATTRIBUTE] = runtime
    model.__class__ = _evolving(type(model))
    for name, reason in decoder.left.items():
        log.warning("layer `%s` runs as it is, always whole: %s", name, reason)
    for line in missing(schedule, report):
        log.warning(line)
    return model


def restore(model: nn.Module) -> nn.Module:
    """Undoes `transform`, and returns the model; its parameters stay as they are."""
    if not isinstance(model, EvolvingModel):
        raise EstfxError(f"this `{type(model).__name__}` is not transformed; there is nothing to restore.")
    layers = [model.get_submodule(path) for path in dict.fromkeys(model._runtime.paths.values())]
    original = next((cls for cls, made in _evolving_classes.items() if made is type(model)), None)
    changed = [type(module).__name__ for module in layers if not is_mounted(module)]
    if original is None or changed:
        raise EstfxError(
            f"the class of this `{type(model).__name__}` or of its layers was changed again after transform, as "
            "fully_shard does it. Undo that first."
        )
    for layer in layers:
        unmount(layer)
    del model.__dict__[ATTRIBUTE]
    plain: nn.Module = model
    plain.__class__ = original
    return plain


def _require_something(model: nn.Module, report: Report) -> None:
    if any(layer.axes or layer.droppable for layer in report.layers):
        return
    reasons = list(dict.fromkeys(note for layer in report.layers for note in layer.notes))
    raise UnsupportedModelError(
        f"nothing in the {len(report.layers)} layers of `{type(model).__name__}` can be narrowed or skipped: "
        f"{'; '.join(reasons)}. Training it in stages would change nothing."
    )


def missing(schedule: Schedule, report: Report) -> list[str]:
    """What the schedule asks for and the model has not got, in words."""
    lines = []
    roles = {axis.role.split("_")[0] for layer in report.layers for axis in layer.axes}
    have = {
        "heads": bool(roles & {"heads", "channels"}),
        "neurons": "neurons" in roles,
        "layers": any(layer.droppable for layer in report.layers),
    }
    for name, there in have.items():
        if not there and any(getattr(stage, name) < 1 for stage in schedule.stages):
            lines.append(f"the schedule narrows {name}, but none were found in `{report.model}`; they stay whole")
    return lines
