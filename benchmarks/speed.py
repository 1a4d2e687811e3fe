"""Seconds per step of every stage, against the compiled original and what else makes training cheaper.

    python benchmarks/speed.py cpu        # a GPT-2 and a Llama for two cores; about 12 minutes
    python benchmarks/speed.py gpu        # GPT-2 base and TinyLlama-1.1B in bfloat16; under 8 minutes
    python benchmarks/speed.py tiny       # the same arms on models of no size, to see that they run

Writes `benchmarks/results/<set>-<machine>-<date>.json` and a table beside it, after each model.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import date
from typing import Any

from results import FOLDER, machine
from rich.console import Console

from estfx.bench import BenchResult, BenchSettings, bench, print_result

TINYLLAMA = {  # the sizes of TinyLlama-1.1B
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
GPT2 = {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257, "n_positions": 1024}
SETS: dict[str, list[dict[str, Any]]] = {
    "cpu": [
        {
            "model": {"name": "gpt2", "config": {"n_layer": 6, "n_embd": 512, "n_head": 8}},
            "batch_size": 8,
            "seq_len": 256,
        },
        {
            "model": {
                "name": "llama",
                "config": {
                    "num_hidden_layers": 6,
                    "hidden_size": 512,
                    "intermediate_size": 1408,
                    "num_attention_heads": 8,
                    "num_key_value_heads": 4,
                },
            },
            "batch_size": 8,
            "seq_len": 256,
        },
    ],
    "gpu": [
        {
            "model": {"name": "gpt2", "config": GPT2},
            "batch_size": 16,
            "seq_len": 1024,
            "dtype": "bfloat16",
            "device": "cuda",
        },
        {
            "model": {"name": "llama", "config": TINYLLAMA},
            "batch_size": 8,
            "seq_len": 2048,
            "dtype": "bfloat16",
            "device": "cuda",
        },
    ],
    "tiny": [
        {
            "model": {"name": name, "config": config},
            "batch_size": 2,
            "seq_len": 32,
            "rounds": 2,
            "dtype": "bfloat16",
        }
        for name, config in {
            "gpt2": {"n_layer": 2, "n_embd": 64, "n_head": 4},
            "llama": {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128},
        }.items()
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--rounds", type=int, help="default: what BenchSettings has")
    options = parser.parse_args()
    progress = Console(stderr=True)
    path = FOLDER / f"speed-{options.set}-{machine()}-{date.today()}.json"
    command = " ".join(["python", "benchmarks/speed.py", *sys.argv[1:]])
    results: list[BenchResult] = []
    for values in SETS[options.set]:
        rounds = {"rounds": options.rounds} if options.rounds else {}
        settings = BenchSettings.from_mapping(values | rounds)
        results.append(bench(settings, lambda line: progress.print(line, highlight=False)))
        print_result(Console(), results[-1])
        record = {"command": command, "results": [result.model_dump(mode="json") for result in results]}
        path.write_text(json.dumps(record, indent=1) + "\n")
        with path.with_suffix(".txt").open("w") as file:
            console = Console(file=file, width=100)
            console.print(f"{command}\n", highlight=False)
            for result in results:
                print_result(console, result)
    print(f"written to {path.relative_to(FOLDER.parent.parent)} and a table beside it")


if __name__ == "__main__":
    main()
