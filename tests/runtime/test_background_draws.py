"""What is made ahead is what would have been made."""

from __future__ import annotations

import os
import threading

import pytest
import torch
from tiny_decoders import build

import estfx
from estfx.runtime.background_draws import BackgroundDraws


def test_the_next_step_is_made_in_another_thread() -> None:
    made: list[tuple[int, bool]] = []

    def make(step: int) -> int:
        made.append((step, threading.current_thread() is threading.main_thread()))
        return 10 * step

    ahead = BackgroundDraws(make)
    assert [ahead.of(step) for step in (3, 4, 5)] == [30, 40, 50]
    assert ahead.of(9) == 90  # another than was begun
    assert ahead.of(10) == 100
    assert {(3, True), (4, False), (5, False), (9, True), (10, False)} <= set(made)
    assert [step for step, _ in made].count(4) == 1


def test_what_cannot_be_made_is_told_when_it_is_asked_for() -> None:
    def make(step: int) -> int:
        if step == 2:
            raise ValueError("no such step")
        return step

    ahead = BackgroundDraws(make)
    assert ahead.of(1) == 1
    with pytest.raises(ValueError, match="no such step"):
        ahead.of(2)
    assert ahead.of(3) == 3


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_makes_its_own() -> None:
    ahead = BackgroundDraws(lambda step: (os.getpid(), step))
    ahead.of(0)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        found = ahead.of(1)
        os.write(writing, b"own" if found == (os.getpid(), 1) else b"another")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 10) == b"own"


def test_draws_do_not_depend_on_what_was_asked_before() -> None:
    model, other = (
        estfx.transform(build("gpt2"), estfx.Schedule.est(30), compile=False, verify=False) for _ in range(2)
    )
    for step in (0, 1, 2, 5, 6, 20, 21, 3):
        model.set_step(step)
    for step in (3, 2, 3):
        other.set_step(step)
    one, two = model.subnetwork, other.subnetwork
    assert one.layers == two.layers
    for layer, roles in one.units.items():
        for role, units in roles.items():
            assert torch.equal(units, two.units[layer][role])
