"""What estfx makes of a model at a given share of its layers' parameters: by scores, by search, refitted, tuned."""

from __future__ import annotations

import copy
from typing import Any

import torch
from trained import Batches, Text, held_out, in_layers, train

import estfx

__all__ = ["BY", "TUNING", "Row", "by_scores", "note", "of_estfx", "of_torch_pruning"]

BY = ("magnitude", "gradient", "activation")
TUNING = 100  # steps
Row = dict[str, float | str]


def random_scores(like: estfx.Scores, seed: int) -> estfx.Scores:
    torch.manual_seed(seed)
    units = {name: {role: torch.rand(len(each)) for role, each in roles.items()} for name, roles in like.units.items()}
    return estfx.Scores("random", units, {}, like.order)


def by_scores(model: Any, calibration: Batches, ratio: float, scores: estfx.Scores) -> Any:
    """The best units, the same share in each layer; no layer is skipped."""
    scores = estfx.Scores(scores.by, scores.units, {}, scores.order)
    options: dict[str, Any] = {"scores": scores, "population": 1, "kept": 1, "generations": 0, "levels": 64}
    found = estfx.search(model, calibration[:1], {"parameters": ratio}, **options)
    return estfx.cut(model, found.units, layers=found.layers)


def note(rows: dict[str, Row], name: str, **figures: Any) -> None:
    rows[name] = {key: round(value, 4) if isinstance(value, float) else value for key, value in figures.items()}
    print(f"  {name:64} {rows[name]}", flush=True)


def share(model: Any, small: Any) -> Row:
    return {"share": in_layers(small) / in_layers(model)}


def of_estfx(
    rows: dict[str, Row], model: Any, text: Text, ratio: float, *, candidates: int, judge: Batches, tuning: int
) -> None:
    calibration = text.calibration()
    scores = {by: estfx.score(model, by, calibration) for by in BY}  # type: ignore[arg-type]
    parts = [by_scores(model, calibration, ratio, random_scores(scores["magnitude"], seed)) for seed in range(3)]
    losses = [held_out(part, judge) for part in parts]
    note(rows, f"{ratio:.0%} random", loss=sum(losses) / 3, least=min(losses), most=max(losses))
    for by, each in scores.items():
        small = by_scores(model, calibration, ratio, each)
        note(rows, f"{ratio:.0%} {by}", **share(model, small), loss=held_out(small, judge))
    finish(rows, f"{ratio:.0%} activation", model, small, text, judge, tuning)
    found = estfx.search(
        model,
        calibration[:2],
        {"parameters": ratio},
        scores=scores["activation"],
        population=40,
        kept=8,
        generations=max(1, candidates // 40 - 1),
    )
    small = estfx.cut(model, found.units, layers=found.layers)
    note(
        rows,
        f"{ratio:.0%} search",
        **share(model, small),
        loss=held_out(small, judge),
        candidates=found.candidates,
        seconds_each=found.seconds / found.candidates,
        programs=found.programs,
        compilations=found.compilations,
        layers=len(found.layers),
    )
    finish(rows, f"{ratio:.0%} search", model, small, text, judge, tuning)


def finish(rows: dict[str, Row], name: str, model: Any, small: Any, text: Text, judge: Batches, tuning: int) -> None:
    """Refitted; and then tuned."""
    estfx.reform(small, model, text.calibration())
    note(rows, f"{name}, refitted", loss=held_out(small, judge))
    tune(small, text, tuning)
    note(rows, f"{name}, refitted, tuned", loss=held_out(small, judge))


def tune(model: Any, text: Text, steps: int) -> None:
    train(model, text, steps, rate=5e-4, first=10**8)


def of_torch_pruning(
    rows: dict[str, Row], model: Any, text: Text, ratio: float, *, judge: Batches, tuning: int
) -> None:
    """All its arms; the best two of them are tuned."""
    import torch_pruning_arm as other

    found: list[tuple[float, str, Any]] = []
    for arm in other.ARMS:
        if rows.get(f"fails: {arm}") is not None:  # at a larger ratio
            continue
        small = other.outcome(lambda arm=arm: other.pruned(model, text.calibration(), ratio, arm))  # type: ignore[misc]
        if isinstance(small, str):
            note(rows, f"fails: {arm}", error=small)
            continue
        loss = held_out(small, judge)
        note(rows, f"{ratio:.0%} {arm}", **share(model, small), loss=loss)
        found.append((loss, arm, small))
    for _, arm, small in sorted(found, key=lambda each: each[0])[:2]:
        tune(small, text, tuning)
        note(rows, f"{ratio:.0%} {arm}, tuned", loss=held_out(small, judge))


def whole_tuned(model: Any, text: Text, judge: Batches, tuning: int) -> float:
    """The loss of the whole after as much tuning, so that what tuning alone gives can be told apart."""
    whole = copy.deepcopy(model)
    tune(whole, text, tuning)
    return held_out(whole, judge)
