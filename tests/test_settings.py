import pytest

from estfx.errors import EstfxError
from estfx.settings import Settings, SettingsError, nearest, parse_yaml


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
    with pytest.raises(SettingsError, match="cannot be read"):
        Outer.from_yaml(tmp_path)


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("-2E+4", -2e4), ("1.5e2", 150.0), ("3", 3), ("e3", "e3")])
def test_numbers_with_an_exponent_are_numbers(text, value):
    assert parse_yaml(text) == value
    assert type(parse_yaml(text)) is type(value)


def test_nearest_lists_what_there_is_when_nothing_is_near():
    assert nearest("zzz", ["heads", "neurons"]) == "known are heads, neurons."
    assert "100 known" in nearest("zzz", [f"name_{i}" for i in range(100)])
