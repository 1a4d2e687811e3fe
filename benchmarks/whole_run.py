"""Wall-clock seconds of a whole `Schedule.est` run, compilation included, against the compiled original's.

    python benchmarks/whole_run.py [--steps 2000] [--layers 6 --width 256 --batch 16 --length 128]

Both train the same GPT-2 from the same weights on the same random tokens, in turns of a tenth of the steps, so that a
slow moment of the machine hits both. Time is what it takes from `transform` (or `torch.compile`) to the last optimizer
step, with empty caches. Printed: the saving of seconds over the saving of the whole model's FLOPs.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from results import write
from timing import arguments
from torch._inductor.utils import fresh_inductor_cache
from transformers import GPT2Config, GPT2LMHeadModel

import estfx
from estfx.bench import synchronize

TURNS = 10


class Run:
    """One training run, and the seconds that it has taken."""

    def __init__(self, model: torch.nn.Module, prepare: Callable[[Any], Any], device: str) -> None:
        self.seconds, self.device = 0.0, torch.device(device)
        with self:
            self.model = prepare(model)
            self.optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)

    def __enter__(self) -> None:
        synchronize(self.device)
        self.began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        synchronize(self.device)
        self.seconds += time.perf_counter() - self.began

    def train(self, steps: range, batches: torch.Tensor) -> None:
        with self:
            for step in steps:
                if hasattr(self.model, "set_step"):
                    self.model.set_step(step)
                tokens = batches[step % len(batches)]
                self.model(input_ids=tokens, labels=tokens).loss.backward()
                self.optimizer.step()
                self.optimizer.zero_grad()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--vocabulary", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    options = parser.parse_args()
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=options.layers,
        n_embd=options.width,
        n_head=8,
        n_positions=options.length,
        vocab_size=options.vocabulary,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    original = GPT2LMHeadModel(config).to(options.device, getattr(torch, options.dtype)).train()
    schedule = estfx.Schedule.est(options.steps)
    plan = estfx.plan(original, schedule, batch_size=options.batch, seq_len=options.length)
    shape = (16, options.batch, options.length)
    batches = torch.randint(options.vocabulary, shape, device=options.device)
    with fresh_inductor_cache():
        runs = {
            "estfx": Run(copy.deepcopy(original), lambda model: estfx.transform(model, schedule), options.device),
            "original": Run(original, torch.compile, options.device),
        }
        for turn in range(TURNS):
            bounds = [options.steps * each // TURNS for each in (turn, turn + 1)]
            for run in runs.values():
                run.train(range(*bounds), batches)
            print(f"{bounds[1]} steps: {', '.join(f'{name} {run.seconds:.1f} s' for name, run in runs.items())}")
    saved = 1 - runs["estfx"].seconds / runs["original"].seconds
    rows = {
        "seconds": {name: run.seconds for name, run in runs.items()},
        "saving": {"seconds": saved, "flops": plan.saving_model, "ratio": saved / plan.saving_model},
    }
    print(f"saved: {saved:.1%} of the seconds, {plan.saving_model:.1%} of the FLOPs, {rows['saving']['ratio']:.3f}")
    write("whole_run", vars(options), rows)


if __name__ == "__main__":
    main()
