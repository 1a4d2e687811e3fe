"""How good are parts of a trained model, what do they cost, and what do several do together?

    python benchmarks/cutting/run.py WHAT --weights FOLDER [--models gpt2 llama llama-mha]

Models are trained first (trained.py: 30 to 40 minutes each, on one core), and kept in `--weights`. WHAT is one of

- `ratios`: parts of 90, 80, 70, 60 and 50 % of the layers' parameters by scores, by search, refitted, tuned, and as
  Torch-Pruning prunes (`pip install --no-deps torch-pruning==1.6.1`; left out where it is not installed)
- `ensembles`, `stitches`: with `--seeds`
- `speed`, `search`, `memory`: what it takes. Run nothing else on the machine meanwhile.

Losses are of held-out text, in nats a byte.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import warnings
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1]))

import costs
from parts import TUNING, Row, note, of_estfx, of_torch_pruning, whole_tuned
from results import write
from together import TABLES, over_seeds
from trained import NAMES, Text, held_out, in_layers, trained
from transformers import logging

RATIOS = (0.9, 0.8, 0.7, 0.6, 0.5)


def ratios(name: str, text: Text, options: argparse.Namespace) -> dict[str, Row]:
    model, judge, rows = trained(name, text, options.weights, steps=options.steps), text.judge(), {}
    note(rows, "whole", loss=held_out(model, judge), parameters_of_layers=in_layers(model))
    note(rows, "whole, tuned", loss=whole_tuned(model, text, judge, options.tuning))
    for ratio in options.ratios:
        of_estfx(rows, model, text, ratio, candidates=options.candidates or 320, judge=judge, tuning=options.tuning)
    if importlib.util.find_spec("torch_pruning") is None:
        note(rows, "Torch-Pruning", error="is not installed")
        return rows
    if name == "gpt2":
        from torch_pruning_arm import without_conv1d

        model = without_conv1d(model)
    for ratio in options.ratios:
        of_torch_pruning(rows, model, text, ratio, judge=judge, tuning=options.tuning)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["ratios", "speed", "search", "memory", *TABLES])
    parser.add_argument("--models", nargs="*", choices=NAMES, default=list(NAMES))
    parser.add_argument("--weights", type=Path, required=True, help="a folder in which trained models are kept")
    parser.add_argument("--steps", type=int, default=3000, help="of training, for each model")
    parser.add_argument("--tuning", type=int, default=TUNING, help="steps of tuning")
    parser.add_argument("--candidates", type=int, help="of each search")
    parser.add_argument("--ratios", nargs="*", type=float, default=RATIOS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, help="of torch; all cores if not given")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    said = {**vars(options), "weights": ""}
    if options.what == "memory":
        write("cutting-memory", said, costs.memory())
        return
    text = Text()
    if options.what in TABLES:
        by_seed = {seed: TABLES[options.what](seed, text, options.weights) for seed in options.seeds}
        rows = over_seeds(by_seed)
        rows |= {f"seed {seed}: {name}": row for seed, found in by_seed.items() for name, row in found.items()}
        write(f"cutting-{options.what}", said, rows)
        return
    for name in options.models:
        if options.what == "ratios":
            rows = ratios(name, text, options)
        else:
            model = trained(name, text, options.weights, steps=options.steps)
            if options.what == "speed":
                rows = costs.speed(model, text)
            else:
                rows = costs.search(model, text, options.candidates or 1000)
        write(f"cutting-{options.what}-{name}", {**said, "models": [name]}, rows)


if __name__ == "__main__":
    main()
