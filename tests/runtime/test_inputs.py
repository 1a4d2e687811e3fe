"""Whatever a training batch is made of: masks, packing, embeddings, lengths, batches of one, dtypes, checkpointing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hand_written import HIDDEN, Mlp, Stack, stream
from masked_decoders import EverythingDouble, masked
from tiny_decoders import build, tokens
from torch import nn
from torch.utils.checkpoint import checkpoint

import estfx
from estfx.programs import compilation, layer_kind
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage
from estfx.tracing.exporting.ignored_numbers import without_unread

SCHEDULE = Schedule(stages=[Stage(start=0, heads=0.67, neurons=0.5), Stage(start=10)])
NARROW, WHOLE = 0, 10  # steps
SHAPES = ((2, 19), (3, 7))
Inputs = dict[str, Any]


def left_padded(ids: torch.Tensor) -> torch.Tensor:
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    return mask


def right_padded(ids: torch.Tensor) -> torch.Tensor:
    return left_padded(ids).flip(1)


def restarting(ids: torch.Tensor) -> torch.Tensor:
    first = ids.shape[1] // 2
    return torch.cat([torch.arange(first), torch.arange(ids.shape[1] - first)])[None].expand(len(ids), -1)


def counted(ids: torch.Tensor) -> torch.Tensor:
    return torch.arange(ids.shape[1])[None]


INPUTS: dict[str, Callable[[nn.Module, torch.Tensor], Inputs]] = {
    "token ids": lambda model, ids: {"input_ids": ids},
    "a mask that masks nothing": lambda model, ids: {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
    "left padding": lambda model, ids: {"input_ids": ids, "attention_mask": left_padded(ids)},
    "right padding": lambda model, ids: {"input_ids": ids, "attention_mask": right_padded(ids)},
    "packed sequences": lambda model, ids: {"input_ids": ids, "position_ids": restarting(ids)},
    "positions in one row": lambda model, ids: {"input_ids": ids, "position_ids": counted(ids)},
    "positions expanded": lambda model, ids: {"input_ids": ids, "position_ids": counted(ids).expand(len(ids), -1)},
    "embeddings": lambda model, ids: {"inputs_embeds": model.get_input_embeddings()(ids)},
}


class Traces:
    """How many graphs were made since it was last asked."""

    number = 0

    def taken(self) -> int:
        number, self.number = self.number, 0
        return number


@pytest.fixture(scope="module")
def traces() -> Iterator[Traces]:
    seen = Traces()
    made = layer_kind.trace_call

    def trace_call(call: Any) -> Any:
        seen.number += 1
        return made(call)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer_kind, "trace_call", trace_call)
        yield seen


def small(name: str, **values: Any) -> nn.Module:
    return build(name, **{"n_layer" if name == "gpt2" else "num_hidden_layers": 2}, **values)


def evolving(model: nn.Module, **options: Any) -> nn.Module:
    return estfx.transform(model, SCHEDULE, **{"compile": False, "verify": False, **options})


@pytest.fixture(scope="module", params=["gpt2", "llama_grouped"])
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    """A transformed model and the original."""
    return evolving(small(request.param)), small(request.param)


def result(model: nn.Module, inputs: Inputs, ids: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    output = model(**inputs, labels=ids, use_cache=False)
    output.loss.backward()
    return output.logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_equal(model: nn.Module, twin: nn.Module, make: Any, ids: torch.Tensor) -> None:
    logits, grads = result(model, make(model, ids), ids)
    want_logits, want_grads = result(twin, make(twin, ids), ids)
    assert torch.equal(logits, want_logits)
    assert grads.keys() == want_grads.keys()
    assert [name for name in grads if not torch.equal(grads[name], want_grads[name])] == []


# -- every kind of input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", INPUTS)
def test_every_input_is_traced_once_and_equal_to_the_bit(
    pair: tuple[nn.Module, nn.Module], kind: str, traces: Traces
) -> None:
    model, twin = pair
    for number, shape in enumerate(SHAPES):
        ids = tokens(*shape)
        traces.taken()
        model.set_step(WHOLE)
        assert_equal(model, twin, INPUTS[kind], ids)
        assert traces.taken() <= (number == 0)
        model.set_step(NARROW)
        result(model, INPUTS[kind](model, ids), ids)
        assert traces.taken() == 0


@pytest.mark.parametrize("kind", ["token ids", "left padding", "packed sequences"])
def test_a_batch_of_one_is_traced_once(pair: tuple[nn.Module, nn.Module], kind: str, traces: Traces) -> None:
    model, twin = pair
    model.set_step(WHOLE)
    traces.taken()
    for number, length in enumerate((19, 8, 19)):
        assert_equal(model, twin, INPUTS[kind], tokens(1, length))
        assert traces.taken() <= (number == 0)


def test_a_single_token(pair: tuple[nn.Module, nn.Module]) -> None:
    model, twin = pair
    model.set_step(WHOLE)
    for batch in (1, 2):
        ids = tokens(batch, 1)
        assert torch.equal(model(input_ids=ids).logits, twin(input_ids=ids, use_cache=False).logits)


def test_no_later_step_traces_what_an_earlier_one_did(pair: tuple[nn.Module, nn.Module], traces: Traces) -> None:
    model, _ = pair
    for again in (False, True):
        traces.taken()
        for step, make in enumerate([*INPUTS.values(), *INPUTS.values()]):
            model.set_step(step)
            result(model, make(model, tokens(2, 10 + step)), tokens(2, 10 + step))
        assert traces.taken() == 0 or not again


@pytest.fixture(scope="module")
def double() -> tuple[nn.Module, nn.Module]:
    original = small("llama_grouped").double()
    return evolving(copy.deepcopy(original)), original


@pytest.mark.parametrize("kind", ["left padding", "right padding", "packed sequences", "embeddings"])
def test_a_subnetwork_on_any_input_is_the_masked_whole(double: tuple[nn.Module, nn.Module], kind: str) -> None:
    model, twin = double[0], copy.deepcopy(double[1])
    model.set_step(NARROW)
    ids = tokens()
    sizes = {axis.role: axis.size for axis in model.report.layers[0].axes}
    with EverythingDouble():
        logits, grads = result(model, INPUTS[kind](model, ids), ids)
        with masked(twin, "llama_grouped", model.subnetwork, sizes) as masks:
            want_logits, want_grads = result(twin, INPUTS[kind](twin, ids), ids)
    seen = left_padded(ids) if kind == "left padding" else right_padded(ids) if kind == "right padding" else ids + 1
    difference = (logits - want_logits)[seen > 0]
    assert difference.abs().max() <= 1e-10 * want_logits.abs().max()
    largest = max(grad.abs().max() for grad in want_grads.values())
    for name, grad in want_grads.items():
        want = grad * masks.get(name, 1)
        assert (grads[name] - want).abs().max() <= 1e-10 * max(want.abs().max(), 1e-3 * largest), name


def test_sliding_windows() -> None:
    model = small("gemma2", sliding_window=8)
    twin = copy.deepcopy(model)
    evolving(model).set_step(WHOLE)
    for length in (19, 5):  # longer than the window, and shorter
        for kind in ("token ids", "left padding"):
            assert_equal(model, twin, INPUTS[kind], tokens(2, length))


# -- dtypes, checkpointing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32], ids=["weights", "autocast"])
def test_bfloat16(weights: torch.dtype, traces: Traces) -> None:
    model = small("llama_grouped").to(weights)
    twin = copy.deepcopy(model)
    evolving(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=weights is torch.float32):
        for kind in ("token ids", "left padding") if weights is torch.float32 else ("left padding",):
            traces.taken()
            for shape in SHAPES:
                model.set_step(WHOLE)
                assert_equal(model, twin, INPUTS[kind], tokens(*shape))
                model.set_step(NARROW)
                result(model, INPUTS[kind](model, tokens(*shape)), tokens(*shape))
            assert traces.taken() <= 1


class Precise(nn.Module):
    """Computes its neurons in single precision, also where all else runs under autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = Mlp()

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            inner = self.mlp.up(x_BTD.float())
        return x_BTD + self.mlp.down(inner.relu())


