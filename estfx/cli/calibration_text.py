"""Calibration text that a command was given, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from estfx.settings import SettingsError
from estfx.training import check_text, holds_weights, names_factory

__all__ = ["Calibration"]


@dataclass(frozen=True)
class Calibration:
    """Which text, and how much of it at once."""

    text: tuple[str, ...]
    column: str
    tokenizer: str | None
    samples: int
    seq_len: int | None
    batch_size: int

    def check(self, model: str, command: str) -> None:
        """Raises SettingsError for what cannot go together, or is not there."""
        check_text(self.text, column=self.column, tokenizer=self.tokenizer or "bytes", seq_len=self.seq_len)
        if self.text and names_factory(model):
            raise SettingsError(
                f"estfx {command} cannot tell how a model of your own takes text. Cut it without --text, or in Python: "
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
