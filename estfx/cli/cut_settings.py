"""What `estfx cut` was asked for, checked before anything is loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from estfx.settings import SettingsError
from estfx.training import check_text, holds_weights, names_factory

__all__ = ["CutSettings", "shares_of"]

PARTS = ("heads", "neurons", "layers")


def shares_of(text: str) -> dict[str, float]:
    """Of each part the share that stays, from `heads=0.75,neurons=0.5`; 1 for those that are not named."""
    found = dict.fromkeys(PARTS, 1.0)
    for each in text.split(","):
        part, sign, number = (piece.strip() for piece in each.partition("="))
        if part not in PARTS or not sign:
            raise SettingsError(
                f"--keep {text!r}: {each!r} names no part. Write such as heads=0.75,neurons=0.5,layers=0.75."
            )
        if not re.fullmatch(r"\d*\.?\d+", number) or not 0 < float(number) <= 1:
            raise SettingsError(f"--keep {text!r}: a share lies above 0 and is 1 at most, not {number!r}.")
        found[part] = float(number)
    if all(share == 1 for share in found.values()):
        raise SettingsError(f"--keep {text!r} keeps the whole model; give heads, neurons or layers a share below 1.")
    return found


@dataclass(frozen=True)
class CutSettings:
    """The options of the command."""

    shares: dict[str, float]
    by: str
    layers_by: str | None
    text: tuple[str, ...]
    column: str
    tokenizer: str | None
    samples: int
    seq_len: int | None
    batch_size: int
    round_to: int
    reform: bool
    layers: tuple[str, ...] | None

    def check(self, model: str) -> None:
        """Raises SettingsError for what cannot go together, or is not there."""
        check_text(self.text, column=self.column, tokenizer=self.tokenizer or "bytes", seq_len=self.seq_len)
        if self.text and names_factory(model):
            raise SettingsError(
                "estfx cut cannot tell how a model of your own takes text. Cut it without --text, or in Python: "
                "estfx.score(model, by, batches), scores.best(…), estfx.cut(model, units, layers=…)."
            )
        if self.text and not holds_weights(model):
            raise SettingsError(
                f"{model} has random weights, of which text says nothing: name a folder with a trained model, or leave "
                "out --text."
            )

    def tokenizer_of(self, model: str) -> str:
        """That which was asked for, or the model's own, if its folder holds one; else bytes."""
        if self.tokenizer is not None:
            return self.tokenizer
        own = any((Path(model) / name).exists() for name in ("tokenizer.json", "tokenizer_config.json"))
        return model if own else "bytes"
