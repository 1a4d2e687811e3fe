"""Settings that come from YAML: frozen, unknown keys refused, and every fault told as one plain sentence."""

import difflib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from estfx.errors import EstfxError

__all__ = ["Settings", "SettingsError", "nearest", "parse_json", "parse_yaml"]

LONGEST, DEEPEST, MOST = 2_000_000, 50, 100_000  # characters, levels and values of a file


class SettingsError(EstfxError, ValueError):
    """A settings file or an option that cannot be."""


class Settings(BaseModel):
    """A frozen pydantic model whose faults surface as `error`, never as pydantic's ValidationError."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    error: ClassVar[type[EstfxError]] = SettingsError

    def __init__(self, /, **data: Any) -> None:
        # pydantic calls this for nested settings as well, so each fault is told by the class that knows the keys
        try:
            super().__init__(**data)
        except ValidationError as fault:
            raise self.error(_sentence(type(self), fault)) from None

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> Self:
        """Builds the settings from a mapping, as read from a file."""
        for key in data:
            if not isinstance(key, str):
                raise cls.error(f"the keys must be words, got {key!r}.")
        return cls(**data)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Reads the settings from a YAML file."""
        data = cls.mapping_from_yaml(path)
        try:
            return cls.from_mapping(data)
        except cls.error as fault:
            raise cls.error(f"{path}: {fault}") from None

    @classmethod
    def mapping_from_yaml(cls, path: str | Path) -> dict[str, Any]:
        """Reads a YAML file that holds a mapping, unchecked."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise cls.error(f"{path}: there is no such file.") from None
        except IsADirectoryError:
            inside = Path(path) / "config.yaml"
            hint = f"; {inside} lies in it" if inside.exists() else ""
            raise cls.error(f"{path}: this is a folder, and a YAML file is wanted{hint}.") from None
        except (OSError, UnicodeDecodeError) as fault:
            why = fault.strerror if isinstance(fault, OSError) else "it is no text in UTF-8"
            raise cls.error(f"{path}: cannot be read: {why}.") from None
        try:
            data = parse_yaml(text)
        except yaml.YAMLError as fault:
            raise cls.error(f"{path}: this is not YAML: {' '.join(str(fault).split())}") from None
        if not isinstance(data, dict):
            raise cls.error(f"{path}: expected keys and values ({', '.join(cls.model_fields)}), got {_shown(data)}.")
        return data

    def to_yaml(self, path: str | Path | None = None) -> str:
        """Returns the settings as YAML, and writes them to `path` if one is given."""
        text = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text


class _Loader(yaml.SafeLoader):
    """YAML 1.1, but `1e-3` is a number."""


# PyYAML reads 1e-3 as a word, because YAML 1.1 wants 1.0e-3 (yaml/pyyaml#173)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def parse_yaml(text: str) -> Any:
    """Reads one YAML value, safely: it makes plain values alone, and not more of them than a person would write.

    Raises yaml.YAMLError for what is no YAML, is too long, too deep or repeats itself by aliases, or for a number or a
    date that cannot be.
    """
    if len(text) > LONGEST:
        raise yaml.YAMLError(f"it has {len(text):,} characters, and settings have at most {LONGEST:,}")
    try:
        value = yaml.load(text, Loader=_Loader)
    except (ValueError, OverflowError) as fault:  # of a number of thousands of digits, or of a 31st of June
        raise yaml.YAMLError(str(fault).partition(";")[0]) from None
    except RecursionError:
        raise yaml.YAMLError(f"it is nested more than {DEEPEST} levels deep") from None
    _check_size(value)
    return value


def _check_size(value: Any) -> None:
    """Counts what aliases stand for each time that they stand for it."""
    todo, seen = [(value, 1)], 0
    while todo:
        each, depth = todo.pop()
        seen += 1
        if depth > DEEPEST:
            raise yaml.YAMLError(f"it is nested more than {DEEPEST} levels deep, or holds itself")
        if seen > MOST:
            raise yaml.YAMLError(f"it holds more than {MOST:,} values, aliases counted each time")
        if isinstance(each, dict):
            todo.extend((x, depth + 1) for pair in each.items() for x in pair)
        elif isinstance(each, (list, tuple, set)):
            todo.extend((x, depth + 1) for x in each)


def parse_json(text: str) -> Any:
    """Reads one JSON value. Raises ValueError for what is none, also where it is nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply to be read") from None


def nearest(name: str, known: Collection[str]) -> str:
    """Returns a half sentence for an unknown name: the nearest known ones, or all when they are few."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(repr(each) for each in close)}?"
    if len(known) <= 20:
        return f"known are {', '.join(sorted(known))}."
    return f"there are {len(known)} known ones, none of them similar."


def _sentence(settings: type[Settings], fault: ValidationError) -> str:
    told = []
    for each in fault.errors(include_url=False):
        place, kind = each["loc"], each["type"]
        if kind == "extra_forbidden":
            told.append(f"unknown key {str(place[-1])!r}; {nearest(str(place[-1]), settings.model_fields)}")
        elif kind == "missing":
            told.append(f"{str(place[-1])!r} is missing.")
        elif kind == "value_error":
            reason = str(each["ctx"]["error"]) if "ctx" in each else each["msg"]
            told.append(f"{_label(place)}: {reason}" if place else reason)
        else:
            must = each["msg"].replace("Input should", "must")
            told.append(f"{_label(place)} {must}, got {_shown(each['input'])}.")
    return " ".join(told)


def _label(place: Sequence[int | str]) -> str:
    """`("stages", 1)` is `stage 2`, `("train", "seed")` is `train.seed`."""
    words: list[str] = []
    for part in place:
        if isinstance(part, int) and words:
            words[-1] = f"{words[-1].removesuffix('s')} {part + 1}"
        else:
            words.append(str(part))
    return ".".join(words)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
