import random
import re

import pytest

from estfx.tracing.layer_ranges import listed


def h(*numbers, name="h.{}"):
    return [name.format(number) for number in numbers]


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["h.0"], "h.0"),
        (["first"], "first"),
        (h(0, 1), "h.0, 1"),
        (h(0, 1, 2), "h.0 … h.2"),
        (h(*range(0, 24, 2)), "h.0, 2, 4 … 22"),
        (h(*range(1, 100, 2)), "h.1, 3, 5 … 99"),
        (h(2, 5, 11), "h.2, 5, 11"),
        (h(0, 2, 4), "h.0, 2, 4"),
        (h(*(n for n in range(18) if n % 6 != 5)), "h.0–4, 6–10, 12–16"),
        (h(0, 1, 4, 5, 6, 9), "h.0, 1, 4–6, 9"),
        (h(3, 2, 1, 0), "h.0 … h.3"),  # called in another order
        (h(*range(8, 12)), "h.8 … h.11"),
        ([*h(0, 1, 2, name="encoder.{}"), *h(0, 1, 2)], "encoder.0 … encoder.2, h.0 … h.2"),
        (["embed", *h(0, 1, 2), "last"], "embed, h.0 … h.2, last"),
        (h(0, 1, 2, name="h.{}.block"), "h.0.block … h.2.block"),
        (h(0, 4, name="h.{}.block"), "h.0.block, h.4.block"),
        (h(*range(0, 10, 2), name="h.{}#2"), "h.0#2, h.2#2, h.4#2 … h.8#2"),
        (["h.0", "h.0#2", "h.1", "h.1#2"], "h.0, 1, h.0#2, h.1#2"),
        (h(1, 2, 3, name="block{}"), "block1 … block3"),
        (["h.0.1", "h.1.1"], "h.0.1, h.1.1"),
    ],
)
def test_names_in_few_words(names, text):
    assert listed(names) == text


def read(text):
    """The numbers that a reader takes it to mean."""
    if whole := re.fullmatch(r"h\.(\d+) … h\.(\d+)", text):
        return list(range(int(whole[1]), int(whole[2]) + 1))
    numbers = []
    for part in text.removeprefix("h.").split(", "):
        if "–" in part:
            first, last = map(int, part.split("–"))
            numbers += range(first, last + 1)
        elif "…" in part:
            first, last = map(int, part.split(" … "))
            numbers += range(first, last + 1, first - numbers[-1])
        else:
            numbers.append(int(part))
    return numbers


@pytest.mark.parametrize("seed", range(40))
def test_every_name_is_told_and_no_other(seed):
    draw = random.Random(seed)
    numbers = sorted(draw.sample(range(100), draw.choice([1, 2, 3, 5, 30, 70, 95, 100])))
    assert read(listed(h(*numbers))) == numbers


@pytest.mark.parametrize("period", range(2, 12))
def test_a_hundred_layers_of_two_kinds_fit_a_few_lines(period):
    for kept in (0, 1):
        numbers = [n for n in range(100) if (n % period == 0) == kept]
        assert read(listed(h(*numbers))) == numbers
        assert len(listed(h(*numbers))) <= 4 * 80
