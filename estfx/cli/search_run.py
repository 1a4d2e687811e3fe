"""Searches for the best part of a model, cuts it out, refits and saves it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from estfx.cli.cut_run import DoneCut, batches_of, copy_tokenizer, mean_loss
from estfx.cli.cut_settings import SearchSettings
from estfx.cutting import cut, cut_record, reform, save
from estfx.quiet import quiet_transformers
from estfx.scoring import Scores, score
from estfx.searching import SearchResult, search
from estfx.showing import Block, Shown
from estfx.training import build_model
from estfx.waiting import tell, working

__all__ = ["DoneSearch", "search_as_set"]


@dataclass(frozen=True)
class DoneSearch(Shown):
    """A search, and the cut that was written."""

    found: SearchResult
    cut: DoneCut
    _repr_pretty_ = Shown._repr_pretty_

    def _blocks(self) -> Iterator[Block]:
        yield from self.found._blocks()
        yield from self.cut._blocks()

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {"search": self.found.to_json(), "cut": self.cut.as_json()}


def search_as_set(
    model: str, options: Mapping[str, Any], settings: SearchSettings, out: Path, weights: bool
) -> DoneSearch:
    """Searches, and writes the cut into the folder; `search.json` and `scores.json` in it say where the search was."""
    with working(f"building {model}"), quiet_transformers():
        whole = build_model(model, options).model.eval()
        batches = batches_of(model, whole, settings.calibration)
        full = [batch for batch in batches if len(batch["input_ids"]) == len(batches[0]["input_ids"])]
        named: Any = settings.layers
        out.mkdir(parents=True, exist_ok=True)
        if (out / "scores.json").is_file():
            scores = Scores.load(out / "scores.json")
        else:
            scores = score(whole, "activation", full, named_layers=named)
            scores.save(out / "scores.json")
        found = search(
            whole,
            full,
            settings.limits,
            scores=scores,
            population=settings.population,
            kept=settings.kept,
            generations=settings.generations,
            levels=settings.levels,
            round_to=settings.round_to,
            seed=settings.seed,
            compile=settings.compile,
            named_layers=named,
            state=out / "search.json",
        )
        tell("cutting out the best")
        losses = {"whole": found.whole_loss}
        made = cut(whole, found.units, layers=found.layers, named_layers=named)
        losses["cut"] = mean_loss(made, full)
        if settings.reform:
            reform(made, whole, full, named_layers=named)
            losses["refitted"] = mean_loss(made, full)
        tell(f"writing {out}")
        save(made, out)
        if weights:
            copy_tokenizer(Path(model), out)
    return DoneSearch(found, DoneCut(cut_record(made), losses, out))
