"""Seconds of the layers' forward and backward by stage, against the original's compiled layer by layer, in one run.

    python benchmarks/stage_speed.py [--device cuda] [--layers 6 --width 512 --batch 8 --length 256 --repeats 9]

The arms are interleaved, and each draws another subnetwork at every repeat; reported are medians of the ratios taken
repeat by repeat. Embedding, LM head and optimizer are left out: it is the layers that are compared. Saved are the bytes
that the forward pass leaves for the backward pass, the peak those of all tensors but parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from results import write
from timing import arguments, in_turn, ratios, seconds
from transformers import GPT2Config, GPT2Model

import estfx
from estfx.bench import memory_of
from estfx.schedules import Schedule, Stage

STAGES = Schedule(
    stages=[
        Stage(start=0, heads=0.5, neurons=0.5, layers=0.5),
        Stage(start=1000, heads=0.5, neurons=0.5),
        Stage(start=2000),
    ]
)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    options = parser.parse_args()

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=options.layers,
        n_embd=options.width,
        n_head=options.heads,
        n_positions=options.length,
        vocab_size=256,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
    )
    dtype = getattr(torch, options.dtype)
    original = GPT2Model(config).to(options.device, dtype).train()
    evolving = estfx.transform(copy.deepcopy(original), STAGES)
    for layer in original.h:
        layer.compile(fullgraph=True)
    x = torch.randn(options.batch, options.length, options.width, device=options.device, dtype=dtype)

    def backward(model: torch.nn.Module) -> float:
        model.zero_grad(set_to_none=True)
        return seconds(lambda: model(inputs_embeds=x).last_hidden_state.backward(x), options.device)

    def at(first_step: int) -> Callable[[int], float]:
        def arm(repeat: int) -> float:
            evolving.set_step(first_step + repeat)
            return backward(evolving)

        return arm

    arms: dict[str, Callable[[int], float]] = {
        "original, compiled": lambda repeat: backward(original),
        "whole": at(2000),
        "half the heads and neurons": at(1000),
        "and half the layers": at(0),
    }

    def memory(name: str, model: torch.nn.Module) -> dict[str, float]:
        arms[name](1)  # puts the step in force, and compiles
        model.zero_grad(set_to_none=True)
        device = torch.device(options.device)
        forward = memory_of(lambda: model(inputs_embeds=x).last_hidden_state, device)
        both = memory_of(lambda: model(inputs_embeds=x).last_hidden_state.backward(x), device)
        return {} if forward is None or both is None else {"saved_bytes": forward.left, "peak_bytes": both.peak}

    first = {name: arm(0) for name, arm in arms.items()}
    memories = {name: memory(name, original if name == "original, compiled" else evolving) for name in arms}
    rows = ratios(in_turn(arms, options.repeats, first=2), "original, compiled")
    for name, row in rows.items():
        row |= {
            "first_call_seconds": first[name],
            **memories[name],
            **{f"{what}_ratio": value / memories["original, compiled"][what] for what, value in memories[name].items()},
        }
        print(
            f"{name:28s} {row['seconds']:.4f} s   {row['ratio']:.3f} of the original "
            f"({row['ratio_min']:.3f} to {row['ratio_max']:.3f}); first call, compilation included, {first[name]:.1f} s"
            + "".join(f"; {what} {row[f'{what}_ratio']:.3f}" for what in memories[name])
        )
    write("stage_speed", vars(options), rows)


if __name__ == "__main__":
    main()
