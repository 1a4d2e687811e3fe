"""Texts as blocks of tokens: bytes, or the tokens of a tokenizer of one's own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from estfx.errors import EstfxError
from estfx.settings import SettingsError
from estfx.training.document_sources import BYTES, no_block

__all__ = ["Blocks", "Corpus", "Tokens", "corpus_of", "held_out_of", "is_held_out", "tokens_of"]

_HELD_OUT_ONE_IN = 20  # texts


@dataclass(frozen=True)
class Tokens:
    """What texts are made of: bytes, if there is no tokenizer."""

    vocab_size: int = 257
    end_of_text: int = 256  # the token after every text; the tokens below it are bytes
    tokenizer: Any = None

    def of(self, texts: Sequence[bytes]) -> NDArray[np.int32]:
        """All texts as one stream, each with the end of the text behind it."""
        end = np.array([self.end_of_text], dtype=np.int32)
        return np.concatenate([part for text in texts for part in (self.of_text(text), end)])

    def of_text(self, text: bytes) -> NDArray[np.int32]:
        """One text, without an end."""
        if self.tokenizer is None:
            return np.frombuffer(text, dtype=np.uint8).astype(np.int32)
        found = self.tokenizer(text.decode(errors="replace"), add_special_tokens=False, verbose=False)
        return np.asarray(found["input_ids"], dtype=np.int32)


def tokens_of(tokenizer: str) -> Tokens:
    """`bytes`, or a folder with a tokenizer of transformers. Raises SettingsError if there is none in it."""
    if tokenizer == BYTES:
        return Tokens()
    if not Path(tokenizer).is_dir():
        raise SettingsError(f"data.tokenizer must be `bytes` or a folder with a tokenizer; {tokenizer} is no folder.")
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    except Exception as error:  # of many kinds, by what is missing
        raise SettingsError(f"{tokenizer} holds no tokenizer that transformers can load: {error}") from None
    if found.eos_token_id is None:
        raise SettingsError(f"the tokenizer in {tokenizer} has no eos_token, which ends every text; give it one.")
    return Tokens(len(found), found.eos_token_id, found)


@dataclass(frozen=True)
class Corpus:
    """Token streams, split by text, so that no text is in both; a single text is split near its end."""

    train: NDArray[np.int32]
    held_out: NDArray[np.int32]
    num_texts: int  # different ones


class Blocks(Dataset[dict[str, torch.Tensor]]):
    """Consecutive blocks of `seq_len` tokens, `{input_ids, labels}`, both int64 `[seq_len]`; a rest is left out."""

    def __init__(self, tokens: NDArray[Any], seq_len: int, max_blocks: int | None = None) -> None:
        num_blocks = len(tokens) // seq_len
        if num_blocks == 0:
            raise EstfxError(no_block(len(tokens), seq_len))
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


def corpus_of(texts: Iterable[bytes], tokens: Tokens | None = None) -> Corpus:
    """The texts as tokens (by default bytes), each different text once.

    Every twentieth text by the hash of its content is held out, so the split does not move when texts come or go. Of
    texts too few for that, the last twentieth of all tokens is held out. Raises EstfxError if there is no text.
    """
    tokens = tokens or Tokens()
    different = _different(texts)
    if not different:
        raise EstfxError("there is no text to train on; see data.source.")
    held_out = [text for digest, text in different.items() if _is_held_out(digest)]
    train = [text for digest, text in different.items() if not _is_held_out(digest)]
    if held_out and train:
        return Corpus(tokens.of(train), tokens.of(held_out), len(different))
    stream = tokens.of(train or held_out)
    end = len(stream) - max(1, len(stream) // _HELD_OUT_ONE_IN)
    return Corpus(stream[:end], stream[end:], len(different))


def held_out_of(texts: Iterable[bytes]) -> list[bytes]:
    """The texts that `corpus_of` holds out, in its order."""
    return [text for digest, text in _different(texts).items() if _is_held_out(digest)]


def is_held_out(text: bytes) -> bool:
    """Whether a text is one of those that `corpus_of` holds out."""
    return _is_held_out(_digest(text))


def _different(texts: Iterable[bytes]) -> dict[bytes, bytes]:
    """Each different text once, by its digest, whose order mixes the texts and is always the same."""
    found = {_digest(text): text for text in texts}
    return {digest: found[digest] for digest in sorted(found)}


def _digest(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=16).digest()


def _is_held_out(digest: bytes) -> bool:
    return int.from_bytes(digest[:4], "big") % _HELD_OUT_ONE_IN == 0
