"""What `estfx.dump` writes in each of its formats."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch
from hand_written import Decoder, GatedMlp, GroupedAttention, PreNorm
from tiny_decoders import build

import estfx
from estfx.dumping.dump_stage import dump
from estfx.dumping.stage_graphs import pass_names, stage_graphs
from estfx.errors import EstfxError
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from round_trip import check_round_trip

SCHEDULE = Schedule(stages=[Stage(start=0, heads=0.5, neurons=0.5, layers=0.5), Stage(start=9)], total_steps=10)
IDS = (torch.randint(101, (3, 17)),)


def decoder() -> Decoder:
    return Decoder(PreNorm(GroupedAttention(), GatedMlp()), PreNorm(GroupedAttention(), GatedMlp()))


def written(format: str, **options: Any) -> str:
    return dump(decoder(), SCHEDULE, 0, IDS, format=format, **options)


def test_a_line_says_which_pass_made_or_changed_it() -> None:
    text = written("text")
    assert re.search(r"%take = take\(.*\) .* # narrow-axes$", text, re.MULTILINE)
    assert re.search(r"= mul\(%take_\d+, 2\) .* # \S+:\d+; scale-contractions$", text, re.MULTILINE)
    gelu = next(line for line in text.splitlines() if " = silu(" in line)
    assert gelu.endswith(".py:" + gelu.rpartition(":")[2])  # the user's line, and no pass


def test_a_gather_has_the_axes_of_what_it_takes_from() -> None:
    assert re.search(r"%take_\d+ = take\(%mlp\S*, 0, %index_neurons\) .*\(neurons, \.\)", written("text"))


def test_the_difference_shows_what_the_stage_changes() -> None:
    lines = written("diff").splitlines()
    assert "--- PreNorm, whole" in lines
    assert "+++ PreNorm, stage 1" in lines
    added = [line for line in lines if line.startswith("+") and "take(" in line]
    removed = [line for line in lines if line.startswith("-") and " linear(" in line]
    assert added
    assert removed
    assert not [line for line in lines if line.startswith(("+", "-")) and "= pow(" in line]  # norms stay
    assert "the same as the whole layer" in dump(decoder(), SCHEDULE, 1, IDS, format="diff")


@pytest.mark.parametrize("name", pass_names())
def test_the_graph_after_a_pass(name: str) -> None:
    text = written("text", after=name)
    late = pass_names().index(name)
    assert ("take(" in text) == (late >= pass_names().index("narrow-axes"))
    assert ("; scale-contractions" in text) == (name == "scale-contractions")
    assert ("neurons" in text.partition("graph ")[2]) == (late >= pass_names().index("find-mlp"))


def test_python_that_runs(tmp_path: Path) -> None:
    graph = stage_graphs(decoder(), SCHEDULE, 0, IDS).kinds[0].graph
    (tmp_path / "layer.py").write_text(written("code"))
    sizes: dict[str, int] = {}
    inputs = [_like(node, sizes) for node in graph.graph.nodes if node.op == "placeholder"]
    function = runpy.run_path(str(tmp_path / "layer.py"))["PreNorm"]
    assert all(map(torch.equal, function(*inputs), graph(*inputs)))


@pytest.mark.parametrize("name", ["gpt2", "llama_grouped", "bloom"])
def test_python_ends_with_calls_that_run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for stage in range(len(SCHEDULE.stages)):
        (tmp_path / "layer.py").write_text(dump(build(name), SCHEDULE, stage, format="code"))
        runpy.run_path(str(tmp_path / "layer.py"), run_name="__main__")
        assert re.fullmatch(r"\w+: \[\(\d+, \d+, \d+\)\]\n", capsys.readouterr().out)


def _like(node: Any, sizes: dict[str, int]) -> torch.Tensor:
    """A value for an input of a graph; of the dynamic sizes the first is 2, any other 5."""
    value = node.meta["val"]
    texts = [str(size) for size in value.shape]
    shape = [int(text) if text.isdigit() else sizes.setdefault(text, 5 if sizes else 2) for text in texts]
    return torch.arange(*shape) if value.dtype == torch.int64 else torch.randn(shape)


@pytest.mark.parametrize("name", ["gpt2", "llama_grouped", "falcon", "bloom"])
def test_json_makes_a_graph_that_computes_the_same(name: str, tmp_path: Path) -> None:
    model = build(name)
    (tmp_path / "graphs.json").write_text(dump(model, SCHEDULE, 0, format="json"))
    loaded = estfx.load_graphs(tmp_path / "graphs.json")
    assert set(loaded) == {kind.name for kind in stage_graphs(model, SCHEDULE, 0).kinds}
    check_round_trip(estfx.transform(model, SCHEDULE, compile=False))


def test_json_holds_what_the_text_says() -> None:
    found = json.loads(written("json"))
    assert (found["format"], found["version"], found["stage"], found["num_stages"]) == ("estfx-graphs", 1, 1, 2)
    (kind,) = found["kinds"]
    assert kind["layers"] == ["layers.0", "layers.1"]
    assert kind["roles"]["neurons"][0] * 2 == kind["roles"]["neurons"][1]
    nodes = {node["name"]: node for node in kind["graph"]["nodes"]}
    assert nodes["take"]["passes"] == ["narrow-axes"]
    titles = [title for title, _ in kind["graph"]["branches"]]
    assert titles == ["around the branches", "residual branch 1 (heads)", "residual branch 2 (neurons)"]
    parts = [name for _, names in kind["graph"]["branches"] for name in names]
    assert sorted(parts) == sorted(name for name, node in nodes.items() if node["op"] not in ("input", "weight"))
    assert [node["target"] for node in found["outer"]["nodes"] if node["op"] == "layer"] == ["layers.0", "layers.1"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no dump of estfx in JSON"),
        ('{"format": "estfx-graphs"}', "is no dump of estfx in JSON"),
    ],
)
def test_a_file_that_is_no_dump_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "graphs.json").write_text(text)
    with pytest.raises(EstfxError, match=said):
        estfx.load_graphs(tmp_path / "graphs.json")
    with pytest.raises(EstfxError, match="cannot be read"):
        estfx.load_graphs(tmp_path / "none.json")


@pytest.mark.parametrize(
    "name",
    [
        *("os:system", "builtins:exec", "subprocess:run", "math:__loader__.load_module", "operator:methodcaller"),
        *("operator:attrgetter", "torch:load", "torch:ops.load_library", "torch.utils.cpp_extension:load"),
        *("estfx.graphs.pass_files:write_graph", "autograd:os:system", "autograd:subprocess:Popen"),
        *("aten::from_file.default", "load_library::__globals__.get", "aten::__class__.__init__", "mine::attention.x"),
    ],
)
def test_a_file_may_call_nothing_but_what_computes(name: str, tmp_path: Path) -> None:
    text = written("json").replace("aten::silu.default", name)
    assert name in text
    (tmp_path / "graphs.json").write_text(text)
    with pytest.raises(EstfxError, match=r"the file calls .*|there is no (operator|function)"):
        estfx.load_graphs(tmp_path / "graphs.json")


def test_what_is_trusted_can_be_allowed(tmp_path: Path) -> None:
    text = written("json").replace("aten::silu.default", "torch.nn.functional:silu")
    (tmp_path / "graphs.json").write_text(text)
    with pytest.raises(EstfxError, match=r"pass allowed=\['torch.nn.functional:silu'\]"):
        estfx.load_graphs(tmp_path / "graphs.json")
    (graph,) = estfx.load_graphs(tmp_path / "graphs.json", allowed=["torch.nn.functional:silu"]).values()
    assert any(node.target is torch.nn.functional.silu for node in graph.graph.nodes)
    (tmp_path / "graphs.json").write_text(text.replace("torch.nn.functional:silu", "somewhere.else:function"))
    with pytest.raises(EstfxError, match="there is no function somewhere"):
        estfx.load_graphs(tmp_path / "graphs.json", allowed=["somewhere.else:function"])


def test_dot_and_svg() -> None:
    text = written("dot")
    assert text.startswith("digraph estfx {")
    assert 'label="residual branch 2 (neurons)"' in text
    declared = text.partition("subgraph")[0]  # what stands within a subgraph Netron does not read
    assert declared.count("fillcolor=") > 40
    assert '"k0/stream" -> ' in declared
    if shutil.which("dot") is None:
        pytest.skip("Graphviz is not installed")
    root = ElementTree.fromstring(written("svg"))
    assert root.tag.endswith("svg")
    assert len(root.findall(".//{*}g[@class='node']")) > 40


def test_svg_without_graphviz_names_it_and_what_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(EstfxError, match=r"program `dot`, which is not installed.*--format html needs no program"):
        written("svg")


def test_a_collection_for_model_explorer() -> None:
    (graph,) = json.loads(written("model-explorer"))["graphs"]
    ids = [node["id"] for node in graph["nodes"]]
    assert len(ids) == len(set(ids))
    for node in graph["nodes"]:
        assert {edge["sourceNodeId"] for edge in node["incomingEdges"]} <= set(ids)
    assert {node["namespace"] for node in graph["nodes"]} >= {"residual branch 1 (heads)", "weights"}


def test_refusals() -> None:
    with pytest.raises(EstfxError, match="there is no format 'htm'; did you mean 'html'"):
        written("htm")
    with pytest.raises(EstfxError, match="there is no pass 'narrow'; did you mean 'narrow-axes'"):
        written("text", after="narrow")
