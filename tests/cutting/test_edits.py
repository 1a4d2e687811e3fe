"""Numbers in modules and in what these hold: found by their paths, changed, and put back."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from estfx.cutting.edits import Edit, applied, apply_edits, for_fewer_layers, held_numbers, held_values, value_at


class Settings:
    def __init__(self) -> None:
        self.heads, self.flag, self.name = 4, True, "x"
        self.inner: dict[str, Any] = {"width": 32, "sizes": (1, 2)}


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.settings = Settings()
        self.child = nn.Linear(3, 5)
        self.child.settings = self.settings
        self._hidden = 7


def test_all_numbers_are_found_by_their_paths() -> None:
    found = {path: value for path, value, _ in held_numbers(Holder())}
    assert found == {
        ("settings", "heads"): 4,
        ("settings", "inner", "width"): 32,
        ("settings", "inner", "sizes"): (1, 2),
        ("child", "settings", "heads"): 4,
        ("child", "settings", "inner", "width"): 32,
        ("child", "settings", "inner", "sizes"): (1, 2),
        ("child", "in_features"): 3,
        ("child", "out_features"): 5,
        ("_hidden",): 7,
    }
    assert ("settings", "inner") not in dict(held_values(Settings()))


def test_an_object_that_is_shared_is_changed_for_one_holder_alone() -> None:
    holder = Holder()
    shared = holder.settings
    edits = [Edit(("settings", "inner", "sizes"), [3, 4]), Edit(("settings", "heads"), 2)]
    with applied(holder, edits):
        assert (holder.settings.heads, holder.settings.inner["sizes"]) == (2, (3, 4))  # a tuple stays one
        assert holder.child.settings is shared
        assert (shared.heads, shared.inner["sizes"]) == (4, (1, 2))
    assert holder.settings is shared
    apply_edits(holder, edits)
    assert value_at(holder, ("settings", "heads")) == 2
    assert value_at(holder, ("child", "settings", "heads")) == 4


@pytest.mark.parametrize(
    ("value", "want"),
    [
        (["a", "b", "c", "d"], ["a", "c", "d"]),  # one for each layer
        ((1, 2, 3, 4), (1, 3, 4)),
        ([0, 3], [0, 2]),  # positions
        ([1, 2], [1]),
        ([1], []),
        ([], None),
        ([4, 5], None),  # no positions of four layers
        ([2, 2, 2], None),
        (3, None),
        ("abcd", None),
    ],
)
def test_lists_for_fewer_layers(value: Any, want: Any) -> None:
    assert for_fewer_layers(value, 4, (0, 2, 3)) == want