def test_a_layer_that_leaves_autocast_leaves_it_in_its_graph() -> None:
    model = Stack(Precise(), Precise())
    twin = copy.deepcopy(model)
    estfx.transform(model, Schedule(stages=[Stage(start=0)]), example_inputs=(stream(),), compile=False)
    with torch.autocast("cpu", torch.bfloat16):
        model.set_step(0)
        assert torch.equal(model(stream()), twin(stream()))


def checkpointed(model: nn.Module, reentrant: bool) -> nn.Module:
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    return model


def test_checkpointing_changes_no_gradient_and_traces_nothing(traces: Traces) -> None:
    model = evolving(small("llama_grouped"))
    twins = [checkpointed(copy.deepcopy(model), reentrant) for reentrant in (False, True)]
    for kind in ("token ids", "left padding", "embeddings"):
        model.set_step(NARROW)
        result(model, INPUTS[kind](model, tokens()), tokens())
        traces.taken()
        for twin in twins:
            twin.set_step(NARROW)
            assert_equal(twin, model, INPUTS[kind], tokens())
        assert traces.taken() == 0


# -- compilation ---------------------------------------------------------------------------------------------------


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    made: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        made.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(compilation, "BACKEND", backend)
    return made


class Masked(Mlp):
    def forward(self, x_BTD: torch.Tensor, mask_BT: torch.Tensor | None = None) -> torch.Tensor:
        return x_BTD + super().forward(x_BTD if mask_BT is None else x_BTD * mask_BT[..., None])


