"""What layers do beside returning a stream: it is done in training too, or the layer stays whole with a reason."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hand_written import HIDDEN, Chain, Mlp
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

import estfx
from estfx.schedules import Schedule, Stage
from estfx.tracing.effects import reached

WHOLE = Schedule(stages=[Stage(start=0)])
HALF = Schedule(stages=[Stage(start=0, neurons=0.5), Stage(start=10)])


class Manager:
    """Collects losses, as code of mixtures of experts does."""

    def __init__(self) -> None:
        self.losses: list[torch.Tensor] = []
        self.last: dict[str, torch.Tensor] = {}


MANAGER = Manager()


class Routed(nn.Module):
    """An MLP whose gate has a loss of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = Mlp()
        self.gate = nn.Linear(HIDDEN, 4)

    def update(self, x_BTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        share = self.gate(x_BTD).softmax(-1)
        return self.mlp(x_BTD) * share.max(-1, keepdim=True).values, share.mean((0, 1)).square().sum()


class InAnAttribute(Routed):
    aux_loss: torch.Tensor | None = None

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        update, self.aux_loss = self.update(x_BTD)
        return x_BTD + update


class InAnObject(Routed):
    def __init__(self, manager: Manager) -> None:
        super().__init__()
        self.manager = manager

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        update, loss = self.update(x_BTD)
        self.manager.losses.append(loss)
        self.manager.last["loss"] = loss
        return x_BTD + update


class InAGlobal(Routed):
    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        update, loss = self.update(x_BTD)
        MANAGER.losses.append(loss)
        return x_BTD + update


class InAnArgument(Routed):
    def forward(self, x_BTD: torch.Tensor, losses: list[torch.Tensor]) -> torch.Tensor:
        update, loss = self.update(x_BTD)
        losses.append(loss)
        return x_BTD + update


class TwoInAnArgument(Routed):
    def forward(self, x_BTD: torch.Tensor, losses: list[torch.Tensor]) -> torch.Tensor:
        update, loss = self.update(x_BTD)
        losses.append(loss)
        losses.append(loss.sqrt() * 3)
        return x_BTD + update


class Decoder(nn.Module):
    """Adds up what its layers have left to a loss of its own."""

    def __init__(self, make: Callable[[], nn.Module], left: Callable[[Any], list[torch.Tensor]] | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(make() for _ in range(3))
        self.left = left

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        found: list[torch.Tensor] = []
        for layer in self.layers:
            x_BTD = layer(x_BTD) if self.left else layer(x_BTD, found)
        found = self.left(self) if self.left else found
        loss = x_BTD.square().mean() + sum(found)
        if self.left:
            MANAGER.losses.clear()
        return loss


def in_attributes(model: Any) -> list[torch.Tensor]:
    return [layer.aux_loss for layer in model.layers]


def in_objects(model: Any) -> list[torch.Tensor]:
    manager = model.layers[0].manager
    losses = [*manager.losses, manager.last["loss"]]
    manager.losses.clear()
    return losses


def in_global(model: Any) -> list[torch.Tensor]:
    return list(MANAGER.losses)


def one_manager() -> Callable[[], nn.Module]:
    manager = Manager()
    return lambda: InAnObject(manager)


FORMS: dict[str, Callable[[], Decoder]] = {
    "attribute": lambda: Decoder(InAnAttribute, in_attributes),
    "object": lambda: Decoder(one_manager(), in_objects),
    "global": lambda: Decoder(InAGlobal, in_global),
    "argument": lambda: Decoder(InAnArgument, None),
    "two in an argument": lambda: Decoder(TwoInAnArgument, None),
}


def stream() -> torch.Tensor:
    return torch.randn(2, 5, HIDDEN, generator=torch.Generator().manual_seed(1))


def trained(model: nn.Module, runs: int = 2) -> list[Any]:
    """Losses and gradients of some runs in a row."""
    found: list[Any] = []
    for _ in range(runs):
        model.zero_grad()
        loss = model(stream())
        loss.backward()
        found += [loss.detach(), *(p.grad.clone() if p.grad is not None else None for p in model.parameters())]
    return found


def assert_alike(one: list[Any], other: list[Any]) -> None:
    for a, b in zip(one, other, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("form", FORMS)
def test_a_loss_that_a_layer_leaves_is_trained(form: str) -> None:
    original = FORMS[form]()
    twin = copy.deepcopy(original)
    model = estfx.transform(original, WHOLE, example_inputs=(stream(),), compile=False)
    assert not MANAGER.losses
    assert [len(layer.axes) for layer in model.report.layers] == [1, 1, 1]
    assert not any(layer.droppable for layer in model.report.layers)
    model.set_step(0)
    assert_alike(trained(model), trained(twin))


@pytest.mark.parametrize("form", FORMS)
def test_and_of_a_part_it_is_that_of_the_layer_itself(form: str) -> None:
    model = estfx.transform(FORMS[form](), HALF, example_inputs=(stream(),), compile=False)
    model.set_step(0)
    losses = [model(stream()) for _ in range(2)]
    assert torch.equal(*losses)
    assert losses[0].requires_grad
    losses[0].backward()
    assert all(layer.gate.weight.grad.abs().sum() > 0 for layer in model.layers)
    model.set_step(10)
    assert not torch.equal(model(stream()), losses[0])
    estfx.restore(model)


def test_nothing_of_a_trace_stays_where_a_layer_leaves_something() -> None:
    model = FORMS["object"]()
    estfx.transform(model, HALF, example_inputs=(stream(),), compile=False)
    manager: Any = model.layers[0].manager
    assert manager.losses == []
    assert manager.last == {}
    model = FORMS["attribute"]()
    estfx.transform(model, HALF, example_inputs=(stream(),), compile=False)
    assert all(layer.aux_loss is None for layer in model.layers)


@pytest.mark.parametrize("form", FORMS)
def test_no_fake_tensor_can_be_reached_after_transform(form: str) -> None:
    model = estfx.transform(FORMS[form](), HALF, example_inputs=(stream(),), compile=False)
    model.set_step(0)
    model(stream())
    assert not [way for value, *way in reached(model) if isinstance(value, FakeTensor)]


def test_an_attribute_that_a_layer_leaves_something_in_is_no_change_of_it(caplog: pytest.LogCaptureFixture) -> None:
    model = estfx.transform(FORMS["attribute"](), HALF, example_inputs=(stream(),), compile=False)
    with caplog.at_level("INFO", logger="estfx"):
        for step in range(4):
            model.set_step(step)
            model(stream()).backward()
    assert "tracing" not in caplog.text


# -- what no graph does again ----------------------------------------------------------------------------------------


class Simple(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = Mlp()
        self.seen: set[int] = set()
        self.names: list[str] = []
        self.rng = np.random.default_rng(0)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD + self.mlp(x_BTD)


class DrawsInPython(Simple):
    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD + self.mlp(x_BTD) * random.random()


class DrawsInNumPy(Simple):
    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD + self.mlp(x_BTD) * np.random.rand()


class DrawsOfItsOwn(Simple):
    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD + self.mlp(x_BTD) * self.rng.random()


class AppendsText(Simple):
    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        self.names.append("ran")
        return x_BTD + self.mlp(x_BTD)


class GrowsASet(Simple):
    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        self.seen.add(len(self.seen))
        return x_BTD + self.mlp(x_BTD)


class Deletes(Simple):
    def __init__(self) -> None:
        super().__init__()
        self.left = dict.fromkeys(range(1000))

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        self.left.popitem()
        return x_BTD + self.mlp(x_BTD)


class SetsAnObject(Simple):
    last: object = None

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        self.last = Manager()
        return x_BTD + self.mlp(x_BTD)


NOT_AGAIN = {
    DrawsInPython: r"a call draws numbers of `random`, which a graph would draw once and for all",
    DrawsInNumPy: r"a call draws numbers of `numpy.random`, which",
    DrawsOfItsOwn: r"a call changes `rng`",
    AppendsText: r"a call appends to `names`",
    GrowsASet: r"a call changes `seen`",
    Deletes: r"a call deletes `left\[99\d\]`",
    SetsAnObject: r"a call sets `last` anew",
}


@pytest.mark.parametrize("layer", NOT_AGAIN)
def test_a_layer_that_does_what_no_graph_does_stays_whole(layer: type[nn.Module]) -> None:
    model = nn.Sequential()
    model.layers = nn.ModuleList([Simple(), layer(), Simple()])
    model.forward = lambda x: model.layers[2](model.layers[1](model.layers[0](x)))  # type: ignore[assignment]
    before = random.getstate()
    estfx.transform(model, HALF, example_inputs=(stream(),), compile=False)
    assert random.getstate() == before
    first, left, last = model.report.layers  # type: ignore[union-attr, misc]
    assert [a.role for a in first.axes] == [a.role for a in last.axes] == ["neurons"]
    (note,) = left.notes
    assert re.search(NOT_AGAIN[layer], note), note


# -- tensors that a layer just holds ---------------------------------------------------------------------------------


class Scaled(nn.Module):
    """Holds tensors that are neither parameters nor buffers."""

    def __init__(self, scale: float, where: str) -> None:
        super().__init__()
        self.mlp = Mlp()
        self.where = where
        tensor = torch.full((HIDDEN,), scale)
        self.held: Any = {"attribute": tensor, "list": [tensor], "dict": {"scale": tensor}, "object": Manager()}[where]
        if where == "object":
            self.held.scale = tensor

    def scale(self) -> torch.Tensor:
        held = self.held
        return {
            "attribute": lambda: held,
            "list": lambda: held[0],
            "dict": lambda: held["scale"],
            "object": lambda: held.scale,
        }[self.where]()

    def put(self, tensor: torch.Tensor) -> None:
        if self.where == "attribute":
            self.held = tensor
        elif self.where == "object":
            self.held.scale = tensor
        else:
            self.held[0 if self.where == "list" else "scale"] = tensor

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD + self.mlp(x_BTD) * self.scale()


@pytest.mark.parametrize("where", ["attribute", "list", "dict", "object"])
def test_each_layer_runs_with_the_tensors_that_it_holds(where: str) -> None:
    original = Chain(Scaled(0.5, where), Scaled(2.0, where))
    twin = copy.deepcopy(original)
    model = estfx.transform(original, WHOLE, example_inputs=(stream(),), compile=False)
    assert len({layer.program for layer in model.report.layers}) == 1
    model.set_step(0)
    assert_alike(trained(model), trained(twin))
    for each in (model, twin):
        each.layers[1].put(torch.full((HIDDEN,), -3.0))
    model.set_step(1)
    assert_alike(trained(model), trained(twin))


class InPlace(Scaled):
    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.scale().mul_(0.5)
        return super().forward(x_BTD)


def test_one_that_is_written_in_place_is_refused() -> None:
    model = Chain(Scaled(0.5, "list"), InPlace(2.0, "list"))
    twin = copy.deepcopy(model)
    estfx.transform(model, WHOLE, example_inputs=(stream(),), compile=False)
    assert "a call changes what the layer holds (`held[0]` at mul_" in model.report.layers[1].notes[0]  # type: ignore
    model.set_step(0)  # type: ignore[operator]
    assert torch.equal(model.layers[1].scale(), torch.full((HIDDEN,), 2.0))  # type: ignore[operator]
    assert_alike(trained(model), trained(twin))


# -- results of other types ------------------------------------------------------------------------------------------


@dataclass
class Result:
    stream: torch.Tensor
    scores: torch.Tensor | None = None
    name: str = "layer"


class GivesADataclass(Simple):
    def forward(self, x_BTD: torch.Tensor) -> Result:  # type: ignore[override]
        return Result(super().forward(x_BTD), x_BTD.mean())


class ReadsDataclasses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(GivesADataclass() for _ in range(2))

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            result = layer(x_BTD)
            assert isinstance(result, Result)
            assert result.name == "layer"
            x_BTD = result.stream
        return x_BTD.square().mean()


def test_a_layer_may_return_a_dataclass() -> None:
    original = ReadsDataclasses()
    twin = copy.deepcopy(original)
    model = estfx.transform(original, HALF, example_inputs=(stream(),), compile=False)
    assert [[axis.role for axis in layer.axes] for layer in model.report.layers] == [["neurons"]] * 2
    model.set_step(10)
    assert_alike(trained(model), trained(twin))


class MixesTheFirst(nn.Module):
    """Is given the embeddings first, and its stream after them."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = Mlp()
        self.share = nn.Parameter(torch.tensor(0.25))

    def forward(self, x0_BTD: torch.Tensor, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD + self.mlp(x_BTD + self.share * x0_BTD)


class WithTheFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MixesTheFirst() for _ in range(3))

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        first = x_BTD
        for layer in self.layers:
            x_BTD = layer(first, x_BTD)
        return x_BTD.square().mean()


def test_the_stream_is_the_tensor_that_comes_back() -> None:
    original = WithTheFirst()
    twin = copy.deepcopy(original)
    schedule = Schedule(stages=[Stage(start=0, neurons=0.5, layers=0.34), Stage(start=10)])
    model = estfx.transform(original, schedule, example_inputs=(stream(),), compile=False)
    assert len({layer.program for layer in model.report.layers}) == 1
    assert all(layer.droppable and layer.axes for layer in model.report.layers)
    model.set_step(10)
    assert_alike(trained(model), trained(twin))
    model.set_step(0)
    (running,) = [name for name, runs in model.subnetwork.layers.items() if runs]
    x = stream()
    units = model.subnetwork.units[running]["neurons"]
    layer = twin.get_submodule(running)
    with torch.no_grad():
        mask = torch.zeros(layer.mlp.down.weight.shape[1]).index_fill(0, units, 2.0)
        layer.mlp.down.weight *= mask
    torch.testing.assert_close(model(x), layer(x, x).square().mean())
