"""What `estfx cut` and `estfx search` were asked for, checked before anything is loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass

from estfx.cli.calibration_text import Calibration
from estfx.settings import SettingsError

__all__ = ["CutSettings", "SearchSettings", "limits_of", "shares_of"]

PARTS = ("heads", "neurons", "layers")
COSTS = ("parameters", "flops", "seconds")


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


def limits_of(text: str) -> dict[str, float]:
    """Of each cost the share that is to be left at most, from `parameters=0.7,flops=0.8`."""
    found = {}
    for each in text.split(","):
        cost, sign, number = (piece.strip() for piece in each.partition("="))
        if cost not in COSTS or not sign:
            raise SettingsError(
                f"--target {text!r}: {each!r} names no cost. Write parameters=0.7, flops=0.7 or seconds=0.7."
            )
        if not re.fullmatch(r"\d*\.?\d+", number) or not 0 < float(number) < 1:
            raise SettingsError(f"--target {text!r}: a share of the whole lies above 0 and below 1, not {number!r}.")
        found[cost] = float(number)
    return found


@dataclass(frozen=True)
class CutSettings:
    """The options of the command."""

    shares: dict[str, float]
    by: str
    layers_by: str | None
    calibration: Calibration
    round_to: int
    reform: bool
    layers: tuple[str, ...] | None


@dataclass(frozen=True)
class SearchSettings:
    """The options of the command."""

    limits: dict[str, float]
    calibration: Calibration
    population: int
    kept: int
    generations: int
    levels: int
    round_to: int
    seed: int
    compile: bool
    reform: bool
    layers: tuple[str, ...] | None
