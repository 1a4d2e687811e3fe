"""Compilations are kinds × stages, whatever the depth, and nothing compiles again."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_decoders import build, tokens
from torch._dynamo.utils import counters

import estfx
from estfx.programs import compilation
from estfx.programs.recompute_gathers import RecomputeGathers
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage

STAGES = Schedule(
    stages=[
        Stage(start=0, heads=0.5, neurons=0.5, layers=0.5),
        Stage(start=100, heads=0.5, neurons=0.5),
        Stage(start=190),
    ]
)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()
    counters.clear()


def compilations() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.mark.sweep("name", days=2)
@pytest.mark.parametrize("name", ["gpt2", "llama_grouped"])
def test_one_compilation_for_each_kind_and_width_over_200_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    model = estfx.transform(build(name, **({"n_layer": 12} if name == "gpt2" else {"num_hidden_layers": 12})), STAGES)
    for step in range(200):
        model.set_step(step)
        ids = tokens(seed=step)
        model(input_ids=ids, labels=ids).loss.backward()
        outside = 1 if name == "gpt2" else 2  # the loss, and a norm of several operations
        want = outside + (1 if step < 190 else 2)  # two widths: the first two stages have the same
        assert compilations() == want, step


@pytest.mark.sweep(day=1, days=3)
def test_compiled_programs_compute_what_uncompiled_ones_do() -> None:
    ids = tokens()
    results = []
    for compiled in (False, True):
        model = estfx.transform(build("llama_grouped"), STAGES, compile=compiled)
        for step in (3, 193):  # the stages between have the widths of the first
            model.set_step(step)
            model.zero_grad()
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            results.append((loss.item(), {n: p.grad for n, p in model.named_parameters()}))
    for (loss, grads), (compiled_loss, compiled_grads) in zip(results[:2], results[2:], strict=True):
        assert compiled_loss == pytest.approx(loss, rel=1e-5)
        for name, grad in grads.items():
            assert (grad is None) == (compiled_grads[name] is None)
            if grad is not None:
                torch.testing.assert_close(compiled_grads[name], grad, rtol=1e-3, atol=1e-6)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")


def trained(model: Any, step: int, ids: torch.Tensor) -> float:
    model.set_step(step)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    value: float = loss.item()
    return value


@pytest.mark.sweep(day=0, days=2)
@pytest.mark.usefixtures("quick")
def test_after_a_warm_up_no_stage_and_no_known_length_compiles_anything(caplog: pytest.LogCaptureFixture) -> None:
    model = estfx.transform(build("gpt2"), STAGES)
    short, long = tokens(length=12), tokens(length=20)
    for ids in (short, long):
        model.warmup(input_ids=ids, labels=ids)
    made = compilations()
    for step in (0, 1, 2, 100, 101, 102, 190, 191):
        for ids in (short, long):
            trained(model, step, ids)
    assert compilations() == made
    assert not caplog.records


@pytest.mark.usefixtures("quick")
def test_a_warm_up_leaves_no_trace() -> None:
    ids = tokens()
    model = estfx.transform(build("gpt2", resid_pdrop=0.1), STAGES)
    twin = copy.deepcopy(model)
    trained(model, 3, ids)
    trained(twin, 3, ids)
    kept, random_numbers = model.subnetwork, torch.get_rng_state()
    before = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.warmup(input_ids=ids, labels=ids)
    assert torch.equal(torch.get_rng_state(), random_numbers)
    assert (model.step, model.stage_index, model.subnetwork.layers) == (3, 0, kept.layers)
    after = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    torch.manual_seed(0)
    one = trained(model, 4, ids)
    torch.manual_seed(0)
    assert trained(twin, 4, ids) == one


@pytest.mark.sweep(day=0, days=2)
@pytest.mark.usefixtures("quick")
def test_a_warm_up_before_the_first_step_leaves_none_set() -> None:
    ids = tokens()
    model = estfx.transform(build("gpt2"), STAGES)
    model.warmup(input_ids=ids)
    assert model.step is None
    with pytest.raises(estfx.EstfxError, match="no step was set"):
        model(input_ids=ids)
    with pytest.raises(estfx.EstfxError, match="eval mode"):
        model.eval().warmup(input_ids=ids)


@pytest.mark.sweep(day=1, days=2)
@pytest.mark.usefixtures("quick")
def test_a_recompilation_is_told_once_with_its_cause(caplog: pytest.LogCaptureFixture) -> None:
    model = estfx.transform(build("gpt2"), STAGES)
    with caplog.at_level(logging.WARNING):
        for length in (12, 20, 24, 12):
            trained(model, 0, tokens(length=length))
    program, loss = (record.getMessage() for record in caplog.records if "compiled again" in record.getMessage())
    assert program.startswith("the program of GPT2Block was compiled again: ")
    assert "`stream` is float32[2, 20, " in program
    assert "was float32[2, 12, " in program
    assert loss.startswith("the loss ForCausalLMLoss was compiled again: `logits` is float32[2, 20, ")


@pytest.mark.usefixtures("quick")
def test_the_loss_is_compiled_in_training_only() -> None:
    ids = tokens()
    plain = build("gpt2")
    function = plain.loss_function
    want = copy.deepcopy(plain)(input_ids=ids, labels=ids).loss.item()
    model = estfx.transform(plain, STAGES)
    assert model.loss_function is not function
    assert trained(model, 190, ids) == pytest.approx(want, rel=1e-6)
    assert model.eval().loss_function is function
    assert estfx.transform(build("gpt2"), STAGES, compile_outside=False).loss_function is function
    assert estfx.restore(model.train()).loss_function is function


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "fastest"}, "unknown mode 'fastest'.*known are default, "),
        ({"mode": "default", "options": {}}, "either a mode or options"),
        ({"options": {"no_such": 1}}, "no option no_such"),
        ({"compile": False, "mode": "default"}, "compile=False was asked for"),
    ],
)
def test_what_torch_compile_does_not_take_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(estfx.EstfxError, match=said):
        estfx.transform(build("gpt2"), STAGES, **options)


@pytest.mark.sweep(day=1, days=2)
def test_options_reach_the_compiler() -> None:
    options = {"max_autotune": False, "epilogue_fusion": False}
    model = estfx.transform(build("gpt2", n_layer=1), STAGES, options=options, compile_outside=False)
    given = model._runtime.compiler.given["options"]
    assert isinstance(given.pop("joint_custom_post_pass"), RecomputeGathers)
    assert given == {"max_autotune": False, "epilogue_fusion": False}
    trained(model, 0, tokens())


@pytest.mark.parametrize("several", [False, True])
def test_a_pass_of_ones_own_runs_first(several: bool) -> None:
    seen: list[int] = []

    def own(graph: torch.fx.Graph) -> None:
        seen.append(sum(n.meta.get("recompute") is not None for n in graph.nodes))

    passes = {"joint_custom_post_pass": [own] if several else own}
    model = estfx.transform(build("gpt2", n_layer=1), STAGES, options=passes, compile_outside=False)
    given = model._runtime.compiler.given["options"]["joint_custom_post_pass"]
    assert given.uuid() is None  # a function may do anything: what it gave is not looked up
    graph = torch.fx.Graph()
    weight, index = graph.placeholder("w"), graph.placeholder("i")
    graph.call_function(torch.ops.aten.index_select.default, (weight, 0, index))
    given(graph)
    assert seen == [0]
    assert sum(n.meta.get("recompute") is not None for n in graph.nodes) == 1


def test_a_mode_reaches_the_compiler() -> None:
    model = estfx.transform(build("gpt2"), STAGES, mode="max-autotune-no-cudagraphs")
    given = model._runtime.compiler.given["options"]
    assert torch._inductor.list_mode_options("max-autotune-no-cudagraphs").items() <= given.items()


@pytest.mark.sweep(day=0, days=3)
def test_gathered_weights_are_not_kept_for_the_backward_pass() -> None:
    """They are gathered again: what is saved, beside whole weights, grows with the number of tokens."""

    def saved(length: int) -> int:
        model = estfx.transform(build("llama_grouped", num_hidden_layers=1), STAGES, compile_outside=False)
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        found: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own and tensor.is_floating_point():
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        model.set_step(100)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = model(input_ids=tokens(batch=1, length=length)).logits.sum()
        loss.backward()
        return sum(found.values())

    one, two, three = (saved(length) for length in (16, 32, 48))
    assert three - two == two - one > 0
    assert one - (two - one) < 100  # bytes that do not


@pytest.mark.sweep(day=0, days=4)
def test_compiled_programs_are_saved_and_loaded(tmp_path: Path) -> None:
    with pytest.raises(estfx.EstfxError, match="cannot be read"):
        estfx.load_compiled(tmp_path / "none")
    (tmp_path / "damaged").write_bytes(b"no artifacts")
    with pytest.raises(estfx.EstfxError, match="holds nothing"):
        estfx.load_compiled(tmp_path / "damaged")
    trained(estfx.transform(build("gpt2"), STAGES), 0, tokens())
    assert estfx.save_compiled(tmp_path / "compiled") > 1000
    torch._dynamo.reset()
    estfx.load_compiled(tmp_path / "compiled")
    counters.clear()
    trained(estfx.transform(build("gpt2"), STAGES), 0, tokens())
    assert counters["inductor"]["fxgraph_cache_hit"] + counters["aot_autograd"]["autograd_cache_hit"] > 0
