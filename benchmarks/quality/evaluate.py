"""What a trained model makes of held-out text: its loss block by block, and how it ranks likely continuations."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from estfx.training import Tokens

__all__ = ["TASKS", "Item", "block_losses", "blocks_of", "items_of", "ranked"]

CHOICES = 4
ROWS = 16  # sequences that are run at once


def block_losses(model: Any, tokens_N: np.ndarray, seq_len: int, num_blocks: int) -> list[float]:
    """Nats a token of the whole model, for blocks that lie evenly over a stream of tokens; the first of each is given.

    The same blocks for every model: they depend on the stream alone.
    """
    available = len(tokens_N) // seq_len
    chosen = blocks_of(len(tokens_N), seq_len, num_blocks)
    blocks_NT = tokens_N[: available * seq_len].reshape(available, seq_len)[chosen].astype(np.int64)
    losses: list[float] = []
    with torch.inference_mode():
        for start in range(0, len(blocks_NT), ROWS):
            tokens_BT = torch.from_numpy(blocks_NT[start : start + ROWS]).to(model.device)
            logits_BTV = model(input_ids=tokens_BT).logits[:, :-1].float()
            each = F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten(), reduction="none")
            losses += each.view(len(tokens_BT), -1).mean(dim=1).tolist()
    return [round(loss, 6) for loss in losses]


def blocks_of(num_tokens: int, seq_len: int, num_blocks: int) -> np.ndarray:
    """The numbers of the blocks that are looked at."""
    available = num_tokens // seq_len
    return np.unique(np.linspace(0, available - 1, min(num_blocks, available)).round().astype(np.int64))


@dataclass(frozen=True)
class Item:
    """A context and continuations of it, of which the first is the true one."""

    context: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]


def ranked(model: Any, items: Sequence[Item]) -> list[bool]:
    """Whether the true continuation is the likeliest by its mean log-likelihood a token, item by item."""
    right = []
    with torch.inference_mode():
        for item in items:
            rows = [[*item.context, *choice] for choice in item.choices]
            longest = max(map(len, rows))
            tokens_BT = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
            log_p_BTV = model(input_ids=tokens_BT.to(model.device)).logits.float().log_softmax(dim=-1).cpu()
            start = len(item.context)
            scores = [
                log_p_BTV[row, start - 1 : start - 1 + len(choice)].gather(1, torch.tensor(choice)[:, None]).mean()
                for row, choice in enumerate(item.choices)
            ]
            right.append(max(range(len(scores)), key=scores.__getitem__) == 0)
    return right


# -- tasks, made of held-out texts ---------------------------------------------------------------------------------


def next_line(text: str, encode: Callable[[str], tuple[int, ...]], length: int, draw: random.Random) -> Item | None:
    """Which of four lines of the same text comes next?"""
    lines = text.splitlines(keepends=True)
    if len(lines) < 20:
        return None
    place = draw.randrange(8, len(lines) - 8)
    true = lines[place]
    others = [line for line in dict.fromkeys(lines) if line != true and 12 <= len(line) <= 160]
    if not 12 <= len(true) <= 160 or len(others) < CHOICES - 1:
        return None
    choices = [true, *draw.sample(others, CHOICES - 1)]
    return _fitted("".join(lines[max(0, place - 12) : place]), choices, encode, length)


def identifier(text: str, encode: Callable[[str], tuple[int, ...]], length: int, draw: random.Random) -> Item | None:
    """Which of four names that occur before stands here? With the rest of the line after it."""
    found = [each for each in re.finditer(r"\b[A-Za-z_][A-Za-z_0-9]{3,}\b", text) if each.start() > 200]
    if not found:
        return None
    true = draw.choice(found)
    before = text[max(0, true.start() - 300) : true.start()]
    names = re.findall(r"\b[A-Za-z_][A-Za-z_0-9]{3,}\b", before)
    others = [name for name in dict.fromkeys(names) if name != true.group()]
    if true.group() not in names or len(others) < CHOICES - 1:
        return None
    rest = text[true.end() :].split("\n", 1)[0][:40]
    choices = [name + rest for name in (true.group(), *draw.sample(others, CHOICES - 1))]
    return _fitted(before, choices, encode, length)


def copy_from_afar(
    text: str, encode: Callable[[str], tuple[int, ...]], length: int, draw: random.Random
) -> Item | None:
    """A passage begins again after other text: which of its four parts follows?"""
    tokens = encode(text[:20_000])
    part = max(4, length // 16)
    if len(tokens) < 2 * length:
        return None
    start = draw.randrange(len(tokens) - 2 * length)
    passage = tokens[start : start + (CHOICES + 1) * part]
    parts = [passage[i * part : (i + 1) * part] for i in range(CHOICES + 1)]
    place = draw.randrange(CHOICES)
    between = tokens[start + length : start + length + length - (CHOICES + 3) * part]
    true = parts[place + 1]
    others = [each for each in parts[1:] if each != true]
    if len(set(parts[1:])) < CHOICES:
        return None
    return Item((*passage, *between, *parts[place]), (true, *others))


TASKS = {"next line": next_line, "identifier": identifier, "copy": copy_from_afar}


def items_of(texts: Sequence[str], tokens: Tokens, task: str, number: int, length: int) -> list[Item]:
    """`number` items of a task, of at most `length` tokens each. The same ones for the same texts."""
    draw = random.Random(task)
    found: list[Item] = []
    for text in _again(texts, draw, most=50 * number):
        if len(found) == number:
            break
        item = TASKS[task](text, lambda s: tuple(tokens.of_text(s.encode()).tolist()), length, draw)
        if item is not None:
            found.append(item)
    return found


def _again(texts: Sequence[str], draw: random.Random, most: int) -> Iterator[str]:
    for _ in range(most):
        yield draw.choice(texts)


def _fitted(context: str, choices: Sequence[str], encode: Callable[[str], tuple[int, ...]], length: int) -> Item | None:
    ends = [encode(choice) for choice in choices]
    longest = max(map(len, ends))
    before = encode(context)[-(length - longest) :] if longest < length else ()
    return Item(before, tuple(ends)) if len(before) >= 8 else None
