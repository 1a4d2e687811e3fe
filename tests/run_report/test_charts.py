"""The charts of a report tell values, and show a span from nearer, in a browser where there is one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys

from estfx.run_report import contents_of, read_runs, write_report


@pytest.fixture(scope="module")
def report(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("charts") / "report.html"
    return write_report(contents_of(read_runs([runs / "evolving", runs / "whole"])), "html", file)


def chart(browser: Any, name: str) -> tuple[Any, Any]:
    """The figure and the drawing with that title."""
    for each in browser.find_elements("css selector", ".charts figure"):
        if name in each.find_element("css selector", "figcaption").text:
            browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", each)
            return each, each.find_element("css selector", "svg")
    raise AssertionError(name)


def told(figure: Any) -> list[str]:
    return figure.find_element("css selector", "output").text.splitlines()


def at(browser: Any, drawing: Any, share: float) -> ActionChains:
    """A pointer over that share of the frame's width, halfway up."""
    left, top, right, bottom = json.loads(drawing.get_attribute("data-chart"))["frame"]
    place = browser.execute_script(
        "const [svg, x, y] = arguments, box = svg.getBoundingClientRect(), view = svg.viewBox.baseVal;"
        "return [(x / view.width - 0.5) * box.width, (y / view.height - 0.5) * box.height]",
        drawing, left + share * (right - left), (top + bottom) / 2,
    )  # fmt: skip
    return ActionChains(browser, duration=20).move_to_element_with_offset(drawing, *map(round, place))


def test_a_chart_tells_the_values_where_the_pointer_is(browser: Any, report: Path, runs: Path) -> None:
    browser.get(f"file://{report}")
    assert browser.get_log("browser") == []
    contents = contents_of(read_runs([runs / "evolving", runs / "whole"]))
    for axis, name in (("step", "optimizer steps"), ("flops", "training FLOPs")):
        figure, drawing = chart(browser, f"Loss against {name}")
        at(browser, drawing, 0.5).perform()
        first, *rest = told(figure)
        curves = contents.runs[0].curves
        high = max(each.curves.stages[-1][1][axis][1] for each in contents.runs)
        nearest = min((x for each in contents.runs for x in each.curves.at[axis]), key=lambda x: abs(x - high / 2))
        place = int(np.abs(curves.at[axis] - nearest).argmin())
        assert first.endswith({"step": "optimizer steps", "flops": "training FLOPs, whole model"}[axis])
        assert f"evolving, training, smoothed: {curves.smoothed[place]:.7g}" in rest
        assert any(line.startswith("whole, training, smoothed: ") for line in rest)
    ActionChains(browser).move_to_element(browser.find_element("css selector", "h1")).perform()
    assert told(figure) == []


def test_a_span_is_shown_from_nearer_and_all_of_it_again(browser: Any, report: Path) -> None:
    browser.get(f"file://{report}")
    figure, drawing = chart(browser, "Loss against optimizer steps")
    button = figure.find_element("css selector", "button")
    window = drawing.find_elements("css selector", "svg")[1]
    whole = window.get_dom_attribute("viewBox")
    assert not button.is_displayed()
    at(browser, drawing, 0.25).click_and_hold().perform()
    at(browser, drawing, 0.5).release().perform()
    assert button.is_displayed()
    x, _, width, _ = map(float, window.get_dom_attribute("viewBox").split())
    whole_x, _, whole_width, _ = map(float, whole.split())
    assert width / whole_width == pytest.approx(0.25, abs=0.02)
    assert (x - whole_x) / whole_width == pytest.approx(0.25, abs=0.02)
    shown = [each.text for each in drawing.find_elements("css selector", "text") if each.is_displayed()]
    assert "3" in shown
    assert "8" not in shown
    at(browser, drawing, 0.5).perform()
    assert told(figure)[0] == "3 optimizer steps"
    button.click()
    assert window.get_dom_attribute("viewBox") == whole
    assert not button.is_displayed()


def test_the_keyboard_does_the_same(browser: Any, report: Path) -> None:
    browser.get(f"file://{report}")
    figure, drawing = chart(browser, "Loss against optimizer steps")
    window = drawing.find_elements("css selector", "svg")[1]
    whole = window.get_dom_attribute("viewBox")
    figure.send_keys(Keys.ARROW_RIGHT)
    first = told(figure)[0]
    figure.send_keys(Keys.ARROW_RIGHT)
    assert int(told(figure)[0].split()[0]) == int(first.split()[0]) + 1
    figure.send_keys("+")
    assert float(window.get_dom_attribute("viewBox").split()[2]) == pytest.approx(float(whole.split()[2]) / 2)
    figure.send_keys(Keys.ESCAPE)
    assert (window.get_dom_attribute("viewBox"), told(figure)) == (whole, [])


def test_seconds_on_a_logarithmic_scale_and_graphs_are_told_too(browser: Any, report: Path) -> None:
    browser.get(f"file://{report}")
    figure, drawing = chart(browser, "Seconds of every optimizer step")
    at(browser, drawing, 0.9).perform()
    assert len(told(figure)) == 3
    assert browser.get_log("browser") == []
