"""What is taken for a layer beyond `nn.ModuleList`, and layers that are named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from foreign_decoders import Around, AsAttributes, InDict, OddlyNamed, ScaledBetween, SequentialMlp, Universal
from hand_written import HIDDEN, VOCABULARY, Mlp, PreNorm, Stack, stream
from torch import nn

import estfx
from estfx.errors import TraceError, UnsupportedModelError
from estfx.tracing.capture import capture_layers

IDS = (torch.randint(VOCABULARY, (3, 17)),)


def names(model: nn.Module, layers: Any = None, inputs: object = IDS) -> list[str]:
    return [call.name for call in capture_layers(model, inputs, layers)]


# -- finding -------------------------------------------------------------------------------------------------------


def test_the_parts_of_an_mlp_are_no_layers() -> None:
    with pytest.raises(UnsupportedModelError, match="no layers found in `SequentialMlp`"):
        names(SequentialMlp(), inputs=stream())


class Experts(PreNorm):
    """Experts in a list, to which its MLP gives the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Mlp() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + sum(expert(x) for expert in self.experts)


def test_experts_in_lists_do_not_hide_the_layers_around_them() -> None:
    model = nn.Sequential(*(Experts() for _ in range(3)))
    assert names(model, inputs=stream()) == ["0", "1", "2"]
    assert names(Stack(Experts(), Experts()), inputs=stream()) == ["layers.0", "layers.1"]


def test_stages_of_layers_are_looked_into() -> None:
    stages = nn.Sequential(*(nn.Sequential(PreNorm(), PreNorm()) for _ in range(2)))
    assert names(stages, inputs=stream()) == ["0.0", "0.1", "1.0", "1.1"]


def test_siblings_that_are_not_in_a_chain_are_no_layers() -> None:
    class Parallel(Around):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = PreNorm(), PreNorm()

        def run(self, x: torch.Tensor) -> torch.Tensor:
            return self.one(x) + self.other(x)

    with pytest.raises(UnsupportedModelError, match=r"What looks like layers in it: `o\*` \(2 of `PreNorm`\)"):
        names(Parallel())


def test_a_layer_that_is_also_called_within_another_is_none() -> None:
    class Holding(PreNorm):
        def __init__(self, held: nn.Module) -> None:
            super().__init__()
            self.held = held

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.held(super().forward(x))

    inner = PreNorm()
    assert names(Stack(inner, Holding(inner)), inputs=stream()) == ["layers.1"]


def test_a_refusal_names_what_could_be_meant() -> None:
    with pytest.raises(UnsupportedModelError) as error:
        names(ScaledBetween())
    assert str(error.value) == (
        "no layers found in `ScaledBetween`: it has no nn.ModuleList that holds modules that map a residual stream to "
        "its own shape, and no other siblings of it do so in a chain. Put the layers into an nn.ModuleList and let "
        'each take the stream and return it, or name them with layers="blocks.*". What looks like layers in it: '
        "`blocks.*` (3 of `PreNorm`)."
    )


