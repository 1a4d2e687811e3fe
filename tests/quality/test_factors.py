"""Family and initialisation, told apart."""

import factors
import numpy as np
import pytest


def cells(loss, seeds=(0, 1, 2)):
    """Runs in which an arm's loss above dense is a function of the two factors and the seed."""
    return {
        cell: {
            "dense": {seed: {"block_losses": [1.0, 2.0]} for seed in seeds},
            "est": {seed: {"block_losses": list(np.add([1.0, 2.0], loss(*signs, seed)))} for seed in seeds},
        }
        for cell, signs in factors.CELLS.items()
    }


def test_effects_are_those_that_were_put_in():
    known = cells(lambda family, divided, seed: 0.1 + 0.03 * family - 0.02 * divided + 0.005 * family * divided)
    found = {name: factors.effect(name, "est", known) for name in factors.EFFECTS}
    assert found["of Llama"].mean == pytest.approx(0.06)  # the two Llamas above the two GPT-2s
    assert found["of the division"].mean == pytest.approx(-0.04)
    assert found["of both together"].mean == pytest.approx(0.02)  # -0.03 to Llama, -0.05 to GPT-2
    assert found["of Llama"].seeds == 3


def test_what_seeds_have_in_common_is_no_effect_and_what_they_differ_in_is_its_error():
    alike = factors.effect("of Llama", "est", cells(lambda family, divided, seed: 0.1 * seed))
    assert alike.mean == pytest.approx(0)
    assert alike.error == pytest.approx(0)
    noisy = factors.effect("of Llama", "est", cells(lambda family, divided, seed: 0.1 * family * seed))
    assert noisy.interval()[0] < 0 < noisy.interval()[1]


def test_only_seeds_that_all_four_have_count():
    known = cells(lambda *_: 0.1)
    del known["init-llama"]["est"][1]
    assert factors.effect("of Llama", "est", known).seeds == 2
    known["init-llama"]["est"].clear()
    assert factors.effect("of Llama", "est", known) is None
    *_, row, _ = factors.factor_table(known)
    loss = "0.100 [0.100, 0.100], 3 seeds"
    assert row == f"| EST | {loss} | {loss} | {loss} |  |  |  |  |"
