"""Real text on every machine, without a download: the sources of Python's own standard library, bytes as tokens."""

import hashlib
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from estfx.errors import EstfxError

__all__ = ["END_OF_FILE", "VOCAB_SIZE", "Blocks", "Corpus", "standard_library"]

END_OF_FILE = 256  # the token after every file; the tokens below it are bytes
VOCAB_SIZE = 257

_NOT_OURS = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})
_HELD_OUT_ONE_IN = 20  # files


@dataclass(frozen=True)
class Corpus:
    """Token streams (int16), split by file, so that no file is in both."""

    train: NDArray[np.int16]
    held_out: NDArray[np.int16]
    num_files: int


class Blocks(Dataset[dict[str, torch.Tensor]]):
    """Consecutive blocks of `seq_len` tokens, `{input_ids, labels}`, both int64 `[seq_len]`; a rest is left out."""

    def __init__(self, tokens: NDArray[np.int16], seq_len: int, max_blocks: int | None = None) -> None:
        num_blocks = len(tokens) // seq_len
        if num_blocks == 0:
            raise EstfxError(f"a text of {len(tokens)} tokens holds no block of {seq_len}; use a smaller data.seq_len.")
        if max_blocks is not None and max_blocks < num_blocks:
            num_blocks = max_blocks
        self._tokens_NT = tokens[: num_blocks * seq_len].reshape(num_blocks, seq_len)

    def __len__(self) -> int:
        return len(self._tokens_NT)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens_T = torch.from_numpy(self._tokens_NT[index].astype(np.int64))
        labels_T = tokens_T.clone()  # the model shifts them itself
        labels_T[0] = -100  # so the first is predicted by nothing; Trainer would count it and report a loss too low
        return {"input_ids": tokens_T, "labels": labels_T}


def standard_library(root: str | Path | None = None) -> Corpus:
    """Reads the standard library's modules (no tests, no installed packages), each different text once.

    Every twentieth file by the hash of its content is held out, so the split does not move when files come or go.
    Raises EstfxError if the sources are not installed.
    """
    folder = Path(root) if root is not None else Path(sysconfig.get_path("stdlib"))
    texts = {hashlib.blake2b(text, digest_size=16).digest(): text for text in _sources(folder)}
    digests = sorted(texts)  # a fixed order that mixes the modules
    held_out = [texts[digest] for digest in digests if _is_held_out(digest)]
    train = [texts[digest] for digest in digests if not _is_held_out(digest)]
    if not train or not held_out:
        raise EstfxError(
            f"{folder} holds too few Python sources to train on ({len(texts)} files); install Python's library sources."
        )
    return Corpus(_tokens(train), _tokens(held_out), len(texts))


def _sources(folder: Path) -> Iterator[bytes]:
    for path in folder.rglob("*.py"):
        if _NOT_OURS.isdisjoint(path.relative_to(folder).parts) and (text := path.read_bytes()):
            yield text


def _is_held_out(digest: bytes) -> bool:
    return int.from_bytes(digest[:4], "big") % _HELD_OUT_ONE_IN == 0


def _tokens(texts: Sequence[bytes]) -> NDArray[np.int16]:
    end = np.array([END_OF_FILE], dtype=np.int16)
    parts = [part for text in texts for part in (np.frombuffer(text, dtype=np.uint8).astype(np.int16), end)]
    return np.concatenate(parts)
