"""Ensembles of a model's own children, and stitches of a small and a large model, seed by seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from intervals import mean_interval
from parts import Row, note
from trained import RATE, Batches, Text, held_out, loss_of, trained

import estfx

__all__ = ["TABLES", "over_seeds"]

STEPS, TUNING = 500, 100
SMALL, LARGE = {"layers": 2, "width": 32}, {"layers": 4, "width": 64}


def over_seeds(by_seed: dict[int, dict[str, Row]]) -> dict[str, Row]:
    """Means of all seeds with their intervals, of each figure as well as of each difference from the first row."""
    rows: dict[str, Row] = {}
    every = list(by_seed.values())
    first = next(iter(every[0]))
    for name in every[0]:
        figures: Row = {"seeds": len(every)}
        for key in every[0][name]:
            values = [float(rows_of[name][key]) for rows_of in every]
            figures[key] = mean_interval(values)[0]
            if key in ("loss", "calibration_error") and name != first:
                above = [float(rows_of[name][key]) - float(rows_of[first][key]) for rows_of in every]
                figures[f"{key} minus {first}'s"], low, high = mean_interval(above)
                figures[f"{key} minus {first}'s, interval"] = f"[{low:.4f}, {high:.4f}]"
        note(rows, name, **figures)
    return rows


def judged(model: Any, batches: Batches) -> Row:
    """Loss in nats a byte, and the calibration error."""
    loss = held_out(model, batches)
    with torch.no_grad():
        logits = torch.cat([model(**batch, use_cache=False).logits[:, :-1] for batch in batches])
    labels = torch.cat([batch["input_ids"][:, 1:] for batch in batches])
    return {"loss": loss, "calibration_error": estfx.calibration_error(logits, labels)}


# -- ensembles -----------------------------------------------------------------------------------------------------


def ensembles(seed: int, text: Text, folder: Path) -> dict[str, Row]:
    """Parent, children and ensembles. What is tuned gets as many FLOPs in all as the parent in `TUNING` steps.

    A child has half of the layers' FLOPs: two of them are tuned for `TUNING` steps each, four for half as many.
    """
    parent, judge, rows = trained("llama", text, folder, steps=STEPS, seed=seed, **LARGE), text.judge(128), {}
    note(rows, "parent", **judged(parent, judge))
    longer = trained("llama", text, folder, steps=STEPS, seed=seed, **LARGE)
    cycle(longer, text, TUNING, first=2 * 10**8)
    note(rows, "parent, tuned", **judged(longer, judge))
    for pairs in ("complementary", "random"):
        for number, steps in ((2, TUNING), (4, TUNING // 2)):
            drawn = estfx.children(parent, number, pairs=pairs, seed=seed)  # type: ignore[arg-type]
            for place, child in enumerate(drawn):
                cycle(child, text, steps, first=(3 + place) * 10**8)
            each = [judged(child, judge) for child in drawn]
            name = f"{number} children, {pairs}"
            note(rows, f"{name}: the best one", **min(each, key=lambda one: one["loss"]))
            for average in ("probabilities", "logits"):
                both = estfx.Ensemble(drawn, average)  # type: ignore[arg-type]
                note(rows, f"{name}: mean {average}", **judged(both, judge))
    alone = estfx.children(parent, 1, seed=seed)[0]
    cycle(alone, text, 2 * TUNING, first=3 * 10**8)
    note(rows, "one child, tuned for as many FLOPs", **judged(alone, judge))
    return rows


def cycle(model: Any, text: Text, steps: int, first: int) -> None:
    """Training with a one-cycle rate."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    model.train()
    for step in range(steps):
        loss_of(model, text.drawn(first + step)).backward()
        optimizer.step()
        optimizer.zero_grad()
        rates.step()
    model.eval()


# -- stitches ------------------------------------------------------------------------------------------------------


def stitches(seed: int, text: Text, folder: Path) -> dict[str, Row]:
    """A small and a large model, and the models between them, before and after they are tuned together."""
    small = trained("llama", text, folder, steps=STEPS, seed=seed, **SMALL)
    large = trained("llama", text, folder, steps=STEPS, seed=seed, **LARGE)
    judge, rows = text.judge(128), {}
    stitched = estfx.stitch(small, large, text.calibration())
    _palette(rows, stitched, judge, "")
    stitched.add_updates(rank=8)
    own = [parameter for parameter in stitched.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(own, lr=RATE)
    stitched.train()
    for step in range(2 * TUNING):
        stitched.draw()
        loss_of(stitched, text.drawn(9 * 10**8 + step)).backward()
        stitched.note()
        optimizer.step()
        optimizer.zero_grad()
    _palette(rows, stitched.eval(), judge, ", tuned together")
    return rows


def _palette(rows: dict[str, Row], stitched: Any, judge: Batches, after: str) -> None:
    palette = estfx.Palette.of(stitched, judge).rows
    largest = max(row.flops for row in palette)
    for row in palette:
        name = {0: "small", len(palette) - 1: "large"}.get(row.number, f"stitch {row.number}")
        note(rows, f"{name}{after}", flops=row.flops / largest, loss=row.loss)


TABLES = {"ensembles": ensembles, "stitches": stitches}
