"""Mixtures of experts: soft ones, of which all are weighed, and hard ones, of which a router chooses some."""

from __future__ import annotations

import torch
from drawn_decoders.form import MlpForm
from drawn_decoders.mlps import Mlp
from drawn_decoders.units import Units, WithUnits, activation, share, weight
from torch import nn

__all__ = ["Experts"]


class Experts(WithUnits):
    def __init__(self, form: MlpForm, hidden: int) -> None:
        super().__init__()
        self.form = form
        self.router = nn.Linear(hidden, form.experts, bias=False)
        if form.kind in ("soft list", "hard loop", "hard scattered"):
            self.experts = nn.ModuleList(Mlp(form, hidden, gate=False) for _ in range(form.experts))
        else:
            self.up, self.down = weight(form.experts, hidden, form.neurons), weight(form.experts, form.neurons, hidden)
        if form.shared_expert:
            self.shared = Mlp(form, hidden, gate=True)

    def units(self) -> list[Units]:
        """Of one's own alone: experts in a list, and the shared one, are modules with units of theirs."""
        if hasattr(self, "experts"):
            return []
        return [Units("neurons", self.form.neurons, "down", "neurons", 1)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.router(x).softmax(-1)
        match self.form.kind:
            case "soft list":
                result = sum(weights[..., [i]] * expert(x) for i, expert in enumerate(self.experts))
            case "soft":
                result = torch.einsum("bte,bted->btd", weights, self.all_of(x))
            case "hard":
                best, numbers = self.chosen(weights)
                dense = torch.zeros_like(weights).scatter(-1, numbers, best)
                result = torch.einsum("bte,bted->btd", dense, self.all_of(x))
            case "hard gathered":
                result = self.gathered(x, *self.chosen(weights))
            case "hard loop":
                best, numbers = self.chosen(weights)
                parts = [((numbers == i) * best).sum(-1, keepdim=True) * f(x) for i, f in enumerate(self.experts)]
                result = torch.stack(parts).sum(0)
            case _:
                result = self.scattered(x, *self.chosen(weights))
        return result + self.shared(x) if self.form.shared_expert else result

    def chosen(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        best, numbers = weights.topk(min(self.form.chosen, self.form.experts), -1)
        return (best / best.sum(-1, keepdim=True) if self.form.normalised else best), numbers

    def masked(self, y: torch.Tensor) -> torch.Tensor:
        kept = self.kept.get("neurons")
        return y if kept is None else y * share(self.form.neurons, kept)

    def all_of(self, x: torch.Tensor) -> torch.Tensor:
        y = activation(self.form.activation, torch.einsum("btd,edn->bten", x, self.up))
        return torch.einsum("bten,end->bted", self.masked(y), self.down)

    def gathered(self, x: torch.Tensor, best: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """The matrices of the chosen, for every token."""
        y = activation(self.form.activation, torch.einsum("btd,btkdn->btkn", x, self.up[numbers]))
        y = torch.einsum("btkn,btknd->btkd", self.masked(y), self.down[numbers])
        return (y * best[..., None]).sum(2)

    def scattered(self, x: torch.Tensor, best: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Each expert gets its tokens, as many as there are."""
        flat, result = x.reshape(-1, x.shape[-1]), torch.zeros_like(x).reshape(-1, x.shape[-1])
        for number, expert in enumerate(self.experts):
            token, place = torch.where(numbers.reshape(-1, numbers.shape[-1]) == number)
            part = expert(flat[None, token])[0] * best.reshape(-1, best.shape[-1])[token, place, None]
            result = result.index_add(0, token, part)
        return result.view(x.shape)
