"""Mounts the layers of a model: all of them or none, and only those that the whole model proves right."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from torch import nn

from estfx.errors import VerifyError
from estfx.evolving import EvolvingModel, evolving_class, look_around, original_class
from estfx.mounting.model_oracle import guilty_layers, in_a_line, observed, what_differs, why_not_observed
from estfx.mounting.observations import Observations, difference_from, differs_in_last_bits
from estfx.programs import ROUNDS, Kind, Variant, verify_kind
from estfx.report import Report, report_of
from estfx.runtime import Call, Runtime, is_mounted, mount, mount_outside, unmount, unmount_outside
from estfx.tracing import ATTRIBUTE, Decoder, LayerCall

__all__ = ["Found", "mount_all", "unmount_all", "verified"]

log = logging.getLogger(__name__)


# -- all or nothing ------------------------------------------------------------------------------------------------


def mount_all(model: nn.Module, runtime: Runtime, layers: Collection[str]) -> None:
    """Mounts every layer, and what is compiled around `layers`, given by their names; or none of it, if that fails."""
    mounted, compiler = runtime.layers, runtime.compiler
    try:
        for path in mounted.module_paths:
            own = [Call(name, kind) for name, kind in mounted.kinds.items() if mounted.paths[name] == path]
            mount(model.get_submodule(path), path, own, runtime)
        if compiler is not None and compiler.outside:
            mount_outside(model, layers, runtime)
        model.__dict__[ATTRIBUTE] = runtime
        model.__class__ = evolving_class(type(model))
        look_around(runtime, model)  # as it is now that the layers have been traced
    except BaseException:  # Ctrl-C, too
        unmount_all(model)
        raise


def unmount_all(model: nn.Module) -> None:
    """Undoes all of `mount_all`, or as much of it as was done."""
    for module in list(model.modules()):
        if is_mounted(module):
            unmount(module)
    unmount_outside(model)
    if isinstance(model, EvolvingModel):
        original = original_class(model)
        assert original is not None
        model.__class__ = original  # type: ignore[assignment]
    model.__dict__.pop(ATTRIBUTE, None)


# -- the whole model is the oracle ---------------------------------------------------------------------------------


@dataclass
class Found:
    """What was found of a model: its layers, a variant for each kind, and what verification said of it."""

    decoder: Decoder
    variants: dict[str, Variant]
    notes: dict[str, list[str]]
    whole: list[str] = field(default_factory=list)  # what it said of the whole model

    def report(self) -> Report:
        return report_of(self.decoder, self.variants, self.notes, self.whole)

    def kinds(self, verify: bool) -> dict[str, Kind]:
        """A kind for each layer, by its name."""
        calls: dict[str, list[LayerCall]] = {}
        for info in self.decoder.infos.values():
            calls.setdefault(info.program, []).append(info.call)
        verifying = verify_kind if verify else None
        made = {name: Kind(name, self.variants[name], tuple(each), verifying) for name, each in calls.items()}
        return {name: made[info.program] for name, info in self.decoder.infos.items()}

    def is_exact(self) -> bool:
        """Whether the graphs of all layers equal their layers to the bit."""
        return not any(ROUNDS in note for notes in self.notes.values() for note in notes)


def verified(model: nn.Module, found: Found, mounted: Callable[[], Runtime], example_inputs: object) -> Runtime:
    """Mounts the layers that together do what the original does, twice in a row; the others stay whole."""
    if why := why_not_observed(model):
        found.whole.append(why)
        return mounted()
    layers = list({id(info.call.module): info.call.module for info in found.decoder.infos.values()}.values())
    try:
        want = observed(model, example_inputs, layers)
    except Exception as error:  # a model that has no backward pass in training mode, for one
        log.debug("the whole model could not be observed", exc_info=True)
        found.whole.append(f"the whole model was not verified: {in_a_line(error)}")
        return mounted()

    rounded: list[str] = []

    def differs(got: Observations) -> list[str]:
        what = difference_from(want[: len(got)], got, exact=found.is_exact())
        if what and differs_in_last_bits(want[: len(got)], got):
            rounded[:] = what
            return []
        return what

    while True:
        runtime = mounted()
        rounded.clear()
        try:
            what = what_differs(model, runtime, example_inputs, differs)
            if not what:
                if not rounded:
                    return runtime
                unmount_all(model)
                more = f" and {len(rounded) - 3} more" if len(rounded) > 3 else ""
                found.whole.append(
                    "with everything kept, the whole model adds some sums up in another order than the original does: "
                    f"{'; '.join(rounded[:3])}{more}"
                )
                return mounted()
            guilty = guilty_layers(model, runtime, example_inputs, differs)
        except BaseException:
            unmount_all(model)
            raise
        unmount_all(model)
        if difference_from(want, observed(model, example_inputs, layers), exact=True):
            found.whole.append("the whole model was not verified: runs of the original from the same state differ")
            return mounted()
        if not guilty:
            raise VerifyError(
                f"with everything kept, `{type(model).__name__}` does not compute what it does before transform: "
                f"{'; '.join(what[:3])}. No single layer is the cause. Please report the model; "
                "transform(..., verify=False) would train something else."
            )
        reasons = {
            path: f"with its graph in place, the model does not do what the original does: {'; '.join(what[:3])}"
            for path, what in guilty.items()
        }
        found.decoder.leave(reasons)
        if not found.decoder.infos:
            path, reason = next(iter(reasons.items()))
            raise VerifyError(f"layer `{path}`: {reason}")
