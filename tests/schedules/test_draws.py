import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import estfx
from estfx.errors import EstfxError
from estfx.runtime.run_fingerprint import drawn_layers
from estfx.schedules.draws import Draw, _smallest, draw_layers, draw_units, spread_layers
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage
from estfx.schedules.step_draw import draw_step

policies = st.sampled_from(["random", "window", "rolling"])
seeds = st.integers(0, 2**64 - 1)
steps = st.integers(0, 10**12)


@st.composite
def sizes(draw, most=300):
    size = draw(st.integers(1, most))
    return size, draw(st.integers(1, size))


@given(policies, seeds, steps, st.integers(1, 20), sizes())
def test_counts_are_exact_and_rows_ascend(policy, seed, step, num_layers, sizes):
    size, kept = sizes
    index_LK = draw_units(policy, seed=seed, step=step, role="heads", num_layers=num_layers, size=size, kept=kept)
    assert index_LK.shape == (num_layers, kept)
    assert index_LK.dtype == np.int64
    assert (np.diff(index_LK, axis=1) > 0).all()
    assert index_LK.min() >= 0
    assert index_LK.max() < size
    if policy == "window":
        assert (np.diff(index_LK, axis=1) == 1).all()


@given(policies, seeds, steps, st.integers(1, 20), st.integers(1, 20), sizes())
def test_a_row_depends_on_its_layer_alone(policy, seed, step, few, more, sizes):
    size, kept = sizes
    few, more = sorted((few, more))
    draws = [
        draw_units(policy, seed=seed, step=step, role="heads", num_layers=count, size=size, kept=kept)
        for count in (few, more)
    ]
    np.testing.assert_array_equal(draws[0], draws[1][:few])


@given(seeds, steps, st.integers(1, 100), st.data())
def test_layers_are_exact(seed, step, num_layers, data):
    kept = data.draw(st.integers(1, num_layers))
    runs = draw_layers(seed=seed, step=step, num_layers=num_layers, kept=kept)
    assert runs.shape == (num_layers,)
    assert runs.dtype == np.bool_
    assert runs.sum() == kept
    np.testing.assert_array_equal(runs, draw_layers(seed=seed, step=step, num_layers=num_layers, kept=kept))


def test_the_stream_is_stable():
    """A run resumed with a newer release must draw what it would have drawn."""
    arguments = {"seed": 7, "step": 1234, "num_layers": 2, "size": 12, "kept": 4}
    random = draw_units("random", role="heads", **arguments)
    window = draw_units("window", role="neurons", **arguments)
    rolling = draw_units("rolling", role="neurons", **arguments)
    odd = draw_units("random", role="heads", **arguments | {"size": 7})
    layers = draw_layers(seed=7, step=1234, num_layers=6, kept=3)
    assert random.tolist() == [[4, 5, 7, 8], [2, 9, 10, 11]]
    assert window.tolist() == [[6, 7, 8, 9], [3, 4, 5, 6]]
    assert rolling.tolist() == [[5, 6, 7, 8], [3, 4, 5, 6]]
    assert odd.tolist() == [[0, 2, 4, 5], [0, 1, 4, 5]]
    assert layers.nonzero()[0].tolist() == [2, 4, 5]


@pytest.mark.parametrize(
    ("num_layers", "counts", "always", "runs"),
    [
        (6, [2], (), [0, 3]),
        (6, [2, 3], (), [0, 2, 3]),  # of gaps that are as long as each other the first
        (6, [2, 4], (), [0, 2, 3, 5]),
        (7, [2], (3,), [0, 3]),  # the gap before the first that runs has none in it
        (6, [2], (4,), [0, 4]),
        (8, [3, 5], (7,), [0, 2, 4, 6, 7]),
    ],
)
def test_which_layers_join(num_layers, counts, always, runs):
    assert spread_layers(num_layers, counts, always).nonzero()[0].tolist() == runs


def counts_of(draws, size):
    return np.bincount(draws.ravel(), minlength=size)


