import json

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from estfx.settings import SettingsError
from estfx.training.model_argument import parse_options
from estfx.training.model_presets import small_options
from estfx.training.model_spec import build_model, known_options, merged_options, model_types

TINY = {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 32, "n_positions": 16}


def test_a_type_is_built_with_its_options():
    built = build_model("gpt2", TINY)
    assert built.model.config.n_layer == 2
    assert built.example_inputs is None
    assert built.model.device.type == "cpu"


def test_options_may_use_the_common_names():
    assert build_model("gpt2", TINY | {"num_attention_heads": 4}).model.config.n_head in (2, 4)
    assert merged_options("gpt2", {"n_head": 2}, {"num_attention_heads": 4}) == {"n_head": 4}


def test_a_model_of_any_size_can_be_looked_at():
    built = build_model("llama", weightless_above=10**9)
    assert sum(parameter.numel() for parameter in built.model.parameters()) > 6e9
    with built.mode:
        tokens = torch.zeros(1, 8, dtype=torch.long)
        assert built.model(input_ids=tokens).logits.shape == (1, 8, built.model.config.vocab_size)


def test_a_folder_is_built_from_its_configuration(tmp_path):
    build_model("gpt2", TINY).model.config.save_pretrained(tmp_path)
    assert build_model(str(tmp_path), {"n_layer": 3}).model.config.n_layer == 3


def test_a_folder_with_weights_gives_its_weights(tmp_path):
    model = build_model("gpt2", TINY).model
    model.save_pretrained(tmp_path)
    loaded = build_model(str(tmp_path)).model
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert isinstance(build_model(str(tmp_path), weightless_above=100).model.lm_head.weight.data, FakeTensor)
    assert not isinstance(build_model(str(tmp_path), weightless_above=10**9).model.lm_head.weight.data, FakeTensor)


def test_a_factory_is_called_with_the_options(tmp_path):
    file = tmp_path / "models.py"
    file.write_text(
        "import torch\n"
        "def make(width=2):\n    return torch.nn.Linear(width, width)\n"
        "def pair():\n    return torch.nn.Linear(2, 2), (torch.ones(1, 2),)\n"
    )
    built = build_model(f"{file}:make", {"width": 3})
    assert isinstance(built.model, nn.Linear)
    assert built.model.in_features == 3
    assert torch.equal(build_model(f"{file}:pair").example_inputs[0], torch.ones(1, 2))


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("gpt-2", {}, "unknown model 'gpt-2'; did you mean 'gpt2'"),
        ("lama", {}, "did you mean 'llama'"),
        ("./nowhere", {}, "there is no folder './nowhere'"),
        ("gpt2", {"n_layers": 3}, "'gpt2' has no configuration value 'n_layers'; did you mean 'n_layer'"),
        ("gpt2", {"n_layer": "three"}, "does not take this configuration"),
        ("gpt2", TINY | {"n_embd": 15}, "cannot be built with this configuration"),
        ("nowhere.py:make", {}, "there is no file 'nowhere.py'"),
        ("nowhere.py", {}, "names no factory"),
        ("nowhere.py:", {}, "names no factory"),
    ],
)
def test_what_is_no_model_is_refused(spec, options, message):
    with pytest.raises(SettingsError) as caught:
        build_model(spec, options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "holds no config.json"),
        ("{", "cannot be read"),
        ("[]", "has no model_type, which says what model it is"),
        (json.dumps({"model_type": "lama"}), "has the model_type 'lama'; did you mean 'llama'"),
        (json.dumps({"model_type": "gpt2", "n_layer": "three"}), "cannot be read as a configuration"),
    ],
)
def test_a_bad_folder_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(SettingsError) as caught:
        build_model(str(tmp_path))
    assert message in str(caught.value)


def test_damaged_weights_are_refused(tmp_path):
    build_model("gpt2", TINY).model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(SettingsError, match=r"the weights in .* cannot be loaded"):
        build_model(str(tmp_path))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def mak(): pass", "has no function 'make'; did you mean 'mak'"),
        ("def make(): return 3", "returned a int; a factory returns an nn.Module"),
        ("def make(): raise KeyError('k')", "failed: KeyError: 'k'"),
        ("def make(a): pass", "failed: TypeError"),
        ("import no_such_module_here", "cannot be imported: ModuleNotFoundError"),
        ("def make(:", "cannot be imported: SyntaxError"),
    ],
)
def test_a_bad_factory_is_refused(tmp_path, code, message):
    file = tmp_path / "models.py"
    file.write_text(code)
    with pytest.raises(SettingsError) as caught:
        build_model(f"{file}:make")
    assert message in str(caught.value)


def test_options_are_yaml_values():
    assert parse_options(["a=3", "b=1e-5", "c=false", "d=null", "e=[1, 2]", "f=gelu", "g=x=y"]) == {
        "a": 3,
        "b": 1e-5,
        "c": False,
        "d": None,
        "e": [1, 2],
        "f": "gelu",
        "g": "x=y",
    }


@pytest.mark.parametrize("pair", ["a", "=3", "a=[1"])
def test_a_bad_option_is_refused(pair):
    with pytest.raises(SettingsError):
        parse_options([pair])


def test_the_registry_is_known():
    assert {"gpt2", "llama", "falcon"} <= set(model_types())
    assert {"n_layer", "num_hidden_layers", "vocab_size"} <= known_options("gpt2")


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "opt", "bloom", "gpt_neox", "falcon", "phi3", "olmo2"])
def test_small_versions_fit_the_text(model_type):
    model = build_model(model_type, small_options(model_type, vocab_size=257, seq_len=64, end_of_text=256)).model
    assert model.config.vocab_size == 257
    assert sum(parameter.numel() for parameter in model.parameters()) < 2e7
    assert not any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
