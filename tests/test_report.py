import io
import re

import pytest
from rich.console import Console

from estfx.report import AxisReport, LayerReport, Report
from estfx.showing import print_shown


def layer(name, program, droppable=True, axes=(), notes=()):
    return LayerReport(name=name, program=program, droppable=droppable, axes=list(axes), notes=list(notes))


def printed(report, width):
    file = io.StringIO()
    print_shown(Console(file=file, width=width), report)
    return file.getvalue()


HEADS = AxisReport(role="heads", size=12, parameters={"attn.c_attn.weight": [1], "attn.c_proj.weight": [0, 1]})
NEURONS = AxisReport(role="neurons", size=3072, parameters={"mlp.weight": [0]}, note="coupled by a norm [of it]")


@pytest.mark.parametrize("width", [80, 160])
def test_layers_of_one_program_share_a_block(width):
    layers = [layer(f"h.{i}", "Block", axes=[HEADS, NEURONS], notes=["a reason [in words]"]) for i in range(3)]
    text = printed(Report(model="Model", layers=[*layers, layer("h.3", "Other", droppable=False)]), width)
    assert "Model, 4 layers" in text
    for words in (
        "h.0 … h.2 (3): Block, may be skipped",
        "h.3: Other, cannot be skipped",
        "attn.c_attn.weight [1]",
        "attn.c_proj.weight [0, 1]",
        "3072",
        "coupled by a norm [of it]",
    ):
        assert words in text
    assert text.count("- a reason [in words]") == 1


def test_without_notes_there_is_no_column_for_them():
    assert "note" not in printed(Report(model="Model", layers=[layer("h.0", "Block", axes=[HEADS])]), 80)


def headers(report):
    return [line for line in printed(report, 80).splitlines() if re.match(r"h\.\d", line)]


def test_kinds_that_alternate_have_one_block_each():
    layers = [layer(f"h.{i}", "Mixer" if i % 2 else "Block", axes=[HEADS], notes=["why"]) for i in range(12)]
    report = Report(model="Model", layers=layers)
    assert headers(report) == [
        "h.0, 2, 4 … 10 (6): Block, may be skipped",
        "h.1, 3, 5 … 11 (6): Mixer, may be skipped",
    ]
    assert printed(report, 80).count("- why") == 2


def test_layers_of_a_kind_that_differ_are_told_apart():
    layers = [layer(f"h.{i}", "Block", droppable=i != 3, notes=["it is odd"] if i in (2, 5) else ()) for i in range(8)]
    layers += [layer(f"h.{i}", "", droppable=False, notes=[f"no graph for reason {i // 2}"]) for i in range(8, 12)]
    report = Report(model="Model", layers=layers)
    assert headers(report) == [
        "h.0, 1, 4, 6, 7 (5): Block, may be skipped",
        "h.2, 5 (2): Block, may be skipped",
        "h.3: Block, cannot be skipped",
        "h.8, 9 (2): no graph, cannot be skipped",
        "h.10, 11 (2): no graph, cannot be skipped",
    ]
    assert "h.2, 5 (2): Block, may be skipped\n- it is odd\n" in printed(report, 80)


def test_it_prints_as_the_command_does():
    report = Report(model="Model", layers=[layer("h.0", "Block", axes=[HEADS, NEURONS])])
    assert str(report).split() == printed(report, 120).split()
    assert "coupled by a norm [of it]" in report._repr_html_()
