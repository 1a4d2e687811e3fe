"""Scores a model, cuts its best part out, refits and saves it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from estfx.cli.calibration_text import Calibration
from estfx.cli.cut_settings import CutSettings
from estfx.cutting import CutRecord, cut, cut_record, reform, save
from estfx.quiet import quiet_transformers
from estfx.scoring import loss_of, score
from estfx.settings import SettingsError
from estfx.showing import Block, Shown
from estfx.training import Blocks, build_model, documents, fitting_length, tokens_of
from estfx.waiting import tell, working

__all__ = ["DoneCut", "batches_of", "copy_tokenizer", "cut_as_set", "mean_loss"]


@dataclass(frozen=True)
class DoneCut(Shown):
    """A cut that was written, and its losses on the calibration text."""

    record: CutRecord
    losses: Mapping[str, float]  # of the whole, of the cut, and of the refitted one
    folder: Path
    _repr_pretty_ = Shown._repr_pretty_

    def _blocks(self) -> Iterator[Block]:
        yield from self.record._blocks()
        if self.losses:
            told = ", ".join(f"{name} {loss:.4f}" for name, loss in self.losses.items())
            yield f"loss on the calibration text, in nats a token: {told}"
        yield f"written to {self.folder}"

    def plot(self, path: Path, title: str) -> None:
        """The picture of what stays."""
        self.record.plot(path, title)

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        record = self.record
        return {
            "form": record.form,
            "parameters": {"before": record.parameters[0], "now": record.parameters[1]},
            "layers": list(record.layers),
            "dropped": list(record.dropped),
            "units": {name: dict(roles) for name, roles in record.units.items()},
            "edits": [str(edit) for edit in record.edits],
            "tries": record.tries,
            "error": record.error,
            "losses": dict(self.losses),
            "out": str(self.folder),
        }


def cut_as_set(model: str, options: Mapping[str, Any], settings: CutSettings, out: Path, weights: bool) -> DoneCut:
    """Makes the cut, and writes it into the folder."""
    with working(f"building {model}"), quiet_transformers():
        built = build_model(model, options)
        whole = built.model.eval()
        batches = batches_of(model, whole, settings.calibration) if settings.calibration.text else []
        losses: dict[str, float] = {}
        if batches:
            tell("the loss of the whole model")
            losses["whole"] = mean_loss(whole, batches)
        scores = score(
            whole,
            settings.by,  # type: ignore[arg-type]
            batches,
            layers_by=settings.layers_by,  # type: ignore[arg-type]
            example_inputs=built.example_inputs,
            named_layers=settings.layers,
        )
        units, layers = scores.best(**settings.shares, round_to=settings.round_to)
        made = cut(whole, units, layers=layers, example_inputs=built.example_inputs, named_layers=settings.layers)
        if batches:
            losses["cut"] = mean_loss(made, batches)
        if settings.reform:
            reform(made, whole, batches, named_layers=settings.layers)
            losses["refitted"] = mean_loss(made, batches)
        tell(f"writing {out}")
        save(made, out)
        if weights:
            copy_tokenizer(Path(model), out)
    return DoneCut(cut_record(made), losses, out)


def batches_of(model: str, whole: Any, calibration: Calibration) -> list[dict[str, torch.Tensor]]:
    """Blocks of the text, from the whole of it, as the model takes them."""
    tell("reading the calibration text")
    tokens = tokens_of(calibration.tokenizer_of(model))
    vocabulary = whole.get_input_embeddings().num_embeddings
    if tokens.vocab_size > vocabulary:
        raise SettingsError(
            f"the text has {tokens.vocab_size} kinds of tokens, and the model knows {vocabulary}: give its own "
            "tokenizer, --tokenizer DIR."
        )
    texts = list(documents(calibration.text, calibration.column))
    if not texts:
        raise SettingsError(f"--text {' '.join(calibration.text)} holds no text.")
    length = fitting_length(whole, calibration.seq_len, "--seq-len", default=256)
    blocks = Blocks(tokens.of(texts), length)
    step = max(1, len(blocks) // calibration.samples)  # from the whole of the text
    chosen = [blocks[i] for i in range(0, len(blocks), step)][: calibration.samples]
    return [
        {name: torch.stack([each[name] for each in chosen[i : i + calibration.batch_size]]) for name in chosen[0]}
        for i in range(0, len(chosen), calibration.batch_size)
    ]


def mean_loss(model: Any, batches: list[dict[str, torch.Tensor]]) -> float:
    """In nats a token."""
    with torch.no_grad():
        return sum(float(loss_of(model, batch)) * len(batch["input_ids"]) for batch in batches) / sum(
            len(batch["input_ids"]) for batch in batches
        )


def copy_tokenizer(source: Path, target: Path) -> None:
    """What a tokenizer is made of, so that the cut's folder can be used as the model's."""
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")
    for name in (*names, "tokenizer.model", "added_tokens.json", "chat_template.jinja"):
        if (source / name).is_file():
            (target / name).write_bytes((source / name).read_bytes())
