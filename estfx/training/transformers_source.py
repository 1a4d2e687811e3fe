"""What transformers' own source says, read without importing it, which takes seconds: names, and configurations.

Where the source has another form than is known here, nothing is found, and nothing is refused early.
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["Configuration", "configuration_of", "optimizer_names", "registered_types", "tracker_names"]

_BASE = "PreTrainedConfig"


@dataclass(frozen=True)
class Configuration:
    """The values that a model type's configuration has."""

    names: frozenset[str]
    aliases: Mapping[str, str]
    defaults: Mapping[str, Any]  # where they are written as literals
    whole_numbers: frozenset[str]  # values that are annotated as int alone

    def value(self, name: str, *given: Mapping[str, Any]) -> Any:
        """Of the first mapping that has it by any of its names, or the default; None if it is not known."""
        own = self.aliases.get(name, name)
        names = {own, *(alias for alias, of in self.aliases.items() if of == own)}
        return next((each[key] for each in (*given, self.defaults) for key in names if key in each), None)


def registered_types() -> list[str]:
    """The causal language model types of the installed transformers."""
    value = _assigned("models/auto/modeling_auto.py", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")
    pairs = [] if value is None else [each for each in ast.walk(value) if isinstance(each, ast.Tuple)]
    return sorted({str(ast.literal_eval(pair.elts[0])) for pair in pairs if isinstance(pair.elts[0], ast.Constant)})


def optimizer_names() -> list[str]:
    """Trainer's, as `optim` takes them."""
    found = _class("training_args.py", "OptimizerNames")
    return [] if found is None else [str(value) for value in _literals(found).values() if isinstance(value, str)]


def tracker_names() -> list[str]:
    """Trainer's, as `report_to` takes them."""
    value = _assigned("integrations/integration_utils.py", "INTEGRATION_TO_CALLBACK")
    keys = value.keys if isinstance(value, ast.Dict) else []
    return [str(key.value) for key in keys if isinstance(key, ast.Constant)]


def configuration_of(model_type: str) -> Configuration | None:
    """Of a type whose configuration is one class on transformers' base; else None."""
    name = model_type.replace("-", "_")
    tree, base = _tree(f"models/{name}/configuration_{name}.py"), _class("configuration_utils.py", _BASE)
    classes = [] if tree is None else [each for each in tree.body if isinstance(each, ast.ClassDef)]
    own = [each for each in classes if _literals(each).get("model_type") == model_type]
    if base is None or len(own) != 1 or [ast.unparse(each) for each in own[0].bases] != [_BASE]:
        return None
    if "sub_configs" in _literals(own[0]):
        return None
    defaults = _literals(base) | _literals(own[0])
    aliases = defaults.pop("attribute_map", {})
    if not isinstance(aliases, dict):
        return None
    fields = {field: annotation for each in (base, own[0]) for field, annotation in _annotated(each)}
    names = {*defaults, *fields, *_named_within(base), *_named_within(own[0]), *aliases, *aliases.values()}
    numbers = frozenset(field for field, annotation in fields.items() if annotation == "int")
    return Configuration(frozenset(names), aliases, defaults, numbers)


def _annotated(found: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for each in found.body:
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            yield each.target.id, ast.unparse(each.annotation)


def _literals(found: ast.ClassDef) -> dict[str, Any]:
    """What is assigned in a class's body, where it is a literal."""
    values = {}
    for each in found.body:
        target = (
            each.target
            if isinstance(each, ast.AnnAssign)
            else each.targets[0]
            if isinstance(each, ast.Assign)
            else None
        )
        if isinstance(target, ast.Name) and isinstance(each, ast.Assign | ast.AnnAssign) and each.value is not None:
            try:
                values[target.id] = ast.literal_eval(each.value)
            except ValueError:
                continue
    return values


def _named_within(found: ast.ClassDef) -> Iterator[str]:
    """All that methods might set: attributes, arguments, and names that are written as strings."""
    for each in ast.walk(found):
        if isinstance(each, ast.Attribute):
            yield each.attr
        elif isinstance(each, ast.arg):
            yield each.arg
        elif isinstance(each, ast.FunctionDef):
            yield each.name
        elif isinstance(each, ast.Constant) and isinstance(each.value, str) and each.value.isidentifier():
            yield each.value


def _class(file: str, name: str) -> ast.ClassDef | None:
    tree = _tree(file)
    found = [] if tree is None else [each for each in tree.body if isinstance(each, ast.ClassDef) and each.name == name]
    return found[0] if found else None


def _assigned(file: str, name: str) -> ast.expr | None:
    tree = _tree(file)
    for each in [] if tree is None else tree.body:
        if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == name:
            return each.value
    return None


@cache
def _tree(file: str) -> ast.Module | None:
    found = find_spec("transformers")
    folders = [] if found is None else found.submodule_search_locations or []
    path = next((Path(folder) / file for folder in folders if (Path(folder) / file).is_file()), None)
    return None if path is None else ast.parse(path.read_text(encoding="utf-8"))
