"""What a transformed model's class has beside that of the original: the step, and a forward that trains a part."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import nn

from estfx.errors import EstfxError, ScheduleError
from estfx.report import Report
from estfx.runtime import Runtime, Selection, deferred_logits, fused, warm_up, watch, zero_joining
from estfx.schedules import Schedule, Stage, Subnetwork
from estfx.stand_ins import as_original, stand_in_for
from estfx.tracing import ATTRIBUTE, Changes, Surroundings, asks_for_cache, prefixes, without_cache

__all__ = ["EvolvingModel", "evolving_class", "evolving_within", "fill_in_total_steps", "look_around", "original_class"]


class EvolvingModel:
    """The methods that `transform` adds to a model's class."""

    __dict__: dict[str, Any]

    def set_step(self, step: int) -> None:
        """Puts the stage and the subnetwork of an optimizer step in force: a pure function of (schedule, seed, step).

        For a policy that ranks units it is one of their scores too, which are learnt on the way: then set the steps in
        their order, and have checkpoints hold `selection.state_dict()`.

        Call it once before each optimizer step; under gradient accumulation the subnetwork stays the same within one.
        Raises ScheduleError if the step is negative or no integer; with several processes of torch.distributed,
        EstfxError on all of them if they do not agree (see `check_ranks_every` of `transform`).
        """
        runtime, model = self._runtime, cast("nn.Module", self)
        if runtime.schedule.in_shares:
            raise ScheduleError(
                "the schedule is made of shares of a run, and how many steps the run has is not known: call "
                "model.set_total_steps(n) before the first step, or make it with the number: Schedule.est(n). The "
                "callbacks for Trainer and Lightning do so by themselves."
            )
        self._look()
        device = next((p.device for p in self.parameters()), torch.device("cpu"))  # type: ignore[attr-defined]
        if any(follower.watches_optimizers for follower in runtime.followers):
            watch(model)
        with torch.inference_mode(False):  # or backward passes could not be made with what is made here
            runtime.set_step(step, device, model)

    def set_total_steps(self, total_steps: int) -> None:
        """Says how many optimizer steps the run has, for a schedule that was made without: `Schedule.est()`.

        Call it again before another run, or before one that begins anew with other batches. Raises ScheduleError if
        the schedule was made for a number of steps, or these are too few for its stages.
        """
        runtime = self._runtime
        assert runtime.made_by is not None
        given: Schedule = runtime.made_by.arguments["schedule"]
        runtime.schedule = schedule = given.over(total_steps)
        runtime.filled_in = False
        for follower in runtime.followers:
            follower.schedule_is(schedule)
        runtime.forget_step()

    def _look(self) -> None:
        """Notices what was changed in the layers, and in what they read around them, since they were traced."""
        model = cast("nn.Module", self)
        layers: list[Any] = [model.get_submodule(path) for path in self._runtime.layers.module_paths]
        stand = [layer.__dict__[ATTRIBUTE].stands() for layer in layers]
        around = look_around(self._runtime, model, anew=not all(stand))
        for layer in layers:
            layer.__dict__[ATTRIBUTE].look(layer, around)

    def warmup(self, *args: Any, **kwargs: Any) -> None:
        """Compiles what every stage of the schedule runs, on a batch such as will be trained on; trains nothing.

        The arguments are those of a forward. Each stage then does one forward and backward pass of all its layers, and
        afterwards gradients, random numbers and the step are as they were, so that a switch of stages compiles nothing.
        Call it in the autocast state of training, once for each batch size and length, and before the model is given
        to DDP or FSDP. Raises EstfxError if the model is not in training mode.
        """
        warm_up(cast("nn.Module", self), self._runtime, args, kwargs)

    def zero_joining(self) -> int:
        """Has what joins the trained part at a later stage add nothing at first: for a model that was not trained yet.

        Of the units and layers that the first stage leaves out, the weights with which they are summed into the
        residual stream are set to zero. They still learn: once such a unit is at work, these weights have a gradient.
        So the loss does not jump at a change of stage. The schedule must draw once (`resample_every="never"`).
        Call it before the model is put into shards. A layer without axes stays as it is.

        Returns how many rows and columns of weights were set to zero. Raises EstfxError for any other schedule.
        """
        runtime = self._runtime
        return zero_joining(runtime.schedule, runtime.seed, runtime.layers, cast("nn.Module", self))

    @property
    def stage(self) -> Stage:
        """The stage in force; the first one until `set_step` is called."""
        return self._runtime.stage

    @property
    def stage_index(self) -> int:
        """The index of the stage in force in the schedule's stages, from 0."""
        return self._runtime.stage_index

    @property
    def step(self) -> int | None:
        """The step that was set last, or None."""
        return self._runtime.step

    @property
    def schedule(self) -> Schedule:
        """The schedule that `transform` was given."""
        return self._runtime.schedule

    @property
    def subnetwork(self) -> Subnetwork:
        """What is kept at the step in force. Raises EstfxError before the first `set_step`."""
        return self._runtime.subnetwork(self)  # type: ignore[arg-type]

    @property
    def selection(self) -> Selection:
        """What the selection policy has learnt, if it ranks units: a state to be saved and loaded with the model's."""
        return self._runtime.follower(Selection)

    @property
    def report(self) -> Report:
        """What `transform` found."""
        return self._runtime.report

    @property
    def _runtime(self) -> Runtime:
        runtime: Runtime = self.__dict__[ATTRIBUTE]
        return runtime


