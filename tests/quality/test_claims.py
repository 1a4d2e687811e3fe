"""What may be claimed of a schedule, by the rules that were decided before."""

import math

import claims
import numpy as np
import pytest


def of(values):
    return claims.difference(np.array(values, dtype=float)[:, None])


def claim(losses, short=0.05):
    losses = np.array(losses, dtype=float)
    return claims.holds(of(losses), of(losses - claims.SHARE * short), of(np.full(len(losses), short)))


def test_the_three_words():
    assert claim([0.001, 0.002, 0.0, 0.001, 0.0]).word == "holds"
    assert claim([0.05, 0.06, 0.055, 0.05, 0.06]).word == "does not"
    assert claim([0.008, 0.012, 0.01, 0.009, 0.011]).word == "not decided"
    few = claim([0.0, 0.0, 0.0, 0.0])
    assert few.word == "not decided"
    assert str(few) == "not decided (4 of 5 seeds)"
    assert str(claim([0.001, 0.002, 0.0, 0.001, 0.0])) == "holds (power 100%)"


def test_noise_is_never_rewarded():
    """The wider the interval, the less is decided: with the same mean nothing begins to hold."""
    words = [claim(0.004 + width * np.array([-1, 1, -0.5, 0.5, 0])).word for width in (0.001, 0.01, 0.1)]
    assert words == ["holds", "not decided", "not decided"]


def test_the_smaller_margin_counts():
    losses = [0.004, 0.005, 0.006, 0.005, 0.005]
    assert claim(losses, short=0.05).word == "holds"
    assert claim(losses, short=0.01).word == "does not"  # half of what dense for as many FLOPs loses
    assert claim(losses, short=0.01).margin == pytest.approx(0.002)


@pytest.mark.parametrize(("true", "word", "most"), [(claims.MARGIN, "holds", 0.05), (0.0, "does not", 0.05)])
def test_a_false_claim_is_rare(true, word, most):
    """In simulated trials, five seeds of a standard deviation of 0.01."""
    rng = np.random.default_rng(0)
    trials = [claim(true + rng.normal(0, 0.01, 5)).word for _ in range(2000)]
    assert trials.count(word) / len(trials) <= most + 0.012  # and what 2,000 trials are off by


def test_the_power_is_how_often_nothing_lost_is_seen_to_hold():
    rng = np.random.default_rng(0)
    found = [claim(rng.normal(0, 0.006, 5)) for _ in range(2000)]
    often = sum(each.word == "holds" for each in found) / len(found)
    expected = of(np.array([-1, 1, -1, 1, 0]) * 0.006).power(claims.MARGIN)
    assert often == pytest.approx(expected, abs=0.06)


def test_better_than_dense_for_as_many_flops():
    assert claims.better(of([-0.02, -0.03, -0.02, -0.025, -0.03]), 0.01).word == "holds"
    assert claims.better(of([0.02, 0.03, 0.02, 0.025, 0.03]), 0.01).word == "does not"
    assert claims.better(of([-0.02, 0.03, -0.02, 0.025, 0.0]), 0.01).word == "not decided"


def test_one_seed_says_nothing_of_others():
    one = of([0.3])
    assert one.interval() == (-math.inf, math.inf)
    assert one.power(1.0) == 0


def test_text_is_resampled_by_work_within_its_kind():
    """The error of text is that of a bootstrap over works; blocks of one work are no new evidence."""
    rng = np.random.default_rng(0)
    works, kinds, losses = [], [], []
    for work in range(60):
        number, effect = int(rng.integers(3, 30)), rng.normal(0, 1)
        works += [work] * number
        kinds += ["code" if work % 2 else "prose"] * number
        losses += list(effect + rng.normal(0, 0.1, number) + 5 * (work % 2))
    works, kinds, losses = np.array(works), np.array(kinds), np.array(losses)
    found = claims.difference(losses[None], works, kinds)

    share = {kind: np.mean(kinds == kind) for kind in ("code", "prose")}
    means = []
    for _ in range(3000):
        total = 0.0
        for kind, weight in share.items():
            drawn = rng.choice(np.unique(works[kinds == kind]), 30)
            total += weight * np.mean(np.concatenate([losses[works == work] for work in drawn]))
        means.append(total)
    assert found.error == pytest.approx(np.std(means), rel=0.1)
    assert found.error > 3 * losses.std() / math.sqrt(len(losses)) / 2  # more than if each block were a work
    assert found.by_kind["code"] == pytest.approx(losses[kinds == "code"].mean())
    # seeds and text add up
    both = claims.difference(np.stack([losses, losses + 1.0]), works, kinds)
    assert both.error == pytest.approx(math.hypot(found.error, 0.5))
