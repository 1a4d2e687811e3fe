"""Is it better to cut inside of heads than to cut heads? A part of each head's numbers is masked, or whole heads are.

    python benchmarks/cutting/head_size.py --weights FOLDER

The models are those of `trained.py`. A share of attention goes: whole heads (with grouped queries a head of keys with
its queries), or as large a share of every head's numbers: of queries and keys together, and of values. With rotary
positions the queries' and keys' numbers go in pairs, and the same pairs in all heads of all layers, since the code
computes one table of angles for all. Units are scored by |weight · gradient|, and masked by zeros; scores are divided
by the root of the head's original size throughout. Losses are of held-out text, in nats a byte.
"""

from __future__ import annotations

import argparse
import copy
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[1]))

from parts import Row, note
from results import write
from trained import NAMES, Text, held_out, loss_of, trained
from transformers import logging

SHARES = (0.25, 0.5)  # that go


class Projections:
    """One layer's queries, keys, values and output as views `[heads, head size, width]` of its weights."""

    def __init__(self, layer: Any, config: Any) -> None:
        if hasattr(layer, "self_attn"):
            module = layer.self_attn
            size = module.head_dim
            self.parts = [module.q_proj.weight, module.k_proj.weight, module.v_proj.weight]
            self.out = module.o_proj.weight.T
            self.rotary = True
            self.biases: list[torch.Tensor] = []
        else:
            module = layer.attn
            size = module.head_dim
            self.parts = list(module.c_attn.weight.T.chunk(3))
            self.out = module.c_proj.weight
            self.rotary = False
            self.biases = list(module.c_attn.bias.chunk(3))
        self.size, self.groups = size, self.parts[1].shape[0] // size

    def views(self) -> list[torch.Tensor]:
        """Queries, keys, values and output, each `[groups, heads of a group, head size, width]`."""
        return [each.reshape(self.groups, -1, self.size, each.shape[-1]) for each in (*self.parts, self.out)]


def saliency(model: Any, text: Text) -> list[list[torch.Tensor]]:
    """|weight · gradient| of each layer's `views`, summed over the width: `[groups, heads of a group, head size]`."""
    model = copy.deepcopy(model)
    for batch in text.calibration():
        loss_of(model, batch).backward()
    found = []
    for layer in layers_of(model):
        weights = Projections(layer, model.config)
        gradients = copy.deepcopy(layer)
        for own, other in zip(gradients.parameters(), layer.parameters(), strict=True):
            own.data = other.grad
        pairs = zip(weights.views(), Projections(gradients, model.config).views(), strict=True)
        found.append([(weight * gradient).abs().sum(-1).detach() for weight, gradient in pairs])
    return found


def layers_of(model: Any) -> Any:
    return model.model.layers if hasattr(model, "model") else model.transformer.h


def masked(model: Any, scores: list[list[torch.Tensor]], share: float, what: str) -> Any:
    """A copy in which that share of heads, or of the numbers in every head, is zero."""
    model = copy.deepcopy(model)
    found = [Projections(layer, model.config) for layer in layers_of(model)]
    kept_pairs = None
    if found[0].rotary:
        half = found[0].size // 2
        both = sum(queries.sum((0, 1)) + keys.sum((0, 1)) for queries, keys, *_ in scores)
        kept_pairs = best(both[:half] + both[half:], share)
    with torch.no_grad():
        for each, (queries, keys, values, out) in zip(found, scores, strict=True):
            if what == "heads":
                by_group = sum(one.sum((1, 2)) for one in (queries, keys, values, out))
                mask = best(by_group, share)[:, None].expand(-1, each.size)
                angles = mask
            else:
                mask = best(values.sum(1) + out.sum(1), share)
                own = best(queries.sum(1) + keys.sum(1), share)
                angles = own if kept_pairs is None else kept_pairs.repeat(2).expand(each.groups, -1)
            for weight, one in zip((*each.parts, each.out), (angles, angles, mask, mask), strict=True):
                heads = weight.shape[0] // each.size // each.groups
                weight.mul_(one[:, None].expand(-1, heads, -1).reshape(-1, 1))
            for bias, one in zip(each.biases, (angles, angles, mask), strict=bool(each.biases)):
                bias.mul_(one.reshape(-1))
    return model


def best(scores: torch.Tensor, share: float) -> torch.Tensor:
    """1 for the highest along the last dimension, 0 for the share that goes."""
    gone = round(scores.shape[-1] * share)
    order = scores.argsort(-1).argsort(-1)
    return (order >= gone).to(torch.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", choices=NAMES, default=["gpt2", "llama"])
    parser.add_argument("--weights", type=Path, required=True, help="a folder in which trained models are kept")
    parser.add_argument("--steps", type=int, default=3000, help="of training, for each model")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    text, rows = Text(), {}
    judge = text.judge()
    for name in options.models:
        model: nn.Module = trained(name, text, options.weights, steps=options.steps)
        scores = saliency(model, text)
        note(rows, f"{name}: whole", loss=held_out(model, judge))
        for share in SHARES:
            for what in ("heads", "inside of heads"):
                part = masked(model, scores, share, what)
                note(rows, f"{name}: {share:.0%} less, {what}", loss=held_out(part, judge))
    made: dict[str, Row] = rows
    write("cutting-head-size", {**vars(options), "weights": ""}, made)


if __name__ == "__main__":
    main()
