"""What is measured: the model, its batch, and the arms."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from estfx.schedules import Count, Fraction
from estfx.settings import Settings, nearest
from estfx.training import ModelSettings

__all__ = ["ARMS", "REFERENCE", "BenchSettings"]

# By name, what each arm is. Those of estfx are the stages of Schedule.est.
ARMS = {
    "eager": "the original, uncompiled",
    "compiled": "the original under torch.compile, whole",
    "compiled_layers": "the original, each layer compiled by itself",
    "stage_1": "estfx: a part of the heads, neurons and layers",
    "stage_2": "estfx: a part of the heads and neurons, all layers",
    "stage_3": "estfx: everything kept",
    "masked": "the stage-2 heads and neurons as masks on the weights of the original, which saves nothing",
    "layer_drop": "the original, each layer compiled, a part of the layers passed over in Python",
    "checkpointed": "the original, each layer compiled and recomputed in the backward pass",
}
REFERENCE = "compiled"  # times are given as ratios to its times in the same round


class BenchSettings(Settings):
    """One measurement."""

    model: ModelSettings = ModelSettings()  # as in a run
    batch_size: Count = 8  # sequences
    seq_len: Annotated[int, Field(ge=2, strict=True)] = 256  # tokens
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU if there is one
    dtype: Literal["float32", "bfloat16"] = "float32"  # of weights and activations
    keep: Fraction = 0.5  # of heads, neurons and layers in the stages that keep a part of them
    arms: Annotated[Sequence[str], AfterValidator(tuple)] = tuple(ARMS)  # what is compared; one is `compiled`
    rounds: Count = 9  # in each of which every arm does one step
    warmup: Count = 3  # steps of every arm before that; the first ones compile
    seed: Annotated[int, Field(ge=0, lt=2**32, strict=True)] = 0  # of weights, tokens and draws

    @model_validator(mode="after")
    def _arms_are_known(self) -> Self:
        for name in self.arms:
            if name not in ARMS:
                raise ValueError(f"unknown arm {name!r}; {nearest(name, ARMS)}")
        if REFERENCE not in self.arms:
            raise ValueError(f"the arms lack {REFERENCE!r}, to which the others are compared.")
        return self
