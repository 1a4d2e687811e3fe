"""Adapters put into a model before it is transformed, after it, and taken out again."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hand_written import HIDDEN, NEURONS, Residual, Stack, stream
from tiny_decoders import build, tokens
from torch import nn

import estfx
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage
from estfx.tracing.effects import frozen
from estfx.tracing.layer_structure import Snapshot, changed_places, changes

SCHEDULE = Schedule(stages=[Stage(start=0, heads=0.6, neurons=0.5), Stage(start=10)])
NARROW, WHOLE = 0, 10  # steps
X = (stream(),)


class Adapter(nn.Module):
    """A low-rank update beside a frozen linear module, as LoRA has it; `merged` puts it into the weight."""

    def __init__(self, base: nn.Linear, rank: int = 3) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Linear(base.in_features, rank, bias=False)
        self.b = nn.Linear(rank, base.out_features, bias=False)
        self.merged: list[str] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.base(x)
        return y if self.merged else y + self.b(self.a(x)) * 0.5

    def merge(self) -> None:
        self.base.weight.data += self.b.weight.data @ self.a.weight.data * 0.5
        self.merged.append("a")


def adapted(model: nn.Module, seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    for layer in model.layers:
        layer.up = Adapter(layer.up)
    return model.requires_grad_(False).apply(lambda m: m.requires_grad_() if isinstance(m, nn.Linear) else None)


def frozen_base(model: nn.Module) -> nn.Module:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".a." in name or ".b." in name)
    return model


def two_layers() -> nn.Module:
    torch.manual_seed(0)
    return Stack(Residual(), Residual())


def evolving(model: nn.Module, **options: Any) -> nn.Module:
    return estfx.transform(model, SCHEDULE, **{"example_inputs": X, "compile": False, **options})


def gradients(model: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    y = model(*X)
    y.square().mean().backward()
    return y.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_whole_is(model: nn.Module, twin: nn.Module, step: int = WHOLE) -> None:
    model.set_step(step)
    (y, grads), (want_y, want_grads) = gradients(model), gradients(twin)
    assert torch.equal(y, want_y)
    assert grads.keys() == want_grads.keys()
    assert [name for name in grads if not torch.equal(grads[name], want_grads[name])] == []


def test_adapters_that_were_there_before() -> None:
    model = frozen_base(adapted(two_layers()))
    twin = copy.deepcopy(model)
    evolving(model)
    assert [(axis.role, axis.size) for axis in model.report.layers[0].axes] == [("neurons", NEURONS)]
    assert_whole_is(model, twin)
    model.set_step(NARROW)
    assert gradients(model)[1].keys() == gradients(twin)[1].keys()


def test_heads_and_neurons_narrow_through_adapters_whose_rank_stays_whole() -> None:
    model = build("llama_grouped")
    plain = {axis.role: axis.size for axis in estfx.inspect(model).layers[0].axes}
    for layer in model.model.layers:
        layer.self_attn.o_proj = Adapter(layer.self_attn.o_proj, rank=4)
        layer.mlp.down_proj = Adapter(layer.mlp.down_proj, rank=4)
    estfx.transform(model, Schedule(stages=[Stage(start=0, heads=0.5, neurons=0.5)]), compile=False)
    found = model.report.layers[0]
    assert {axis.role: axis.size for axis in found.axes} == plain
    assert "mlp.down_proj.a.weight" in next(axis.parameters for axis in found.axes if axis.role == "neurons")
    assert all("rank of two linear maps" in note for note in found.notes)
    assert len(found.notes) == 2


def test_adapters_put_in_afterwards_are_trained_and_may_be_merged_and_taken_out() -> None:
    model = evolving(two_layers())
    twin = frozen_base(adapted(two_layers()))
    model.set_step(NARROW)
    drawn = {name: units["neurons"] for name, units in model.subnetwork.units.items()}
    frozen_base(adapted(model))
    assert_whole_is(model, twin)

    model.set_step(NARROW)  # what is drawn stays, and the adapters are narrowed with it
    kept = model.subnetwork
    _, grads = gradients(model)
    for name, units in drawn.items():
        assert torch.equal(kept.units[name]["neurons"], units)
        assert torch.equal(kept.parameters()[f"{name}.up.b.weight"][0], units)
        dropped = torch.ones(NEURONS, dtype=torch.bool)
        dropped[units] = False
        assert not grads[f"{name}.up.b.weight"][dropped].any()
        assert grads[f"{name}.up.b.weight"][units].any()

    for each in (model, twin):
        for layer in each.layers:
            layer.up.merge()
            layer.down.requires_grad_()
    assert_whole_is(model, twin, WHOLE + 1)
    for each in (model, twin):
        for layer in each.layers:
            layer.up = layer.up.base
    assert_whole_is(model, twin, WHOLE + 2)


def test_a_change_is_traced_once_for_all_layers_and_goes_back_without_tracing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = evolving(two_layers())
    model.set_step(WHOLE)
    model(*X)
    with caplog.at_level("INFO", logger="estfx"):
        for step in range(3):
            bases = [layer.up for layer in model.layers]
            adapted(model)
            model.set_step(WHOLE + 2 * step)
            model(*X)
            for layer, base in zip(model.layers, bases, strict=True):
                layer.up = base
            model.set_step(WHOLE + 2 * step + 1)
            model(*X)
    assert sum("anew, since it was changed: up, up.a, up.b, up.base" in r.message for r in caplog.records) == 1
    assert not any("new call signature" in record.message for record in caplog.records)


def test_a_change_within_a_step_is_noticed_where_it_takes_weights_away() -> None:
    model = evolving(two_layers())
    twin = adapted(two_layers())
    model.set_step(WHOLE)
    adapted(model)
    assert torch.equal(model(*X), twin(*X))


def test_only_some_layers_may_be_changed() -> None:
    model, twin = evolving(two_layers()), two_layers()
    for each in (model, twin):
        torch.manual_seed(1)
        each.layers[1].up = Adapter(each.layers[1].up)
    assert_whole_is(model, twin)


def test_parameters_of_a_changed_layer_are_known_after_a_call() -> None:
    model = evolving(two_layers())
    adapted(model)
    model.set_step(NARROW)
    with pytest.raises(estfx.EstfxError, match=r"layer `layers\.0` was changed since .* Call the model once"):
        model.subnetwork.parameters()
    model(*X)
    assert "layers.0.up.b.weight" in model.subnetwork.parameters()


def test_refusal_of_a_change_that_takes_an_axis_away() -> None:
    class Normed(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base = base

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base(x).sort(dim=-1).values

    model = evolving(two_layers())
    for layer in model.layers:
        layer.up = Normed(layer.up)
    model.set_step(NARROW)
    message = rf"of kind Residual was changed since transform, and its neurons \({NEURONS}\) cannot be narrowed now: .*"
    with pytest.raises(estfx.TraceError, match=message + r"Call estfx\.restore\(model\)"):
        model(*X)
    estfx.restore(model)
    model(*X)


def test_what_is_found_after_a_change_is_verified() -> None:
    class Divides(nn.Module):
        """By what is kept: a part that is scaled besides would be twice the whole."""

        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base = base

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base(x).softmax(dim=-1)

    for verify in (True, False):
        model = estfx.transform(two_layers(), SCHEDULE, example_inputs=X, compile=False, verify=verify)
        for layer in model.layers:
            layer.up = Divides(layer.up)
        model.set_step(NARROW)
        if verify:
            with pytest.raises(estfx.TraceError, match=rf"its neurons \({NEURONS}\) cannot be narrowed now"):
                model(*X)
        else:
            model(*X)


def test_a_copy_sees_its_own_changes() -> None:
    model = evolving(two_layers())
    twin = copy.deepcopy(model)
    adapted(twin)
    for each in (model, twin):
        each.set_step(WHOLE)
    assert torch.equal(model(*X), two_layers()(*X))
    assert torch.equal(twin(*X), adapted(two_layers())(*X))


# -- what is a change ----------------------------------------------------------------------------------------------


def switch(layer: nn.Module) -> None:
    layer.up.slope = 0.5


def register(layer: nn.Module) -> None:
    layer.up.register_buffer("seen", torch.zeros(2))


def parametrise(layer: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(layer.up)


def fill(layer: nn.Module) -> None:
    layer.names.append("b")


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (switch, ["up"]),
        (register, ["up"]),
        (fill, [""]),
        (parametrise, ["up", "up.parametrizations", "up.parametrizations.weight"]),
        (lambda layer: setattr(layer, "up", Adapter(layer.up)), ["up", "up.a", "up.b", "up.base"]),
    ],
)
def test_what_is_a_change(change: Any, where: list[str]) -> None:
    layer = Residual()
    layer.names = ["a"]
    before = Snapshot(layer, "layers.0")
    assert before.same()
    change(layer)
    assert not before.same()
    after = Snapshot(layer, "layers.0")
    assert changed_places(changes(before.structure, after.structure))[: len(where)] == where
    assert after.same()


@pytest.mark.parametrize("keep", ["weights", "mode", "dtype", "gradients"])
def test_what_is_none(keep: str) -> None:
    layer = Residual()
    before = Snapshot(layer, "layers.0")
    if keep == "weights":
        layer.up.weight = nn.Parameter(torch.zeros(NEURONS, HIDDEN))
    elif keep == "mode":
        layer.eval()
    elif keep == "dtype":
        layer.double()
    else:
        layer.requires_grad_(False)
    assert changes(before.structure, Snapshot(layer, "layers.0").structure) == frozenset()


# -- the real thing ------------------------------------------------------------------------------------------------


def of_language_model(model: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    ids = tokens()
    output = model(input_ids=ids, labels=ids, use_cache=False)
    output.loss.backward()
    return output.logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.sweep(day=1, days=2)
@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers for an attribute by its old name
def test_peft() -> None:
    peft = pytest.importorskip("peft")
    options = {"r": 4, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.0, "init_lora_weights": False}
    model = build("llama_grouped", num_hidden_layers=2)
    torch.manual_seed(1)
    twin = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**options))
    estfx.transform(model, SCHEDULE, compile=False, verify=True)
    torch.manual_seed(1)
    outside = peft.get_peft_model(model, peft.LoraConfig(**options))

    def equal(step: int, one: nn.Module, other: nn.Module) -> None:
        model.set_step(step)
        (logits, grads), (want_logits, want_grads) = of_language_model(one), of_language_model(other)
        assert torch.equal(logits, want_logits)
        assert grads.keys() == want_grads.keys()
        assert [name for name in grads if not torch.equal(grads[name], want_grads[name])] == []

    equal(WHOLE, outside, twin)
    model.set_step(NARROW)
    assert of_language_model(outside)[1].keys() == of_language_model(twin)[1].keys()
    plain, other = outside.merge_and_unload(), twin.merge_and_unload()
    assert plain is model
    equal(WHOLE + 1, plain.requires_grad_(), other.requires_grad_())


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers for an attribute by its old name
def test_adapters_of_peft_are_traced_once_for_all_layers(caplog: pytest.LogCaptureFixture) -> None:
    peft = pytest.importorskip("peft")
    model = estfx.transform(build("gpt2"), SCHEDULE, compile=False)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["c_fc"], fan_in_fan_out=True))
    with caplog.at_level("INFO", logger="estfx"):
        for step in (NARROW, WHOLE):
            model.set_step(step)
            wrapped(input_ids=tokens(), labels=tokens()).loss.backward()
    anew = [record.getMessage() for record in caplog.records if " anew, since it was changed: " in record.getMessage()]
    assert len(model.report.layers) > 1
    assert len(anew) == 1


def test_devices_and_dtypes_are_compared_by_what_they_are() -> None:
    """Each adapter of PEFT holds a device of its own, which is the same one."""
    assert frozen(torch.device("cpu")) == frozen(torch.device("cpu")) != frozen(torch.device("meta"))
    assert frozen(torch.device("cpu")) is not None
    assert frozen(torch.float32) != frozen(torch.float16)
