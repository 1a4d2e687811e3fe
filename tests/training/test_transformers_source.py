"""What is read from transformers' source is what transformers has, once it is imported."""

from __future__ import annotations

import pytest
from transformers import CONFIG_MAPPING
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.training_args import OptimizerNames

from estfx.settings import SettingsError
from estfx.training.model_argument import check_model
from estfx.training.model_spec import default_values, known_options
from estfx.training.transformers_source import (
    configuration_of,
    optimizer_names,
    registered_types,
    tracker_names,
)


def test_names_are_those_of_trainer() -> None:
    assert set(optimizer_names()) == {each.value for each in OptimizerNames}
    assert set(tracker_names()) == set(INTEGRATION_TO_CALLBACK)


def test_no_value_that_a_configuration_has_would_be_refused() -> None:
    """Names at least those that it takes, defaults and aliases as it has them, for most of the types."""
    known = {name: found for name in registered_types() if (found := configuration_of(name)) is not None}
    assert len(known) > 100
    for model_type, found in known.items():
        missing = known_options(model_type) - found.names
        assert not missing, (model_type, missing)
        assert dict(CONFIG_MAPPING[model_type].attribute_map) == dict(found.aliases), model_type
        positions = found.value("max_position_embeddings")
        if isinstance(positions, int) and default_values(model_type):
            assert CONFIG_MAPPING[model_type]().max_position_embeddings == positions, model_type


def test_positions_are_those_of_the_option_the_folder_or_the_default() -> None:
    check_model("gpt2", length=("--seq-len", 1024))
    with pytest.raises(SettingsError, match="the model takes 1024 positions, but --seq-len is 1025"):
        check_model("gpt2", length=("--seq-len", 1025))
    for alias in ("n_positions", "max_position_embeddings"):
        check_model("gpt2", {alias: 2048}, length=("--seq-len", 2048))
        with pytest.raises(SettingsError, match="the model takes 8 positions"):
            check_model("gpt2", {alias: 8}, length=("data.seq_len", 16), under={"max_position_embeddings": 16})
    check_model("gpt2", length=("data.seq_len", 4096), under={"max_position_embeddings": 4096})


def test_values_that_are_not_there_or_no_numbers_are_refused() -> None:
    with pytest.raises(SettingsError, match="has no configuration value 'n_layers'; did you mean 'n_layer'"):
        check_model("gpt2", {"n_layers": 2})
    with pytest.raises(SettingsError, match="n_layer is no number: 'many'"):
        check_model("gpt2", {"n_layer": "many"})