def assert_uniform(counts, trials, chance):
    """Each count is binomial; 6 standard deviations are passed once in 10^9."""
    deviation = np.abs(counts - trials * chance) / np.sqrt(trials * chance * (1 - chance))
    assert deviation.max() < 6


@pytest.mark.parametrize(("size", "kept"), [(12, 6), (12, 1), (7, 5), (64, 16)])
def test_random_units_are_uniform_over_steps_and_layers(size, kept):
    draws = np.stack(
        [
            draw_units("random", seed=0, step=step, role="heads", num_layers=50, size=size, kept=kept)
            for step in range(100)
        ]
    )
    assert_uniform(counts_of(draws, size), 100 * 50, kept / size)


def test_pairs_of_units_are_uniform():
    draws = draw_units("random", seed=0, step=0, role="heads", num_layers=20_000, size=6, kept=2)
    pairs = np.bincount(draws[:, 0] * 6 + draws[:, 1], minlength=36)
    assert (pairs > 0).sum() == 15
    assert_uniform(pairs[pairs > 0], 20_000, 1 / 15)


def test_layers_are_uniform_over_steps():
    runs = sum(draw_layers(seed=3, step=step, num_layers=8, kept=4).astype(int) for step in range(4000))
    assert_uniform(runs, 4000, 0.5)


def test_window_offsets_are_uniform():
    offsets = draw_units("window", seed=0, step=0, role="heads", num_layers=10_000, size=16, kept=6)[:, 0]
    assert_uniform(np.bincount(offsets, minlength=11), 10_000, 1 / 11)


@given(seeds, sizes(most=20), st.integers(1, 6))
def test_a_rolling_window_goes_round_evenly_and_slowly(seed, sizes, slow):
    size, kept = sizes
    cycle = size * slow
    at_work = np.zeros(size, dtype=int)
    before = None
    for step in range(cycle):
        (now,) = draw_units(
            "rolling", seed=seed, step=step, role="heads", num_layers=1, size=size, kept=kept, cycle=cycle
        )
        at_work[now] += 1
        if before is not None:
            assert len(set(now) - set(before)) == (step % slow == 0 and kept < size)
        before = now
    assert (at_work == kept * slow).all()


def test_a_wider_rolling_window_keeps_what_a_narrow_one_did():
    common = {"seed": 3, "role": "neurons", "num_layers": 6, "size": 20}
    for step in (0, 999, 12_345):
        narrow, wide = (draw_units("rolling", step=step, kept=kept, **common) for kept in (7, 12))
        for few, more in zip(narrow.tolist(), wide.tolist(), strict=True):
            assert set(few) < set(more)
    begins = draw_units("rolling", step=0, kept=1, **common | {"num_layers": 10_000})[:, 0]
    assert_uniform(np.bincount(begins, minlength=20), 10_000, 1 / 20)


def overlap(a_LK, b_LK, size):
    """Mean share of units that two draws have in common."""
    both = [len(set(a) & set(b)) for a, b in zip(a_LK.tolist(), b_LK.tolist(), strict=True)]
    return np.mean(both) / size


@pytest.mark.parametrize("other", [{"seed": 1}, {"step": 1}, {"role": "neurons"}, {"step": 2**32}, {"size": 65}])
def test_draws_of_another_key_are_independent(other):
    key = {"seed": 0, "step": 0, "role": "heads", "size": 64}
    drawn = draw_units("random", num_layers=1000, kept=32, **key)
    another = draw_units("random", num_layers=1000, kept=32, **{**key, **other})
    # hypergeometric: a mean of 1/4, a standard deviation of 0.002 over 1000 rows
    assert abs(overlap(drawn, another, 64) - 0.25) < 0.012


def test_layers_draw_independently_of_one_another():
    drawn = draw_units("random", seed=0, step=0, role="heads", num_layers=1001, size=64, kept=32)
    assert abs(overlap(drawn[:-1], drawn[1:], 64) - 0.25) < 0.012


def test_fewer_units_are_a_subset_of_more():
    key = {"seed": 0, "step": 5, "role": "heads", "num_layers": 4, "size": 32}
    few, more = (draw_units("random", kept=kept, **key) for kept in (8, 20))
    assert all(set(a) <= set(b) for a, b in zip(few.tolist(), more.tolist(), strict=True))


