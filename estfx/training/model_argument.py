"""The argument that names a model, looked at before torch and transformers are imported, which takes seconds."""

import ast
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from estfx.settings import SettingsError, nearest, parse_json, parse_yaml
from estfx.training.transformers_source import configuration_of, registered_types

__all__ = [
    "check_model",
    "factory_of",
    "holds_weights",
    "names_factory",
    "no_function",
    "parse_options",
    "stored_type",
    "too_long",
    "unknown_model",
    "unknown_option",
    "unknown_type",
]

NOTHING: Mapping[str, Any] = MappingProxyType({})


def check_model(
    spec: str,
    options: Mapping[str, Any] = NOTHING,
    *,
    length: tuple[str, int | None] = ("seq_len", None),
    under: Mapping[str, Any] = NOTHING,
) -> None:
    """Raises SettingsError for what can be seen to be wrong without loading the model.

    That is a type, folder or file that is not there, a value of the configuration that does not exist, and a `length`,
    its name and number of tokens, beyond the model's positions. `under` holds values of the configuration that a type
    is built with where the options say nothing.
    """
    if names_factory(spec):
        _check_source(*factory_of(spec))
        return
    stored = stored_config(Path(spec)) if os.path.isdir(spec) else {}
    model_type = str(stored.get("model_type", spec))
    types = registered_types()
    if types and model_type not in types:
        raise SettingsError(unknown_type(Path(spec), model_type, types) if stored else unknown_model(spec, types))
    if (known := configuration_of(model_type)) is None:
        return
    for name, value in options.items():
        if name not in known.names:
            raise SettingsError(unknown_option(model_type, name, known.names))
        if known.aliases.get(name, name) in known.whole_numbers and isinstance(value, str):
            raise SettingsError(f"{model_type!r} does not take this configuration: {name} is no number: {value!r}.")
    positions = known.value("max_position_embeddings", options, stored or under)
    name, seq_len = length
    if seq_len is not None and isinstance(positions, int) and 0 < positions < seq_len:
        raise SettingsError(too_long(positions, name, seq_len))


def _check_source(file: str, name: str) -> None:
    source = Path(file).read_bytes()
    try:
        tree = ast.parse(source, file)
    except SyntaxError as error:
        raise SettingsError(f"{file} cannot be imported: SyntaxError: {error}") from None
    if any(word in source for word in (b"sys.path", b"globals(", b"exec(")):  # what it finds and has shows as it runs
        return
    for each in tree.body:
        packages = [alias.name for alias in each.names] if isinstance(each, ast.Import) else []
        packages += [each.module] if isinstance(each, ast.ImportFrom) and each.module and not each.level else []
        for package in (found.partition(".")[0] for found in packages):
            if find_spec(package) is None:
                raise SettingsError(f"{file} cannot be imported: ModuleNotFoundError: No module named {package!r}")
    names = {each.id for each in ast.walk(tree) if isinstance(each, ast.Name)}
    names |= {each.name for each in ast.walk(tree) if isinstance(each, ast.FunctionDef | ast.ClassDef)}
    names |= {(each.asname or each.name).partition(".")[0] for each in ast.walk(tree) if isinstance(each, ast.alias)}
    if name not in names and "*" not in names:
        functions = [each.name for each in tree.body if isinstance(each, ast.FunctionDef)]
        raise SettingsError(no_function(file, name, functions))


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
    return str(stored_config(folder)["model_type"])


def stored_config(folder: Path) -> dict[str, Any]:
    """What a folder's config.json says; raises SettingsError if it names no model type."""
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
    return stored


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


def unknown_option(model_type: str, name: str, known: Collection[str]) -> str:
    """What is said of a value that a type's configuration has not."""
    return f"{model_type!r} has no configuration value {name!r}; {nearest(name, sorted(known))}"


def too_long(positions: int, name: str, seq_len: int) -> str:
    """What is said of more tokens, given as `name`, than a model has positions."""
    return f"the model takes {positions} positions, but {name} is {seq_len}; make one fit the other."


def no_function(file: str, name: str, functions: Sequence[str]) -> str:
    """What is said of a factory that its file has not."""
    return f"{file} has no function {name!r}; {nearest(name, functions)}"
