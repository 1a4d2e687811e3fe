"""Turns what stands on a command line into a model: a registered type, a folder, or a factory in a Python file."""

import importlib.util
import inspect
import os
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from estfx.errors import EstfxError
from estfx.settings import SettingsError
from estfx.training.model_argument import (
    factory_of,
    holds_weights,
    names_factory,
    no_function,
    stored_type,
    too_long,
    unknown_model,
    unknown_option,
    unknown_type,
)

__all__ = [
    "BuiltModel",
    "build_model",
    "default_values",
    "fitting_length",
    "known_options",
    "merged_options",
    "model_types",
]


@dataclass(frozen=True)
class BuiltModel:
    """A model, and what to call it with if it is none of transformers'. Work with it inside `mode`."""

    model: nn.Module
    example_inputs: Any = None
    mode: AbstractContextManager[object] = field(default_factory=nullcontext)


def build_model(
    spec: str, options: Mapping[str, Any] | None = None, *, weightless_above: int | None = None
) -> BuiltModel:
    """Builds the model that `spec` names, with random weights unless a folder holds some.

    `spec` is one of
    - a model type in transformers' registry (`gpt2`), `options` its configuration's values,
    - a folder with a `config.json`, `options` override its values,
    - `path.py:factory`, a function that is called with `options` and returns an nn.Module, or a pair of one and its
      example inputs.

    With `weightless_above`, a type or a folder of more parameters than that takes no memory for weights (fake
    tensors), so that models of any size can be looked at; what is then done with the model must be done inside `mode`.
    Raises SettingsError when there is no such model, or it does not take the options.
    """
    options = dict(options or {})
    if names_factory(spec):
        return _from_factory(spec, options)
    if os.path.isdir(spec):
        config, weights = _folder_config(Path(spec), options), holds_weights(spec)
    elif spec in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        config, weights = _configured(spec, options), False
    else:
        raise SettingsError(unknown_model(spec, model_types()))
    if weightless_above is not None:
        # meta tensors would not do: transformers' masks look into a tensor unless they see that it is traced
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            model = _from_config(spec, config)
        if sum(parameter.numel() for parameter in model.parameters()) > weightless_above:
            return BuiltModel(model, mode=mode)
    return BuiltModel(_from_weights(Path(spec), config) if weights else _from_config(spec, config))


def fitting_length(model: nn.Module, seq_len: int | None, name: str, *, default: int = 0) -> int:
    """`seq_len`, or if it is None the default, or the positions that a model of transformers takes if these are fewer.

    Raises SettingsError if `seq_len`, which was given as `name`, is longer than these.
    """
    text = model.config.get_text_config() if isinstance(model, PreTrainedModel) else None
    longest = getattr(text, "max_position_embeddings", None)
    if not isinstance(longest, int) or longest <= 0:
        return default if seq_len is None else seq_len
    if seq_len is not None and longest < seq_len:
        raise SettingsError(too_long(longest, name, seq_len))
    return min(default, longest) if seq_len is None else seq_len


def model_types() -> list[str]:
    """The causal language model types that the installed transformers registers."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def known_options(model_type: str) -> set[str]:
    """The names of the configuration values of a model type, aliases included."""
    config_class = CONFIG_MAPPING[model_type]
    names = {name for name in inspect.signature(config_class).parameters if name != "kwargs"}
    return names | set(config_class.attribute_map) | {name for name in default_values(model_type) if name[0] != "_"}


def default_values(model_type: str) -> Mapping[str, Any]:
    """Those of a type's configuration; none where its own checks refuse them."""
    try:
        return vars(CONFIG_MAPPING[model_type]())
    except Exception:  # whatever its own checks raise
        return {}


def merged_options(model_type: str, base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`, where the two may call one value by different names."""
    aliases: Mapping[str, str] = CONFIG_MAPPING[model_type].attribute_map
    merged = {aliases.get(name, name): value for name, value in base.items()}
    return merged | {aliases.get(name, name): value for name, value in over.items()}


def _configured(model_type: str, options: dict[str, Any]) -> PreTrainedConfig:
    _refuse_unknown(model_type, options)
    try:
        return CONFIG_MAPPING[model_type](**options)
    except Exception as error:  # whatever the configuration's own checks raise
        raise SettingsError(f"{model_type!r} does not take this configuration: {_one_line(error)}") from error


def _refuse_unknown(model_type: str, options: Mapping[str, Any]) -> None:
    # transformers stores what it does not know, and builds the default model in silence
    known = known_options(model_type)
    for key in options:
        if key not in known:
            raise SettingsError(unknown_option(model_type, key, known))


def _from_config(name: str, config: PreTrainedConfig) -> nn.Module:
    try:
        model: nn.Module = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # whatever the model's own constructor raises
        raise SettingsError(f"{name!r} cannot be built with this configuration: {_one_line(error)}") from error
    return model


def _folder_config(folder: Path, options: dict[str, Any]) -> PreTrainedConfig:
    model_type = stored_type(folder)
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise SettingsError(unknown_type(folder, model_type, model_types()))
    _refuse_unknown(model_type, options)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # whatever the configuration's own checks raise
        raise SettingsError(f"{folder} cannot be read as a configuration: {_one_line(error)}") from error
    return config


def _from_weights(folder: Path, config: PreTrainedConfig) -> nn.Module:
    try:
        model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, config=config, local_files_only=True)
    except Exception as error:  # weights that do not fit the configuration, or are damaged
        raise SettingsError(f"the weights in {folder} cannot be loaded: {_one_line(error)}") from error
    return model


def _from_factory(spec: str, options: dict[str, Any]) -> BuiltModel:
    file, name = factory_of(spec)
    path = Path(file)
    module_spec = importlib.util.spec_from_file_location(f"estfx_factory_{path.stem}", path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module  # dataclasses and pickle look their module up there
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:  # it is the user's code
        raise SettingsError(f"{file} cannot be imported: {_one_line(error)}") from error
    factory = getattr(module, name, None)
    if not callable(factory):
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise SettingsError(no_function(file, name, functions))
    try:
        made = factory(**options)
    except EstfxError:
        raise
    except Exception as error:  # it is the user's code
        raise SettingsError(f"{spec} failed: {_one_line(error)}") from error
    model, example_inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise SettingsError(f"{spec} returned a {type(model).__name__}; a factory returns an nn.Module.")
    return BuiltModel(model, example_inputs)


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
