"""What a stage of a schedule costs."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["StagePlan"]


class StagePlan(BaseModel):
    """A stage and what one optimizer step on one batch costs in it; where layers are drawn, on the average of draws."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: int  # first optimizer step
    stop: int  # one past the last
    heads: float  # keep fractions asked for
    neurons: float
    layers: float
    flops_layers: float  # forward and backward, in the layers alone
    flops_model: float  # embedding, LM head and all else counted too
    parameters: float  # numbers that take part
    activation_bytes: float  # kept for the backward pass by the layers when run uncompiled
    units: dict[str, tuple[int, int]] = {}  # heads (and channels), neurons, layers: how many are kept, of how many
    flops_forward: dict[str, float] = {}  # of the layers' forward pass, by part; empty where it cannot be told

    @property
    def steps(self) -> int:
        return self.stop - self.start
