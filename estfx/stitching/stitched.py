"""`Stitched`: a model that runs the first layers of one decoder and the last of another."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from estfx.errors import EstfxError
from estfx.programs import Variant
from estfx.scoring import LayerForward, layer_forwards, passing
from estfx.stitching.low_rank import add_updates, merge_updates
from estfx.tracing import Decoder, flatten, open_dataclasses

__all__ = ["Ends", "Stitched"]

MEMORY = 0.9  # of the running mean of what a stitch's own parameters would change


@dataclass(frozen=True)
class Ends:
    """A decoder, and what is known of its layers."""

    decoder: Decoder
    variants: Mapping[str, Variant]

    def variant(self, name: str) -> Variant:
        return self.variants[self.decoder.infos[name].program]

    @property
    def order(self) -> tuple[str, ...]:
        return self.decoder.order


class _Stopped(Exception):
    """The layers that are wanted have run."""


class _Own(nn.Module):
    """What a stitch has alone: its map between the streams, and a scale and a bias for each layer that runs."""

    def __init__(self, small: int, large: int, before: int, after: int, like: torch.Tensor) -> None:
        super().__init__()
        options: Any = {"dtype": like.dtype, "device": like.device}
        self.map = nn.Linear(small, large, **options)
        sizes = [small] * before + [large] * after
        self.scales = nn.ParameterList(torch.zeros(size, **options) for size in sizes)
        self.biases = nn.ParameterList(torch.zeros(size, **options) for size in sizes)


class Stitched(nn.Module):
    """A palette of models between a small and a large one; `use` says which of them runs.

    0 is the small model, the last is the large one, those between run more and more of the large one. A model of the
    palette is called as the large model is. There is no KV cache.

    `stitches` has for each of those between how many of the small model's layers run first, and how many of the large
    one's are passed over. `estfx.stitch` makes it.
    """

    def __init__(self, small: Ends, large: Ends, stitches: Sequence[tuple[int, int]], widths: tuple[int, int]) -> None:
        super().__init__()
        self.small, self.large = small.decoder.model, large.decoder.model
        self.stitches = tuple(stitches)
        like = next(p for p in self.large.parameters() if p.is_floating_point())
        self.own = nn.ModuleList(
            _Own(*widths, before, len(large.order) - passed, like) for before, passed in self.stitches
        )
        self.importance = [0.0] * len(self.stitches)  # running means of |weight · gradient|
        self._ends = (small, large)
        self._used = len(self)  # the large model
        self._draw = random.Random(0)

    def __len__(self) -> int:
        """The number of the large model, the last of the palette."""
        return len(self.stitches) + 1

    @property
    def loss_function(self) -> Any:
        """Of the large model; a model of transformers has one, which says that labels are the tokens themselves."""
        return self.large.loss_function

    @property
    def used(self) -> int:
        """Which model of the palette runs."""
        return self._used

    def use(self, number: int) -> Stitched:
        """Has a model of the palette run: 0 is the small one, `len(stitched)` the large one.

        Raises EstfxError for another number.
        """
        if not isinstance(number, int) or not 0 <= number <= len(self):
            raise EstfxError(
                f"use({number!r}): the palette has the numbers 0 (the small model) to {len(self)} (the large one)."
            )
        self._used = number
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self._running():
            model = self.small if self._used == 0 else self.large
            if hasattr(model, "generate"):
                kwargs["use_cache"] = False
            return model(*args, **kwargs)

    @torch.no_grad()
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As the large model's `generate`, without a KV cache. Raises EstfxError if it has none."""
        model: Any = self.small if self._used == 0 else self.large
        if not hasattr(model, "generate"):
            raise EstfxError(f"`{type(model).__name__}` has no `generate`, which transformers' models have.")
        with self._running():
            return model.generate(*args, **{**kwargs, "use_cache": False})

    # -- tuning ------------------------------------------------------------------------------------

    def add_updates(self, rank: int = 8) -> int:
        """Low-rank updates of every matrix in the layers of both models, shared by the whole palette; all other weights
        of the two stand still. Gives the number of matrices. `merge_updates` makes them a part of the weights.
        """
        if rank < 1:
            raise EstfxError(f"rank={rank}: an update has a rank of 1 at least.")
        for model in (self.small, self.large):
            model.requires_grad_(False)
        return add_updates(self._layers(), rank)

    def merge_updates(self) -> None:
        """The updates become a part of the weights."""
        merge_updates(self._layers())

    def draw(self) -> int:
        """Has a stitch run that is drawn at random: half evenly, half by how much its own parameters would change.

        Call `note` after each backward pass, which keeps the running means of it.
        """
        total = sum(self.importance)
        weights = [1 / len(self.stitches) + (own / total if total else 0.0) for own in self.importance]
        number = self._draw.choices(range(len(self.stitches)), weights)[0] + 1
        self.use(number)
        return number

    def note(self) -> None:
        """Takes the mean |weight · gradient| of the stitch that ran into its running mean."""
        if not 0 < self._used < len(self):
            return
        total, number = 0.0, 0
        for parameter in self.own[self._used - 1].parameters():
            if parameter.grad is not None:
                total += float((parameter.detach() * parameter.grad).abs().sum())
                number += parameter.numel()
        if number:
            before = self.importance[self._used - 1]
            now = total / number
            self.importance[self._used - 1] = MEMORY * before + (1 - MEMORY) * now if before else now

    def _layers(self) -> list[nn.Module]:
        paths = [
            (ends, path)
            for ends in self._ends
            for path in dict.fromkeys(i.call.path for i in ends.decoder.infos.values())
        ]
        return [ends.decoder.model.get_submodule(path) for ends, path in paths]

    # -- running -----------------------------------------------------------------------------------

    @contextmanager
    def _running(self) -> Iterator[None]:
        """While it lasts, a call of the large model runs the stitch that is used."""
        if self._used in (0, len(self)):
            yield
            return
        small, large = self._ends
        own: Any = self.own[self._used - 1]
        before, passed = self.stitches[self._used - 1]
        streams: list[torch.Tensor] = []

        def run_small(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kwargs = {name: value for name, value in kwargs.items() if name != "labels"}
            streams.clear()
            streams.append(own.map(small_stream(small, before, args, kwargs, self._adjusted(own, 0))))

        handle = self.large.register_forward_pre_hook(run_small, with_kwargs=True)
        forwards: dict[str, LayerForward] = {}
        for number, name in enumerate(large.order):
            if number < passed - 1:
                forwards[name] = passing(large.variant(name))
            elif number == passed - 1:
                forwards[name] = _giving(large.variant(name), streams)
            else:
                forwards[name] = self._adjusted(own, before - passed)(large, number, name)
        try:
            with layer_forwards(large.decoder, forwards):
                yield
        finally:
            handle.remove()

    def _adjusted(self, own: Any, offset: int) -> Callable[[Ends, int, str], LayerForward]:
        """Layers whose updates of the stream have a scale and a bias of the stitch; `offset` to their numbers."""

        def made(ends: Ends, number: int, name: str) -> LayerForward:
            call, outside = ends.decoder.infos[name].call, ends.variant(name).residuals.outside
            forward = call.module.forward
            scale, bias = own.scales[number + offset], own.biases[number + offset]

            def run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                stream = flatten(args, kwargs)[0][call.stream_leaf]
                result = forward(*args, **kwargs)
                open_dataclasses(result)
                leaves, spec = pytree.tree_flatten(result)
                after = leaves[call.stream_output]
                update = after if outside else after - stream
                leaves[call.stream_output] = after + update * scale + bias
                return pytree.tree_unflatten(leaves, spec)

            return run

        return made


def small_stream(
    ends: Ends,
    number: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    adjusted: Callable[[Ends, int, str], LayerForward] | None = None,
) -> torch.Tensor:
    """The stream behind so many layers of a model; no more of it runs."""
    found: list[torch.Tensor] = []
    name = ends.order[number - 1]
    call, outside = ends.decoder.infos[name].call, ends.variant(name).residuals.outside
    forwards = {each: adjusted(ends, i, each) for i, each in enumerate(ends.order[:number])} if adjusted else {}
    last = forwards.get(name)
    forward = call.module.forward

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        stream = flatten(args, kwargs)[0][call.stream_leaf]
        result = last(module, args, kwargs) if last is not None else forward(*args, **kwargs)
        open_dataclasses(result)
        after = pytree.tree_leaves(result)[call.stream_output]
        found.append(stream + after if outside else after)
        raise _Stopped

    with layer_forwards(ends.decoder, {**forwards, name: stop}):
        try:
            ends.decoder.model(*args, **kwargs)
        except _Stopped:
            return found[0]
    raise EstfxError(f"layer `{name}` did not run, so that there is no stream to be passed on.")


def _giving(variant: Variant, streams: list[torch.Tensor]) -> LayerForward:
    """A layer that is passed over and gives the small model's stream, as the model expects it."""

    def run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        (new,) = streams
        stream = flatten(args, kwargs)[0][variant.traced.stream_leaf]
        if new.shape != stream.shape:
            raise EstfxError(f"the small model's stream is {list(new.shape)}, the large one's {list(stream.shape)}.")
        return variant.traced.give(new - stream if variant.residuals.outside else new)

    return run