class OneBlock(nn.Module):
    """A block that is called again with what it returned, as in universal transformers; and a head like it, once."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.last = PreNorm(), PreNorm()

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            x_BTD = self.block(x_BTD)
        return self.last(x_BTD * 2)


def test_one_module_that_is_called_again_is_a_layer_each_time() -> None:
    assert list(estfx.trace(OneBlock(), (stream(),)).layers) == ["block", "block#2", "block#3"]


def test_what_a_module_in_two_layers_reads_counts_for_both() -> None:
    """A difference that is only read within a list in a layer makes kinds."""

    class Scaling(nn.Linear):
        factor = 1.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * self.factor

    class Listed(PreNorm):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.parts = nn.ModuleList([Scaling(HIDDEN, HIDDEN)])
            self.parts[0].factor = factor

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + self.parts[0](x)

    decoder = estfx.trace(Stack(Listed(1.0), Listed(2.0)), stream())
    assert list(decoder.layers.values()) == ["Listed", "Listed_2"]


def test_what_is_read_of_one_call_is_given_by_all() -> None:
    class Beside(PreNorm):
        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(x), x.mean(-1)

    class Twice(Stack):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x, _ = self.layers[0](x)
            x, mean = self.layers[0](x)
            return x * mean.sum()

    assert [call.alive for call in capture_layers(Twice(Beside()), stream())] == [{1}, {1}]


def test_a_module_is_a_branch_if_all_of_its_calls_are() -> None:
    class Rounds(Stack):
        then: Any = staticmethod(lambda x, y: x + y)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = x + layer(x)
            for layer in self.layers:
                x = self.then(x, layer(x))
            return x

    class Otherwise(Rounds):
        then = staticmethod(lambda x, y: x * y)

    for model, added in ((Rounds(Mlp(), Mlp()), True), (Otherwise(Mlp(), Mlp()), False)):
        assert [call.added for call in capture_layers(model, stream())] == [added] * 4


def test_a_shared_layer_whose_attributes_change_between_its_calls_is_refused() -> None:
    class Told(PreNorm):
        round = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.mlp(self.norm_2(x)) * (1 + self.round)

    class Telling(Stack):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for number in range(3):
                self.layers[0].round = number
                self.layers[0].unread = number
                x = self.layers[0](x)
            return x

    message = r"`layers\.0` is called 3 times in a forward, and reads its attribute `round`, .* \(0, 1, 2\)"
    with pytest.raises(TraceError, match=message):
        names(Telling(Told()), inputs=stream())
    del Told.forward
    assert len(names(Telling(Told()), inputs=stream())) == 3


# -- naming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "layers", "found"),
    [
        (AsAttributes, "block?", [f"block{i}" for i in range(6)]),
        (AsAttributes, ["block1", "block4"], ["block1", "block4"]),
        (AsAttributes, ("block[0-2]", "block5"), ["block0", "block1", "block2", "block5"]),
        (InDict, "*.layer_*", [f"blocks.layer_{i}" for i in range(3)]),
        (OddlyNamed, "stack.3", ["stack.3"]),
        (Universal, "layers.1", ["layers.1", "layers.1#2", "layers.1#3"]),
    ],
)
def test_a_pattern_names_layers_component_by_component(model: Any, layers: Any, found: list[str]) -> None:
    assert names(model(), layers) == found


def test_a_list_of_one_module_is_named_once() -> None:
    model = Stack(*[PreNorm()] * 3)
    assert names(model, "layers.*", stream()) == ["layers.0", "layers.0#2", "layers.0#3"]


class Uncalled(AsAttributes):
    def __init__(self) -> None:
        super().__init__()
        self.block6 = PreNorm()


class Nested(Around):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Sequential(PreNorm(), PreNorm()), PreNorm())

    def run(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x)


@pytest.mark.parametrize(
    ("model", "layers", "message"),
    [
        (
            AsAttributes,
            "blocks.*",
            "layers='blocks.*' matches no module of `AsAttributes`. "
            "What looks like layers in it: `block*` (6 of `PreNorm`).",
        ),
        (InDict, ["blocks.layer_0", "h"], "layers='h' matches no module of `InDict`. What looks like"),
        (Uncalled, "block*", "layers= names `block6`, which `Uncalled` never calls. What looks like layers in it"),
        (Universal, "layers", '`layers` only holds modules; name its members, layers="layers.*".'),
        (InDict, "blocks.*.mlp.up", "(Linear), which does not map a residual stream to its own shape: a layer takes"),
        (Nested, ["blocks.0", "blocks.0.*"], "layers= names `blocks.0.0` and `blocks.0`, one of which lies in the"),
        (InDict, [], "layers=[] names nothing; pass a pattern such as"),
        (InDict, "", "layers='' names nothing; pass a pattern such as"),
        (InDict, [3], "layers=[3] names nothing; pass a pattern such as"),
    ],
)
def test_refusal_of_names_that_are_no_layers(model: Any, layers: Any, message: str) -> None:
    with pytest.raises(UnsupportedModelError) as error:
        names(model(), layers)
    assert message in str(error.value)


def test_all_that_look_at_a_model_take_names() -> None:
    model, schedule = OddlyNamed(), estfx.Schedule.est(30)
    with pytest.raises(UnsupportedModelError, match="no layers found"):
        estfx.inspect(model, IDS)
    assert [layer.name for layer in estfx.inspect(model, IDS, layers="stack.*").layers] == names(model, "stack.*")
    dumped = estfx.dump(model, schedule, 0, IDS, layers="stack.*")
    assert "3 layers (stack.first layer, stack.second-layer, stack.3)" in dumped


def test_a_plan_takes_names() -> None:
    from tiny_decoders import build

    model, schedule = build("gpt2"), estfx.Schedule.est(30)
    every = estfx.plan(model, schedule, batch_size=2, seq_len=16)
    two = estfx.plan(model, schedule, batch_size=2, seq_len=16, layers="transformer.h.[01]")
    assert two.whole.flops_layers == every.whole.flops_layers * 2 / 3
    assert two.whole.parameters == every.whole.parameters
