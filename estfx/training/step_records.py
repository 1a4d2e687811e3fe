"""What is noted of every optimizer step of a training run."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LEFT_OUT", "StepRecord"]

LEFT_OUT = 3  # first steps of every stage, in which its programs are compiled: of no use for measuring seconds


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step."""

    step: int
    stage: int  # from 1
    loss: float
    seconds: float
