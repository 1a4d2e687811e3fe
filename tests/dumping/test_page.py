"""The page of a dump, in a browser where there is one."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hand_written import Decoder, GatedMlp, GroupedAttention, PreNorm
from tiny_decoders import build

from estfx.dumping.dump_stage import dump
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage

SCHEDULE = Schedule(stages=[Stage(start=0, heads=0.5, neurons=0.5, layers=0.5), Stage(start=9)], total_steps=10)


def test_the_page_needs_nothing_but_itself() -> None:
    text = dump(build("gpt2"), SCHEDULE, 0, format="html")
    assert not re.search(r"""(src|href)=["'](?!data:)""", text)
    assert "http" not in text.partition('id="data"')[0]
    assert "model.layers" not in text


def test_a_layer_unfolds_and_a_search_finds_a_value(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(dump(build("llama_grouped"), SCHEDULE, 0, format="html"), encoding="utf-8")
    browser.get(f"file://{tmp_path / 'page.html'}")
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.querySelectorAll('tr').length") == 0
    browser.execute_script("for (const each of outline.children) if (each.layer) each.open = true")
    time.sleep(0.2)  # the event comes later
    parts = [each.text for each in browser.find_elements("css selector", "details details > summary")]
    assert any(part.startswith("residual branch 1 (heads)") for part in parts)
    browser.find_element("id", "search").send_keys("silu")
    assert browser.find_element("id", "count").text.endswith("values found")
    browser.find_element("css selector", "#results button").click()
    found = browser.find_element("css selector", "tr.found")
    assert found.text.startswith("%silu = silu(")
    assert "neurons" in found.text
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).move_to_element(found).perform()
    told = browser.find_element("id", "tip").text
    assert "shape: f32[b, t, " in told
    assert "source: " in told
    browser.find_element("id", "unfold").click()
    assert browser.execute_script("return document.querySelectorAll('tr').length") > 100
    assert browser.get_log("browser") == []


def one_kind() -> str:
    return dump(build("llama_grouped", num_hidden_layers=100), SCHEDULE, 0, format="html")


def own_kinds() -> str:
    model = Decoder(*(PreNorm(GroupedAttention(), GatedMlp(neurons=8 + i)) for i in range(100)))
    return dump(model, SCHEDULE, 0, (torch.randint(101, (3, 17)),), format="html")


@pytest.mark.parametrize("write", [one_kind, pytest.param(own_kinds, marks=pytest.mark.slow)])
def test_a_hundred_layers(write: Any, browser: Any, tmp_path: Path) -> None:
    text = write()
    assert len(text.encode()) < 5_000_000
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    started = time.perf_counter()
    browser.get(f"file://{tmp_path / 'page.html'}")
    assert browser.execute_script("return outline.querySelectorAll('details').length") > 100
    assert time.perf_counter() - started < 3
    assert browser.get_log("browser") == []