class Masking(Stack):
    """Hands a mask on, to layers that may be checkpointed."""

    checkpointed = False

    def forward(self, x_BTD: torch.Tensor, mask_BT: torch.Tensor | None = None) -> torch.Tensor:
        for layer in self.layers:
            if self.checkpointed:
                x_BTD = checkpoint(layer, x_BTD, mask_BT, use_reentrant=False)
            else:
                x_BTD = layer(x_BTD, mask_BT)
        return x_BTD


def masking(**options: Any) -> tuple[nn.Module, Callable[..., torch.Tensor]]:
    """A model and a training step of it."""
    model = Masking(Masked(), Masked())
    evolving(model, example_inputs=(stream(),), **options).set_step(NARROW)

    def step(batch: int, length: int, mask: bool) -> torch.Tensor:
        x_BTD = torch.randn(batch, length, HIDDEN, generator=torch.Generator().manual_seed(0), requires_grad=True)
        model(x_BTD, left_padded(torch.ones(batch, length)) if mask else None).square().mean().backward()
        return x_BTD.grad

    return model, step


def test_sizes_become_dynamic_once_and_masks_may_come_and_go(compilations: list[Any]) -> None:
    model, train = masking(compile=True)
    for mask in (False, True):
        compilations.clear()
        for shape in ((2, 19), (2, 11), (3, 11)):  # as they are; any length; any batch
            train(*shape, mask)
        assert len(compilations) <= 3
    compilations.clear()
    for step, shape in enumerate(((2, 30), (5, 7), (4, 13), (3, 12), (2, 5))):
        model.set_step(step)
        train(*shape, False)
        train(*shape, True)
    assert compilations == []


def test_compiled_programs_run_under_checkpointing(compilations: list[Any]) -> None:
    model, train = masking(compile=True)
    model.checkpointed = True  # which stops its recomputation by an exception
    torch.manual_seed(0)
    twin, train_twin = masking()
    twin.load_state_dict(model.state_dict())
    for mask in (False, True):
        torch.testing.assert_close(train(3, 11, mask), train_twin(3, 11, mask))
    assert len(compilations) == 2


# -- what a layer's code asks about its inputs ---------------------------------------------------------------------


class Residual(Mlp):
    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD + super().forward(x_BTD)


class ByLength(Residual):
    """Another computation for long sequences, as a layer with chunked attention has it."""

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        x_BTD = super().forward(x_BTD)
        return x_BTD * 2 if x_BTD.shape[1] > 10 else x_BTD


class ByRoot(Residual):
    """Asks for a function of the length, which is no sum or product of sizes."""

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        x_BTD = super().forward(x_BTD)
        return x_BTD * 2 if x_BTD.shape[1] ** -0.5 < 0.3 else x_BTD


class StepByStep(Residual):
    """A recurrence, whose graph holds every position."""

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        state, states = torch.zeros_like(x_BTD[:, 0]), []
        for x_BD in x_BTD.unbind(1):
            state = torch.tanh(state + x_BD)
            states.append(state)
        return super().forward(x_BTD + torch.stack(states, dim=1))


