"""A cut is written and read again: as transformers does it, and for a class of one's own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_decoders import NanoGpt
from tiny_decoders import build, tokens
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM

import estfx


def halved(model: nn.Module, skip: int | None = 1, **options: Any) -> Any:
    layers = [x for i, x in enumerate(estfx.inspect(model, **options).layers) if i != skip]
    units = {x.name: {axis.role: list(range(0, axis.size, 2)) for axis in x.axes} for x in layers}
    return estfx.cut(model, units, layers=list(units), **options)


@pytest.mark.parametrize("name", ["llama_grouped", "gpt2", "phi3"])
def test_it_is_loaded_as_any_checkpoint(name: str, tmp_path: Path) -> None:
    made = halved(build(name).eval())
    made.save_pretrained(tmp_path)
    ids = tokens()
    want = made(ids).logits
    for again in (estfx.load(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert torch.equal(again.eval()(ids).logits, want)
    again.save_pretrained(tmp_path / "again")
    assert torch.equal(estfx.load(tmp_path / "again").eval()(ids).logits, want)
    inner = AutoModel.from_pretrained(tmp_path).eval()
    assert torch.equal(inner(ids).last_hidden_state, made.base_model(ids).last_hidden_state)


def test_a_cut_by_configuration_needs_no_estfx_and_the_other_one_import(tmp_path: Path) -> None:
    ids = tokens()
    for name, line in (("llama_grouped", ""), ("gpt2", "import estfx")):
        made = halved(build(name).eval())
        made.save_pretrained(tmp_path / name)
        code = f"""
import sys, torch
{line}
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / name)!r}).eval()
assert ("estfx" in sys.modules) == {bool(line)}
ids = torch.tensor({ids.tolist()})
print(repr(model(ids).logits.double().sum().item()))
"""
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        assert float(ran.stdout.splitlines()[-1]) == made(ids).logits.double().sum().item()


def test_a_cut_of_a_cut_is_one_cut_of_the_whole(tmp_path: Path) -> None:
    model = build("gpt2", n_layer=4).eval()
    first = halved(model, skip=0)
    second = halved(first, skip=1)
    assert estfx.cut_record(second).entry["layers"] == {"transformer.h": [1, 3]}
    second.save_pretrained(tmp_path)
    ids = tokens()
    assert torch.equal(estfx.load(tmp_path).eval()(ids).logits, second(ids).logits)


def test_a_model_of_ones_own_class_is_given_whole(tmp_path: Path) -> None:
    ids = tokens(length=16)
    model = NanoGpt(flash=True).eval()
    with pytest.raises(estfx.UnsupportedModelError, match=r"shape .* is invalid for input of size"):
        halved(model, example_inputs=(ids,))  # its code divides the hidden size by the number of heads
    neurons = {f"transformer.h.{i}": {"neurons": range(20)} for i in (0, 2)}
    made = estfx.cut(model, neurons, layers=list(neurons), example_inputs=(ids,))
    estfx.save(made, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["estfx_cut.json", "model.safetensors"]
    with pytest.raises(estfx.EstfxError, match=r"as estfx.load\(folder, model=…\)"):
        estfx.load(tmp_path)
    again = estfx.load(tmp_path, model=lambda: NanoGpt(flash=True)).eval()
    want, got = made(ids), again(ids)
    assert torch.equal(got[0] if isinstance(got, tuple) else got, want[0] if isinstance(want, tuple) else want)


def test_edits_that_were_changed_are_refused(tmp_path: Path) -> None:
    halved(build("gpt2").eval()).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["estfx_cut"]["edits"][0][1] += 8
    file.write_text(json.dumps(config))
    with pytest.raises(estfx.EstfxError, match="was changed since it was written"):
        estfx.load(tmp_path)
    config["estfx_cut"] = {"layers": {}}
    file.write_text(json.dumps(config))
    with pytest.raises(estfx.EstfxError, match="no cut as estfx writes one"):
        estfx.load(tmp_path)
    config["estfx_cut"] = {**dict.fromkeys(("layers", "shapes", "edits", "config", "sha256"), 0), "format": 99}
    file.write_text(json.dumps(config))
    with pytest.raises(estfx.EstfxError, match="written in format 99"):
        estfx.load(tmp_path)


def test_another_version_of_transformers_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    halved(build("gpt2").eval()).save_pretrained(tmp_path)
    monkeypatch.setattr("transformers.__version__", "9.9.9")
    estfx.load(tmp_path)
    assert "and is loaded with 9.9.9" in caplog.text


def test_a_folder_without_a_cut_is_refused(tmp_path: Path) -> None:
    with pytest.raises(estfx.EstfxError, match="there is no folder"):
        estfx.load(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(estfx.EstfxError, match=r"holds no cut: .* It holds notes.txt"):
        estfx.load(tmp_path)
    (tmp_path / "estfx_cut.json").write_text("{")
    with pytest.raises(estfx.EstfxError, match="is not readable"):
        estfx.load(tmp_path, model=NanoGpt(flash=True))
