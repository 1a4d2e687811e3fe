"""Can decoders that are none of transformers' be cut out as smaller ones?

    pip install --no-deps litgpt==0.5.13 llms-from-scratch==1.0.19 tiktoken regex
    python benchmarks/cutting/foreign.py

Half the heads and neurons, and one of four layers, of tiny random models; what cannot be cut at once is tried alone.
Each cut is compared with the masked whole before it is returned (the column `error`), saved, and loaded again.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "tests")]

from results import write

import estfx

ROLES = ("heads", "neurons", "layers")
VOCABULARY = 34  # of nanoGPT in the tests
Row = dict[str, float | str]


def litgpt(name: str, **sizes: int) -> nn.Module:
    from litgpt import Config
    from litgpt.model import GPT

    shared = {"n_layer": 4, "n_embd": 64, "n_head": 8, "head_size": 8, "intermediate_size": 128, "block_size": 64}
    return GPT(Config.from_name(name, **shared, vocab_size=128, padded_vocab_size=128, **sizes))


def from_scratch_gpt() -> nn.Module:
    from llms_from_scratch.ch04 import GPTModel

    sizes = {"vocab_size": 128, "context_length": 64, "emb_dim": 64, "n_heads": 8, "n_layers": 4}
    return GPTModel({**sizes, "drop_rate": 0.0, "qkv_bias": False})


def from_scratch_llama() -> nn.Module:
    from llms_from_scratch.llama3 import Llama3Model

    sizes = {"vocab_size": 128, "context_length": 64, "emb_dim": 64, "n_heads": 8, "n_layers": 4, "hidden_dim": 128}
    rope = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context_length": 8192}
    more = {"n_kv_groups": 4, "rope_base": 500_000.0, "dtype": torch.float32, "rope_freq": rope}
    return Llama3Model({**sizes, **more})


def nanogpt() -> nn.Module:
    from foreign_decoders import NanoGpt

    return NanoGpt(flash=True)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "litgpt, Pythia": lambda: litgpt("pythia-14m", n_query_groups=8),
    "litgpt, Llama 3": lambda: litgpt("Llama-3-8B", n_query_groups=4),
    "litgpt, Gemma 2": lambda: litgpt("Gemma-2-2b", n_query_groups=4),
    "LLMs from scratch, GPT": from_scratch_gpt,
    "LLMs from scratch, Llama 3": from_scratch_llama,
    "nanoGPT, written again in the tests": nanogpt,
}


def rows_of(name: str, build: Callable[[], nn.Module]) -> dict[str, Row]:
    torch.manual_seed(0)
    model = build().eval()
    tokens = torch.randint(VOCABULARY, (2, 17))
    rows: dict[str, Row] = {}
    for roles in (ROLES, *((role,) for role in ROLES)):
        begun = time.monotonic()
        try:
            small, row = cut(model, roles, tokens)
            row |= {"seconds": round(time.monotonic() - begun, 1), "loaded again": loaded_again(small, build, tokens)}
        except estfx.EstfxError as error:
            row = {"refused": str(error)[:300]}
        rows[f"{name}: {', '.join(roles)}"] = row
        print(name, roles, row, flush=True)
        if roles == ROLES and "refused" not in row:
            break
    return rows


def cut(model: nn.Module, roles: tuple[str, ...], tokens: torch.Tensor) -> tuple[Any, Row]:
    layers = estfx.inspect(model, (tokens,)).layers
    kept = [layer for number, layer in enumerate(layers) if number != 1 or "layers" not in roles]
    units = {
        layer.name: {axis.role: list(range(0, axis.size, 2)) for axis in layer.axes if axis.role in roles}
        for layer in kept
    }
    small = estfx.cut(model, units, layers=[layer.name for layer in kept], example_inputs=(tokens,))
    record = estfx.cut_record(small)
    assert record is not None
    sizes = [sum(parameter.numel() for parameter in each.parameters()) for each in (small, model)]
    row: Row = {"form": record.form, "candidates": record.tries, "error": record.error, "left": sizes[0] / sizes[1]}
    return small, row


def loaded_again(small: Any, build: Callable[[], nn.Module], tokens: torch.Tensor) -> str:
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        estfx.save(small, folder)
        again = estfx.load(folder, model=build).eval()
        return "equal" if torch.equal(again(tokens), small(tokens)) else "differs"


def main() -> None:
    warnings.simplefilter("ignore")
    rows: dict[str, Row] = {}
    for name, build in MODELS.items():
        rows |= rows_of(name, build)
    write("cutting-foreign", {}, rows)


if __name__ == "__main__":
    main()
