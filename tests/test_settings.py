import re
import time
from itertools import pairwise
from pathlib import Path

import pytest

from estfx.errors import EstfxError
from estfx.settings import Settings, SettingsError, nearest, parse_json, parse_yaml


class Inner(Settings):
    rate: float
    count: int = 1


class Outer(Settings):
    inner: Inner


def test_a_fault_of_a_nested_value_names_its_place():
    with pytest.raises(SettingsError, match=r"inner: count must be a valid integer.*, got 'many'\."):
        Outer(inner={"rate": 1.0, "count": "many"})


def test_an_unknown_key_suggests_the_nearest():
    with pytest.raises(SettingsError, match=r"inner: unknown key 'rat'; did you mean 'rate'\?"):
        Outer(inner={"rate": 1.0, "rat": 1.0})


def test_a_missing_key_is_named():
    with pytest.raises(SettingsError, match="'rate' is missing"):
        Inner()


def test_settings_are_frozen():
    settings = Inner(rate=1.0)
    with pytest.raises(Exception, match="frozen"):
        settings.rate = 2.0


def test_yaml_goes_there_and_back(tmp_path):
    settings = Outer(inner=Inner(rate=0.5, count=2))
    settings.to_yaml(tmp_path / "settings.yaml")
    assert Outer.from_yaml(tmp_path / "settings.yaml") == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inner: [", "this is not YAML"),
        ("- 1", r"expected keys and values \(inner\), got \[1\]"),
        ("", "expected keys and values"),
        ("1: 2", "the keys must be words, got 1"),
        ("iner: {}", "did you mean 'inner'"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path, text, message):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(EstfxError, match=message) as caught:
        Outer.from_yaml(file)
    assert str(caught.value).startswith(str(file))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="no such file"):
        Outer.from_yaml(tmp_path / "none.yaml")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(SettingsError, match=r"this is a folder, and a YAML file is wanted\.$"):
        Outer.from_yaml(tmp_path)
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(SettingsError, match=r"a YAML file is wanted; .*config\.yaml lies in it\.$"):
        Outer.from_yaml(tmp_path)


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("-2E+4", -2e4), ("1.5e2", 150.0), ("3", 3), ("e3", "e3")])
def test_numbers_with_an_exponent_are_numbers(text, value):
    assert parse_yaml(text) == value
    assert type(parse_yaml(text)) is type(value)


def test_nearest_lists_what_there_is_when_nothing_is_near():
    assert nearest("zzz", ["heads", "neurons"]) == "known are heads, neurons."
    assert "100 known" in nearest("zzz", [f"name_{i}" for i in range(100)])


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "it holds more than 100,000 values, aliases counted each time"),
        ("a: &a [*a]", "it is nested more than 50 levels deep, or holds itself"),
        ("[" * 60 + "]" * 60, "it is nested more than 50 levels deep"),
        ("[" * 100_000, "it is nested more than 50 levels deep"),
        ("a: " + "9" * 5000, "Exceeds the limit"),
        ("a: 2026-06-31", "day is out of range"),
        ("a: " + "x" * 2_000_001, "it has 2,000,004 characters, and settings have at most 2,000,000"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    ],
)
def test_no_yaml_ends_in_anything_but_a_sentence(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text)
    start = time.monotonic()
    with pytest.raises(SettingsError, match=re.escape(said)) as caught:
        Settings.from_yaml(tmp_path / "run.yaml")
    assert time.monotonic() - start < 10
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "{"])
def test_no_json_either(text: str) -> None:
    with pytest.raises(ValueError, match=r"nested too deeply|Exceeds the limit|Expecting"):
        parse_json(text)
