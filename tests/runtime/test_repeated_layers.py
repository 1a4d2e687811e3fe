"""Layers that the model calls more than once: each call is skipped by itself, and all share the module's units."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from foreign_decoders import Around, InList, Universal, tied_between_layers
from hand_written import HEADS, HIDDEN, NEURONS, VOCABULARY, Mlp, PreNorm
from torch import nn
from torch.utils.checkpoint import checkpoint

import estfx
from estfx.runtime import numbers_left_out
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage, kept_count

SCHEDULE = Schedule(
    stages=[Stage(start=0, heads=0.5, neurons=0.5, layers=0.5), Stage(start=10, heads=0.4), Stage(start=20)]
)
IDS = torch.randint(VOCABULARY, (3, 17), generator=torch.Generator().manual_seed(0))


def evolving(model: nn.Module, **options: Any) -> Any:
    return estfx.transform(model, SCHEDULE, **{"example_inputs": (IDS,), "compile": False, **options})


def gradients(model: nn.Module, ids: torch.Tensor = IDS) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    logits = model(ids)
    logits.square().sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@contextmanager
def only(linear: nn.Linear, kept: torch.Tensor, units: int) -> Iterator[None]:
    """Within it a linear map sees only the kept units of its input, scaled by total / kept."""
    mask = torch.zeros(units, linear.in_features // units, dtype=torch.float64)
    mask[kept] = units / len(kept)
    handle = linear.register_forward_pre_hook(lambda _, args: (args[0] * mask.reshape(-1),))
    yield
    handle.remove()


class Masked(PreNorm):
    """A layer of the original model that is told, call by call, whether it runs and what it keeps."""

    def __init__(self, layer: nn.Module, runs: list[bool], units: list[dict[str, torch.Tensor]]) -> None:
        super().__init__(layer.attention, layer.mlp)
        self.norm_1, self.norm_2 = layer.norm_1, layer.norm_2
        self.runs, self.units = iter(runs), iter(units)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not next(self.runs):
            return x
        kept = next(self.units)
        with only(self.attention.out, kept["heads"], HEADS), only(self.mlp.down, kept["neurons"], NEURONS):
            return super().forward(x)


@pytest.mark.parametrize("step", [0, 1, 2, 11])
@pytest.mark.parametrize("build", [lambda: Universal(2, 3), lambda: InList(*[PreNorm()] * 4), tied_between_layers])
def test_a_subnetwork_is_the_masked_whole(build: Any, step: int) -> None:
    model = build().double()
    twin = copy.deepcopy(model)
    model = evolving(model)
    model.set_step(step)
    logits, grads = gradients(model)
    kept = model.subnetwork
    paths = list(dict.fromkeys(name.partition("#")[0] for name in kept.layers))
    masked = {}
    for path in paths:
        calls = [name for name in kept.layers if name.partition("#")[0] == path]
        units = [kept.units[name] for name in calls if kept.layers[name]]
        masked[id(twin.get_submodule(path))] = Masked(twin.get_submodule(path), [kept.layers[n] for n in calls], units)
    names = {id(p): name for name, p in twin.named_parameters()}
    twin.layers = nn.ModuleList(masked[id(layer)] for layer in twin.layers)
    want = twin(IDS)
    want.square().sum().backward()
    want_grads = {names[id(p)]: p.grad for p in twin.parameters() if p.grad is not None}
    assert torch.allclose(logits, want, rtol=1e-10, atol=1e-10)
    assert grads.keys() == want_grads.keys()
    largest = max(g.abs().max() for g in want_grads.values())
    for name, grad in grads.items():
        assert (grad - want_grads[name]).abs().max() <= 1e-10 * largest, name


def test_calls_share_their_modules_units_and_are_skipped_by_themselves() -> None:
    model = evolving(Universal(2, 3), verify=False)
    mixed = 0
    for step in range(8):
        model.set_step(step)
        kept = model.subnetwork
        assert sum(kept.layers.values()) == 3
        for path in ("layers.0", "layers.1"):
            running = [name for name, runs in kept.layers.items() if runs and name.partition("#")[0] == path]
            assert len({str(kept.units[name]) for name in running}) <= 1
            mixed += 0 < len(running) < 3
    assert mixed
    assert {len(units["heads"]) for units in model.subnetwork.units.values()} == {kept_count(HEADS, 0.5)}


def test_parameters_are_listed_if_any_call_runs() -> None:
    model = evolving(Universal(2, 3), verify=False)
    for step in range(8):
        model.set_step(step)
        running = {name.partition("#")[0] for name, runs in model.subnetwork.layers.items() if runs}
        listed = {".".join(name.split(".")[:2]) for name in model.subnetwork.parameters()}
        assert listed == running


def test_a_tied_parameter_is_listed_in_each_layer_with_its_own_draw() -> None:
    model = evolving(tied_between_layers(), verify=False)
    model.set_step(11)  # heads alone are narrowed, all layers run
    assert not any("mlp" in name for name in model.subnetwork.parameters())
    numbers = set()
    for step in range(8):
        model.set_step(step)
        kept = model.subnetwork
        listed = kept.parameters()
        for name in ("layers.0", "layers.1"):
            if kept.layers[name]:
                assert listed[f"{name}.mlp.up.weight"][0].tolist() == kept.units[name]["neurons"].tolist()
            else:
                assert f"{name}.mlp.up.weight" not in listed
        numbers.add(sum(kept.layers[name] for name in ("layers.0", "layers.1")))
    assert {1, 2} <= numbers


def test_of_a_tied_parameter_an_optimizer_leaves_alone_what_no_layer_keeps() -> None:
    schedule = SCHEDULE.model_copy(update={"idle_units": "left_alone"})
    model: Any = estfx.transform(tied_between_layers(), schedule, example_inputs=(IDS,), compile=False, verify=False)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.5)
    tied = model.layers[0].mlp.up.weight
    for step in range(8):
        model.set_step(step)
        before = tied.detach().clone()
        model(torch.randint(101, (2, 7))).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        kept = model.subnetwork
        used = {unit for n in ("layers.0", "layers.1") if kept.layers[n] for unit in kept.units[n]["neurons"].tolist()}
        changed = {row for row in range(len(tied)) if not torch.equal(tied[row], before[row])}
        assert changed == used


def test_of_a_tied_parameter_that_is_left_out_which_no_layer_reads() -> None:
    schedule = Schedule(stages=[Stage(start=0, layers=0.5)])
    model: Any = estfx.transform(tied_between_layers(), schedule, example_inputs=(IDS,), compile=False, verify=False)
    for step in range(4):
        model.set_step(step)
        read = gradients(model)[1]
        left = sum(p.numel() for name, p in model.named_parameters() if name.startswith("layers.") and name not in read)
        assert numbers_left_out(model) == left > 0


def test_a_parameter_with_a_use_outside_of_the_layers_is_not_listed() -> None:
    class Outside(InList):
        def __init__(self) -> None:
            super().__init__(PreNorm(), PreNorm())
            self.extra = Mlp()
            self.extra.up.weight = self.layers[0].mlp.up.weight

        def run(self, x: torch.Tensor) -> torch.Tensor:
            return super().run(x) + self.extra(x)

    model = evolving(Outside(), verify=False)
    listed = []
    for step in range(4):
        model.set_step(step)
        listed += list(model.subnetwork.parameters())
    assert "layers.0.mlp.up.bias" in listed
    assert not any(name.endswith("0.mlp.up.weight") for name in listed)


# -- which call it is ----------------------------------------------------------------------------------------------


class Checkpointed(Universal):
    reentrant: bool | None = None  # None: no checkpointing

    def run(self, x: torch.Tensor) -> torch.Tensor:
        if self.reentrant is None:
            return super().run(x)
        for _ in range(self.rounds):
            for layer in self.layers:
                x = checkpoint(layer, x, use_reentrant=self.reentrant)
        return x


@pytest.mark.parametrize(("reentrant", "steps"), [(False, (0, 1, 2, 11)), (True, (11, 12))])
def test_recomputed_calls_are_neither_counted_nor_skipped(reentrant: bool, steps: tuple[int, ...]) -> None:
    model, twin = Universal(2, 3).double(), Checkpointed(2, 3).double()
    twin.load_state_dict(model.state_dict())
    model, twin = evolving(model, verify=False), evolving(twin, verify=False)
    twin.reentrant = reentrant
    for step in steps:
        model.set_step(step)
        twin.set_step(step)
        logits, grads = gradients(model)
        new_logits, new_grads = gradients(twin)
        assert torch.equal(logits, new_logits)
        assert grads.keys() == new_grads.keys()
        for name, grad in grads.items():  # the gradients of the calls are added up in another order
            assert (grad - new_grads[name]).abs().max() <= 1e-12 * grad.abs().max(), name


def test_reentrant_checkpointing_of_a_layer_is_skipped_with_it() -> None:
    model, twin = Universal(4, 1).double(), Checkpointed(4, 1).double()
    twin.load_state_dict(model.state_dict())
    model, twin = evolving(model, verify=False), evolving(twin, verify=False)
    twin.reentrant = True
    for step in (0, 1, 2):
        model.set_step(step)
        twin.set_step(step)
        grads, new_grads = gradients(model)[1], gradients(twin)[1]
        assert grads.keys() == new_grads.keys()
        assert all(torch.equal(grads[name], new_grads[name]) for name in grads)


def test_reentrant_checkpointing_is_refused_where_some_calls_of_a_layer_are_skipped() -> None:
    model = evolving(Checkpointed(1, 2), verify=False)
    model.reentrant = True
    model.set_step(0)
    with pytest.raises(estfx.EstfxError, match=r"Pass use_reentrant=False to torch\.utils\.checkpoint\.checkpoint\."):
        gradients(model)


class Depth(Universal):
    """Another number of rounds than at first."""

    def forward(self, ids: torch.Tensor, rounds: int = 2) -> torch.Tensor:
        self.rounds = rounds
        return super().forward(ids)


def test_more_calls_than_on_the_example_inputs_are_refused_while_layers_are_skipped() -> None:
    model = evolving(Depth(2), verify=False)
    assert len(model.report.layers) == 4
    model.set_step(0)
    model(IDS)
    with pytest.raises(
        estfx.EstfxError,
        match=r"layer `layers\.0` is called 3 times in one forward, but on the example inputs it was called 2 times",
    ):
        model(IDS, rounds=3)
    model(IDS)  # and the next forward counts from one
    model.set_step(10)
    model(IDS, rounds=3)
    model.set_step(20)
    want = copy.deepcopy(model).eval()(IDS, rounds=5)
    assert torch.equal(model(IDS, rounds=5), want)


def test_every_forward_counts_from_one_even_where_a_part_of_the_model_is_called() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = Universal(1, 3)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.decoder(ids)

    model = evolving(Whole(), verify=False)
    model.set_step(0)
    want = model(IDS)
    for _ in range(2):
        assert torch.equal(model.decoder(IDS), want)
        assert torch.equal(model(IDS), want)


class Rounded(PreNorm):
    """Takes the number of the round, which changes what it computes."""

    def forward(self, x: torch.Tensor, number: int = 0, bias: torch.Tensor | None = None) -> torch.Tensor:  # type: ignore[override]
        x = x + self.attention(self.norm_1(x)) * (number + 1)
        return x + self.mlp(self.norm_2(x if bias is None else x + bias))


class CalledInWays(Around):
    """The calls of its one layer differ in a constant, and the last in a tensor that the others have not."""

    checkpointing = False

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Rounded()])
        self.bias = nn.Parameter(torch.randn(HIDDEN))

    def run(self, x: torch.Tensor) -> torch.Tensor:
        for number in range(3):
            bias = self.bias if number == 2 else None
            if self.checkpointing:
                x = checkpoint(self.layers[0], x, number, bias, use_reentrant=False)
            else:
                x = self.layers[0](x, number, bias)
        return x


@pytest.mark.sweep(day=1, days=2)
def test_calls_that_compute_something_else_have_a_kind_of_their_own() -> None:
    model = CalledInWays()
    want = gradients(model)
    model = evolving(model)
    assert [layer.program for layer in model.report.layers] == ["Rounded", "Rounded_2", "Rounded_3"]
    assert [layer.name for layer in model.report.layers] == ["layers.0", "layers.0#2", "layers.0#3"]
    assert all(layer.notes == [] for layer in model.report.layers)
    model.set_step(20)
    got = gradients(model)
    assert torch.equal(got[0], want[0])
    assert all(torch.equal(got[1][name], want[1][name]) for name in want[1])
    model.set_step(10)
    units = model.subnetwork.units.values()
    assert len({str(each) for each in units}) == 1
    twin = copy.deepcopy(model)
    twin.checkpointing = True
    for step in (0, 1, 2, 10):
        model.set_step(step)
        twin.set_step(step)
        for name, grad in gradients(model)[1].items():
            assert torch.equal(grad, gradients(twin)[1][name]), (step, name)


def test_a_constant_that_changes_nothing_makes_no_kind_and_is_not_traced_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Counted(PreNorm):
        def forward(self, x: torch.Tensor, number: int) -> torch.Tensor:  # type: ignore[override]
            return super().forward(x)

    class Counting(InList):
        def run(self, x: torch.Tensor) -> torch.Tensor:
            for number in range(4):
                x = self.layers[number % 2](x, number)
            return x

    model = Counting(Counted(), Counted())
    want = gradients(model)
    model = evolving(model, verify=False)
    assert {layer.program for layer in model.report.layers} == {"Counted"}
    model.set_step(20)
    with caplog.at_level("INFO", logger="estfx"):
        got = gradients(model)
        model.set_step(0)
        gradients(model)
    assert torch.equal(got[0], want[0])
    assert "tracing" not in caplog.text


# -- calls without a graph, and changed layers ---------------------------------------------------------------------


class LastByValue(PreNorm):
    """Has no graph of the calls that are told to look at values."""

    def forward(self, x: torch.Tensor, looks: bool = False) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x) if not looks or x.sum() > 0 else x


class LooksAtTheEnd(InList):
    def run(self, x: torch.Tensor) -> torch.Tensor:
        for looks in (False, False, True):
            for layer in self.layers:
                x = layer(x, looks) if isinstance(layer, LastByValue) else layer(x)
        return x


def test_a_module_one_of_whose_calls_has_no_graph_stays_as_it_is_in_all_of_them() -> None:
    model = LooksAtTheEnd(LastByValue(), PreNorm())
    twin = copy.deepcopy(model)
    model = evolving(model)
    programs = {layer.name: layer.program for layer in model.report.layers}
    assert list(programs) == [f"layers.{i}{call}" for call in ("", "#2", "#3") for i in (0, 1)]
    assert [name for name, program in programs.items() if not program] == ["layers.0", "layers.0#2", "layers.0#3"]
    model.set_step(20)
    got, want = gradients(model), gradients(twin)
    assert torch.equal(got[0], want[0])
    assert all(torch.equal(got[1][name], want[1][name]) for name in want[1])
    for step in (0, 1):
        model.set_step(step)
        assert set(model.subnetwork.layers) == {"layers.1", "layers.1#2", "layers.1#3"}
        gradients(model)


class Adapted(nn.Linear):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features)
        self.weight, self.bias = base.weight, base.bias
        self.a, self.b = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.b(self.a(x))


def test_adapters_put_into_a_layer_that_is_called_again_are_trained_in_every_call() -> None:
    model = evolving(Universal(2, 3))
    twin = Universal(2, 3)
    twin.load_state_dict(model.state_dict())
    for each in (model, twin):
        torch.manual_seed(0)
        each.layers[0].mlp.up = Adapted(each.layers[0].mlp.up)
    model.set_step(20)
    got, want = gradients(model), gradients(twin)
    assert torch.equal(got[0], want[0])
    assert got[1].keys() == want[1].keys()
    assert "layers.0.mlp.up.a.weight" in got[1]
    assert all(torch.equal(got[1][name], want[1][name]) for name in want[1])
    model.set_step(11)
    gradients(model)
    assert "layers.0.mlp.up.b.weight" not in model.subnetwork.parameters()  # neurons are whole in this stage
    model.set_step(0)
    gradients(model)
    listed = model.subnetwork.parameters()
    running = {name.partition("#")[0] for name, runs in model.subnetwork.layers.items() if runs}
    assert ("layers.0.mlp.up.b.weight" in listed) == ("layers.0" in running)
