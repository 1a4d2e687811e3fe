import pytest
import torch
from brute_force import Row, check, rules_of

from estfx.axes.rules import attention

aten = torch.ops.aten
SDPA = aten.scaled_dot_product_attention.default


def attend(causal=False, gqa=False):
    # the scale stands in the call: by default it depends on the size of the heads
    return lambda q, k, v, mask=None: SDPA(q, k, v, mask, 0.0, causal, scale=0.5, enable_gqa=gqa)


def attention_row(dims, *inputs, **how):
    return Row(SDPA, attend(**how), inputs, dims, "close")


ROWS = [
    attention_row("a b c Σd, a b ~e Σd, a b ~e f -> a b c f", (2, 3, 5, 7), (2, 3, 4, 7), (2, 3, 4, 2)),
    attention_row("a b Σc, a ~d Σc, a ~d e -> a b e", (3, 5, 7), (3, 4, 7), (3, 4, 2)),
    attention_row("a Σb, ~c Σb, ~c d -> a d", (5, 7), (4, 7), (4, 2)),
    # heads of queries are KV heads · group
    attention_row("a b·c d Σe, a b ~f Σe, a b ~f g -> a b·c d g", (2, 6, 5, 7), (2, 3, 4, 7), (2, 3, 4, 3), gqa=True),
    attention_row("a b c Σd, a 1 ~e Σd, a 1 ~e f -> a b c f", (2, 3, 5, 7), (2, 1, 4, 7), (2, 1, 4, 3), gqa=True),
    # a size of 1 broadcasts
    attention_row("a b c Σd, a 1 ~e Σd, 1 b ~e f -> a b c f", (2, 3, 5, 7), (2, 1, 4, 7), (1, 3, 4, 3)),
    attention_row("1 a b Σc, d a ~e Σc, d a ~e f -> d a b f", (1, 3, 5, 7), (2, 3, 4, 7), (2, 3, 4, 3)),
    attention_row("a b Σc, d a ~e Σc, d a ~e f -> d a b f", (3, 5, 7), (2, 3, 4, 7), (2, 3, 4, 3)),
    # masks
    attention_row("a b c Σd, a b ~e Σd, a b ~e f, c ~e -> a b c f", (2, 3, 5, 7), (2, 3, 4, 7), (2, 3, 4, 2), (5, 4)),
    attention_row(
        "a b·c d Σe, a b ~f Σe, a b ~f g, a b·c d ~f -> a b·c d g",
        (2, 6, 5, 7),
        (2, 3, 4, 7),
        (2, 3, 4, 3),
        (2, 6, 5, 4),
        gqa=True,
    ),
    attention_row(
        "a b c Σd, a b ~e Σd, a b ~e f, a 1 1 ~e -> a b c f", (2, 3, 5, 7), (2, 3, 4, 7), (2, 3, 4, 2), (2, 1, 1, 4)
    ),
    # who comes first matters
    attention_row(
        "a b !c Σd, a b !~e Σd, a b !~e f -> a b !c f", (2, 3, 5, 7), (2, 3, 4, 7), (2, 3, 4, 2), causal=True
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_narrowed_values_are_the_whole_ones_taken(row):
    check(row)


def test_every_rule_has_a_row():
    assert rules_of(attention) == {row.op for row in ROWS}
