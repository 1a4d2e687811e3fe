"""Which work, and which kind of text, each held-out block is of: so that text can be resampled by work. And how many
bytes a token is, so that losses can be told by the byte.

    python benchmarks/quality/block_works.py

Needs the texts of gather_text.py. Writes `benchmarks/results/quality/blocks.json`, which tables.py reads. What was
written of a text that is not here stays.
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

NUMBER = 1024  # of blocks in all results
# by the folder of the text: the tokens of a block, and what tokens there are
TEXTS = {
    "runs/quality/text": (128, ("bytes", "runs/quality/text/bpe-2048")),
    "runs/quality/text-large": (256, ("runs/quality/text-large/bpe-8192",)),
}


def works_of(texts: list[tuple[str, bytes]], tokens: Tokens, seq_len: int, num_blocks: int) -> list[tuple[int, str]]:
    """For each block the number of the text that its middle is in, and that text's kind."""
    lengths = [len(tokens.of([text])) for _, text in texts]
    ends_N = np.cumsum(lengths)
    chosen = blocks_of(int(ends_N[-1]), seq_len, num_blocks)
    numbers = np.searchsorted(ends_N, chosen * seq_len + seq_len // 2, side="right")
    return [(int(number), texts[number][0]) for number in numbers]


def blocks_of_text(folder: Path, length: int, tokenizers: tuple[str, ...]) -> dict[str, Any]:
    """What is known of a text's held-out blocks."""
    manifest = json.loads((folder / "manifest.json").read_text())
    texts = [
        (kind, text)
        for kind in manifest["kinds"]
        for text in held_out_of(documents([str(folder / f"{kind}.jsonl")], "text"))
    ]
    found: dict[str, Any] = {"text": {kind: each["hash"] for kind, each in manifest["kinds"].items()}, "tokens": {}}
    whole = [text for _, text in texts]
    for name in tokenizers:
        tokens = tokens_of(name if name == "bytes" else str(ROOT / name))
        blocks = works_of(texts, tokens, length, NUMBER)
        found["tokens"][name] = {
            "works": [work for work, _ in blocks],
            "kinds": [kind for _, kind in blocks],
            "bytes_per_token": 1.0 if name == "bytes" else round(sum(map(len, whole)) / len(tokens.of(whole)), 4),
        }
    return found


def main() -> None:
    path = RESULTS / "blocks.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    for name, (length, tokenizers) in TEXTS.items():
        if (ROOT / name / "manifest.json").exists():
            known[name] = blocks_of_text(ROOT / name, length, tokenizers)
            print(f"{name}: {', '.join(known[name]['tokens'])}")
    path.write_text(json.dumps(known) + "\n")
    print(f"written to {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
