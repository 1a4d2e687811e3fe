"""A transformed model in a pickle, in another process, after other modes; and what is refused before any work."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from hand_written import HIDDEN, Decoder, PreNorm
from tiny_decoders import build, tokens
from torch import nn

import estfx
from estfx.schedules import Schedule, Stage

STAGES = Schedule(
    stages=[Stage(start=0, heads=0.5, neurons=0.5, layers=0.5), Stage(start=10)], policy="weighted_gradient_magnitude"
)


def evolving(name: str = "llama") -> Any:
    return estfx.transform(build(name, num_hidden_layers=4) if name == "llama" else build(name), STAGES, compile=False)


def trained(model: Any, step: int = 3) -> list[torch.Tensor]:
    model.set_step(step)
    model.zero_grad()
    output = model(input_ids=tokens(), labels=tokens())
    output.loss.backward()
    return [output.logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def by_pickle(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


def by_torch(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("way", [by_pickle, by_torch, copy.deepcopy])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_what_comes_out_trains_the_same_part(way: Any, name: str) -> None:
    model = evolving(name)
    model.set_step(3)
    made = way(model)
    assert type(made) is type(model)
    assert made.step == 3
    assert made.schedule == model.schedule
    assert made.report == model.report
    for one, other in zip(trained(model, 4), trained(made, 4), strict=True):
        assert torch.equal(one, other)
    plain = estfx.restore(made)
    assert type(plain).__name__ == type(model).__name__
    assert not any("_estfx" in vars(module) for module in plain.modules())


def test_a_selection_is_kept() -> None:
    model = evolving()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        trained(model, step)
        optimizer.step()
    made = by_pickle(model)
    for one, other in zip(made.selection.state_dict().values(), model.selection.state_dict().values(), strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_its_step_is_kept_also_the_first_one_and_none() -> None:
    model = evolving()
    assert by_pickle(model).step is None
    model.set_step(0)
    assert by_pickle(model).step == 0


def in_another_process(rank: int, model: Any, folder: str) -> None:
    torch.set_num_threads(1)  # with more, sums are made in another order
    torch.save(trained(model), Path(folder) / f"{rank}.pt")


@pytest.mark.sweep(day=2, days=4)
def test_it_can_be_given_to_another_process(tmp_path: Path) -> None:
    model = evolving()
    torch.multiprocessing.spawn(in_another_process, (model, str(tmp_path)), nprocs=1)
    for one, other in zip(torch.load(tmp_path / "0.pt"), trained(model), strict=True):
        assert torch.equal(one, other)


def test_training_goes_on_after_inference_mode() -> None:
    model, twin = evolving(), evolving()
    twin.load_state_dict(model.state_dict())
    with torch.inference_mode():
        model.eval()
        model(tokens())
        model.train()
        model.set_step(2)
        model(tokens())
    for one, other in zip(trained(model, 2), trained(twin, 2), strict=True):
        assert torch.equal(one, other)


# -- refused before any work ---------------------------------------------------------------------------------------


def test_what_was_compiled_before_is_refused() -> None:
    with pytest.raises(estfx.UnsupportedModelError, match=r"torch.compile was called on this model before transform"):
        estfx.transform(torch.compile(build("gpt2")), STAGES)  # type: ignore[arg-type]
    model = build("gpt2")
    model.compile()
    with pytest.raises(estfx.UnsupportedModelError, match=r"`\.compile\(\)` was called on the model before transform"):
        estfx.transform(model, STAGES)
    model = build("gpt2")
    model.transformer.h[1].compile()
    with pytest.raises(estfx.UnsupportedModelError, match=r"was called on `transformer.h.1` before"):
        estfx.transform(model, STAGES)
    assert type(model).__name__ == "GPT2LMHeadModel"
    assert "_estfx" not in vars(model)


def test_weights_that_are_no_numbers_are_named() -> None:
    model = build("gpt2")
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[3, 4] = torch.nan
    with pytest.raises(estfx.UnsupportedModelError, match=r"parameter `transformer.h.1.mlp.c_fc.weight` .* holds NaN"):
        estfx.transform(model, STAGES)


# -- a subnetwork is a value -----------------------------------------------------------------------------------------


def test_a_subnetwork_answers_for_its_own_step() -> None:
    model = evolving()
    model.set_step(0)
    first = model.subnetwork
    want = first.parameters()
    assert want
    later = functools.partial(first.parameters)
    model.set_step(15)
    assert not model.subnetwork.parameters()
    same(later(), want)
    estfx.restore(model)
    same(later(), want)


def same(one: dict[str, dict[int, torch.Tensor]], other: dict[str, dict[int, torch.Tensor]]) -> None:
    assert {name: list(dims) for name, dims in one.items()} == {name: list(dims) for name, dims in other.items()}
    for name, dims in one.items():
        assert all(torch.equal(index, other[name][dim]) for dim, index in dims.items())


class Foreign(nn.Module):
    """Not of transformers, with example inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Decoder(PreNorm(), PreNorm())

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.inner(ids)
        return result


def test_a_model_of_ones_own_in_a_pickle() -> None:
    ids = torch.arange(10).view(2, 5)
    model = estfx.transform(Foreign(), STAGES, example_inputs=(ids,), compile=False)
    model.set_step(1)
    assert torch.equal(by_pickle(model)(ids), model(ids))
    assert HIDDEN == 40
