"""The argument that names a model, looked at before torch and transformers are imported, which takes seconds."""

import ast
import os
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from estfx.settings import SettingsError, nearest, parse_json, parse_yaml

__all__ = [
    "check_model",
    "factory_of",
    "holds_weights",
    "names_factory",
    "parse_options",
    "stored_type",
    "unknown_model",
    "unknown_type",
]

_REGISTRY = Path("models") / "auto" / "modeling_auto.py"
_TYPES = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"


def check_model(spec: str) -> None:
    """Raises SettingsError if there is no such model type, folder or file, as far as can be seen without loading it."""
    if names_factory(spec):
        file, _ = factory_of(spec)
        try:
            ast.parse(Path(file).read_bytes(), file)
        except SyntaxError as error:
            raise SettingsError(f"{file} cannot be imported: SyntaxError: {error}") from None
        return
    stored = stored_type(Path(spec)) if os.path.isdir(spec) else None
    types = registered_types()
    if types and (spec if stored is None else stored) not in types:
        raise SettingsError(unknown_model(spec, types) if stored is None else unknown_type(Path(spec), stored, types))


def registered_types() -> list[str]:
    """The causal language model types of the installed transformers, read from its source without importing it.

    Empty where the source has another form than is known here; the model itself is then what fails.
    """
    found = find_spec("transformers")
    folders = [] if found is None else found.submodule_search_locations or []
    for path in (Path(folder) / _REGISTRY for folder in folders):
        if path.is_file():
            for statement in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == _TYPES:
                    return sorted(_keys(statement.value))
    return []


def _keys(value: ast.expr) -> set[str]:
    """The keys of `OrderedDict([(key, value), …])`."""
    pairs = [each for each in ast.walk(value) if isinstance(each, ast.Tuple) and isinstance(each.elts[0], ast.Constant)]
    return {str(ast.literal_eval(pair.elts[0])) for pair in pairs}


def names_factory(spec: str) -> bool:
    """Whether `spec` is meant as `path.py:factory`."""
    return ".py:" in spec or spec.endswith(".py")


def factory_of(spec: str) -> tuple[str, str]:
    """The file and the function of `path.py:factory`; raises SettingsError if there is no such file."""
    file, sign, name = spec.rpartition(":")
    if not sign or not name:
        raise SettingsError(f"{spec!r} names no factory; write {spec.rstrip(':')}:name_of_a_function.")
    if not Path(file).is_file():
        raise SettingsError(f"there is no file {file!r}.")
    return file, name


def stored_type(folder: Path) -> str:
    """The model type that a folder's config.json names; raises SettingsError if it names none."""
    path = folder / "config.json"
    try:
        stored = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{folder} holds no config.json.") from None
    except (OSError, ValueError) as error:
        fault = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise SettingsError(f"{path} cannot be read: {fault}") from None
    if not isinstance(stored, dict) or "model_type" not in stored:
        raise SettingsError(f"{path} has no model_type, which says what model it is: gpt2, llama, … Add it.")
    return str(stored["model_type"])


def holds_weights(spec: str) -> bool:
    """Whether `spec` is a folder from which `build_model` loads weights."""
    return os.path.isdir(spec) and any(Path(spec).glob("*.safetensors"))


def parse_options(pairs: Iterable[str]) -> dict[str, Any]:
    """Reads `key=value` pairs, the values as YAML: `n_layer=4`, `tie_word_embeddings=false`."""
    options: dict[str, Any] = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign or not key.strip():
            raise SettingsError(f"expected key=value, got {pair!r}.")
        try:
            options[key.strip()] = parse_yaml(text)
        except yaml.YAMLError as fault:
            raise SettingsError(f"{pair!r}: the value is not YAML: {' '.join(str(fault).split())}") from None
    return options


def unknown_model(spec: str, types: Sequence[str]) -> str:
    """What is said of a model that is not there; `types` are those that are."""
    if os.sep in spec or spec.startswith("."):
        hub = "Nothing is loaded from a hub: give the folder of a download, or a type such as gpt2."
        like_a_hub = spec.count("/") == 1 and not spec.startswith(".")
        return f"there is no folder {spec!r}." + like_a_hub * f" {hub}"
    return (
        f"unknown model {spec!r}; {nearest(spec, types)} "
        "A model is a causal language model type of transformers, a folder with a config.json, or path.py:factory."
    )


def unknown_type(folder: Path, model_type: str, types: Sequence[str]) -> str:
    """What is said of a folder whose model type is none of `types`."""
    return f"{folder / 'config.json'} has the model_type {model_type!r}; {nearest(model_type, types)}"