@pytest.mark.parametrize(
    ("layer", "lengths", "most"),
    [(ByLength, (5, 12, 3, 11), 1), (ByRoot, (5, 13, 3, 12), 1), (StepByStep, (2, 3, 4), 2)],
)
def test_a_graph_serves_no_length_that_it_was_not_made_for(
    layer: type[Residual], lengths: tuple[int, ...], most: int, traces: Traces
) -> None:
    model = Stack(layer(), layer())
    twin = copy.deepcopy(model)
    evolving(model, example_inputs=(torch.randn(3, lengths[-1], HIDDEN),)).set_step(WHOLE)
    traces.taken()
    for length in lengths * 2:
        x = torch.randn(2, length, HIDDEN)
        assert torch.equal(model(x), twin(x))
    assert traces.taken() == most


class Handing(Stack):
    """Hands a number on to its layers."""

    def forward(self, x_BTD: torch.Tensor, number: float) -> torch.Tensor:
        for layer in self.layers:
            x_BTD = layer(x_BTD, number=number)
        return x_BTD


class Deaf(Residual):
    def forward(self, x_BTD: torch.Tensor, number: float | None = None) -> torch.Tensor:
        if number is not None and isinstance(number, int | float):  # of which kind it is may be asked
            x_BTD = x_BTD + 1
        return super().forward(x_BTD)


class Scaling(Residual):
    def forward(self, x_BTD: torch.Tensor, number: float | None = None) -> torch.Tensor:
        return super().forward(x_BTD) * number


@pytest.mark.parametrize(("layer", "graphs"), [(Deaf, 1), (Scaling, 4)])
def test_a_number_makes_a_graph_for_each_value_only_if_it_is_read(
    layer: type[Residual], graphs: int, traces: Traces
) -> None:
    model = Handing(layer(), layer())
    twin = copy.deepcopy(model)
    evolving(model, example_inputs=(stream(), 2)).set_step(WHOLE)
    traces.taken()
    for number in (3, 4, 5, 0.5, 3, 4):
        assert torch.equal(model(stream(), number), twin(stream(), number))
    assert traces.taken() == graphs


class ReadsAtTimes(Residual):
    def forward(self, x_BTD: torch.Tensor, number: float, reads: bool) -> torch.Tensor:
        return super().forward(x_BTD) * (number if reads else 1)


class HandingBoth(Stack):
    def forward(self, x_BTD: torch.Tensor, number: float, reads: bool) -> torch.Tensor:
        for layer in self.layers:
            x_BTD = layer(x_BTD, number=number, reads=reads)
        return x_BTD


def test_a_number_that_is_read_in_some_calls_is_read() -> None:
    model = HandingBoth(ReadsAtTimes(), ReadsAtTimes())
    twin = copy.deepcopy(model)
    evolving(model, example_inputs=(stream(), 2, False)).set_step(WHOLE)
    for number, reads in ((3, False), (4, True), (5, True), (6, False), (5, True), (7, True)):
        assert torch.equal(model(stream(), number, reads), twin(stream(), number, reads))


def test_numbers_of_packed_batches_are_not_read(traces: Traces) -> None:
    model = evolving(small("llama_grouped"))
    model.set_step(NARROW)
    traces.taken()
    for first in (5, 7, 9):
        ids = tokens(1, 20)
        ends = torch.tensor([0, first, 20], dtype=torch.int32)
        positions = torch.cat([torch.arange(first), torch.arange(20 - first)])[None]
        longest = 20 - first
        packing = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
        model(input_ids=ids, labels=ids, position_ids=positions, **packing).loss.backward()
    assert traces.taken() == 1


@pytest.mark.parametrize(
    ("function", "unread"),
    [
        (lambda given: None, {0, 2}),
        (lambda given: given[0] + 1, {2}),
        (lambda given: 1 - given[2], {0}),
        (lambda given: given[0] < given[2], set()),
        (lambda given: [1, 2][given[0]], {2}),
        (lambda given: bool(given[2]), {0}),
        (lambda given: f"{given[0]:03d}", {2}),
        (lambda given: torch.ones(2) * given[2], {0}),
        (lambda given: isinstance(given[0], int) or given[2] + 1, {0, 2}),
    ],
)
def test_which_numbers_are_read(function: Callable[[list[Any]], Any], unread: set[int]) -> None:
    assert without_unread(lambda given: (function(given), 0), [1, "text", 0.5])[1] == unread


def test_an_error_is_that_of_the_numbers_themselves() -> None:
    with pytest.raises(ZeroDivisionError):
        without_unread(lambda given: given[0] / 0, [1])
