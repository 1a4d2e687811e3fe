"""What ranks tell each other, without processes: three of them, of which one may hold something else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import estfx
from estfx.runtime import rank_agreement
from estfx.runtime.rank_agreement import RankAgreement, _digest


def agreement(monkeypatch: pytest.MonkeyPatch, **of_the_last: object) -> Any:
    def gathered(others: list[Any], own: dict[str, object], group: object) -> None:
        others[:] = [own, own, {**own, **of_the_last}]

    monkeypatch.setattr(rank_agreement.dist, "get_world_size", lambda: 3)
    monkeypatch.setattr(rank_agreement.dist, "all_gather_object", gathered)
    monkeypatch.setattr(rank_agreement, "_group", lambda: None)
    made: Any = RankAgreement.__new__(RankAgreement)
    made.calls = 4
    return made


def test_one_rank_of_three_that_differs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    agreement(monkeypatch).check({"seed": 0, "step": 7})
    with pytest.raises(estfx.EstfxError, match=r"seed 0 on ranks 0, 1, 1 on rank 2\. Give every rank the same"):
        agreement(monkeypatch, seed=1).check({"seed": 0, "step": 7})
    with pytest.raises(estfx.EstfxError, match="calls of set_step 4 on ranks 0, 1, 5 on rank 2"):
        agreement(monkeypatch, **{"calls of set_step": 5}).check({"seed": 0})


def test_units_are_told_apart_by_their_values() -> None:
    assert _digest({"a": True}, np.array([1, 2])) == _digest({"a": True}, np.array([1, 2]))
    assert _digest({"a": True}, np.array([1, 2])) != _digest({"a": True}, np.array([1, 3]))
    assert _digest({"a": True}, np.array([1, 2])) != _digest({"a": False}, np.array([1, 2]))
