"""What a user does with a transformed model, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_decoders import build, tokens
from torch import nn

import estfx
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage
from estfx.tracing.meta_run import NumbersHaveValues

SCHEDULE = Schedule(stages=[Stage(start=0, heads=0.5, neurons=0.5, layers=0.67), Stage(start=10)])


def evolving(name: str = "llama_grouped", **options: Any) -> nn.Module:
    return estfx.transform(build(name), SCHEDULE, **{"compile": False, "verify": False, **options})


def test_the_same_object_with_the_same_face() -> None:
    model = build("gpt2")
    cls, keys = type(model), list(model.state_dict())
    parameters = dict(model.named_parameters())
    same = estfx.transform(model, SCHEDULE, compile=False)
    assert same is model
    assert isinstance(model, cls)
    assert (type(model).__name__, type(model).__module__) == (cls.__name__, cls.__module__)
    assert list(model.state_dict()) == keys
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert isinstance(model, estfx.EvolvingModel)


def test_restore_leaves_no_trace() -> None:
    model = build("gpt2")
    before = {name: (type(module), sorted(vars(module))) for name, module in model.named_modules()}
    ids = tokens()
    want = model(input_ids=ids).logits
    estfx.transform(model, SCHEDULE, compile=False)
    model.set_step(0)
    model(input_ids=ids)
    assert estfx.restore(model) is model
    assert {name: (type(module), sorted(vars(module))) for name, module in model.named_modules()} == before
    assert torch.equal(model(input_ids=ids).logits, want)
    estfx.transform(model, SCHEDULE, compile=False)  # and it may be transformed again


def test_eval_is_the_original_whole_model() -> None:
    model = build("bloom").eval()
    ids = tokens()
    want = model(input_ids=ids).logits
    model = estfx.transform(model.train(), SCHEDULE, compile=False).eval()
    assert torch.equal(model(input_ids=ids).logits, want)
    model.set_step(0)
    assert torch.equal(model(input_ids=ids).logits, want)
    assert model(input_ids=ids).past_key_values is not None


def test_generate_uses_the_cache_of_the_whole_model() -> None:
    model = build("llama_grouped").eval()
    ids = tokens(batch=1, length=5)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    want = model.generate(ids, **options)
    model = estfx.transform(model, SCHEDULE, compile=False).eval()
    model.set_step(3)
    assert torch.equal(model.generate(ids, **options), want)


def test_save_pretrained_writes_an_ordinary_checkpoint(tmp_path: Any) -> None:
    from transformers import AutoModelForCausalLM

    model = evolving("gpt2")
    model.set_step(0)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded).__name__ == type(model).__name__
    assert not isinstance(loaded, estfx.EvolvingModel)
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])


def test_state_dict_survives_the_disk(tmp_path: Any) -> None:
    model = evolving("gpt2")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    twin = build("gpt2")
    twin.load_state_dict(torch.load(tmp_path / "weights.pt"))


def test_a_deep_copy_evolves_by_itself() -> None:
    model = evolving()
    model.set_step(0)
    twin = copy.deepcopy(model)
    assert twin.step == 0
    twin.set_step(10)
    assert (model.stage_index, twin.stage_index) == (0, 1)
    ids = tokens()
    twin(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is None for p in model.parameters())
    assert any(p.grad is not None for p in twin.parameters())
    assert {id(p) for p in model.parameters()}.isdisjoint(id(p) for p in twin.parameters())


def test_set_step_is_a_pure_function_of_the_step() -> None:
    first, second = evolving(), evolving()
    drawn = {}
    for step in (0, 1, 2, 7):
        first.set_step(step)
        drawn[step] = first.subnetwork
    for step in (7, 2, 0, 1, 1):
        second.set_step(step)
        kept = second.subnetwork
        assert kept.layers == drawn[step].layers
        for layer, units in kept.units.items():
            for role, index in units.items():
                assert torch.equal(index, drawn[step].units[layer][role])
    assert any(drawn[0].layers != drawn[s].layers for s in (1, 2, 7))


def test_another_seed_draws_another_subnetwork() -> None:
    draws = []
    for seed in (0, 1):
        model = evolving(seed=seed)
        model.set_step(0)
        draws.append([index.tolist() for units in model.subnetwork.units.values() for index in units.values()])
    assert draws[0] != draws[1]


def test_counts_are_exact_and_whole_stages_list_everything() -> None:
    model = evolving()
    model.set_step(4)
    kept = model.subnetwork
    assert sum(kept.layers.values()) == 2
    assert kept.units.keys() == {name for name, runs in kept.layers.items() if runs}
    assert all(len(u["heads"]) == 2 and len(u["neurons"]) == 28 for u in kept.units.values())
    model.set_step(10)
    assert all(model.subnetwork.layers.values())
    assert model.subnetwork.parameters() == {}
    assert all(u["heads"].tolist() == [0, 1, 2] for u in model.subnetwork.units.values())


def test_parameters_of_the_subnetwork_are_named_as_the_model_names_them() -> None:
    model = evolving()
    model.set_step(0)
    kept = model.subnetwork
    named = dict(model.named_parameters())
    narrowed = kept.parameters()
    assert narrowed.keys() <= named.keys()
    layer = next(name for name, runs in kept.layers.items() if runs)
    head_rows = narrowed[f"{layer}.self_attn.q_proj.weight"][0].reshape(-1, 16)  # a KV head has two query heads of 8
    assert (head_rows[:, 0] // 16).tolist() == kept.units[layer]["heads"].tolist()
    assert narrowed[f"{layer}.mlp.down_proj.weight"][1].tolist() == kept.units[layer]["neurons"].tolist()
    skipped = next(name for name, runs in kept.layers.items() if not runs)
    assert not any(name.startswith(f"{skipped}.") for name in narrowed)


def test_inverse_keep_scales_the_update_of_running_layers() -> None:
    plain = Schedule(stages=[Stage(start=0, layers=0.67)])
    scaled = plain.model_copy(update={"skipped_layers": "inverse_keep"})
    ids = tokens()
    embeddings = []
    for schedule in (plain, scaled):
        model = estfx.transform(build("llama"), schedule, compile=False, verify=False)
        model.set_step(0)
        seen: list[torch.Tensor] = []
        first = next(name for name, runs in model.subnetwork.layers.items() if runs)
        model.get_submodule(first).register_forward_hook(lambda m, a, out, seen=seen: seen.extend([a[0], out]))
        model(input_ids=ids)
        embeddings.append(seen)
    (x, y), (u, v) = embeddings
    assert torch.equal(x, u)
    torch.testing.assert_close(v - u, (y - x) * 3 / 2)  # two of three run


def test_skipped_layers_run_nothing_not_even_their_hooks() -> None:
    model = evolving()
    called: list[str] = []
    for name in model.report.layers:
        layer = model.get_submodule(name.name)
        layer.register_forward_pre_hook(lambda m, a, name=name.name: called.append(name))
    model.set_step(0)
    model(input_ids=tokens())
    assert called == [name for name, runs in model.subnetwork.layers.items() if runs]


def test_gradient_checkpointing_recomputes_the_same_subnetwork() -> None:
    ids = tokens()
    grads = []
    for checkpointing in (False, True):
        model = evolving()
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        model.set_step(2)
        model(input_ids=ids, labels=ids).loss.backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    for name, grad in grads[0].items():
        assert (grad is None) == (grads[1][name] is None)
        assert grad is None or torch.equal(grad, grads[1][name])


def test_a_new_signature_is_traced_once_for_all_layers(caplog: pytest.LogCaptureFixture) -> None:
    model = evolving()
    model.set_step(0)
    ids = tokens(batch=3)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0  # left padding: layers now get a mask tensor
    with caplog.at_level("INFO", logger="estfx"):
        for step in range(3):
            model.set_step(step)
            model(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
            model(input_ids=tokens(length=7 + step)).logits.sum().backward()  # another length alone traces nothing
    assert sum("new call signature" in record.message for record in caplog.records) == 1


def test_a_batch_of_one_and_other_lengths() -> None:
    model = evolving("bloom")
    twin = evolving("bloom")
    for batch, length in ((1, 9), (4, 5), (2, 31)):
        ids = tokens(batch, length)
        model.set_step(10)
        logits = model(input_ids=ids).logits
        assert torch.equal(logits, twin.eval()(input_ids=ids, use_cache=False).logits)


def test_autocast_narrows_as_it_runs_the_original() -> None:
    ids = tokens()
    model = build("llama")
    with torch.autocast("cpu", torch.bfloat16):
        want = model(input_ids=ids).logits
    model = estfx.transform(model, Schedule(stages=[Stage(start=0), Stage(start=1, heads=0.5)]), compile=False)
    model.set_step(0)
    with torch.autocast("cpu", torch.bfloat16):
        got = model(input_ids=ids).logits
    assert got.dtype == want.dtype == torch.bfloat16
    assert torch.equal(got, want)
    model.set_step(1)
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=ids, labels=ids).loss.backward()


def test_a_decoder_of_ones_own_needs_example_inputs() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(12, 30), nn.Linear(30, 12)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down(torch.relu(self.up(x))) + x

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block() for _ in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = block(x)
            return x

    with pytest.raises(estfx.TraceError, match="Pass example_inputs"):
        estfx.transform(Own(), SCHEDULE)
    model = estfx.transform(Own(), SCHEDULE, example_inputs=(torch.randn(3, 7, 12),), compile=False)
    assert [axis.role for axis in model.report.layers[0].axes] == ["neurons"]
    model.set_step(0)
    model(torch.randn(2, 5, 12)).sum().backward()


def test_a_transformed_model_can_be_looked_at() -> None:
    schedule = Schedule.est(150)
    model = build("gpt2")
    want = (estfx.inspect(model), estfx.plan(model, schedule, batch_size=2, seq_len=16), estfx.dump(model, schedule, 1))
    model = estfx.transform(model, schedule, compile=False, verify=False)
    got = (estfx.inspect(model), estfx.plan(model, schedule, batch_size=2, seq_len=16), estfx.dump(model, schedule, 1))
    assert got == want
    assert model.step is None
    assert sum(node.op == "call_module" for node in estfx.trace(model).outer.graph.nodes) == 3


# -- refusals ------------------------------------------------------------------------------------------------------


def test_training_before_set_step_is_refused() -> None:
    model = evolving()
    with pytest.raises(estfx.EstfxError, match=r"no step was set\. Call model\.set_step"):
        model(input_ids=tokens())
    with pytest.raises(estfx.EstfxError, match="no step was set"):
        _ = model.subnetwork
    model.eval()(input_ids=tokens())


@pytest.mark.parametrize("step", [-1, 1.5, "3", None, True])
def test_a_step_that_is_none_is_refused(step: Any) -> None:
    with pytest.raises(estfx.ScheduleError, match="step"):
        evolving().set_step(step)


def test_transforming_twice_and_restoring_twice_are_refused() -> None:
    model = evolving()
    with pytest.raises(estfx.EstfxError, match=r"transformed already\. Call estfx\.restore"):
        estfx.transform(model, SCHEDULE)
    estfx.restore(model)
    with pytest.raises(estfx.EstfxError, match="not transformed"):
        estfx.restore(model)


def test_restoring_what_something_else_has_changed_since_is_refused() -> None:
    model = evolving()
    layer = model.get_submodule(model.report.layers[0].name)
    layer.__class__ = type(type(layer).__name__, (type(layer),), {})
    with pytest.raises(estfx.EstfxError, match="changed again after transform"):
        estfx.restore(model)
    assert isinstance(model, estfx.EvolvingModel)


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(estfx.UnsupportedModelError, match="no layers found in `Sequential`"):
        estfx.transform(nn.Sequential(nn.Linear(4, 4)), SCHEDULE, example_inputs=(torch.randn(2, 3, 4),))


def test_a_model_in_which_nothing_can_be_narrowed_is_refused() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sin(x * self.weight)

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Scale(), Scale()])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = block(x)
            return x

    with pytest.raises(
        estfx.UnsupportedModelError, match="nothing in the 2 layers of `Own` can be narrowed or skipped"
    ):
        estfx.transform(Own(), SCHEDULE, example_inputs=(torch.randn(2, 3, 6),))


def test_what_is_no_model_and_what_is_no_schedule_are_refused() -> None:
    with pytest.raises(estfx.UnsupportedModelError, match=r"takes an nn\.Module, not a dict"):
        estfx.transform({}, SCHEDULE)
    with pytest.raises(estfx.ScheduleError, match="schedule is a dict"):
        estfx.transform(build("gpt2"), {"stages": []})


def test_attention_weights_of_a_part_are_refused() -> None:
    model = evolving()
    model.set_step(0)
    with pytest.raises(estfx.EstfxError, match="output_attentions"):
        model(input_ids=tokens(), output_attentions=True)


def test_attention_weights_are_refused_as_the_configuration_and_then_the_call_ask_for_them() -> None:
    model = build("llama_grouped", attn_implementation="eager")
    estfx.transform(model, SCHEDULE, compile=False, verify=False).set_step(0)
    model.config.output_attentions = True
    with pytest.raises(estfx.EstfxError, match="output_attentions"):
        model(input_ids=tokens())
    model(input_ids=tokens(), output_attentions=False)


def test_a_kv_cache_while_training_runs_the_whole_layer_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = evolving()
    model.set_step(10)
    model(input_ids=tokens(), use_cache=True)
    assert sum("KV cache" in record.message for record in caplog.records) == 1


@pytest.mark.sweep(day=1, days=2)
def test_a_model_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = build("llama_grouped", num_hidden_layers=2)
    model = estfx.transform(model, SCHEDULE, compile=False)
    model.set_step(0)
    with NumbersHaveValues():  # transformers looks at its masks
        model(input_ids=tokens().to("meta"), labels=tokens().to("meta")).loss.backward()
    assert [axis.role for axis in model.report.layers[0].axes] == [
        axis.role for axis in estfx.inspect(build("llama_grouped", num_hidden_layers=2)).layers[0].axes
    ]


def test_kept_units_may_be_taken_as_they_are() -> None:
    """Without the factor a narrowed layer is the original in which the other units' weights are zero."""
    model = build("llama_grouped").double()
    whole = copy.deepcopy(model)
    schedule = Schedule(stages=[Stage(start=0, heads=0.5, neurons=0.5)], kept_units="as_is")
    model = estfx.transform(model, schedule, compile=False).train()
    model.set_step(3)
    ids = tokens()
    closing = ("o_proj.weight", "down_proj.weight")
    for name, dims in model.subnetwork.parameters().items():
        if name.endswith(closing):
            weight = whole.get_parameter(name).data
            dropped = torch.ones(weight.shape[1], dtype=torch.bool)
            dropped[dims[1]] = False
            weight[:, dropped] = 0.0
    torch.testing.assert_close(model(input_ids=ids).logits, whole(input_ids=ids).logits, rtol=1e-10, atol=1e-10)
