import numpy as np
import pytest
import torch
import transformers.integrations.moe  # noqa: F401  # registers an operator of its own
from brute_force import Row, check, in_letters, make_inputs, reasons, record, rules_of, walk

from estfx.axes.rules import experts

grouped_mm = torch.ops.aten._grouped_mm.default
fallback = torch.ops.transformers.grouped_mm_fallback.default
ENDS = torch.tensor([2, 2, 5], dtype=torch.int32)  # of each expert's rows; the second has none


ROWS = [Row(fallback, fallback, [(5, 7), (3, 7, 2), ENDS], "!a Σb, !c Σb d, !c -> !a d")]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_narrowed_values_are_the_whole_ones_taken(row):
    check(row)


def test_torchs_own_operator_has_the_same_dimensions():
    """It knows no float64 and wants strides of 16 bytes, so its values cannot be compared at any width."""

    def product(x, weight, ends):
        x, weight = (torch.ops.aten.to.dtype(each, torch.bfloat16) for each in (x, weight))
        return grouped_mm(x, weight, ends)

    recorded = record(product, make_inputs([(5, 16), (3, 16, 8), ENDS], np.random.default_rng(0)))
    assert in_letters(walk(recorded), recorded) == ROWS[0].dims


def test_every_rule_has_a_row():
    assert rules_of(experts) == {row.op for row in ROWS} | {grouped_mm}


def test_rows_and_experts_stay_whole_and_say_why():
    found = reasons(ROWS[0].function, ROWS[0].inputs)
    assert any(reason.startswith("rows are grouped by expert at") for reason in found)
    assert any(reason.startswith("it counts experts at") for reason in found)
