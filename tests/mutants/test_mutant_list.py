"""The list of planted bugs does not rot: each still has its place in the code, and a test that is named is there."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runner() -> Any:
    """`benchmarks/mutants.py`, which is no module of a package."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import mutants
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return mutants


def test_every_bug_can_be_planted_and_is_python(runner: Any) -> None:
    texts: dict[str, str] = {}
    for mutant in runner.mutants():
        text = texts.setdefault(mutant.file, (ROOT / mutant.file).read_text(encoding="utf-8"))
        planted = mutant.planted(text)
        assert planted != text, mutant.name
        ast.parse(planted, mutant.name)


def test_names_are_unique_and_there_are_many(runner: Any) -> None:
    found = runner.mutants()
    twice = [name for name, count in Counter(mutant.name for mutant in found).items() if count > 1]
    assert twice == []
    assert len(found) >= 120
    assert not {mutant.name for mutant in found} & {mutant.room for mutant in found}


def test_every_entry_says_what_a_user_would_get(runner: Any) -> None:
    for mutant in runner.mutants():
        assert mutant.wrong.endswith("."), mutant.name
        for test in mutant.tests:
            assert (ROOT / test.partition("::")[0]).exists(), mutant.name


def test_a_bug_without_its_place_is_told(runner: Any) -> None:
    mutant = runner.mutants()[0]
    with pytest.raises(ValueError, match=f"{mutant.name}: .* holds `before` 0 times, not once"):
        mutant.planted("")
    with pytest.raises(ValueError, match="2 times"):
        mutant.planted(mutant.before * 2)


def test_what_caught_a_bug_is_read_from_what_pytest_prints(runner: Any) -> None:
    printed = "x\nFAILED tests/a.py::test_b[mul.Tensor: a b -> c] - assert 1\nERROR tests/c.py\n1 failed"
    assert runner.failures(printed) == ["tests/a.py::test_b[mul.Tensor: a b -> c]", "tests/c.py"]
