"""Stored runs, set against each other: losses, FLOPs, seconds, and what may be claimed.

What dense reaches in as many seconds as another arm takes is not trained: it lies between dense-short and dense, each
with its learning rate decayed over its own steps, and is interpolated linearly in the logarithm of the steps. So is the
number of steps after which dense reaches an arm's loss, from which follows what the arm saves at equal loss.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import claims
import numpy as np
from behind import Results, Runs, losses_above, steps_needed
from claims import Claim, Difference
from experiment import RESULTS, Experiment, Plans, found

from estfx.runtime import differences
from estfx.schedules import schedule_rules
from estfx.training import RunConfig

__all__ = [
    "at_equal_seconds",
    "blocks_known",
    "check_runs",
    "claims_of",
    "contests",
    "difference",
    "rate_of",
    "rules_of",
    "saved",
    "saved_at_equal_loss",
    "seconds",
    "stored",
    "works_of",
]

# how runs were made before there was such a setting
BEFORE = {
    "train": {
        "learning_rate_shape": "cosine",
        "learning_rate_falls_with": "steps",
        "decay_share": 0.2,
        "rewarm_steps": 0,
        "optimizer_state": "kept",
        "zero_joining": None,
    },
    "schedule": {"idle_units": "updated"},
}


@functools.cache
def stored(name: str) -> Results:
    """What there is of an experiment, its losses in nats a byte; read once, and not to be changed.

    Among it are runs of other experiments that are the same as its own would be. A setting that there was not yet when
    a run was made is as it was then.
    """
    runs: Results = {}
    for path in sorted((RESULTS / name).glob("*.json")):
        result = json.loads(path.read_text())
        for part, settings in BEFORE.items():
            result["config"][part] = settings | result["config"][part]
        if (of_tokens := _blocks(result)) is not None:
            result["block_losses"] = [loss / of_tokens["bytes_per_token"] for loss in result["block_losses"]]
        runs.setdefault(result["arm"], {})[result["seed"]] = result
    for arm, settings in Experiment.from_yaml(found(name)).arms.items():
        if settings.same_as is not None:
            other, its_arm = settings.same_as.split()
            if its_arm in stored(other):
                runs[arm] = stored(other)[its_arm]
    return runs


def difference(
    one: Runs, other: Runs, less: tuple[float, Runs, Runs] | None = None, seeds: Collection[int] | None = None
) -> Difference | None:
    """One arm's loss above another's, over the seeds that all have; None without any.

    `less`: a share of what a third arm's losses are above a fourth's, which is taken off. `seeds`: of these alone.
    """
    runs = [one, other, *(less[1:] if less is not None else ())]
    common = sorted(set.intersection(*(set(each) for each in runs)).intersection(one if seeds is None else seeds))
    if not common:
        return None
    losses_SB = losses_above(one, other, common)
    if less is not None:
        share, third, fourth = less
        losses_SB = losses_SB - share * losses_above(third, fourth, common)
    return claims.difference(losses_SB, *works_of(one[common[0]]))


def works_of(result: Mapping[str, Any]) -> tuple[list[int], list[str]] | tuple[()]:
    """The work and the kind of text of each of a run's held-out blocks; nothing for tokens of which that is not known.

    Raises claims.Unlike if the run has another text than that whose blocks are known.
    """
    of_tokens = _blocks(result)
    if of_tokens is None:
        return ()
    text = {kind: each["hash"] for kind, each in result["text"]["kinds"].items()}
    if text != of_tokens["text"] or len(of_tokens["works"]) != len(result["block_losses"]):
        raise claims.Unlike(
            f"{result['experiment']}: {result['arm']} (seed {result['seed']}) has other held-out text than that of "
            "blocks.json, so that it is not known which block is of which work. Gather that text (gather_text.py), or "
            "write down its blocks (block_works.py)."
        )
    return of_tokens["works"], of_tokens["kinds"]


def _blocks(result: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What is known of the held-out blocks of a run's text and tokens."""
    data = result.get("config", {}).get("data", {})
    folder = str(Path(next(iter(data.get("source", ())), "")).parent)
    text = blocks_known().get(folder, {"tokens": {}})
    of_tokens = text["tokens"].get(data.get("tokenizer"))
    return None if of_tokens is None else of_tokens | {"text": text["text"]}


@functools.cache
def blocks_known() -> dict[str, Any]:
    """What block_works.py found."""
    path = RESULTS / "blocks.json"
    return json.loads(path.read_text()) if path.exists() else {}  # type: ignore[no-any-return]


def rate_of(result: Mapping[str, Any]) -> tuple[float, float]:
    """A run's peak learning rate, and the share of the run over which it falls."""
    train = result["config"]["train"]
    return train["learning_rate"], train["decay_share"]


def claims_of(arm: Runs, results: Results) -> tuple[Claim, Claim] | None:
    """Whether an arm is no worse than dense, and better than dense for as many FLOPs; None without both of them."""
    dense, short = results.get("dense", {}), results.get("dense-short", {})
    seeds = arm.keys() & dense.keys() & short.keys()
    above, of_short = difference(arm, dense, seeds=seeds), difference(short, dense, seeds=seeds)
    above_share = difference(arm, dense, (claims.SHARE, short, dense))
    above_short = difference(arm, short, seeds=seeds)
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
            if arm.same_as is not None:
                _check_same(Plans("", experiment), name, result)


def _check_same(plans: Plans, name: str, result: Mapping[str, Any]) -> None:
    """Raises claims.Unlike if a run of another experiment was not trained as the arm that takes it for its own says."""
    made, said = _trained(RunConfig.from_mapping(result["config"])), _trained(plans.before_solving(name))
    if unlike := differences(made, said):
        raise claims.Unlike(
            f"arm {name} takes the runs of `{plans.experiment.arms[name].same_as}` for its own. They are not what it "
            f"says: {'; '.join(unlike)}. Name other runs, or say what these are."
        )


def _trained(config: RunConfig) -> dict[str, Any]:
    """What a run was trained with, but for what is solved for and its seed."""
    settings = config.model_dump(mode="json")
    own = {"total_steps", "seed", "save_every", "keep_checkpoints"}
    train = {key: value for key, value in settings["train"].items() if key not in own}
    return {"model": settings["model"], "data": settings["data"], "train": train, "schedule": rules_of(config)}


def rules_of(config: RunConfig) -> dict[str, Any]:
    """A run's schedule, but for its length and where its stages begin."""
    return schedule_rules(config.schedule.build(config.train.total_steps))


def contests(experiments: Iterable[Results], arms: Sequence[str]) -> list[tuple[str | None, tuple[str, ...]]]:
    """For each experiment in which several of the arms were run: the one that lost least, and all that were.

    Two arms are compared over the seeds that both have. None if none lost less than each of the others.
    """
    found = []
    for results in experiments:
        run = tuple(arm for arm in arms if results.get(arm))
        if len(run) < 2:
            continue
        least = [arm for arm in run if all(_less(results[arm], results[other]) for other in run if other != arm)]
        found.append((least[0] if least else None, run))
    return found


def _less(one: Runs, other: Runs) -> bool:
    found = difference(one, other)
    return found is not None and found.mean < 0


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

    The interval is of the arm's loss alone: what dense-short loses is taken as it is.
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
    low, high = found.interval()
    if math.isinf(low):
        return saving(found.mean), -math.inf, math.inf
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
