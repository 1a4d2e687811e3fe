"""Which work, and which kind of text, each held-out block is of: so that text can be resampled by work.

    python benchmarks/quality/block_works.py

Needs the text of gather_text.py. Writes `benchmarks/results/quality/blocks.json`, which tables.py reads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from evaluate import blocks_of
from experiment import RESULTS, ROOT

from estfx.training import Tokens, documents, held_out_of, tokens_of

__all__ = ["works_of"]

TEXT = ROOT / "runs" / "quality" / "text"
LENGTH, NUMBER = 128, 1024  # of blocks in all results
TOKENIZERS = ("bytes", "runs/quality/text/bpe-2048")


def works_of(texts: list[tuple[str, bytes]], tokens: Tokens, seq_len: int, num_blocks: int) -> list[tuple[int, str]]:
    """For each block the number of the text that its middle is in, and that text's kind."""
    lengths = [len(tokens.of([text])) for _, text in texts]
    ends_N = np.cumsum(lengths)
    chosen = blocks_of(int(ends_N[-1]), seq_len, num_blocks)
    numbers = np.searchsorted(ends_N, chosen * seq_len + seq_len // 2, side="right")
    return [(int(number), texts[number][0]) for number in numbers]


def main() -> None:
    manifest = json.loads((TEXT / "manifest.json").read_text())
    texts = [
        (kind, text) for kind in manifest["kinds"] for text in held_out_of(documents([str(file_of(kind))], "text"))
    ]
    found: dict[str, Any] = {"text": {kind: each["hash"] for kind, each in manifest["kinds"].items()}}
    for name in TOKENIZERS:
        path = name if name == "bytes" else str(ROOT / name)
        blocks = works_of(texts, tokens_of(path), LENGTH, NUMBER)
        found[name] = {"works": [work for work, _ in blocks], "kinds": [kind for _, kind in blocks]}
    path = RESULTS / "blocks.json"
    path.write_text(json.dumps(found) + "\n")
    print(f"written to {path.relative_to(ROOT)}: {len(texts)} works")


def file_of(kind: str) -> Path:
    return TEXT / f"{kind}.jsonl"


if __name__ == "__main__":
    main()