def test_equal_keys_do_not_change_the_count():
    keys = np.array([[5, 5, 5, 5], [1, 5, 5, 0], [3, 2, 1, 0]], dtype=np.uint32)
    assert _smallest(keys, 3).tolist() == [[0, 1, 2], [0, 1, 3], [1, 2, 3]]


def test_everything_is_kept_in_order():
    assert draw_units("random", seed=0, step=0, role="heads", num_layers=2, size=3, kept=3).tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize("kept", [0, 13, -1])
def test_a_count_that_cannot_be_is_refused(kept):
    with pytest.raises(ValueError, match="cannot draw"):
        draw_units("random", seed=0, step=0, role="heads", num_layers=1, size=12, kept=kept)


def test_an_unknown_policy_is_refused():
    with pytest.raises(EstfxError, match="there is no selection policy 'best'; there are random, window, rolling"):
        draw_units("best", seed=0, step=0, role="heads", num_layers=1, size=12, kept=3)


def test_a_hundred_layers_draw_fast():
    def seconds():
        begun = time.perf_counter()
        draw_units("random", seed=0, step=0, role="neurons", num_layers=100, size=512, kept=256)
        return time.perf_counter() - begun

    assert min(seconds() for _ in range(20)) < 0.005  # about 0.5 ms; loose, because the machine is shared


def test_a_policy_of_ones_own_draws_what_a_model_trains():
    asked = []

    @estfx.selection_policy("last ones")
    def last_ones(draw):
        asked.append(draw)
        return np.tile(np.arange(draw.size - draw.kept, draw.size), (draw.num_layers, 1))

    schedule = Schedule(stages=[Stage(start=0, heads=0.5, neurons=0.25)], policy="last ones")
    layers = drawn_layers({f"layers.{i}": {"droppable": True, "heads": 4, "neurons": 8} for i in range(3)})
    for units in draw_step(schedule, 5, layers, 7).units.values():
        assert {role: kept.tolist() for role, kept in units.items()} == {"heads": [2, 3], "neurons": [6, 7]}
    assert asked == [Draw(5, 7, "heads", 3, 4, 2), Draw(5, 7, "neurons", 3, 8, 2)]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([[0, 1]], "returned a list; it must be an array of int64 [1, 2]."),
        (np.array([[0.0, 1.0]]), "returned a ndarray of float64 [1, 2]; it must"),
        (np.array([0, 1]), "returned a ndarray of int64 [2]; it must"),
        (np.array([[1, 4]]), "returned units from 1 to 4; there are 0 to 3."),
        (np.array([[-1, 2]]), "returned units from -1 to 2"),
        (np.array([[2, 1]]), "returned a row that does not rise"),
        (np.array([[2, 2]]), "returned a row that does not rise"),
    ],
)
def test_refusal_of_units_that_cannot_be(returned, message):
    estfx.selection_policy("bad")(lambda draw: returned)
    with pytest.raises(EstfxError) as caught:
        draw_units("bad", seed=0, step=9, role="heads", num_layers=1, size=4, kept=2)
    assert "'bad' was asked for 2 of 4 heads in each of 1 layers at step 9" in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(("row", "message"), [([3, 3], "a row that does not rise"), ([0, 4], "units from 0 to 4")])
def test_every_row_is_looked_at(row, message):
    estfx.selection_policy("bad")(lambda draw: np.array([[0, 1], row]))
    with pytest.raises(EstfxError, match=f"in each of 2 layers at step 9, and returned {message}"):
        draw_units("bad", seed=0, step=9, role="heads", num_layers=2, size=4, kept=2)


def test_refusal_of_a_second_policy_of_a_name():
    with pytest.raises(EstfxError, match="a selection policy 'random' already"):
        estfx.selection_policy("random")(lambda draw: None)
    estfx.selection_policy("window", replace=True)(lambda draw: np.array([[0]]))
    assert draw_units("window", seed=0, step=0, role="heads", num_layers=1, size=4, kept=1).tolist() == [[0]]