def fill_in_total_steps(model: Any, total_steps: Callable[[], int]) -> bool:
    """Gives a schedule in shares the steps of a trainer's run, unless the user has told it a number. Whether it did."""
    runtime: Runtime = vars(model)[ATTRIBUTE]
    if not (runtime.schedule.in_shares or runtime.filled_in):
        return False
    model.set_total_steps(total_steps())
    runtime.filled_in = True
    return True


def evolving_within(model: nn.Module) -> Any:
    """The transformed model in whatever wraps it: PEFT, DDP, FSDP, `torch.compile`, a module of Lightning.

    Raises EstfxError if there is none, or more than one.
    """
    if isinstance(model, EvolvingModel):  # as at every bucket of a backward pass
        return model
    found: dict[str, Any] = {}
    for path, module in model.named_modules():  # what lies in a module comes after it
        if isinstance(module, EvolvingModel) and not any(_lies_in(path, outer) for outer in found):
            found[path] = module
    if len(found) == 1:
        return next(iter(found.values()))
    if not found:
        raise EstfxError(
            f"`{type(model).__name__}` is no evolving model, and holds none: call `estfx.transform(model, schedule)` "
            "first."
        )
    raise EstfxError(
        f"`{type(model).__name__}` holds {len(found)} evolving models ({', '.join(found)}). Pass the one that you mean."
    )


def _lies_in(path: str, other: str) -> bool:
    return not other or path.startswith(f"{other}.")


def look_around(runtime: Runtime, model: nn.Module, anew: bool = False) -> Changes:
    """What the layers read around them, as far as it is other than when they were traced.

    `anew`: the layers themselves do not stand as they stood.
    """
    if runtime.surroundings is None:
        layers = {path: model.get_submodule(path) for path in runtime.layers.module_paths}
        left = prefixes(place for kind in runtime.layers.kinds.values() for place in kind.first.traced.written)
        before = runtime.before_copy
        runtime.surroundings = Surroundings(layers, left) if before is None else before.twin(layers, left)
    runtime.surroundings.look(anew)
    return runtime.surroundings.changes


_classes: dict[type[nn.Module], type[nn.Module]] = {}


def evolving_class(cls: type[nn.Module]) -> type[nn.Module]:
    """The subclass of a model's class, of the same name, that a transformed model has."""
    if cls not in _classes:

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
            if not self.training and not runtime.idle:
                _warn_of_eval_mode(self, runtime)
                kwargs = _packed_as_in_training(self, kwargs)
            return cls.__call__(self, *args, **kwargs)

        def __reduce_ex__(self: nn.Module, protocol: object) -> tuple[Any, ...]:
            """The original model, and what it takes to transform it again where the pickle is read."""
            runtime: Runtime = self.__dict__[ATTRIBUTE]
            make, args, state = as_original(self, ATTRIBUTE)
            selection = runtime.follower(Selection).state_dict()
            # by value: a tensor of this moment would be gone before another process has opened what is shared of it
            values = {k: x.numpy() if isinstance(x, torch.Tensor) else x for k, x in selection.items()}
            assert runtime.made_by is not None
            again = {
                "step": runtime.step,
                "selection": values,
                "total_steps": None if runtime.schedule.in_shares else runtime.schedule.total_steps,
                "filled_in": runtime.filled_in,
            }
            return make, args, (state, again, runtime.made_by.arguments), None, None, runtime.made_by.remake

        body: dict[str, Any] = {"__call__": __call__, "__reduce_ex__": __reduce_ex__}
        if isinstance(own_loss := getattr(cls, "loss_function", None), property):
            body["loss_function"] = _compiled_in_training(own_loss)
        _classes[cls] = stand_in_for(cls, body, EvolvingModel)
    return _classes[cls]


def _warn_of_eval_mode(model: nn.Module, runtime: Runtime) -> None:
    """Once, if it looks as if the model were to be trained, by the first step of which that is so."""
    if runtime.step is None or runtime.step == runtime.step_in_eval_mode or not torch.is_grad_enabled():
        return
    runtime.step_in_eval_mode = runtime.step
    if any(parameter.requires_grad for parameter in model.parameters()):
        runtime.warn_once(
            "set_step was called, and then a forward pass with gradients in eval mode, in which the whole model runs: "
            "nothing is saved. Call model.train() before training (from_pretrained gives a model in eval mode), or "
            "evaluate under torch.no_grad()."
        )


def _packed_as_in_training(model: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
    """`use_cache=False` for documents that are packed by `position_ids` alone, as in training.

    With an empty KV cache, transformers takes them for one document, and each would see those before it.
    """
    positions = kwargs.get("position_ids")
    if not isinstance(positions, torch.Tensor) or kwargs.get("attention_mask") is not None:
        return kwargs
    packed = bool((positions.diff(dim=-1) != 1).any())
    return without_cache(model, kwargs) if packed else kwargs


def _compiled_in_training(loss: property) -> property:
    """A model's property that gives its loss, which gives it compiled or fused while the model trains."""

    def loss_function(self: Any) -> Any:
        runtime: Runtime = self.__dict__[ATTRIBUTE]
        function = loss.__get__(self)
        if not self.training or runtime.idle:
            return function
        if runtime.fuses_loss and (own := fused(function)) is not function:
            return own
        if runtime.compiler is None:
            return function
        return runtime.compiler.outer_function(function, f"the loss {getattr(function, '__name__', function)}")

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


def original_class(model: nn.Module) -> type[nn.Module] | None:
    """The class of a transformed model before; None if its class was changed again since."""
    return next((cls for cls, made in _classes.items() if made is type(model)), None)
