"""`estfx.Ensemble`: several models that answer with the mean of what they say."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import nn

from estfx.errors import EstfxError

__all__ = ["Ensemble"]

Average = Literal["probabilities", "logits"]


class Ensemble(nn.Module):
    """Models that are called with the same inputs, and give the mean of their probabilities or of their logits.

    The result is that of the first model, with other logits, and with their loss if `labels` are given. It has no KV
    cache; `generate` uses one for each of the models.

    Args:
        models: decoders with the same tokens, such as those of `estfx.children`. They give logits `[batch, length,
            tokens]`: a tensor, the first of a tuple, or `.logits`.
        average: `"probabilities"`: the logits are the logarithms of mean probabilities. `"logits"`: mean logits.

    Raises EstfxError for no model, and for models that do not fit together.
    """

    def __init__(self, models: Iterable[nn.Module], average: Average = "probabilities") -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        if not self.models:
            raise EstfxError("an ensemble needs one model at least.")
        if average not in get_args(Average):
            raise EstfxError(f"average={average!r}: it is taken over {' or '.join(get_args(Average))}.")
        self.average = average
        self.config = getattr(self.models[0], "config", None)

    @property
    def device(self) -> torch.device:
        """Of the first model."""
        return next(self.models[0].parameters()).device

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        labels = kwargs.pop("labels", None)
        if "use_cache" in kwargs or hasattr(self.models[0], "generate"):
            kwargs["use_cache"] = False
        results = [model(*args, **kwargs) for model in self.models]
        logits = self._mean([_logits_of(result) for result in results])
        loss = None if labels is None else self._loss(logits, labels)
        return _with_logits(results[0], logits, loss)

    def _mean(self, logits: list[torch.Tensor]) -> torch.Tensor:
        shapes = {tuple(each.shape) for each in logits}
        if len(shapes) > 1:
            raise EstfxError(f"the models do not fit together: their logits are {', '.join(map(str, sorted(shapes)))}.")
        together = torch.stack(logits)
        if self.average == "logits":
            return together.mean(0)
        return together.float().log_softmax(-1).logsumexp(0) - torch.tensor(float(len(logits))).log()

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The mean over next tokens; labels of -100 do not count."""
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())

    @torch.no_grad()
    def generate(self, input_ids: torch.Tensor, **options: Any) -> Any:
        """As transformers' `generate` of the first model, each of whose steps asks all of the models.

        Raises EstfxError if the models are none of transformers'.
        """
        first, *others = self.models
        if not hasattr(first, "generate"):
            raise EstfxError(f"`{type(first).__name__}` has no `generate`, which transformers' models have.")
        from transformers import LogitsProcessorList

        asks = _AsksOthers(self, others, options.get("attention_mask"))
        own = list(options.pop("logits_processor", None) or [])
        return first.generate(input_ids, logits_processor=LogitsProcessorList([asks, *own]), **options)  # type: ignore[operator]


class _AsksOthers:
    """In each step of a generation, the other models' next logits; each model has a cache of its own."""

    def __init__(self, ensemble: Ensemble, others: list[nn.Module], mask: torch.Tensor | None) -> None:
        self._ensemble, self._others, self._mask = ensemble, others, mask
        self._before: torch.Tensor | None = None  # the tokens that the caches hold
        self._caches: list[Any] = [None] * len(others)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        follows = self._before is not None and torch.equal(input_ids[:, :-1], self._before)
        if not follows:  # the first step, or beams that were put in another order
            self._caches = [None] * len(self._others)
        given: dict[str, Any] = {"use_cache": True}
        if self._mask is not None:
            mask = self._mask.repeat_interleave(len(input_ids) // len(self._mask), 0)
            rest = mask.new_ones(len(mask), input_ids.shape[1] - mask.shape[1])
            given["attention_mask"] = torch.cat([mask, rest], 1)
        logits = [scores]
        for number, model in enumerate(self._others):
            cache = self._caches[number]
            tokens = input_ids if cache is None else input_ids[:, -1:]
            if self._mask is not None:  # positions begin behind the padding
                places = (given["attention_mask"].cumsum(-1) - 1).clamp(min=0)
                given["position_ids"] = places[:, -tokens.shape[1] :]
            result = model(input_ids=tokens, past_key_values=cache, **given)
            self._caches[number] = getattr(result, "past_key_values", None)
            logits.append(result.logits[:, -1].to(scores))
        self._before = input_ids.clone()
        return self._ensemble._mean(logits)


def _logits_of(result: Any) -> torch.Tensor:
    if isinstance(result, torch.Tensor):
        return result
    logits = getattr(result, "logits", None)
    if logits is None and isinstance(result, (tuple, list)):
        logits = next((each for each in result if isinstance(each, torch.Tensor) and each.ndim == 3), None)
    if not isinstance(logits, torch.Tensor):
        raise EstfxError(f"a model gives no logits but a {type(result).__name__}; they are `.logits`, or a tensor.")
    return logits


def _with_logits(result: Any, logits: torch.Tensor, loss: torch.Tensor | None) -> Any:
    """The result with other logits and loss."""
    if isinstance(result, torch.Tensor):
        return logits if loss is None else (loss, logits)
    if isinstance(result, (tuple, list)):
        old = _logits_of(result)
        rest = [logits if each is old else each for each in result]
        return tuple(rest if loss is None else [loss, *rest])
    found = copy.copy(result)
    found.logits, found.loss = logits, loss
    return found
