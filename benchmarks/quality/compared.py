"""Stored runs, set against each other: losses, FLOPs, seconds, and what may be claimed.

What dense reaches in as many seconds as another arm takes is not trained: it lies between dense-short and dense, each
with its learning rate decayed over its own steps, and is interpolated linearly in the logarithm of the steps. So is the
number of steps after which dense reaches an arm's loss, from which follows what the arm saves at equal loss.
"""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import claims
import numpy as np
from behind import Results, Runs, losses_above, steps_needed
from claims import Claim, Difference
from experiment import RESULTS, Experiment

from estfx.training import RunConfig

__all__ = [
    "at_equal_seconds",
    "check_runs",
    "claims_of",
    "difference",
    "least_losing",
    "saved",
    "saved_at_equal_loss",
    "seconds",
    "stored",
]


def stored(name: str) -> Results:
    """What there is of an experiment. A setting that there was not yet when a run was made is as it is by default."""
    found: Results = {}
    usual = RunConfig().train.model_dump(mode="json")
    for path in sorted((RESULTS / name).glob("*.json")):
        result = json.loads(path.read_text())
        result["config"]["train"] = usual | result["config"]["train"]
        found.setdefault(result["arm"], {})[result["seed"]] = result
    return found


def difference(one: Runs, other: Runs, less: tuple[float, Runs, Runs] | None = None) -> Difference | None:
    """One arm's loss above another's, over the seeds that both have; None without any.

    `less`: a share of what a third arm's losses are above a fourth's, which is taken off.
    """
    seeds = sorted(one.keys() & other.keys() if less is None else one.keys() & other.keys() & less[1].keys())
    if not seeds:
        return None
    losses_SB = losses_above(one, other, seeds)
    if less is not None:
        share, third, fourth = less
        losses_SB = losses_SB - share * losses_above(third, fourth, seeds)
    return claims.difference(losses_SB, *works_of(one[seeds[0]]))


def works_of(result: Mapping[str, Any]) -> tuple[list[int], list[str]] | tuple[()]:
    """The work and the kind of text of each of a run's held-out blocks; nothing if that is not known."""
    known = blocks_known()
    text = {kind: each["hash"] for kind, each in result.get("text", {}).get("kinds", {}).items()}
    of_tokens = known.get(result.get("config", {}).get("data", {}).get("tokenizer", ""))
    if of_tokens is None or text != known["text"] or len(of_tokens["works"]) != len(result["block_losses"]):
        return ()
    return of_tokens["works"], of_tokens["kinds"]


@functools.cache
def blocks_known() -> dict[str, Any]:
    """What block_works.py found."""
    path = RESULTS / "blocks.json"
    return json.loads(path.read_text()) if path.exists() else {}  # type: ignore[no-any-return]


def claims_of(arm: Runs, results: Results) -> tuple[Claim, Claim] | None:
    """Whether an arm is no worse than dense, and better than dense for as many FLOPs; None without both of them."""
    dense, short = results.get("dense", {}), results.get("dense-short", {})
    above = difference(arm, dense, (0.0, short, dense))
    above_share = difference(arm, dense, (claims.SHARE, short, dense))
    of_short, above_short = difference(short, dense), difference(arm, short)
    if above is None or above_share is None or of_short is None or above_short is None:
        return None
    return claims.holds(above, above_share, of_short), claims.better(above_short, claims.MARGIN)


def check_runs(experiment: Experiment, results: Results) -> None:
    """Raises claims.Unlike if a run was not trained as dense was, but for what its arm says that it changes."""
    for name, arm in experiment.arms.items():
        for seed, result in results.get(name, {}).items():
            partner = results.get("dense", {}).get(seed)
            if partner is not None:
                claims.check_alike(result, partner, {*arm.train, *experiment.arms["dense"].train})


def least_losing(experiments: Iterable[Results], arms: Iterable[str]) -> Counter[str]:
    """In how many experiments each of the arms has the lowest loss of those that were run there."""
    winners: Counter[str] = Counter()
    for results in experiments:
        above = {arm: difference(results.get(arm, {}), results.get("dense", {})) for arm in arms}
        means = {arm: found.mean for arm, found in above.items() if found is not None}
        if len(means) > 1:
            winners[min(means, key=lambda arm: means[arm])] += 1
    return winners


def at_equal_seconds(seeds: dict[int, Any], results: Results) -> dict[int, Any] | None:
    """By seed, dense's losses in as many seconds as the arm's runs take; None if that is not known.

    The arm's seconds are those of `seconds`, a median over its runs.
    """
    ratios = [ratio for ratio in map(seconds, seeds.values()) if ratio is not None]
    dense, short = results.get("dense", {}), results.get("dense-short", {})
    both = dense.keys() & short.keys()
    if not ratios or not both:
        return None
    first = min(both)
    share = short[first]["steps"] / dense[first]["steps"]
    weight = math.log(float(np.median(ratios)) / share) / math.log(1 / share)  # 0 at dense-short, 1 at dense
    if not 0 <= weight <= 1:
        return None
    return {
        seed: {
            "block_losses": (1 - weight) * np.array(short[seed]["block_losses"])
            + weight * np.array(dense[seed]["block_losses"])
        }
        for seed in both
    }


def saved_at_equal_loss(seeds: dict[int, Any], results: Results) -> tuple[float, float, float] | None:
    """What an arm saves of the FLOPs with which dense reaches the arm's loss, and the ends of its interval.

    None unless dense and dense-short are known for one of the arm's seeds, with dense the better of the two.
    """
    dense, short = results.get("dense", {}), results.get("dense-short", {})
    same = sorted(seeds.keys() & dense.keys() & short.keys())
    if not same:
        return None
    first = same[0]
    spent = seeds[first]["whole_steps"]["model"] / dense[first]["whole_steps"]["model"]
    share = short[first]["steps"] / dense[first]["steps"]
    lost_SB, lost_by_short_SB = (losses_above(arm, dense, same) for arm in (seeds, short))
    of_short = lost_by_short_SB.mean()
    if of_short <= 0:
        return None

    def saving(lost: float) -> float:
        return float(1 - spent / steps_needed(lost, of_short, share))

    found = claims.difference(lost_SB, *works_of(dense[first]))
    if found.seeds < 2:
        return saving(found.mean), -math.inf, math.inf
    low, high = found.interval()
    return saving(found.mean), saving(high), saving(low)


def saved(result: dict[str, Any], dense: dict[str, Any], part: str) -> float:
    """The share of the dense run's FLOPs that a run did not spend, in the layers or in the model."""
    return float(1 - result["whole_steps"][part] / dense["whole_steps"][part])


def seconds(result: dict[str, Any]) -> float | None:
    """Seconds of the run's steps over those of as many whole ones, by its own medians; None without a whole stage."""
    stages = result["stages"]
    whole = [s["seconds_per_step"] for s in stages if s["flops_of_whole_model"] == 1.0]
    if not whole or any(s["seconds_per_step"] is None for s in stages):
        return None
    spent = sum(s["seconds_per_step"] * (s["stop"] - s["start"]) for s in stages)
    return float(spent / (whole[0] * stages[-1]["stop"]))
